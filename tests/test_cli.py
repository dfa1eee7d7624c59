import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from typer.testing import CliRunner

from rlkd_lab.commands import app
from rlkd_lab.commands.common import ended_like_ctrl_c
from rlkd_lab.objectives import METHODS
from rlkd_lab.runs import RunFolder
from rlkd_lab.study import read_table
from rlkd_lab.training.presets import PRESETS
from tests.short import SHORT

SMALL = (
    "prompts_per_step=2",
    "group_size=2",
    "max_new_tokens=24",
    "difficulty=2-2",
    "eval_every=0",
    "eval_prompts=8",
    "samples_every=0",
    *(f"{role}={folder}" for role, folder in SHORT.items()),
)


@pytest.fixture(scope="module")
def rlkd():
    """``rlkd(*words)``: the result of a command line, run in this process."""

    def call(*words):
        return CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(word) for word in words])

    return call


def train(method, out, *settings, steps=2):
    return (
        "train",
        "--method",
        method,
        "--steps",
        steps,
        "--out",
        out,
        *(part for setting in (*SMALL, *settings) for part in ("--set", setting)),
    )


def assert_refused(result, *says):
    """Status 2 and one sentence on stderr."""
    assert result.exit_code == 2, result.output
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("rlkd: ")
    for words in says:
        assert words in last
    assert "Traceback" not in result.output
    assert isinstance(result.exception, SystemExit)
    assert [line for line in result.stderr.splitlines() if line.startswith("rlkd: ")] == [last]


