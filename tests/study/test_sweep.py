"""Sweeps: what stands in a file, every run once, whatever happens in between."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from types import SimpleNamespace

import pandas as pd
import psutil
import pytest
import torch

from rlkd_lab.commands.study import _list_jobs
from rlkd_lab.runs import RunFolder, first_difference
from rlkd_lab.study import pools
from rlkd_lab.study import workers as module
from rlkd_lab.study.eval_table import read_table
from rlkd_lab.study.evaluation import Settings, check_splits
from rlkd_lab.study.parts import by_arm, read_part
from rlkd_lab.study.pools import on_ray
from rlkd_lab.study.results import OVER, collect, curves, levels, over
from rlkd_lab.study.sweep import CHOSEN, Sweep, read_sweep, settled
from rlkd_lab.study.targets import task_of
from rlkd_lab.study.watch import run_watched
from rlkd_lab.study.workers import choose, run_sweep, stages
from rlkd_lab.tasks.verifier import guarded
from rlkd_lab.training import run
from rlkd_lab.training.data import data_of
from rlkd_lab.training.fingerprint import RESULTS
from tests.short import EMBEDDED, SHORT

SMALL = {
    "prompts_per_step": 2,
    "group_size": 2,
    "max_new_tokens": 24,
    "difficulty": "2",
    "eval_every": 0,
    "samples_every": 0,
    "checkpoint_every": 1,
    "traces": 8,
    "plan": "off",
    **SHORT,
}


def small(arms, **fields):
    return Sweep(**{"steps": 2, "seeds": 2, "settings": SMALL, "arms": arms, **fields})


def with_one_thread(config, path):
    """As a worker has it: sums in another order are other numbers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return run(config, path)
    finally:
        torch.set_num_threads(threads)


def test_a_file_becomes_jobs(tmp_path):
    (tmp_path / "sweep.toml").write_text(
        """
        steps = 30
        seeds = [3, 4]
        settings = {interference_every = 5, group_size = 6}
        [[arms]]
        name = "grpo"
        method = "grpo"
        settings = {group_size = 4}
        [[arms]]
        name = "kdrl"
        method = "kdrl"
        grid = {kd_coef = [0.05, 0.2], teacher = ["teacher", "teacher-concise"]}
        [evaluate]
        prompts = 16
        """
    )
    jobs = read_sweep(tmp_path / "sweep.toml").jobs()
    assert [(job.arm, job.seed) for job in jobs[:5]] == [
        ("grpo", 3),
        ("kdrl,kd_coef=0.05,teacher=teacher", 3),
        ("kdrl,kd_coef=0.05,teacher=teacher-concise", 3),
        ("kdrl,kd_coef=0.2,teacher=teacher", 3),
        ("kdrl,kd_coef=0.2,teacher=teacher-concise", 3),
    ]
    assert len(jobs) == 10
    assert {job.config.interference_every for job in jobs} == {5}
    assert [job.config.group_size for job in jobs[:5]] == [4, 6, 6, 6, 6]
    assert jobs[4].config.knobs == {"kd_coef": 0.2}
    assert jobs[4].config.teacher == "teacher-concise"
    assert {job.config.steps for job in jobs} == {30}
    assert len({job.folder(tmp_path) for job in jobs}) == 10


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (
            {"arms": [{"name": "a", "method": "kdrl", "settings": {"kd_cof": 1}}]},
            r"arm a: unknown .*'kd_cof'.*'kd_coef'",
        ),
        (
            {"arms": [{"name": "a", "method": "grpo", "settings": {"kd_coef": 1}}]},
            "arm a: grpo does not listen to kd_coef",
        ),
        (
            {"arms": [{"name": "a", "method": "kdrl", "grid": {"kd_coef": [0.1, 99]}}]},
            "arm a,kd_coef=99: .*0–10",
        ),
        (
            {"arms": [{"name": "a", "method": "kdlr"}]},
            "arm a: unknown method 'kdlr': did you mean 'kdrl'",
        ),
        (
            {"arms": [{"name": "a", "method": "grpo"}, {"name": "a", "method": "kdrl"}]},
            "two arms are called a",
        ),
        (
            {"arms": [{"name": "a", "method": "grpo"}, {"name": "b", "method": "grpo"}]},
            "arms a and b have the same settings",
        ),
        ({"arms": [{"name": "a", "method": "grpo"}], "seeds": []}, "needs seeds, each once"),
        ({"arms": [{"name": "a", "method": "grpo"}], "seeds": 0}, "needs seeds, each once"),
        ({"arms": [{"name": "a", "method": "grpo"}], "seeds": [1, 1]}, "needs seeds, each once"),
        (
            {"arms": [{"name": "a", "method": "kdrl"}, {"name": "A", "method": "grpo"}]},
            "arms a and A would lie in one folder",
        ),
        (
            {"arms": [{"name": "a", "method": "kdrl", "grid": {"teacher": ["./x/y", "./x_y"]}}]},
            "would lie in one folder, a,teacher=._x_y",
        ),
        (
            {"arms": [{"name": "a", "method": "kdrl", "settings": {"teacher": "./teecher"}}]},
            "there is no folder './teecher', where a model should lie",
        ),
    ],
)
def test_a_mistake_is_one_sentence_before_anything_is_trained(tmp_path, fields, says):
    with pytest.raises((ValueError, FileNotFoundError), match=says) as raised:
        run_sweep(Sweep(**{"seeds": 2, **fields}), tmp_path / "out")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("steps = ", "is no TOML file"),
        ("", "arms"),
        ("arms = []", "arms"),
        (
            "[[arms]]\nname = 'a'\nmethod = 'grpo'\nsetings = {}",
            "arms.0.setings: there is no such field",
        ),
        ("[[arms]]\nname = 'a'", "arms.0.method: it has to be given"),
        (
            "[[arms]]\nname = 'a'\nmethod = 'kdrl'\nsettings = {kd_coef = [1]}",
            "a setting is a text, a number, true or false",
        ),
        (
            "seeds = true\n[[arms]]\nname = 'a'\nmethod = 'grpo'",
            "how many seeds, at most 10000, or a list of them",
        ),
        ("[[arms]]\nname = '../a'\nmethod = 'grpo'", "name='../a'"),
        ("[[arms]]\nname = 'a.'\nmethod = 'grpo'", "name='a.'"),  # Windows drops the dot
        ("[[arms]]\nname = 'a'\nmethod = 'grpo'\n[evaluate]\nsplit = 'train'", "split='train'"),
        (
            "[[arms]]\nname = 'a'\nmethod = 'grpo'\ngrid = {learning_rate = []}",
            "grid.learning_rate",
        ),
        ("[[arms]]\nname = 'a'\nmethod = 'grpo'\n[evaluate]\ntemperature = inf", "temperature"),
        ("steps = 0\n[[arms]]\nname = 'a'\nmethod = 'grpo'", "steps=0"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path, text, says):
    (tmp_path / "sweep.toml").write_text(text)
    with pytest.raises(ValueError, match=says) as raised:
        read_sweep(tmp_path / "sweep.toml")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("seeds", [0, [1, 1]])
