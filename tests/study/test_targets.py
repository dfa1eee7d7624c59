"""What an evaluation can be pointed at, and that it is that model which is loaded."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from rlkd_lab.runs import RunFolder
from rlkd_lab.study import find_target, task_of
from rlkd_lab.training import config_of
from rlkd_lab.training.context import Context
from rlkd_lab.training.trainer import Trainer


def logits(lm):
    with torch.no_grad(), lm.active():
        return lm.causal_lm(**lm.tokenizer("49-7+4?", return_tensors="pt")).logits


def test_a_run_is_its_student_with_the_last_adapter(trained):
    target = find_target(str(trained.path))
    assert (target.base, target.quant, target.step, target.run) == (
        "student",
        "nf4",
        2,
        trained.path,
    )
    assert target.config == config_of(trained)
    lm = target.load()
    config = config_of(trained)
    trainer = Trainer(config)
    trainer.load(Context(config, trained), trained.checkpoints()[-1])
    torch.testing.assert_close(logits(lm), logits(trainer.policy), rtol=0, atol=0)
    assert not torch.equal(logits(lm), logits(find_target("student").load()))
    assert list(lm.model.peft_config) == ["default"]  # no second copy for a reference
    assert not lm.trainable()


def test_an_earlier_checkpoint(trained):
    first = find_target(str(trained.path), checkpoint=1)
    assert first.step == 1
    assert first.adapter == trained.checkpoints()[0]
    assert first.label == "grpo, step 1"
    with pytest.raises(FileNotFoundError, match="no checkpoint of step 7; it has 1, 2"):
        find_target(str(trained.path), checkpoint=7)


def test_the_best_checkpoint_is_the_later_of_those_evaluated_best(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained.path, run)
    with pytest.raises(ValueError, match=r"none is the best: .*last or a step; it has 1, 2"):
        find_target(str(run), checkpoint="best")
    first, second = trained.rows()
    for scores, best in (((0.5, 0.25), 1), ((0.5, 0.5), 2), ((0.5, None), 1)):
        rows = [
            {**row, "eval/accuracy": score}
            for row, score in zip((first, second), scores, strict=True)
        ]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert find_target(str(run), checkpoint="best").step == best
    assert find_target(str(run), checkpoint="last").step == 2
    assert find_target(str(run), checkpoint="1").step == 1
    with pytest.raises(ValueError, match="--checkpoint beest: write best, last or a step"):
        find_target(str(run), checkpoint="beest")


def test_a_run_without_a_checkpoint(trained, tmp_path):
    RunFolder.create(tmp_path / "new", config_of(trained).model_dump(), {})
    with pytest.raises(FileNotFoundError, match=r"no whole checkpoint.*'student'"):
        find_target(str(tmp_path / "new"))


def test_a_torn_run(trained, tmp_path):
    shutil.copytree(trained.path, tmp_path / "run")
    (tmp_path / "run" / "env.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"torn: it has no env\.json"):
        find_target(str(tmp_path / "run"))


def test_an_adapter_among_the_checkpoints_belongs_to_its_run(trained, monkeypatch):
    place = trained.checkpoints()[0]
    target = find_target(str(place))
    assert (target.base, target.step, target.run, target.config) == (
        "student",
        1,
        trained.path,
        config_of(trained),
    )
    monkeypatch.chdir(place)  # and where its path does not name the run
    assert find_target(".").step == 1
    monkeypatch.chdir(place.parent)
    assert find_target("step_000001").config == config_of(trained)


def test_an_adapter_elsewhere_names_its_base_or_is_given_one(trained, tmp_path):
    place = tmp_path / "adapter"
    shutil.copytree(trained.checkpoints()[-1], place)
    target = find_target(str(place))
    assert (target.config, target.quant) == (None, "nf4")
    torch.testing.assert_close(logits(target.load()), logits(find_target(str(trained.path)).load()))
    path = place / "adapter_config.json"
    written = json.loads(path.read_text())
    for named in ("nobody/has-this", None, 3):
        path.write_text(json.dumps(written | {"base_model_name_or_path": named}))
        with pytest.raises(FileNotFoundError, match="give it with --base"):
            find_target(str(place))
    assert find_target(str(place), base="student", quant="none").describe() == {
        "name": str(place), "base": "student", "quant": "none", "adapter": str(place), "step": None,
    }  # fmt: skip


def test_an_adapter_on_another_base_is_refused_in_words(trained):
    with pytest.raises(ValueError, match="does not fit the base 'teacher'"):
        find_target(str(trained.checkpoints()[-1]), base="teacher").load()


def test_a_damaged_adapter(trained, tmp_path):
    shutil.copytree(trained.checkpoints()[-1], tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match="damaged"):
        find_target(str(tmp_path / "adapter"), base="student").load()


def test_a_model_by_name_and_by_folder(make_model):
    assert find_target("teacher").describe() == {
        "name": "teacher",
        "base": "teacher",
        "quant": "nf4",
        "adapter": None,
        "step": None,
    }
    folder = make_model()
    assert find_target(folder, quant="none").load().source == folder
    with pytest.raises(FileNotFoundError, match="no model 'nobody'"):
        find_target("nobody")


def test_options_that_a_target_has_no_use_for(trained):
    for name, given, says in (
        ("student", {"checkpoint": 1}, "is a model"),
        ("student", {"base": "teacher"}, "is a model"),
        (str(trained.path), {"base": "teacher"}, "is a run folder"),
        (str(trained.checkpoints()[0]), {"checkpoint": 1}, "is one adapter"),
    ):
        with pytest.raises(ValueError, match=says):
            find_target(name, **given)


def test_the_task_is_the_one_named_or_the_runs_or_arithmetic(trained):
    config = config_of(trained).model_copy(update={"task": "knights_knaves"})
    assert [task_of(*given).name for given in ((None,), (config,), (config, "arithmetic"))] == [
        "arithmetic",
        "knights_knaves",
        "arithmetic",
    ]
    with pytest.raises(ValueError, match="did you mean 'arithmetic'"):
        task_of(None, "aritmetic")


def test_the_checkpoint_is_what_the_file_holds(trained):
    held = load_file(trained.checkpoints()[-1] / "adapter_model.safetensors")
    loaded = {
        name.replace(".default", ""): value
        for name, value in find_target(str(trained.path)).load().model.named_parameters()
        if "lora" in name
    }
    assert held.keys() == loaded.keys()
    assert all(torch.equal(held[name], loaded[name]) for name in held)