@pytest.fixture(scope="module")
def runs(rlkd, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    for method in ("kdrl", "grpo"):
        result = rlkd(*train(method, folder / method))
        assert result.exit_code == 0, result.output
        assert f"done: {folder / method}" in result.stdout
    return folder


def test_train_shows_progress_with_what_matters(rlkd, runs, tmp_path):
    result = rlkd(
        *train(
            "kdrl",
            tmp_path / "run",
            "kd_coef=linear:0.5:0.1",
            "aggregation=sequence",
            "lora_rank=4",
            steps=1,
        )
    )
    assert result.exit_code == 0
    for words in ("reward", "KL", "length", "GiB"):
        assert words in result.stderr
    config = RunFolder.open(tmp_path / "run").config()
    assert (config["knobs"], config["options"], config["lora_rank"]) == (
        {"kd_coef": "linear:0.5:0.1"},
        {"aggregation": "sequence"},
        4,
    )


@pytest.mark.parametrize(
    ("method", "settings", "says"),
    [
        ("kdlr", (), "did you mean 'kdrl'"),
        ("kdrl", ("kd_coeff=1",), "did you mean 'kd_coef'"),
        ("kdrl", ("kd_coef=99",), "0–10"),
        ("kdrl", ("kd_coef=linear:0.1:99",), "0–10"),
        ("kdrl", ("kd_coef",), "write NAME=VALUE"),
        ("kdrl", ("=3",), "unknown"),
        ("kdrl", ("kd_coef=",), "linear:START:END"),
        ("kdrl", ("estimator=k1",), "k1 cannot be a loss"),
        ("grpo", ("group_size=1",), "group_size"),
        ("opd", ("teacher=off",), "needs a teacher"),
        ("kdrl", ("task=aritmetic",), "did you mean 'arithmetic'"),
        ("grpo", ("task=countdwn",), "did you mean 'countdown'"),
        (
            "grpo",
            ("task=chain_sum", "difficulty=0-1", "task.max_term=3"),
            "did you mean 'max_terms'",
        ),
        ("grpo", ("task=nothing.jsonl",), "no file or folder nothing.jsonl"),
        ("grpo", ("task=mine.py:Task",), "there is no file mine.py"),
        ("grpo", ("prompt_template=Solve",), "{question}"),
        (
            "grpo",
            ("task=chain_sum", "difficulty=0-1", "reward.speed=1"),
            "unknown reward part 'speed'",
        ),
        ("kdrl", ("max_new_tokens=0",), "greater than or equal to 1"),
        ("kdrl", ("student=nobody-has-this",), "no model 'nobody-has-this'"),
        ("kdrl", ("difficulty=5-2",), "difficulty"),
        ("kdrl", ("max_new_tokens=100000",), "context"),
        ("gkd", ("topk=many",), "topk"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(rlkd, tmp_path, method, settings, says):
    assert_refused(rlkd(*train(method, tmp_path / "run", *settings)), says)
    assert list(tmp_path.iterdir()) == []


def test_unknown_preset(rlkd, tmp_path):
    assert_refused(
        rlkd("train", "--method", "grpo", "--preset", "tyni", "--out", tmp_path / "run"),
        "did you mean 'tiny'",
    )


def test_a_teacher_of_another_tokenizer(rlkd, tmp_path, make_model):
    other = tmp_path / "other"
    shutil.copytree(make_model(), other)
    path = other / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    a, b = [token for token in vocabulary if len(token) == 1][:2]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    path.write_text(json.dumps(tokenizer))
    assert_refused(
        rlkd(*train("kdrl", tmp_path / "run", f"teacher={other}", "teacher_quant=none")),
        "different tokenizers",
    )
    assert not (tmp_path / "run").exists()


def test_a_run_folder_in_use_is_refused(rlkd, runs):
    before = (runs / "kdrl" / "metrics.jsonl").read_bytes()
    assert_refused(rlkd(*train("kdrl", runs / "kdrl")), "exists and is not empty", "rlkd resume")
    assert (runs / "kdrl" / "metrics.jsonl").read_bytes() == before


def test_a_place_below_a_file_is_refused(rlkd, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert_refused(rlkd(*train("grpo", tmp_path / "file" / "run")))


def test_no_permission(rlkd, tmp_path, monkeypatch):
    from pathlib import Path

    mkdir = Path.mkdir

    def refuse(self, *args, **kwargs):
        if tmp_path in self.parents:
            raise PermissionError(13, "Permission denied", str(self))
        mkdir(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert_refused(
        rlkd(*train("grpo", tmp_path / "run")), "no permission to write", "choose another --out"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["resume", "replay", "compare"])
def test_no_run_there(rlkd, tmp_path, command):
    assert_refused(rlkd(command, tmp_path / "nothing"), "does not exist")
    assert_refused(rlkd(command, tmp_path), "config.json")
    (tmp_path / "config.json").write_text('{"format": 99}')
    assert_refused(rlkd(command, tmp_path), "update rlkd_lab")
    (tmp_path / "config.json").write_text('{"for')
    assert_refused(rlkd(command, tmp_path), "torn")
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_resume_of_a_finished_run(rlkd, runs):
    assert rlkd("resume", runs / "kdrl").exit_code == 0


def test_resume_with_a_checkpoint_of_other_settings(rlkd, runs, tmp_path):
    shutil.copytree(runs / "kdrl", tmp_path / "run")
    folder = RunFolder.open(tmp_path / "run")
    folder.write_json("config.json", {**folder.config(), "knobs": {"learning_rate": 0.1}})
    folder.set_status("idle", 2)  # a run that is done is left alone
    assert_refused(rlkd("resume", tmp_path / "run"), "does not match")


def test_a_run_that_fails_ends_with_status_1_and_one_sentence(rlkd, tmp_path, monkeypatch):
    def diverge(*given):
        raise FloatingPointError("the loss of step 1 is nan: lower learning_rate")

    monkeypatch.setattr("rlkd_lab.training.trainer.update", diverge)
    result = rlkd(*train("grpo", tmp_path / "run"))
    assert result.exit_code == 1
    assert "rlkd: the run failed: the loss of step 1 is nan" in result.stderr
    assert RunFolder.open(tmp_path / "run").status()["state"] == "failed"


def test_ctrl_c_says_how_to_go_on(rlkd, tmp_path, monkeypatch):
    def interrupt(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr("rlkd_lab.training.trainer.update", interrupt)
    result = rlkd(*train("grpo", tmp_path / "run"))
    assert result.exit_code == 130
    assert "rlkd resume" in result.stderr
    assert RunFolder.open(tmp_path / "run").status()["state"] == "idle"


def test_replay_says_whether_it_was_the_same(rlkd, runs, tmp_path):
    shutil.copytree(runs / "grpo", tmp_path / "run")
    result = rlkd("replay", tmp_path / "run")
    assert result.exit_code == 0
    assert "the same: 2 steps" in result.stdout
    assert (tmp_path / "run-replay" / "metrics.jsonl").exists()
    assert_refused(rlkd("replay", tmp_path / "run"), "run-replay exists")
    path = tmp_path / "run" / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["entropy"] += 0.5
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = rlkd("replay", tmp_path / "run", "--out", tmp_path / "second")
    assert result.exit_code == 1
    assert "different: step 1: entropy" in result.stdout
    assert (
        rlkd("replay", tmp_path / "run", "--out", tmp_path / "third", "--tolerance", "1").exit_code
        == 0
    )


def test_compare_draws_without_the_lab_and_without_widgets(runs, tmp_path):
    code = (
        "import sys\n"
        "from rlkd_lab.commands import app\n"
        "app(sys.argv[1:], standalone_mode=False)\n"
        "loaded = {'rlkd_lab.lab', 'IPython', 'ipywidgets', 'matplotlib.pyplot'} &"
        " set(sys.modules)\n"
        "sys.exit(', '.join(sorted(loaded)) or 0)"
    )
    figure = tmp_path / "compare.png"
    command = [sys.executable, "-c", code, "compare", str(runs / "kdrl"), "--figure", str(figure)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, figure.is_file()) == (0, True), done.stderr


def test_compare_prints_a_table_and_writes_a_figure_with_its_sidecar(rlkd, runs, tmp_path):
    figure = tmp_path / "new" / "both.png"
    result = rlkd(
        "compare",
        runs / "kdrl",
        runs / "grpo",
        "--figure",
        figure,
        "--window",
        3,
        "--x",
        "tokens",
        "--metrics",
        "reward,entropy",
    )
    assert result.exit_code == 0, result.output
    for words in ("kdrl", "grpo", "reward", "steps", "touched", str(figure)):
        assert words in result.stdout
    assert figure.stat().st_size > 5000
    side = json.loads(figure.with_suffix(".json").read_text())
    assert [run["method"] for run in side["runs"]] == ["kdrl", "grpo"]
    assert (side["x"], side["smoothing"], side["metrics"]) == (
        "tokens",
        "trailing mean, 3 steps",
        ["reward", "entropy"],
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--x", "stepz"), "did you mean 'steps'"),
        (("--metrics", "rewards"), "did you mean 'reward'"),
        (("--figure", "FOLDER/a.pgn"), "did you mean '.png'"),
        (("--figure", "FOLDER/a"), ".png"),
    ],
)
def test_compare_refuses_in_words_and_writes_nothing(rlkd, runs, tmp_path, options, says):
    options = [option.replace("FOLDER", str(tmp_path)) for option in options]
    figure = () if "--figure" in options else ("--figure", tmp_path / "a.png")
    assert_refused(rlkd("compare", runs / "kdrl", *figure, *options), says)
    assert list(tmp_path.iterdir()) == []


def test_compare_of_a_run_without_a_step(rlkd, runs, tmp_path):
    RunFolder.create(tmp_path / "empty", RunFolder.open(runs / "kdrl").config(), {})
    assert_refused(
        rlkd("compare", tmp_path / "empty", "--figure", tmp_path / "a.png"), "no finished step"
    )


def test_every_setting_stands_in_one_group_and_ten_come_first():
    from rlkd_lab.commands.settings import FIRST, GROUPS
    from rlkd_lab.objectives.settings import CHOICES
    from rlkd_lab.training.config import RunConfig
    from rlkd_lab.training.loop_knobs import LOOP_KNOBS

    shown = [*FIRST, *(name for group in GROUPS.values() for name in group)]
    assert len(FIRST) == 10
    # these have an option or argument of their own, or runs alone write them
    elsewhere = {"method", "preset", "steps", "seed", "knobs", "options", "moves"}
    assert sorted(shown) == sorted(
        {*CHOICES, *LOOP_KNOBS, *RunConfig.model_fields.keys() - elsewhere}
    )


def test_methods_names_each_with_knobs_and_source(rlkd):
    result = rlkd("methods")
    assert result.exit_code == 0
    names = [
        line.split()[0] for line in result.stdout.splitlines() if line and not line.startswith(" ")
    ]
    assert [name for name in names if name in METHODS] == list(METHODS)
    blocks = "".join(result.stdout.split())  # lines are wrapped to the terminal
    for method in METHODS.values():
        for words in (method.title, method.source, *method.knobs):
            assert "".join(words.split()) in blocks, words
    assert "learning_rate" in result.stdout


def test_doctor_examines_by_doing(rlkd):
    result = rlkd("doctor")
    lines = result.stdout.splitlines()
    assert all(line.startswith(("ok  ", "FAIL")) for line in lines)
    assert result.exit_code == (1 if any(line.startswith("FAIL") for line in lines) else 0)
    for words in ("Python", "torch", "memory", "4-bit", "embedded models"):
        assert any(words in line for line in lines), words


def test_doctor_says_what_to_do_where_4_bit_fails(rlkd, monkeypatch):
    import bitsandbytes.nn

    def broken(*given, **more):
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(bitsandbytes.nn, "Linear4bit", broken)
    result = rlkd("doctor")
    assert result.exit_code == 1
    assert "no kernel image" in result.stdout
    assert "quant=none" in result.stdout


def test_doctor_leaves_the_global_stream_alone():
    import torch

    from rlkd_lab.doctor import examine

    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    list(examine())
    assert torch.equal(torch.rand(2), expected)


def test_doctor_as_json_says_the_same(rlkd):
    result = rlkd("doctor", "--json")
    lines = json.loads(result.stdout)
    assert all(set(line) == {"ok", "text"} for line in lines)
    assert result.exit_code == (0 if all(line["ok"] for line in lines) else 1)
    assert any("4-bit" in line["text"] for line in lines)


def test_compare_as_json_prints_the_rows_and_nothing_else(rlkd, runs, tmp_path):
    result = rlkd(
        "compare",
        runs / "kdrl",
        runs / "grpo",
        "--figure",
        tmp_path / "a.png",
        "--metrics",
        "reward",
        "--json",
    )
    rows = json.loads(result.stdout)
    assert [(row["run"], row["method"], row["steps"]) for row in rows] == [
        ("kdrl", "kdrl", 2),
        ("grpo", "grpo", 2),
    ]
    assert (tmp_path / "a.png").exists()


# --- eval -----------------------------------------------------------------------------------------

FEW = ("--prompts", 3, "--samples", 2)


def test_eval_of_a_run_against_the_model_that_it_started_from(rlkd, runs):
    result = rlkd("eval", runs / "grpo", "--against", "student", *FEW)
    assert result.exit_code == 0, result.output
    for words in (
        "in distribution: 3 prompts, 2 samples each",
        "out of distribution",
        "avg@2",
        "greedy",
        "pass@2",
        "chance",
        "95 % interval",
        "correct ones",
        "truncated",
        "badly formatted",
        "grpo, step 2 − student",
        "blind guesses",
        "bootstrap over prompts, paired",
        "training seeds",
    ):
        assert words in result.stdout, words
    written = runs / "grpo" / "eval" / "step_000002.parquet"
    assert str(written) in result.stdout
    assert sorted(path.name for path in written.parent.iterdir()) == [
        "step_000002-against.parquet",
        "step_000002.parquet",
    ]
    frame, record = read_table(written)
    assert len(frame) == 2 * 3 * 3
    # the run's own settings
    assert (record["max_new_tokens"], record["difficulty"], record["model"]["step"]) == (
        24,
        [2, 2],
        2,
    )
    other, record = read_table(written.with_name("step_000002-against.parquet"))
    assert record["model"]["name"] == "student"
    assert other["prompt_id"].tolist() == frame["prompt_id"].tolist()
    assert "this replaces" not in result.output
    again = rlkd("eval", runs / "grpo", "--split", "validation", *FEW)
    assert "this replaces the evaluation on arithmetic, split test, in " in again.output


def test_eval_as_json_is_one_object_and_nothing_else(rlkd, runs, tmp_path):
    out = tmp_path / "new" / "a.parquet"
    place = runs / "grpo" / "checkpoints" / "step_000002"
    result = rlkd(
        "eval",
        place,
        "--against",
        "student",
        *FEW,
        "--k",
        "2,1",
        "--no-ood",
        "--no-greedy",
        "--quant",
        "none",
        "--out",
        out,
        "--json",
    )
    assert result.exit_code == 0, result.output
    assert "completions" not in result.stderr  # no bar
    found = json.loads(result.stdout)
    assert set(found["results"]["id"]["all"]) >= {
        "avg",
        "avg_low",
        "avg_high",
        "pass@1",
        "pass@2",
        "chance@2",
        "length_correct",
        "length_wrong",
        "truncated",
    }
    assert list(found["results"]) == ["id"]
    assert "greedy" not in found["results"]["id"]["all"]
    assert (
        found["model"]["step"],
        found["against"]["model"]["quant"],
        found["samples"],
        found["chance"],
    ) == (2, "none", 2, "task")
    assert {row["measure"] for row in found["differences"]} >= {"avg", "pass@2", "length"}
    assert [path.rsplit("/")[-1] for path in found["out"]] == ["a.parquet", "a-against.parquet"]
    assert read_table(out)[1]["top_p"] == 1


def test_eval_writes_nothing_that_was_not_asked_for(rlkd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = rlkd(
        "eval",
        "student-weak",
        *FEW,
        "--no-ood",
        "--temperature",
        0.5,
        "--top-p",
        0.9,
        "--top-k",
        5,
        "--max-new-tokens",
        20,
    )
    assert result.exit_code == 0, result.output
    assert "completions were not kept: name a file with --out" in result.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ("student", "--k", "64", "--samples", "16"),
            "pass@64 needs 64 samples a prompt; 16 were taken: raise --samples",
        ),
        (("student", "--k", "0"), "at least 1"),
        (("student", "--k", "1;2"), "such as 1,4,8"),
        (("student", "--samples", "0"), "at least one"),
        (("student", "--temperature", "0"), "greedy"),
        (("student", "--top-p", "2"), "top_p"),
        (("student", "--split", "tset"), "did you mean 'test'"),
        (("student", "--quant", "nf3"), "did you mean 'nf4'"),
        (("student", "--task", "aritmetic"), "did you mean 'arithmetic'"),
        (("student", "--difficulty", "easy"), "such as 2-5"),
        (("student", "--difficulty", "5-2"), "difficulty"),
        (("student", "--max-new-tokens", "300"), "context"),
        (("student", "--checkpoint", "3"), "--checkpoint is for a run folder"),
        (("student", "--out", "a.csv"), ".parquet"),
        (("student", "--against", "nobody-has-this"), "no model 'nobody-has-this'"),
        (("RUNS/grpo", "--checkpoint", "9"), "no checkpoint of step 9; it has 2"),
        (
            ("RUNS/grpo/checkpoints/step_000002", "--base", "teacher"),
            "does not fit the base 'teacher'",
        ),
    ],
)
def test_eval_refuses_in_words_and_writes_nothing(rlkd, runs, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    before = sorted(runs.rglob("*"))
    assert_refused(rlkd("eval", *(word.replace("RUNS", str(runs)) for word in words)), says)
    assert list(tmp_path.iterdir()) == []
    assert sorted(runs.rglob("*")) == before


def test_eval_stopped_by_hand(rlkd, monkeypatch):
    def interrupt(*given, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr("rlkd_lab.study.evaluate_target", interrupt)
    result = rlkd("eval", "student")
    assert result.exit_code == 130
    assert "stopped; nothing of this model was written" in result.stderr


# --- export ---------------------------------------------------------------------------------------


def test_what_is_exported_is_evaluated_as_the_run_is(rlkd, runs, tmp_path):
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    result = rlkd("export", runs / "grpo", "--out", adapter)
    assert (result.exit_code, result.stdout) == (0, f"written: {adapter}\n")
    result = rlkd("export", runs / "grpo", "--out", merged, "--merge", "--dtype", "float32")
    assert result.exit_code == 0, result.output
    for words in (
        "in float32 to the base's NF4 weights, dequantised, and the sum rounded to float32",
        "100.0 % of the update",
        "KL(policy",
        f"written: {merged}",
    ):
        assert words in result.stdout, words
    few = (*FEW, "--no-ood", "--max-new-tokens", 24, "--difficulty", "2-2")
    frames = []
    for number, words in enumerate(
        [
            (runs / "grpo",),
            (adapter, "--base", SHORT["student"]),
            (adapter,),
            (merged, "--quant", "none"),
        ]
    ):
        result = rlkd("eval", *words, *few, "--out", tmp_path / f"{number}.parquet")
        assert result.exit_code == 0, result.output
        frames.append(read_table(tmp_path / f"{number}.parquet")[0])
    for frame in frames[1:]:
        assert frame["completion"].tolist() == frames[0]["completion"].tolist()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("nothing",), "does not exist"),
        (("student",), "does not exist"),
        (("RUNS",), "no config.json"),
        (("RUNS/grpo/checkpoints/step_000002",), "no config.json"),
        (("RUNS/grpo", "--checkpoint", "9"), "no checkpoint of step 9; it has 2"),
        (("RUNS/grpo", "--into", "full"), "are for --merge"),
        (("RUNS/grpo", "--merge", "--dtype", "float23"), "did you mean 'float32'"),
        (("RUNS/grpo", "--merge", "--into", "ful"), "did you mean 'full'"),
    ],
)
def test_export_refuses_in_words_and_writes_nothing(rlkd, runs, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    assert_refused(
        rlkd("export", *(word.replace("RUNS", str(runs)) for word in words), "--out", "out"), says
    )
    assert list(tmp_path.iterdir()) == []


def test_export_into_a_folder_in_use_and_stopped_by_hand(rlkd, runs, tmp_path, monkeypatch):
    assert_refused(
        rlkd("export", runs / "grpo", "--out", runs),
        "exists and is not empty",
        "choose another --out",
    )

    def interrupt(*given, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr("rlkd_lab.study.export.model_card", interrupt)
    result = rlkd("export", runs / "grpo", "--out", tmp_path / "out")
    assert result.exit_code == 130
    assert "stopped; nothing was written" in result.stderr
    assert list(tmp_path.iterdir()) == []


# --- from another terminal ------------------------------------------------------------------------


def test_a_run_is_steered_and_ended_from_outside(rlkd, tmp_path):
    """By requests, and by SIGTERM as a batch system sends it."""
    path = tmp_path / "run"
    small = [
        "--set",
        "prompts_per_step=2",
        "--set",
        "group_size=2",
        "--set",
        "max_new_tokens=24",
        "--set",
        "eval_every=0",
        "--set",
        "checkpoint_every=0",
    ]
    command = [
        sys.executable,
        "-m",
        "rlkd_lab",
        "train",
        "--method",
        "kdrl",
        "--steps",
        "400",
        "--out",
        str(path),
        *small,
    ]

    def until(holds):
        deadline = time.monotonic() + 120
        while not holds():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.1)

    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        until(lambda: (path / "metrics.jsonl").exists() and RunFolder.open(path).rows())
        for asked in ("kd_coef=0.4", "pause"):
            assert rlkd("ask", path, asked).exit_code == 0
        folder = RunFolder.open(path)
        until(lambda: folder.status()["state"] == "paused")
        assert rlkd("ask", path, "go_on").exit_code == 0
        paused_at = len(folder.rows())
        until(lambda: len(folder.rows()) > paused_at + 1)
        process.terminate()
        said = process.stderr.read().decode()
        assert process.wait() == 130
    assert "rlkd: stopped; `rlkd resume` goes on from the last checkpoint" in said
    status = folder.status()
    assert (status["state"], status["step"]) == ("idle", len(folder.rows()))
    assert [int(point.name[5:]) for point in folder.checkpoints()] in (
        [status["step"]],
        [],
    )  # none where it was cut within an update
    assert folder.rows()[-1]["coef/kd_coef"] == 0.4
    (event,) = [event for event in folder.rows("events.jsonl") if event["event"] == "knob"]
    assert event["source"] == "command line"


def test_who_is_ending_is_not_cut_by_a_second_signal():
    before = signal.getsignal(signal.SIGTERM)
    with ended_like_ctrl_c():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # while the last checkpoint is written
        signal.raise_signal(signal.SIGHUP)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_knob_for_a_step_that_is_over_is_taken_and_said(rlkd, runs, tmp_path):
    shutil.copytree(runs / "kdrl", tmp_path / "run")
    RunFolder.open(tmp_path / "run").set_status("idle", 2)
    assert (
        "; step 1 is over, so it acts in the next one;"
        in rlkd("ask", tmp_path / "run", "kd_coef=0.4", "--at", "1").stdout
    )


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (["paws"], "'paws' is none of pause, unpause, step, stop, checkpoint"),
        (["kd_coef=much"], "'much' is no value of a knob"),
        (["kd_coef=11"], "kd_coef"),
        (["kd_cof=1"], "did you mean 'kd_coef'"),
        (["pause"], "is done"),
        (["pause", "--at", "3"], "--at is for a knob's value"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_a_line(rlkd, runs, asked, says):
    result = rlkd("ask", runs / "kdrl", *asked)
    assert result.exit_code == 2
    assert says in result.stderr.replace("cannot pause: the run is done", "is done")
    assert len(result.stderr.strip().splitlines()) == 1


# --- runs, zoo ------------------------------------------------------------------------------------


def test_runs_lists_every_run_and_what_is_wrong_with_torn_ones(rlkd, runs, tmp_path):
    for name in ("kdrl", "grpo"):
        shutil.copytree(runs / name, tmp_path / "deep" / name)
    folder = RunFolder.open(tmp_path / "deep" / "grpo")
    folder.write_json("status.json", {**folder.status(), "state": "running", "pid": 2**22 + 1})
    RunFolder.open(tmp_path / "deep" / "kdrl").set_status("running", 2)  # this process: alive
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "metrics.jsonl").touch()
    result = rlkd("runs", tmp_path)
    assert result.exit_code == 0, result.output
    for words in (
        "deep/kdrl",
        "deep/grpo",
        "running",
        "lost",
        "2/2",
        "torn",
        "no config.json",
        "`rlkd resume`",
    ):
        assert words in result.stdout, words
    rows = {row["run"]: row for row in json.loads(rlkd("runs", tmp_path, "--json").stdout)}
    assert [rows[name]["state"] for name in ("deep/kdrl", "deep/grpo", "torn")] == [
        "running",
        "lost",
        "torn",
    ]
    assert rows["deep/kdrl"]["accuracy"] is None  # never evaluated
    assert rows["deep/kdrl"]["touched"] is False


def test_a_process_that_has_the_number_of_one_that_is_gone(rlkd, runs, tmp_path):
    shutil.copytree(runs / "kdrl", tmp_path / "run")
    folder = RunFolder.open(tmp_path / "run")
    folder.set_status("running", 2)
    folder.write_json(
        "status.json", {**folder.status(), "updated": 1.0}
    )  # long before this process began
    assert json.loads(rlkd("runs", tmp_path, "--json").stdout)[0]["state"] == "lost"


def test_runs_of_a_folder_without_any(rlkd, tmp_path):
    result = rlkd("runs", tmp_path)
    assert result.exit_code == 0
    assert "no runs in" in result.stdout
    assert json.loads(rlkd("runs", tmp_path, "--json").stdout) == []
    assert_refused(rlkd("runs", tmp_path / "nothing"), "no folder")


def test_sweep(rlkd, tmp_path):
    settings = ", ".join(
        f'{name} = "{value}"' for name, _, value in (setting.partition("=") for setting in SMALL)
    )
    (tmp_path / "sweep.toml").write_text(
        f'steps = 2\nseeds = 2\nsettings = {{{settings}}}\n[[arms]]\nname = "grpo"\nmethod ='
        ' "grpo"\n[[arms]]\nname = "kdrl"\nmethod = "kdrl"\n'
    )
    where = ("sweep", tmp_path / "sweep.toml", "--out", tmp_path / "out")
    assert rlkd(*where, "--plan").stdout.count("to do") == 4
    result = rlkd(*where, "--workers", 2)
    assert result.exit_code == 0, result.output
    assert "4/4" in result.stderr
    assert "kdrl" in result.stdout
    narrow = CliRunner(env={"COLUMNS": "60"}).invoke(app, [str(word) for word in where])
    assert "grpo" in narrow.stdout
    assert "kdrl" in narrow.stdout
    again = rlkd(*where, "--json")
    assert [arm["runs"] for arm in json.loads(again.stdout)["arms"]] == [2, 2]
    assert rlkd(*where, "--plan").stdout.count("over") == 4
    (tmp_path / "sweep.toml").write_text(
        '[[arms]]\nname = "a"\nmethod = "grpo"\nsettings = {kd_cof = 1}'
    )
    assert_refused(rlkd(*where), "arm a: unknown")
    assert_refused(rlkd("sweep", tmp_path / "none.toml", "--out", tmp_path / "out"), "none.toml")


def test_study(rlkd, tmp_path, monkeypatch):
    """A core of one method and two seeds: run, judged, kept; judged again from what was kept."""
    monkeypatch.setattr("rlkd_lab.study.study.FOLDER", tmp_path)
    (tmp_path / "core.toml").write_text(
        """
        steps = 2
        seeds = 2
        [settings]
        prompts_per_step = 2
        group_size = 2
        max_new_tokens = 24
        difficulty = "2"
        eval_every = 0
        samples_every = 0
        [[arms]]
        name = "grpo"
        method = "grpo"
        [evaluate]
        prompts = 4
        samples = 2
        """
    )
    out, kept = tmp_path / "out", tmp_path / "kept"
    done = rlkd("study", "--core", "--out", out, "--keep", kept)
    assert done.exit_code == 0, done.output
    assert "core (eight methods, one pair): 2 runs" in done.stderr and "undecided" in done.stdout
    again = rlkd("study", "--judge", "--out", kept, "--json")
    assert again.exit_code == 0 and not (kept / "core" / "runs").exists()
    found = json.loads(again.stdout)
    assert {row["claim"] for row in found["comparisons"]} == set(range(1, 15)) and {
        row["verdict"] for row in found["comparisons"]
    } == {"undecided"}
    assert (kept / "scorecard.md").read_text() == (out / "scorecard.md").read_text()
    drawn = rlkd("study", "--judge", "--out", kept, "--figures", tmp_path / "figures")
    assert drawn.exit_code == 0, drawn.output  # arms that this core does not have are left out
    assert (tmp_path / "figures" / "claim_01.png").exists() and not (
        tmp_path / "figures" / "claim_08.png"
    ).exists()
    assert_refused(
        rlkd("study", "--judge", "--out", tmp_path / "none"), "has no part with its tables"
    )
    assert_refused(
        rlkd("study", "--core", "--part", "betas", "--out", out), "give --part or --core"
    )
    assert_refused(rlkd("study", "--part", "bets", "--out", out), "unknown part 'bets'")


def test_zoo_shows_the_cards(rlkd):
    result = rlkd("zoo")
    assert result.exit_code == 0, result.output
    for words in (
        "teacher-concise",
        "student-weak",
        "knights-student",
        "0.80 M",
        "1.60 M",
        "NF4",
        "36.4%",
        "6–8",
        "2–4",
    ):
        assert words in result.stdout, words
    one = rlkd("zoo", "student")
    assert "recipe: hidden 128" in one.stdout
    assert "teacher" not in one.stdout
    assert json.loads(rlkd("zoo", "student", "--json").stdout)["table"]["nf4"][
        "accuracy"
    ] == pytest.approx(0.364, abs=1e-3)
    four = {"student", "student-weak", "teacher", "teacher-concise"}
    assert set(json.loads(rlkd("zoo", "--json").stdout)) == four | {
        f"knights-{name}" for name in four
    }
    assert_refused(rlkd("zoo", "studnet"), "did you mean 'student'")


def test_plan_shows_the_parts_and_what_was_made_smaller(rlkd, make_model):
    models = [
        word
        for name, seed in (("student", 0), ("teacher", 1))
        for word in (
            "--set",
            f"{name}={make_model(vocabulary=8000, seed=seed, max_position_embeddings=512)}",
        )
    ]
    whole = rlkd("plan", *models, "--memory", "24")
    assert whole.exit_code == 0, whole.output
    assert "24.0 GiB of GPU memory, models in 16 bit" in whole.stdout
    assert "as asked" in whole.stdout
    assert all(
        part in whole.stdout
        for part in ("student", "teacher", "gradients and optimizer", "cache", "activations", "MiB")
    )
    asked = json.loads(rlkd("plan", *models, "--memory", "24", "--json").stdout)
    assert asked["peak"] == asked["as_asked"]
    tight = ["--memory", f"{1 + 1.1 * 0.6 * asked['peak'] / 2**30:.4f}"]
    assert "instead of" in rlkd("plan", *models, *tight).stdout
    found = json.loads(rlkd("plan", *models, *tight, "--json").stdout)
    assert found["peak"] < found["as_asked"] == asked["peak"]
    assert found["peak"] * 1.1 + 2**30 <= found["memory"]
    assert_refused(rlkd("plan", *models, "--memory", "0.5"), "even with micro_batch=1", "would")


def test_plan_of_this_machine(rlkd):
    assert "of host memory, models in float32" in rlkd("plan").stdout
    assert_refused(rlkd("plan", "--set", "teacher=nobody/nothing"), "no model 'nobody/nothing'")


def test_presets_say_where_every_number_comes_from(rlkd):
    listed = rlkd("presets").stdout
    assert all(name in listed for name in PRESETS)
    one = rlkd("presets", "s-zebra").stdout
    assert "task.num_people" in one
    assert "arXiv 2609.04108" in one
    assert (
        json.loads(rlkd("presets", "s-zebra", "--json").stdout)["s-zebra"]["settings"]["group_size"]
        == 8
    )
    assert_refused(rlkd("presets", "s-zebre"), "did you mean 's-zebra'")


def test_a_preset_says_how_many_steps(rlkd, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "rlkd_lab.training.run", lambda config, out, on_step: seen.append(config.steps)
    )
    monkeypatch.setattr("rlkd_lab.commands.train._say_end", lambda out: None)
    for words in (["--preset", "kdrl-math"], ["--preset", "kdrl-math", "--steps", "3"], []):
        assert rlkd("train", "--method", "kdrl", *words, "--out", tmp_path / "run").exit_code == 0
    assert seen == [280, 3, 60]


def test_out_of_memory_is_one_sentence(rlkd, tmp_path, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("rlkd_lab.training.trainer.update", fail)
    result = rlkd(*train("kdrl", tmp_path / "run"))
    assert result.exit_code == 1
    assert result.stderr.strip().splitlines()[-1] == "rlkd: the run failed: CUDA out of memory"


def test_help_names_every_command(rlkd):
    result = rlkd("--help")
    for command in (
        "doctor",
        "train",
        "config",
        "resume",
        "replay",
        "runs",
        "compare",
        "eval",
        "sweep",
        "study",
        "zoo",
        "methods",
    ):
        assert command in result.output


@pytest.mark.parametrize("name", METHODS)
def test_a_method_in_full(rlkd, name):
    result = rlkd("methods", name)
    assert result.exit_code == 0, result.output
    method = METHODS[name]
    for words in (
        method.title,
        method.formula,
        method.source,
        *method.coefs,
        "temperature",
        "aggregation",
    ):
        assert words in result.stdout
    assert json.loads(rlkd("methods", name, "--json").stdout)[name]["formula"] == method.formula


def test_all_methods_for_a_script(rlkd):
    found = json.loads(rlkd("methods", "--json").stdout)
    assert list(found) == list(METHODS)
    assert found["kdrl_annealed"]["knobs"]["kd_coef"]["default"] == "linear:0.2:0.002"
    assert found["trrd"]["knobs"]["trrd_gap_bound"] == {
        "default": 1.0,
        "low": 0.01,
        "high": 20.0,
        "may_be_off": True,
        "help": METHODS["trrd"].knobs["trrd_gap_bound"].help,
    }
    assert found["gspo"]["options"]["level"] == "sequence"


def test_an_unknown_method(rlkd):
    assert_refused(rlkd("methods", "grppo"), "did you mean 'grpo'")


def test_the_shell_can_complete_method_names(rlkd):
    from rlkd_lab.commands.common import method_names

    assert method_names() == list(METHODS)
    assert "--install-completion" in rlkd("--help").stdout


# --- a schedule found by hand ---------------------------------------------------------------------


def test_schedule_from_takes_settings_and_moves_of_a_run_to_another_seed(rlkd, tmp_path):
    from rlkd_lab.training import make_config, resume
    from rlkd_lab.training.folders import create

    settings = dict(setting.split("=") for setting in SMALL)
    folder = create(make_config("kdrl", settings=settings, steps=3), tmp_path / "touched")
    folder.ask("knob", knob="kd_coef", value=0.5, at=2)
    resume(folder.path)
    result = rlkd("train", "--schedule-from", folder.path, "--seed", 3, "--out", tmp_path / "seed3")
    assert result.exit_code == 0, result.output
    run = RunFolder.open(tmp_path / "seed3")
    assert [row["coef/kd_coef"] for row in run.rows()] == [0.1, 0.5, 0.5]
    assert (run.config()["seed"], run.touched) == (3, False)
    listed = {
        row["run"]: row["touched"] for row in json.loads(rlkd("runs", tmp_path, "--json").stdout)
    }
    assert listed == {"touched": True, "seed3": False}


@pytest.mark.parametrize(
    "further",
    [("--method", "grpo"), ("--steps", "5"), ("--preset", "tiny"), ("--set", "kd_coef=1")],
)
def test_schedule_from_stands_alone(rlkd, runs, tmp_path, further):
    assert_refused(
        rlkd("train", "--schedule-from", runs / "kdrl", "--out", tmp_path / "x", *further),
        "give --seed and --out beside it",
    )
    assert not (tmp_path / "x").exists()


def test_schedule_from_an_untouched_run_and_no_method_at_all_are_refused(rlkd, runs, tmp_path):
    assert_refused(
        rlkd("train", "--schedule-from", runs / "kdrl", "--out", tmp_path / "x"),
        "no knob was moved",
    )
    assert_refused(rlkd("train", "--out", tmp_path / "x"), "which method?")


def test_a_run_stopped_by_its_watcher_says_how_to_go_on(rlkd, runs, tmp_path):
    shutil.copytree(runs / "kdrl", tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps({**config, "steps": 50}))
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    folder = RunFolder.open(tmp_path / "run")
    folder.ask("begin")
    folder.set_status("running", 0, "loading the models")
    folder.ask("stop")
    result = rlkd("resume", folder.path)
    assert result.exit_code == 0
    assert "stopped at step 0; `rlkd resume" in result.stdout