def test_seeds_are_looked_at_before_any_trial(tmp_path, seeds):
    sweep = small(
        [{"name": "a", "method": "grpo", "trials": [{"learning_rate": 0.001}]}],
        seeds=seeds,
        tune={},
    )
    with pytest.raises(ValueError, match="needs seeds, each once"):
        list(stages(sweep, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_file_from_windows_may_begin_with_its_mark(tmp_path):
    (tmp_path / "sweep.toml").write_bytes(b"\xef\xbb\xbf[[arms]]\nname = 'a'\nmethod = 'grpo'\n")
    assert read_sweep(tmp_path / "sweep.toml").arms[0].name == "a"


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep") / "out"
    sweep = small(
        [{"name": "grpo", "method": "grpo"}, {"name": "kdrl", "method": "kdrl"}],
        evaluate={"prompts": 4, "samples": 2},
    )
    seen = []
    assert (
        run_sweep(
            sweep,
            out,
            workers=2,
            on_change=lambda finished, jobs: seen.append((len(finished), len(jobs))),
        )
        == []
    )
    return sweep, out, seen


def test_a_sweep_runs_everything_once_and_its_runs_are_those_of_rlkd_train(done, tmp_path):
    sweep, out, seen = done
    assert all(over(job.folder(out)) for job in sweep.jobs())
    assert seen[-1] == (4, 4)
    job = sweep.jobs()[3]
    assert first_difference(
        RunFolder.open(job.folder(out)).rows(), with_one_thread(job.config, tmp_path / "run").rows()
    ) == (None, 0.0)
    table = pd.read_csv(out / "runs.csv")
    assert list(zip(table["arm"], table["seed"], strict=True)) == [
        ("grpo", 0),
        ("kdrl", 0),
        ("grpo", 1),
        ("kdrl", 1),
    ]
    assert {
        "reward",
        "id avg",
        "ood avg",
        "id pass@2",
        "id length",
        "tokens",
        "seconds",
        "worker_gib",
    } <= set(table)
    assert not table["diverged"].any()
    prompts = read_part(out).shares("kdrl")
    assert prompts.shape == (2, 4)  # seeds, prompts
    assert prompts.mean(axis=1).tolist() == table.loc[table["arm"] == "kdrl", "id avg"].tolist()


def test_other_questions_are_asked_of_what_is_over(done, tmp_path):
    """Neither kept from another split nor trained again; nor is one whose numbers are gone
    taken for evaluated.
    """
    sweep, made, _ = done
    out = tmp_path / "out"
    shutil.copytree(made, out)
    fewer = sweep.model_copy(update={"seeds": 1, "arms": sweep.arms[:1]})
    (job,) = fewer.jobs()
    trained = (job.folder(out) / "metrics.jsonl").stat().st_mtime_ns
    assert module._evaluated(job, job.folder(out))
    (job.folder(out) / "eval" / "step_000002.csv").write_text("nothing")
    assert not module._evaluated(job, job.folder(out))
    other = fewer.model_copy(
        update={"evaluate": fewer.evaluate.model_copy(update={"split": "validation"})}
    )
    assert run_sweep(other, out, workers=1) == []
    table, record = read_table(job.folder(out) / "eval" / "step_000002.parquet")
    assert record["split"] == "validation" and len(pd.read_csv(out / "runs.csv")["id avg"]) == 1
    assert set(table["prompt"]).isdisjoint(
        read_table(job.folder(made) / "eval" / "step_000002.parquet")[0]["prompt"]
    )
    assert (job.folder(out) / "metrics.jsonl").stat().st_mtime_ns == trained
    assert module._evaluated(other.jobs()[0], job.folder(out)) and not module._evaluated(
        job, job.folder(out)
    )


def test_the_best_checkpoint_is_evaluated_too_and_stands_beside_the_last(tmp_path):
    """Best by validation prompts; the later one of equals. It outlives the checkpoints."""
    arms = [{"name": "grpo", "method": "grpo"}]
    asked = {"prompts": 4, "samples": 2, "ood": False, "best": True}
    settings = {**SMALL, "eval_every": 1, "eval_prompts": 4, "learning_rate": 0.01}
    sweep = small(arms, evaluate=asked, settings=settings, seeds=3, steps=3)
    assert run_sweep(sweep, tmp_path, workers=1) == []
    table = pd.read_csv(tmp_path / "runs.csv").set_index("seed")
    for job in sweep.jobs():
        path = job.folder(tmp_path)
        scores = RunFolder.open(path).metrics()["eval/accuracy"]
        best = max(scores.index, key=lambda step: (scores[step], step))
        assert table.loc[job.seed, "best step"] == best
        frame = read_table(path / "eval" / f"step_{best:06d}.parquet")[0]
        assert table.loc[job.seed, "best id avg"] == frame["correct"].mean()
        assert (path / "eval" / "step_000003.csv").exists()
        shutil.rmtree(path / "checkpoints")
    assert run_sweep(sweep, tmp_path, workers=1) == []
    assert pd.read_csv(tmp_path / "runs.csv").set_index("seed").equals(table)
    never = small(arms, evaluate=asked)
    with pytest.raises(ValueError, match="best in \\[evaluate\\] needs eval_every"):
        never.jobs()


def test_started_again_it_runs_nothing_and_what_is_missing_is_taken_up(done, monkeypatch):
    sweep, out, _ = done
    before = {
        path: path.stat().st_mtime_ns
        for path in out.rglob("*")
        if path.is_file() and path.parent != out
    }
    assert run_sweep(sweep, out, workers=1) == []
    assert {path: path.stat().st_mtime_ns for path in before} == before
    more = sweep.model_copy(update={"seeds": 3})
    assert run_sweep(more, out, workers=2) == []
    assert len(collect(more, out)) == 6
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_run_that_has_lost_rows_since_is_not_in_the_table_and_computes_them_again(done, tmp_path):
    sweep, out, _ = done
    shutil.copytree(out, tmp_path / "out")
    path = sweep.jobs()[0].folder(tmp_path / "out")
    before, table = RunFolder.open(path).rows(), collect(sweep, out)
    RunFolder.open(path).truncate("metrics.jsonl", 1)
    with pytest.raises(
        ValueError, match=r"has lost rows, 1 of \d+ are there: start the sweep again"
    ):
        collect(sweep, tmp_path / "out")
    assert run_sweep(sweep, tmp_path / "out", workers=1) == []
    assert first_difference(RunFolder.open(path).rows(), before) == (None, 0.0)
    same = ["arm", "seed", "steps", "reward", "id avg", "ood avg", "tokens"]
    pd.testing.assert_frame_equal(collect(sweep, tmp_path / "out")[same], table[same])
    (path / "outcome.json").write_text("{")
    with pytest.raises(
        ValueError,
        match=r"outcome\.json is damaged: delete it, and the sweep evaluates that run again",
    ):
        run_sweep(sweep, tmp_path / "out")


def test_other_settings_in_the_same_folder_are_refused(done):
    sweep, out, _ = done
    other = sweep.model_copy(update={"settings": {**SMALL, "learning_rate": 0.1}})
    with pytest.raises(ValueError, match="with other settings than this sweep's"):
        run_sweep(other, out)


def test_changed_rows_are_refused_before_the_other_runs_are_trained_on_them(tmp_path, monkeypatch):
    rows = [{"question": f"{i}+{i}?", "answer": str(2 * i)} for i in range(12)]
    file = tmp_path / "q.jsonl"
    settings = {name: value for name, value in SMALL.items() if name != "difficulty"}
    settings["task"] = str(file)
    sweep = small([{"name": "a", "method": "grpo"}], settings=settings, evaluate=None)
    job = sweep.jobs()[0]
    folder = RunFolder.create(job.folder(tmp_path / "out"), job.config.model_dump(), env={})
    tasks = []
    for answer in ("2", "3"):
        rows[1]["answer"] = answer
        file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        tasks.append(task_of(job.config))
    folder.write_json("env.json", {"data": data_of(tasks[0], str(file), [])})
    monkeypatch.setattr(module, "over", lambda path: path == folder.path)
    with pytest.raises(ValueError, match=r"seed_0 was trained on other data of .* as many rows"):
        module._check(sweep.jobs(), tmp_path / "out", "local")
    folder.write_json("env.json", {"data": data_of(tasks[1], str(file), [])})
    module._check(sweep.jobs(), tmp_path / "out", "local")


def test_two_processes_do_not_run_one_sweep(tmp_path, another):
    with (
        another(tmp_path) as pid,
        pytest.raises(ValueError, match=f"is being run by process {pid}"),
    ):
        run_sweep(small([{"name": "a", "method": "grpo"}]), tmp_path)


def test_a_killed_sweep_goes_on_without_loss(tmp_path):
    sweep = small([{"name": "kdrl", "method": "kdrl"}], steps=6)
    (tmp_path / "sweep.json").write_text(sweep.model_dump_json())
    code = f"""
from pathlib import Path
from rlkd_lab.study.sweep import Sweep
from rlkd_lab.study.workers import run_sweep
if __name__ == "__main__":
    sweep = Sweep.model_validate_json(Path({str(tmp_path / "sweep.json")!r}).read_text())
    run_sweep(sweep, {str(tmp_path / "out")!r}, workers=2)
"""
    (tmp_path / "go.py").write_text(code)
    process = subprocess.Popen([sys.executable, str(tmp_path / "go.py")], start_new_session=True)
    rows = [job.folder(tmp_path / "out") / "metrics.jsonl" for job in sweep.jobs()]
    until = time.monotonic() + 120
    while not all(path.exists() and path.read_text().count("\n") >= 2 for path in rows):
        assert time.monotonic() < until
        assert process.poll() is None
        time.sleep(0.05)
    # those that hold runs, two unless one is done already; other children are Python's own fork
    # server and resource tracker
    workers = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if any(str(tmp_path / "out") in file.path for file in child.open_files())
    ]
    assert workers
    process.kill()  # the parent alone: its workers must not go on without it
    process.wait()
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive
    kept = [path.read_text().splitlines()[0] for path in rows]
    assert run_sweep(sweep, tmp_path / "out", workers=2) == []
    assert [path.read_text().splitlines()[0] for path in rows] == kept  # taken up, not begun again
    job = sweep.jobs()[0]
    assert first_difference(
        RunFolder.open(job.folder(tmp_path / "out")).rows(),
        with_one_thread(job.config, tmp_path / "whole").rows(),
    ) == (None, 0.0)


def test_the_table_by_arm_is_students_interval_over_the_seeds_that_count():
    runs = pd.DataFrame(
        {
            "arm": ["a"] * 5 + ["b"],
            "diverged": [False] * 4 + [True, False],
            "touched": [False] * 3 + [True, False, False],
            "reward": [0.1, 0.2, 0.6, 5.0, 9.0, 0.7],
        }
    )
    a, b = by_arm(runs, ["reward"]).to_dict("records")
    assert (a["runs"], a["left_out"], a["reward"]) == (5, 2, pytest.approx(0.3))
    # three values, t = 4.3027 with two degrees of freedom, standard deviation .26458
    assert a["reward ±"] == pytest.approx(4.30265 * 0.264575 / 3**0.5, rel=1e-4)
    assert b["reward"] == 0.7
    assert b["reward ±"] != b["reward ±"]


def test_a_run_that_somebody_stopped_is_not_over(tmp_path, monkeypatch):
    monkeypatch.setattr(
        module,
        "load_or_train",
        lambda config, path: run(
            config, path, on_step=lambda loop, row: setattr(loop, "stopping", True)
        ),
    )
    job = small([{"name": "grpo", "method": "grpo"}], seeds=1).jobs()[0]
    with pytest.raises(RuntimeError, match="the run is idle, not done: somebody stopped it"):
        module.work(job, tmp_path)
    assert not over(job.folder(tmp_path))


def test_a_run_that_diverges_is_a_result_and_one_that_breaks_is_named(tmp_path, monkeypatch):
    def outcome(config, path):
        if config.method == "kdrl":
            raise RuntimeError("the disk is full")
        run(config, path)
        raise FloatingPointError("the loss of step 3 is nan")

    monkeypatch.setattr(module, "load_or_train", outcome)
    sweep = small([{"name": "grpo", "method": "grpo"}], seeds=1)
    job = sweep.jobs()[0]
    module.work(job, tmp_path)
    assert over(job.folder(tmp_path))
    assert collect(sweep, tmp_path)["diverged"].tolist() == [True]
    assert by_arm(
        collect(sweep.model_copy(update={"seeds": [7]}), tmp_path), []
    ).empty  # nothing is over yet
    with pytest.raises(RuntimeError, match="disk is full"):
        module.work(small([{"name": "kdrl", "method": "kdrl"}]).jobs()[0], tmp_path)


def test_overlapping_splits_are_refused_before_anything_is_trained(tmp_path):
    """A task of one's own that forgets the split: its test prompts are its training prompts."""
    (tmp_path / "task.py").write_text(
        """
import random

from rlkd_lab.tasks import Example, Score


class Sums:
    name = "sums"
    train_difficulty, ood_difficulty = (2, 2), None

    def examples(self, n, seed, split="train", difficulty=None):
        rng = random.Random(f"{seed} {split}")
        pairs = [(rng.randint(1, 9), rng.randint(1, 9)) for _ in range(n)]
        return [Example(f"{a}+{b}?", str(a + b), 2, f"{a}{b}") for a, b in pairs]

    def score(self, completion, example):
        return Score({"accuracy": float(completion == "#" + example.answer)}, completion)
"""
    )
    sweep = small(
        [{"name": "grpo", "method": "grpo"}],
        evaluate={"prompts": 8},
        settings={**SMALL, "task": f"{tmp_path}/task.py:Sums"},
    )
    with pytest.raises(
        ValueError,
        match=r"the task sums has overlapping splits: \d+ prompts are in train and in validation,"
        r" such as '\d\+\d\?'",
    ):
        run_sweep(sweep, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_more_test_prompts_than_validation_rows_raise_no_warning(tmp_path, recwarn):
    """The sweep asks test rows; how many validation rows there are is another matter."""
    rows = [("question", "answer", "split"), ("1+1?", 2, "train"), ("2+1?", 3, "validation")]
    rows += [(f"{i}+3?", i + 3, "test") for i in range(8)]
    (tmp_path / "sums.csv").write_text("\n".join(",".join(map(str, row)) for row in rows))
    check_splits(guarded(f"{tmp_path}/sums.csv"), Settings(prompts=8))
    assert not recwarn.list


# --- choosing settings ----------------------------------------------------------------------------

TRIALS = [
    {
        "name": "grpo",
        "method": "grpo",
        "trials": [{"learning_rate": 0.001}, {"learning_rate": 0.002}],
    },
    {"name": "sft", "method": "sft", "trials": [{"learning_rate": 0.001}, {"learning_rate": 0.0}]},
]
TUNE = {"seed": 9, "prompts": 4, "samples": 2}


def test_trials_are_a_sweep_of_their_own_with_another_seed_on_validation_prompts():
    sweep = small(TRIALS, tune=TUNE)
    trials = sweep.tuning()
    assert [(job.arm, job.seed) for job in trials.jobs()] == [
        ("grpo.1", 9),
        ("grpo.2", 9),
        ("sft.1", 9),
        ("sft.2", 9),
    ]
    assert trials.evaluate.split == "validation" and not trials.evaluate.ood
    assert [job.config.knobs["learning_rate"] for job in trials.jobs()] == [
        0.001,
        0.002,
        0.001,
        0.0,
    ]
    best = sweep.tuned({"grpo": 2, "sft": 1})
    assert {(job.arm, job.seed, job.config.knobs["learning_rate"]) for job in best.jobs()} == {
        ("grpo", 0, 0.002), ("grpo", 1, 0.002), ("sft", 0, 0.001), ("sft", 1, 0.001),
    }  # fmt: skip
    with pytest.raises(ValueError, match="not chosen yet"):
        sweep.jobs()


@pytest.mark.parametrize(
    ("arms", "tune", "says"),
    [
        (
            TRIALS,
            {"seed": 1},
            "seed 1 chooses the settings, so it cannot be among the seeds that count",
        ),
        (
            [TRIALS[0], {**TRIALS[1], "trials": [{"learning_rate": 0.1}]}],
            TUNE,
            "arm grpo has 2 trials and arm sft 1: every arm gets the same number",
        ),
        (
            [TRIALS[0], {"name": "sft", "method": "sft"}],
            TUNE,
            "arm grpo has 2 trials and arm sft 0",
        ),
        ([{"name": "kdrl", "method": "kdrl"}], TUNE, "at least 1"),
        ([{**TRIALS[0], "grid": {"clip_high": [0.2, 0.3]}}], TUNE, "has a grid"),
        (
            [{**TRIALS[0], "grid": {"clip_high": [0.2, 0.3]}}],
            {**TUNE, "grid": {"clip_low": [0.2, 0.3]}},
            "has a grid",
        ),
        (TRIALS, {**TUNE, "finalists": 1}, "finalists and one seed"),
        (TRIALS, None, "no [tune] that would choose"),
    ],
)
def test_unfair_trials_are_refused(arms, tune, says):
    sweep = small(arms, tune=tune)
    with pytest.raises(ValueError, match=re.escape(says)):
        (sweep.tuning() if tune else sweep).jobs()


def leave_behind(job, out, outcome):
    """A run that is over, without training."""
    folder = RunFolder.create(job.folder(out), job.config.model_dump(mode="json"), {})
    folder.write_json(OVER, outcome)
    for step in range(1, job.config.steps + 1):
        folder.append("metrics.jsonl", {"step": step, "num_tokens": 1, "step_time": 1.0})
    return folder


def trial_folders(sweep, out, scores):
    """What trials leave behind, without training: one accuracy each, ``None`` for one that
    diverged.
    """
    for job, score in zip(sweep.jobs(), scores, strict=True):
        folder = leave_behind(
            job,
            out,
            {"diverged": None if score is not None else "it blew up", "worker_gib": 1.0},
        )
        (folder.path / "eval").mkdir()
        if score is not None:
            pd.DataFrame(
                [
                    {
                        "set": "id",
                        "difficulty": "all",
                        "measure": "avg",
                        "value": score,
                        "low": 0,
                        "high": 1,
                    }
                ]
            ).to_csv(folder.path / "eval" / "step_000002.csv")


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ((0.3, 0.4, 0.2, 0.1), (2, 1)),
        ((0.3, 0.3, None, 0.1), (1, 2)),
        ((0.3, None, 0.0, 0.0), (1, 1)),
    ],
)
def test_the_best_trial_is_chosen_the_first_of_equals_and_none_that_diverged(
    tmp_path, scores, best
):
    sweep = small(TRIALS, tune=TUNE)
    assert settled(sweep, tmp_path) is None
    trial_folders(sweep.tuning(), tmp_path / "tuning", scores)
    choose(sweep, tmp_path)
    assert settled(sweep, tmp_path) == sweep.tuned(dict(zip(("grpo", "sft"), best, strict=True)))
    record = json.loads((tmp_path / CHOSEN).read_text())["arms"]["grpo"]["trials"]
    assert record == [
        {"settings": trial, "accuracy": score, "seeds": 1}
        for trial, score in zip(TRIALS[0]["trials"], scores[:2], strict=True)
    ]


