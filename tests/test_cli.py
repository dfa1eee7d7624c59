import json
import shutil

import pytest
from typer.testing import CliRunner

from rlkd_lab.cli import app
from rlkd_lab.objectives import METHODS
from rlkd_lab.runs import RunFolder

SMALL = ("prompts_per_step=2", "group_size=2", "max_new_tokens=24", "difficulty=2-2", "eval_every=0", "eval_prompts=8", "samples_every=0")


@pytest.fixture(scope="module")
def rlkd():
    """``rlkd(*words)``: the result of a command line, run in this process."""

    def call(*words):
        return CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(word) for word in words])

    return call


def train(method, out, *settings, steps=2):
    return ("train", "--method", method, "--steps", steps, "--out", out, *(part for setting in (*SMALL, *settings) for part in ("--set", setting)))


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
    result = rlkd(*train("kdrl", tmp_path / "run", "kd_coef=linear:0.5:0.1", "aggregation=sequence", "lora_rank=4", steps=1))
    assert result.exit_code == 0
    for words in ("reward", "KL", "length", "GiB"):
        assert words in result.stderr
    config = RunFolder.open(tmp_path / "run").config()
    assert (config["knobs"], config["options"], config["lora_rank"]) == ({"kd_coef": "linear:0.5:0.1"}, {"aggregation": "sequence"}, 4)


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
        ("grpo", ("task=chain_sum", "difficulty=0-1", "task.max_term=3"), "did you mean 'max_terms'"),
        ("grpo", ("task=nothing.jsonl",), "no file or folder nothing.jsonl"),
        ("grpo", ("task=mine.py:Task",), "there is no file mine.py"),
        ("grpo", ("prompt_template=Solve",), "{question}"),
        ("grpo", ("task=chain_sum", "difficulty=0-1", "reward.speed=1"), "unknown reward part 'speed'"),
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
    assert_refused(rlkd("train", "--method", "grpo", "--preset", "tyni", "--out", tmp_path / "run"), "did you mean 'tiny'")


def test_a_teacher_of_another_tokenizer(rlkd, tmp_path, make_model):
    other = tmp_path / "other"
    shutil.copytree(make_model(), other)
    path = other / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    a, b = [token for token in vocabulary if len(token) == 1][:2]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    path.write_text(json.dumps(tokenizer))
    assert_refused(rlkd(*train("kdrl", tmp_path / "run", f"teacher={other}", "teacher_quant=none")), "different tokenizers")
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
    assert_refused(rlkd(*train("grpo", tmp_path / "run")), "no permission to write", "choose another --out")
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
    assert_refused(rlkd("resume", tmp_path / "run"), "does not match")


def test_a_run_that_fails_ends_with_status_1_and_one_sentence(rlkd, tmp_path, monkeypatch):
    def diverge(self, *given):
        raise FloatingPointError("the loss of step 1 is nan: lower learning_rate")

    monkeypatch.setattr("rlkd_lab.training.loop.Loop._update", diverge)
    result = rlkd(*train("grpo", tmp_path / "run"))
    assert result.exit_code == 1
    assert "rlkd: the run failed: the loss of step 1 is nan" in result.stderr
    assert RunFolder.open(tmp_path / "run").status()["state"] == "failed"


def test_ctrl_c_says_how_to_go_on(rlkd, tmp_path, monkeypatch):
    def interrupt(self, *given):
        raise KeyboardInterrupt

    monkeypatch.setattr("rlkd_lab.training.loop.Loop._update", interrupt)
    result = rlkd(*train("grpo", tmp_path / "run"))
    assert result.exit_code == 130
    assert "rlkd resume" in result.stderr
    assert RunFolder.open(tmp_path / "run").status()["state"] == "idle"


@pytest.mark.slow
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
    assert rlkd("replay", tmp_path / "run", "--out", tmp_path / "third", "--tolerance", "1").exit_code == 0


def test_compare_prints_a_table_and_writes_a_figure_with_its_sidecar(rlkd, runs, tmp_path):
    figure = tmp_path / "new" / "both.png"
    result = rlkd("compare", runs / "kdrl", runs / "grpo", "--figure", figure, "--window", 3, "--x", "tokens", "--metrics", "reward,entropy")
    assert result.exit_code == 0, result.output
    for words in ("kdrl", "grpo", "reward", "steps", "touched", str(figure)):
        assert words in result.stdout
    assert figure.stat().st_size > 5000
    side = json.loads(figure.with_suffix(".json").read_text())
    assert [run["method"] for run in side["runs"]] == ["kdrl", "grpo"]
    assert (side["x"], side["smoothing"], side["metrics"]) == ("tokens", "trailing mean, 3 steps", ["reward", "entropy"])


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
    assert_refused(rlkd("compare", tmp_path / "empty", "--figure", tmp_path / "a.png"), "no finished step")


def test_methods_names_each_with_knobs_and_source(rlkd):
    result = rlkd("methods")
    assert result.exit_code == 0
    names = [line.split()[0] for line in result.stdout.splitlines() if line and not line.startswith(" ")]
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


def test_help_names_every_command(rlkd):
    result = rlkd("--help")
    for command in ("doctor", "train", "resume", "replay", "compare", "methods"):
        assert command in result.output
