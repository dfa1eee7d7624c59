"""How an evaluation asks: as the run did, but for what --set says, which is told."""

import json

import pytest
from typer.testing import CliRunner

from rlkd_lab.commands import app
from rlkd_lab.study import Settings, evaluate_target, find_target, task_of
from rlkd_lab.study.targets import asked_as
from rlkd_lab.tasks import ArithmeticTask
from rlkd_lab.tasks.verifier import GuardedTask
from rlkd_lab.training import make_config


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    file = tmp_path_factory.mktemp("rows") / "s.jsonl"
    file.write_text(
        "".join(
            json.dumps({"q": f"{i}+1?", "answer": i + 1, "other": 2 * i}) + "\n" for i in range(40)
        )
    )
    return make_config(
        "grpo",
        task=str(file),
        task_settings={"question": "q"},
        prompt_template="{question} =",
        difficulty=None,
        system_prompt="Think.",
    )


def test_a_run_is_asked_as_it_was_trained_but_for_what_is_given(config):
    asks, told = asked_as(config, None, {})
    assert (asks, told) == (config, [])
    asks, told = asked_as(
        config,
        None,
        {
            "task.answer": "other",
            "system_prompt": "",
            "prompt_template": "Q: {question}",
            "max_prompt_tokens": "40",
        },
    )
    assert asks.task_settings == {"question": "q", "answer": "other"}
    assert (asks.system_prompt, asks.max_prompt_tokens) == (None, 40)
    assert [sentence.split()[0] for sentence in told] == [
        "system_prompt",
        "prompt_template",
        "max_prompt_tokens",
        "task_settings",
    ]
    assert told[1] == "prompt_template is 'Q: {question}' here and '{question} =' in the run"
    (example,) = task_of(asks).examples(1, 0)
    assert example.prompt == f"Q: {example.id}"
    assert float(example.answer) == 2 * int(example.id.partition("+")[0])


def test_another_task_has_settings_of_its_own(config):
    asks, told = asked_as(config, "chain_sum", {"task.max_terms": "3", "task.min_terms": "2"})
    assert (asks.task, asks.task_settings, asks.prompt_template, told) == (
        "chain_sum",
        {"max_terms": 3, "min_terms": 2},
        None,
        [],
    )
    asks, told = asked_as(None, None, {"chat": "off"})
    assert (asks.task, asks.chat, told) == ("arithmetic", "off", [])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"sytem_prompt": "x"}, "did you mean 'system_prompt'"),
        ({"chat": "on"}, "chat='on'"),
        ({"prompt_template": "Q"}, "no {question}"),
        ({"steps": "3"}, "setting"),
    ],
)
def test_what_is_no_setting_of_an_evaluation_is_refused(given, says):
    with pytest.raises(ValueError, match=says):
        asked_as(None, None, given)


def test_two_models_are_asked_what_fits_both(make_model):
    own, small = (
        find_target(make_model(max_position_embeddings=size), quant="none").load()
        for size in (128, 64)
    )
    settings = Settings(
        prompts=24, samples=1, greedy=False, ood=False, difficulty=(2, 20), max_new_tokens=32
    )
    small.use_chat("auto")
    alone, both = (
        set(evaluate_target(own, ArithmeticTask(), settings, readers=readers)["prompt"])
        for readers in ((), [small])
    )
    assert max(map(len, alone)) > 32 >= max(map(len, both))
    with pytest.warns(UserWarning, match=r"prompts drawn are above 32 tokens \(the context of 64"):
        assert (
            set(evaluate_target(small, GuardedTask(ArithmeticTask()), settings)["prompt"]) == both
        )


def test_the_command_line_takes_the_same_names(tmp_path, config):
    sizes = [
        "--prompts",
        "2",
        "--samples",
        "1",
        "--no-greedy",
        "--split",
        "validation",
        "--max-new-tokens",
        "4",
        "--json",
    ]
    words = ["eval", "student", "--task", config.task, *sizes]
    settings = ["task.question=q", "prompt_template=Q: {question}", "max_prompt_tokens=30"]
    result = CliRunner().invoke(
        app, [*words, *(word for setting in settings for word in ("--set", setting))]
    )
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert (record["task_settings"], record["prompt_template"], record["max_prompt_tokens"]) == (
        {"question": "q"},
        "Q: {question}",
        30,
    )
    refused = CliRunner().invoke(
        app, [*words, "--set", "task.question=q", "--set", "system_prompt=Be brief."]
    )
    assert refused.exit_code == 2
    assert "the tokenizer of student has no chat template" in refused.stderr