def test_with_several_seeds_the_mean_of_a_trial_decides_and_one_that_diverged_loses(tmp_path):
    sweep = small(TRIALS, tune={**TUNE, "seed": [9, 8]})
    assert [job.seed for job in sweep.tuning().jobs()] == [9, 9, 9, 9, 8, 8, 8, 8]
    trial_folders(sweep.tuning(), tmp_path / "tuning", (0.9, 0.5, 0.4, 0.6, 0.1, 0.6, 0.3, None))
    choose(sweep, tmp_path)
    assert settled(sweep, tmp_path) == sweep.tuned({"grpo": 2, "sft": 1})
    with pytest.raises(ValueError, match="seed 2 chooses the settings"):
        small(TRIALS, tune={**TUNE, "seed": [9, 2]}, seeds=3).tuning()


RACE = {"seed": [9, 8, 7], "finalists": 2, "grid": {"learning_rate": [0.1, 0.2]}}
RACERS = [
    {"name": "grpo", "method": "grpo", "grid": {"clip_high": [0.2, 0.3]}},
    {"name": "sft", "method": "sft"},
]


def test_finalists_alone_get_the_other_seeds_and_the_mean_of_all_seeds_decides(tmp_path):
    sweep = small(RACERS, tune={**TUNE, **RACE})
    assert sweep.trials_of(sweep.arms[0]) == [
        {"learning_rate": 0.1, "clip_high": 0.2}, {"learning_rate": 0.1, "clip_high": 0.3},
        {"learning_rate": 0.2, "clip_high": 0.2}, {"learning_rate": 0.2, "clip_high": 0.3},
    ]  # fmt: skip
    listed = small([{**RACERS[1], "trials": [{"seed": 1}]}], tune={**TUNE, **RACE})
    assert listed.trials_of(listed.arms[0]) == [
        {"learning_rate": 0.1, "seed": 1}, {"learning_rate": 0.2, "seed": 1},
    ]  # fmt: skip
    rounds = stages(sweep, tmp_path)
    first, place = next(rounds)
    assert len(first.jobs()) == 6 and {job.seed for job in first.jobs()} == {9}
    trial_folders(first, place, (0.5, 0.9, 0.6, None, 0.1, 0.2))
    second, place = next(rounds)
    assert place == tmp_path / "finals"
    assert [(job.arm, job.seed) for job in second.jobs()] == [
        (arm, seed) for seed in (8, 7) for arm in ("grpo.2", "grpo.3", "sft.1", "sft.2")
    ]
    # grpo.2 was far ahead with the first seed; grpo.3 is ahead over all three: .6 against .5
    trial_folders(second, place, (0.3, 0.6, 0.4, 0.2, 0.3, 0.6, 0.4, 0.2))
    best, place = next(rounds)
    assert place == tmp_path and best == sweep.tuned({"grpo": 3, "sft": 1})
    assert best.arms[0].settings == {"learning_rate": 0.2, "clip_high": 0.2}
    arms = json.loads((tmp_path / CHOSEN).read_text())["arms"]
    assert [(one["accuracy"], one["seeds"]) for one in arms["grpo"]["trials"]] == [
        (0.5, 1), (pytest.approx(0.5), 3), (pytest.approx(0.6), 3), (None, 1),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="chosen from other trials"):
        settled(small(RACERS, tune={**TUNE, **RACE, "finalists": 1}), tmp_path)


