"""The mid-size pair, made in small on a CPU through the same code, and trained on through its
presets.
"""

import importlib.util
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlkd_lab.models import load_policy, load_teacher
from rlkd_lab.models.verification import quantised_layers
from rlkd_lab.study import evaluation
from rlkd_lab.study.sweep import read_sweep
from rlkd_lab.tasks.base import split_of
from rlkd_lab.training import make_config, run
from rlkd_lab.zoo import midsize_batches
from rlkd_lab.zoo.midsize import FULL, RECIPES, REHEARSAL, build, train
from rlkd_lab.zoo.midsize_batches import (
    TASKS,
    Batches,
    batch_for,
    examples_of,
    learn_tokenizer,
    task_of,
)
from rlkd_lab.zoo.pretraining import new_model

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder in which a rehearsal has been built where the presets look for the pair."""
    base = tmp_path_factory.mktemp("midsize")
    recipes = {
        name: replace(recipe, steps=4, batch=2, long=0.0)
        for name, recipe in REHEARSAL.recipes.items()
    }
    least = replace(REHEARSAL, recipes=recipes, every=2, choose_on=2, report_on=2)
    build(least, base / "models" / "midsize", base / "build", CPU, workers=0)
    return base


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return learn_tokenizer(RECIPES["teacher"], 100, tmp_path_factory.mktemp("tokenizer"))


def same(one, other):
    return len(one) == len(other) and all(
        torch.equal(a, b)
        for parts in zip(one, other, strict=True)
        for a, b in zip(*parts, strict=True)
    )


def test_batches_are_a_pure_function_of_seed_and_step(tokenizer):
    recipe = replace(RECIPES["student"], batch=12)
    assert same(batch_for(5, recipe, tokenizer), batch_for(5, recipe, tokenizer))
    assert not same(batch_for(5, recipe, tokenizer), batch_for(6, recipe, tokenizer))
    assert not same(
        batch_for(5, recipe, tokenizer), batch_for(5, replace(recipe, seed=99), tokenizer)
    )


def test_batches_made_by_other_processes_are_the_same_and_in_order(tokenizer):
    recipe = replace(RECIPES["student"], batch=4, steps=5)
    alone, ahead = ([*Batches(recipe, tokenizer).from_step(2, workers)] for workers in (0, 2))
    assert len(alone) == 3
    assert all(same(one, other) for one, other in zip(alone, ahead, strict=True))


def test_pre_training_sees_training_prompts_alone_as_the_presets_have_them():
    examples = examples_of(RECIPES["student"], 120, random.Random(0))
    assert {split_of(example.id) for example in examples} == {"train"}
    held_out = {
        example.prompt
        for name in TASKS
        for split in ("validation", "test")
        for example in task_of(name)[0].examples(15, 0, split)
    }
    assert not held_out & {example.prompt for example in examples}
    assert {split_of(prompt) for prompt in held_out} == {"validation", "test"}
    for name in TASKS:
        config = make_config("kdrl", TASKS[name])
        assert config.prompt_template is None
        prompt = task_of(name)[0].examples(1, 0)[0].prompt
        assert prompt.endswith("give the answer between <answer> and </answer>.\n")
    people = [
        example.difficulty
        for example in examples
        if example.meta["metadata"]["source_dataset"] == "knights_knaves"
    ]
    assert {2, 3, 4, 5} == set(people)
    assert 0.2 < 1 - len(people) / len(examples) < 0.5


def test_the_models_have_the_sizes_and_widths_they_should():
    for name, (low, high) in {"student": (5e6, 15e6), "teacher": (30e6, 60e6)}.items():
        with torch.device("meta"):
            model = new_model(RECIPES[name], 960)
        assert low < sum(p.numel() for p in model.parameters()) < high
        linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
        assert all(module.in_features % 64 == 0 for module in linear)
        assert model.config.max_position_embeddings == 2048


def test_a_folder_that_is_not_there_yet_names_the_command_that_makes_it(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for preset in TASKS.values():
        with pytest.raises(
            FileNotFoundError, match=r"models/midsize/student-.*python -m rlkd_lab\.zoo\.midsize"
        ):
            run(make_config("kdrl", preset, steps=1), tmp_path / "run")


def test_the_loss_falls_and_a_stopped_build_ends_with_the_same_weights(
    tokenizer, tmp_path, monkeypatch, capsys
):
    plan = replace(
        REHEARSAL,
        recipes={
            "student": replace(
                REHEARSAL.recipes["student"], steps=8, batch=4, lr=5e-2, direct=1.0, long=0.0
            )
        },
        every=2,
    )

    def losses(work):
        return [
            json.loads((work / "student" / f"step_{step}" / "trained.json").read_text())["loss"]
            for step in (2, 8)
        ]

    def trained(work):
        train("student", plan, work, tokenizer, CPU, workers=0)
        return load_file(work / "student" / "step_8" / "model.safetensors")

    whole = trained(tmp_path / "whole")
    first, last = losses(tmp_path / "whole")
    assert last < 0.9 * first

    def broken(step, *rest):
        if step == 5:
            raise KeyboardInterrupt
        return batch_for(step, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(midsize_batches, "batch_for", broken)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "stopped")
    assert not (tmp_path / "stopped" / "student" / "step_6").exists()
    again = trained(tmp_path / "stopped")
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert losses(tmp_path / "stopped") == [first, last]

    other = replace(plan, recipes={"student": replace(plan.recipes["student"], lr=1e-3)})
    with pytest.raises(ValueError, match="another recipe"):
        train("student", other, tmp_path / "whole", tokenizer, CPU, workers=0)


def test_the_pair_loads_in_nf4_and_shares_its_tokenizer(place):
    models = place / "models" / "midsize"
    assert sorted(path.name for path in models.iterdir()) == [
        "CARD.md",
        "card.json",
        "student-countdown",
        "student-knights",
        "teacher",
    ]
    for name in ("student-knights", "student-countdown"):
        policy = load_policy(str(models / name))
        assert len([*quantised_layers(policy.model)]) == 14
        teacher = load_teacher(str(models / "teacher"), policy=policy)
        assert policy.tokenizer.get_vocab() == teacher.tokenizer.get_vocab()
        assert policy.eos_ids == teacher.eos_ids == {1}
        assert policy.context == 2048


def test_the_card_says_what_was_made(place):
    card = json.loads((place / "models" / "midsize" / "card.json").read_text())
    assert card["rehearsal"]
    assert card["models"].keys() == {"teacher", "student-knights", "student-countdown"}
    assert card["models"]["teacher"]["tables"].keys() == set(TASKS)
    assert card["models"]["teacher"]["tables"]["knights"].keys() == {
        "none",
        "nf4",
        "none ood",
        "nf4 ood",
    }
    assert card["models"]["student-countdown"]["tables"]["countdown"].keys() == {"none", "nf4"}
    text = (place / "models" / "midsize" / "CARD.md").read_text()
    assert "A rehearsal" in text
    assert text.count("| student-knights |") == text.count("| student-countdown |") == 2
    assert text.count("| teacher |") == 4
    assert FULL.recipes is RECIPES


def test_a_kdrl_step_through_the_presets(place, monkeypatch, tmp_path):
    monkeypatch.chdir(place)
    settings = {
        "prompts_per_step": "2",
        "group_size": "2",
        "max_new_tokens": "8",
        "eval_every": "0",
        "samples_every": "0",
        "plan": "off",
    }
    for preset in TASKS.values():
        folder = run(make_config("kdrl", preset, settings, steps=1), tmp_path / preset)
        (row,) = folder.rows()
        assert row["kl_teacher_rev"] > 0
        assert row["grad_norm"] > 0


def bench():
    spec = importlib.util.spec_from_file_location(
        "benchmarks_midsize", ROOT / "benchmarks" / "midsize.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", TASKS)
def test_the_sweep_files_give_every_method_the_same_chance(name):
    sweep = read_sweep(ROOT / "benchmarks" / f"midsize-{name}.toml")
    assert sweep.preset == TASKS[name]
    assert [arm.method for arm in sweep.arms] == ["grpo", "opd", "kdrl", "trrd", "sft"]
    assert len(sweep.all_seeds) == 5
    assert len(sweep.tuning().jobs()) == 15
    assert len(sweep.tuned(dict.fromkeys([arm.name for arm in sweep.arms], 1)).jobs()) == 25


def test_the_sweep_leaves_tables_and_figures(place, monkeypatch):
    """Of Knights & Knaves, whose puzzles are drawn ten times faster than those of Countdown."""
    monkeypatch.chdir(place)
    monkeypatch.setattr(evaluation, "TRAINED", 16)
    sweep = read_sweep(ROOT / "benchmarks" / "midsize-knights.toml")
    small = {
        "prompts_per_step": 2,
        "group_size": 2,
        "max_new_tokens": 8,
        "eval_every": 1,
        "eval_prompts": 2,
        "samples_every": 0,
        "plan": "off",
    }
    asked = sweep.evaluate.model_copy(update={"prompts": 4, "samples": 2})
    arms = [
        arm.model_copy(update={"trials": []})
        for arm in sweep.arms
        if arm.method in ("grpo", "kdrl")
    ]
    tiny = sweep.model_copy(
        update={
            "arms": arms,
            "seeds": 1,
            "steps": 1,
            "settings": small,
            "evaluate": asked,
            "tune": None,
        }
    )
    assert bench().run("knights", tiny, place, workers=1) == []
    found = {
        str(path.relative_to(place))
        for folder in ("results", "figures")
        for path in (place / folder).rglob("*")
        if path.is_file()
    }
    assert {
        f"results/midsize/knights/{table}"
        for table in ("runs.csv", "curves.parquet", "levels.csv", "sweep.json")
    } <= found
    assert {
        f"figures/midsize_knights{end}" for end in (".png", ".json", "_curves.png", "_curves.json")
    } <= found