def test_the_plan_of_a_race_lists_its_first_round_alone(tmp_path, capsys):
    """Which trials run with the other seeds is not known before."""
    _list_jobs(small(RACERS, tune={**TUNE, **RACE}), tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("/")[-1] for line in lines if line.startswith("to do")] == ["seed_9"] * 6
    assert "then the best 2 trials of each arm × 2 seeds" in lines


def test_trials_that_are_missing_or_all_diverged_choose_nothing(tmp_path):
    sweep = small(TRIALS, tune=TUNE)
    with pytest.raises(ValueError, match=r"4 of 4 trials are not over, grpo\.1 for one"):
        choose(sweep, tmp_path)
    trial_folders(sweep.tuning(), tmp_path / "tuning", (0.1, 0.2, None, None))
    with pytest.raises(ValueError, match="every trial of arm sft diverged"):
        choose(sweep, tmp_path)
    assert not (tmp_path / CHOSEN).exists()


def test_settings_chosen_from_other_trials_are_not_taken(tmp_path):
    sweep = small(TRIALS, tune=TUNE)
    trial_folders(sweep.tuning(), tmp_path / "tuning", (0.1, 0.2, 0.3, 0.4))
    choose(sweep, tmp_path)
    with pytest.raises(ValueError, match="chosen from other trials"):
        settled(
            small(
                [
                    {**TRIALS[0], "trials": [{"learning_rate": 0.003}, {"learning_rate": 0.002}]},
                    TRIALS[1],
                ],
                tune=TUNE,
            ),
            tmp_path,
        )
    assert (
        settled(small(TRIALS, tune=TUNE, seeds=4), tmp_path) is not None
    )  # more seeds may be added


def test_trials_and_then_the_runs_that_count(tmp_path):
    sweep = small(
        TRIALS,
        tune=TUNE,
        evaluate={"prompts": 4, "samples": 2},
        settings={**SMALL, **EMBEDDED, "max_new_tokens": 96},
    )
    ran = []
    for stage, folder in stages(sweep, tmp_path):
        assert run_sweep(stage, folder, workers=1) == []
        ran.append(len(stage.jobs()))
    assert ran == [4, 4]
    assert [len(stage.jobs()) for stage, _ in stages(sweep, tmp_path)] == [
        4
    ]  # nothing is chosen twice
    chosen = settled(sweep, tmp_path)
    runs, steps, numbers = (
        collect(chosen, tmp_path),
        curves(chosen, tmp_path),
        levels(chosen, tmp_path),
    )
    assert len(runs) == 4 and len(steps) == 8 and set(numbers["set"]) == {"id", "ood"}
    for table in (runs, steps, numbers):
        assert set(table["results_version"]) == {str(RESULTS)}
    sft = steps[steps["arm"] == "sft"]
    written = sft["sampled_tokens"].iloc[0]
    # eight traces of at most 96 tokens, written once, and not what is trained on
    assert 8 <= written <= 8 * 96 and (sft["sampled_tokens"] == written)[sft["seed"] == 0].all()
    own = steps[steps["arm"] == "grpo"]
    assert (own["sampled_tokens"] == own["num_tokens"]).all()
    assert (runs["train_seconds"] < runs["seconds"]).all()


def die(job, out, threads):
    """A worker that is killed in the run of seed 0, and works in the others."""
    if job.seed == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    leave_behind(job, out, {"diverged": None, "worker_gib": 1.0})


def test_a_worker_that_is_killed_takes_only_its_own_run_with_it(tmp_path, monkeypatch):
    sweep = small([{"name": "grpo", "method": "grpo"}], seeds=5)
    monkeypatch.setattr(module, "work", die)
    failed = run_sweep(sweep, tmp_path, workers=2)
    assert len(failed) == 1 and "seed_0: its worker was killed, perhaps for memory" in failed[0]
    assert [over(job.folder(tmp_path)) for job in sweep.jobs()] == [False, True, True, True, True]


# --- Ray ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster():
    """Two nodes on this machine, a core each."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    found = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    found.add_node(num_cpus=1)
    yield found.address
    found.shutdown()


class FakeRay:
    """Ray's calls that we use, with tasks that run when they are waited for."""

    def __init__(self, cpus):
        self.cpus, self.most, self.waiting, self.closed = cpus, 0, [], False

    def init(self, **given):
        assert given["include_dashboard"] is False

    def cluster_resources(self):
        return {"CPU": float(self.cpus)}

    def get_runtime_context(self):
        return SimpleNamespace(get_node_id=lambda: "a node")

    def remote(self, max_retries, num_cpus, num_gpus):
        assert (max_retries, num_cpus, num_gpus) == (0, 1, 0)

        def submit(call):
            return lambda job: self.waiting.append(lambda: call(job)) or self.waiting[-1]

        return lambda call: SimpleNamespace(remote=submit(call))

    def wait(self, references, timeout):
        self.most = max(self.most, len(references))
        return references[:1], references[1:]

    def get(self, reference):
        reference()

    def shutdown(self):
        self.closed = True


def test_tasks_of_a_cluster_are_few_at_a_time_and_each_failure_is_named(tmp_path, monkeypatch):
    ray, ticks, nodes = FakeRay(cpus=2), [], []

    def work(job, out, threads, node):
        nodes.append(node)
        if job.seed == 1:
            raise ValueError("the run broke")
        if job.seed != 2:  # seed 2 writes to a disk that is not shared
            leave_behind(job, out, {"diverged": None})

    monkeypatch.setitem(sys.modules, "ray", ray)
    jobs = small([{"name": "grpo", "method": "grpo"}], seeds=4).jobs()
    failed = on_ray(work, jobs, tmp_path, None, None, lambda: ticks.append(1))
    assert [over(job.folder(tmp_path)) for job in jobs] == [True, False, False, True]
    assert len(failed) == 2
    assert "seed_1: ValueError: the run broke" in failed[0]
    assert "seed_2: done on another node, and not here" in failed[1]
    assert (ray.most, ray.closed, len(ticks)) == (2, True, 4)
    assert nodes == ["a node"] * 4


@pytest.mark.ray
def test_a_cluster_gives_the_runs_of_this_machine_and_names_the_run_that_breaks(
    cluster, done, tmp_path
):
    """One arm cannot make its traces: none of eight is finished within two tokens."""
    _, here, _ = done
    arms = [
        {"name": "grpo", "method": "grpo"},
        {"name": "kdrl", "method": "kdrl"},
        {"name": "sft", "method": "sft", "settings": {"max_new_tokens": 2}},
    ]
    sweep, seen = small(arms, seeds=1), []
    failed = run_sweep(
        sweep,
        tmp_path,
        engine="ray",
        address=cluster,
        on_change=lambda finished, jobs: seen.append(len(finished)),
    )
    assert failed and all("ValueError: none of the teacher's 8 traces" in one for one in failed)
    whole = [job.folder(tmp_path) for job in sweep.jobs() if job.arm != "sft"]
    assert len(whole) == 2 and seen[-1] == 2
    assert len({json.loads((path / OVER).read_text())["node"] for path in whole} - {None}) == 2
    for path in whole:
        same = RunFolder.open(here / path.relative_to(tmp_path))
        assert first_difference(RunFolder.open(path).rows(), same.rows()) == (None, 0.0)
    before = [(path / OVER).stat().st_mtime for path in whole]
    run_sweep(sweep, tmp_path, engine="ray", address=cluster)
    assert before == [(path / OVER).stat().st_mtime for path in whole]


def test_a_cluster_that_is_not_there_is_a_sentence(tmp_path):
    pytest.importorskip("ray")
    with pytest.raises(ValueError, match=r"no Ray cluster at 127\.0\.0\.1:1"):
        run_sweep(
            small([{"name": "grpo", "method": "grpo"}]),
            tmp_path,
            engine="ray",
            address="127.0.0.1:1",
        )


def test_without_ray_its_engine_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'rlkd_lab\[ray\]'"):
        run_sweep(small([{"name": "grpo", "method": "grpo"}]), tmp_path, engine="ray")


@pytest.mark.parametrize(
    ("failed", "begun"), [([], ["trials", "counts"]), (["it broke"], ["trials"])]
)
def test_after_a_stage_with_failures_no_other_is_begun(
    tmp_path, monkeypatch, capsys, failed, begun
):
    folders = {"trials": tmp_path / "tuning", "counts": tmp_path}
    ran = []
    one = small([{"name": "grpo", "method": "grpo"}])
    monkeypatch.setattr(
        "rlkd_lab.study.watch.stages",
        lambda sweep, out: ((one, folder) for folder in folders.values()),
    )
    monkeypatch.setattr(
        "rlkd_lab.study.watch.run_sweep", lambda stage, folder, **how: ran.append(folder) or failed
    )
    assert run_watched(one, tmp_path, "core") == (one, folders[begun[-1]], failed)
    assert ran == [folders[name] for name in begun]
    assert ("core: 2 runs" in capsys.readouterr().err) == (begun[-1] == "counts")


@pytest.mark.parametrize("seen", [None, "4,7"])
def test_each_worker_starts_with_a_gpu_of_its_own(monkeypatch, tmp_path, seen):
    class Pool:
        def __init__(self, *_, mp_context, initargs, **__):
            assert mp_context.get_start_method() == "spawn"
            (self.later,) = initargs

        def submit(self, function, *given):
            started.append((os.environ.get("CUDA_VISIBLE_DEVICES"), function is os.getpid))
            assert not started[-1][1] or self.later["CUDA_VISIBLE_DEVICES"] == started[-1][0]
            future = Future()
            future.set_result(None)
            return future

        def shutdown(self):
            pass

    started = []
    monkeypatch.setattr(pools, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(pools, "default_device", lambda: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if seen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    assert pools.workers_here() == 2
    assert pools.in_processes(lambda *_: None, [None] * 4, tmp_path, 3, lambda: None) == []
    first, second = ("0", "1") if seen is None else ("4", "7")
    assert [gpu for gpu, starts in started if starts] == [first, second, first]
    assert [gpu for gpu, starts in started if not starts] == [seen] * 4
