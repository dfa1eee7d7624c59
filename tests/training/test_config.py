import json
import math
import re
import warnings

import pytest

from rlkd_lab.objectives import METHODS
from rlkd_lab.runs import RunFolder
from rlkd_lab.tasks import find_task
from rlkd_lab.training import RunConfig, config_of, make_config
from rlkd_lab.training.config_checks import likely_mistakes
from rlkd_lab.training.fingerprint import fingerprint
from rlkd_lab.training.loop_knobs import LOOP_KNOBS
from rlkd_lab.training.presets import PRESETS
from rlkd_lab.training.validated import validated

BAD = {
    "method": ("grop", {}, "did you mean 'grpo'"),
    "knob of another method": (
        "grpo",
        {"kd_coef": "1"},
        "grpo does not listen to kd_coef; its knobs are rl_coef",
    ),
    "knob": ("kdrl", {"kd_coeff": "1"}, "did you mean 'kd_coef'"),
    "setting": ("kdrl", {"group_sise": "4"}, "did you mean 'group_size'"),
    "option": ("kdrl", {"aggregatoin": "token"}, "did you mean 'aggregation'"),
    "value of an option": ("kdrl", {"aggregation": "tokens"}, "did you mean 'token'"),
    "template without its place": (
        "kdrl",
        {"prompt_template": "Solve {x}"},
        "prompt_template has no {question}",
    ),
    "settings by their own name": (
        "kdrl",
        {"task_settings": "1"},
        "task_settings is not a setting for --set",
    ),
    "quant": ("kdrl", {"quant": "nf8"}, "'nf4' or 'none'"),
    "engine": ("kdrl", {"engine": "vlm"}, "unknown engine 'vlm'"),
    "mode": ("kdrl", {"mode": "quick"}, "unknown mode 'quick'"),
    "a teacher at home that is asked for its whole distribution": (
        "kdrl",
        {"estimator": "exact", "teacher_home": "host"},
        "teacher_home=host cannot be",
    ),
    "knob above its range": ("kdrl", {"kd_coef": "11"}, "lies in 0–10"),
    "knob below its range": ("kdrl", {"clip_low": "-0.1"}, "lies in 0–1"),
    "knob not a number": ("kdrl", {"kd_coef": "nan"}, "lies in 0–10"),
    "knob in no form": ("kdrl", {"kd_coef": "much"}, "linear:START:END"),
    "start of a schedule": ("kdrl", {"kd_coef": "linear:11:0"}, "lies in 0–10"),
    "end of a schedule": ("kdrl", {"kd_coef": "linear:0:11"}, "lies in 0–10"),
    "a switch": ("kdrl", {"kd_coef": "switch:0:11"}, "lies in 0–10"),
    "share of a schedule": ("kdrl", {"kd_coef": "linear:0:1:1.5"}, "(0, 1]"),
    "loop knob out of range": ("kdrl", {"temperature": "0"}, "lies in 0.05–5"),
    "schedule of a loop knob": ("kdrl", {"learning_rate": "linear:0.001:2"}, "lies in 0–1"),
    "off for a knob that has no off": ("kdrl", {"kd_coef": "off"}, "lies in 0–10"),
    "off for a loop knob": ("kdrl", {"temperature": "off"}, "lies in 0.05–5"),
    "group of one": ("grpo", {"group_size": "1"}, "--set group_size=2 or more"),
    "no teacher": ("opd", {"teacher": "off"}, "opd needs a teacher"),
    "no teacher for the traces": ("sft", {"teacher": "off"}, "sft needs a teacher"),
    "k1 as a loss": ("kdrl", {"estimator": "k1"}, "k1 cannot be a loss"),
    "group size": ("opd", {"group_size": "0"}, "greater than or equal to 1"),
    "what has an option of its own": ("kdrl", {"steps": "9"}, "steps is not a setting for --set"),
    "whole number": ("kdrl", {"group_size": "many"}, "group_size='many'"),
    "top-k that is no number": ("gkd", {"topk": "many"}, "topk"),
    "top-k of nothing": ("gkd", {"topk": "-3"}, "topk"),
    "constant length below one": ("dr_grpo", {"constant_length": "-5"}, "constant_length"),
    "difficulty in no form": ("kdrl", {"difficulty": "hard"}, "difficulty"),
    "interference without groups": ("opd", {"group_size": "1", "interference_every": "1"}, "group"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_answered_in_one_sentence(case):
    method, settings, says = BAD[case]
    with pytest.raises(ValueError, match=re.escape(says)) as raised:
        make_config(method, settings=settings)
    assert "\n" not in str(raised.value)


def test_task_settings_and_the_template_come_from_the_command_line(tmp_path):
    given = {
        "task.min_numbers": "3",
        "task.share": "0.5",
        "task.flag": "True",
        "task.word": "two words",
        "task.range": "[1, 2]",
        "task.nan": "NaN",
    }
    config = make_config("grpo", settings={**given, "prompt_template": "Q: {question} \\boxed{}"})
    assert config.task_settings == {
        "min_numbers": 3,
        "share": 0.5,
        "flag": True,
        "word": "two words",
        "range": [1, 2],
        "nan": "NaN",
    }
    folder = RunFolder.create(tmp_path / "run", config.model_dump(), {})
    assert config_of(RunFolder.open(folder.path)) == config


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_a_config_of_every_method(preset):
    settings = PRESETS[preset].settings
    for method in METHODS:
        config = make_config(method, preset)
        assert all(
            getattr(config, name) == value for name, value in settings.items() if name != "knobs"
        )
        # its coefficients, where the method has them and does not move them by itself
        for name, value in settings.get("knobs", {}).items():
            if name in METHODS[method].schedules:
                assert name not in config.knobs
            elif name in METHODS[method].coefs or name in LOOP_KNOBS:
                assert config.knobs[name] == value
    assert (
        make_config("grpo", preset, knobs={"learning_rate": 0.5}, steps=7).knobs["learning_rate"]
        == 0.5
    )


@pytest.mark.parametrize("preset", PRESETS)
def test_every_number_of_a_preset_has_a_source(preset):
    settings, sources = PRESETS[preset].settings, PRESETS[preset].sources
    numbers = {name for name in settings if name not in ("knobs", "task_settings")} | set(
        settings.get("knobs", {})
    )
    numbers |= {f"task.{name}" for name in settings.get("task_settings", {})}
    assert set(sources) == numbers
    assert all(
        source.startswith(("ours", "KDRL (arXiv", "RLAD (arXiv", "S (arXiv"))
        for source in sources.values()
    )


@pytest.mark.parametrize(
    "preset",
    [name for name in PRESETS if not PRESETS[name].settings.get("task", "").startswith("hub:")],
)
def test_the_task_of_a_preset_gives_prompts(preset):
    config = make_config("grpo", preset)
    examples = find_task(config.task, config.task_settings, config.prompt_template).examples(
        2, 0, "train", config.difficulty
    )
    assert len({example.prompt for example in examples}) == 2


def test_unknown_preset():
    with pytest.raises(ValueError, match="did you mean 'tiny'"):
        make_config("grpo", "tyni")


def test_a_field_set_later_is_checked_too():
    config = make_config("grpo")
    with pytest.raises(ValueError, match="greater than or equal"):
        config.steps = 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"learning_rate": "linear:0.001:0:0.5", "temperature": "switch:1:0.7"},
        {"lora_rank": "4", "difficulty": "2-3"},
    ],
)
def test_a_config_survives_its_run_folder(tmp_path, method, settings):
    config = make_config(method, settings=settings, steps=7, seed=3)
    folder = RunFolder.create(tmp_path / "run", config.model_dump(), {})
    again = config_of(RunFolder.open(folder.path))
    assert again == config
    assert again.schedules() == config.schedules()


@pytest.mark.parametrize(
    "asked",
    [{"fields": {"lora_rank": 16}}, {"settings": {"lora_rank": "16"}}],
    ids=["field", "setting"],
)
def test_another_rank_than_the_adapters_is_refused_and_a_default_takes_its(
    make_model, make_adapter, asked
):
    adapter = make_adapter(make_model())  # of rank 4 and alpha 8
    with pytest.raises(
        ValueError,
        match=r"lora_rank=16: the adapter .* has lora_rank=4, which cannot be changed; leave"
        r" lora_rank out",
    ):
        make_config(
            "grpo", settings=asked.get("settings"), adapter=adapter, **asked.get("fields", {})
        )
    with pytest.warns(UserWarning, match="the run has lora_rank=4, lora_alpha=8, as the adapter"):
        config = make_config("grpo", adapter=adapter)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same = make_config("grpo", adapter=adapter, settings={"lora_rank": "4", "lora_alpha": "8"})
    assert (config.lora_rank, config.lora_alpha) == (same.lora_rank, same.lora_alpha) == (4, 8)


def test_knobs_off_and_options_survive_too(tmp_path):
    settings = {
        "ratio_cap": "off",
        "trrd_gap_bound": "2",
        "trrd_alpha": "switch:1:0.5:0.25",
        "aggregation": "constant",
        "constant_length": "12",
    }
    config = make_config("trrd", settings=settings)
    folder = RunFolder.create(tmp_path / "run", config.model_dump(), {})
    assert config_of(folder) == config
    assert config.schedules()["ratio_cap"].at(1, 10) is None
    assert config.options == {"aggregation": "constant", "constant_length": 12}


def test_a_knob_is_the_same_setting_from_python_and_from_the_command_line():
    assert make_config("kdrl", settings={"kd_coef": "0.5"}) == make_config(
        "kdrl", knobs={"kd_coef": 0.5}
    )


def test_every_field_says_what_it_is():
    for name, field in RunConfig.model_fields.items():
        assert field.description, name
        assert field.description.strip() == field.description, name


@pytest.mark.parametrize("method", METHODS)
def test_every_knob_of_a_method_has_a_schedule_with_values_in_range(method):
    config = make_config(method)
    schedules = config.schedules()
    assert set(schedules) == set(METHODS[method].coefs) | set(LOOP_KNOBS)
    for name, schedule in schedules.items():
        knob = {**METHODS[method].knobs, **LOOP_KNOBS}[name]
        for step in range(1, config.steps + 1):
            value = schedule.at(step, config.steps)
            assert knob.optional if value is None else knob.low <= value <= knob.high


def test_a_schedule_to_the_end_of_a_range_stays_in_the_range():
    """A value that rounding puts 1e-16 outside is refused by the loss, in the middle of a run."""
    for name, knob in METHODS["trrd"].knobs.items():
        for end in (knob.low, knob.high):
            for start in (0.3, 0.7, 1.1, 3.3, 5.0, 7.7):
                if knob.low <= start <= knob.high:
                    schedule = make_config(
                        "trrd", settings={name: f"linear:{start}:{end}"}, steps=7
                    ).schedules()[name]
                    assert all(
                        knob.low <= schedule.at(step, 7) <= knob.high for step in range(1, 8)
                    ), (name, start, end)


def test_schedules_move_with_the_length_of_the_run():
    annealed = make_config("kdrl_annealed", steps=10).schedules()["kd_coef"]
    values = [annealed.at(step, 10) for step in range(1, 11)]
    assert values[0] == 0.2
    assert values == sorted(values, reverse=True)
    assert min(values) >= 0.002
    both = make_config("opd_then_rl", steps=6).schedules()
    assert [both["kd_coef"].at(step, 6) for step in range(1, 7)] == [1, 1, 1, 0, 0, 0]
    assert [both["rl_coef"].at(step, 6) for step in range(1, 7)] == [0, 0, 0, 1, 1, 1]


def test_defaults_are_no_mistakes():
    for method in METHODS:
        assert likely_mistakes(make_config(method)) == []


def test_kls_that_nobody_needs_are_rarer_with_models_of_ones_own():
    own = {"student": "some/model"}
    assert make_config("grpo").kl_every == 1
    assert make_config("grpo", **own).kl_every == make_config("grpo", teacher="a/b").kl_every == 10
    assert make_config("grpo", settings={"kl_every": "3"}, **own).kl_every == 3
    assert make_config("kdrl", teacher="teacher,teacher-concise").kl_every == 1
    assert make_config("kdrl", teacher="self", teacher_prompt="{answer}").kl_every == 1


def test_the_embedded_teacher_of_a_preset_gives_way_to_a_student_that_is_not_embedded():
    def teacher(method, **given):
        return make_config(method, **given).teacher

    assert teacher("grpo") == "teacher"
    assert teacher("grpo", student="a/b") is None
    assert teacher("grpo", student="a/b", teacher="teacher") == "teacher"  # asked for
    assert teacher("kdrl", student="a/b", teacher_adapter="c") == "a/b"
    assert teacher("kdrl", student="a/b") == "teacher"  # refused when the pair is looked at
    assert teacher("grpo", student="a/b", preset="gsm8k-1.5b") == "Qwen/Qwen2.5-7B-Instruct"


def test_patience_without_evaluations_is_refused():
    with pytest.raises(ValueError, match="patience=2 counts evaluations, and eval_every=0 makes"):
        make_config("grpo", patience=2, eval_every=0)


def test_likely_mistakes_say_what_to_do():
    (cut,) = likely_mistakes(make_config("grpo", settings={"top_p": "0.9"}))
    assert "top_p" in cut
    assert "off" in cut
    assert likely_mistakes(make_config("grpo", settings={"top_k": "5"}))
    (idle,) = likely_mistakes(
        make_config("grpo", settings={"clip_high": "0.3", "updates_per_rollout": "1"})
    )
    assert "updates_per_rollout" in idle
    (worthless,) = likely_mistakes(make_config("grpo", reward={"format": 1.0}))
    assert "reward.accuracy=1" in worthless
    assert not likely_mistakes(make_config("opd", reward={"format": 1.0}))
    # with two minibatches the second one is off-policy, so the clip can act
    assert (
        likely_mistakes(
            make_config(
                "grpo",
                settings={"clip_high": "0.3", "updates_per_rollout": "1", "minibatches": "2"},
            )
        )
        == []
    )


def test_config_json_is_json_that_anyone_reads(tmp_path):
    folder = RunFolder.create(tmp_path / "run", make_config("trrd").model_dump(), {})

    def refuse(constant):
        raise AssertionError(constant)

    stored = json.loads((folder.path / "config.json").read_text(), parse_constant=refuse)
    assert stored["method"] == "trrd"
    assert all(not isinstance(v, float) or math.isfinite(v) for v in stored.values())


def test_dynamic_sampling_is_for_methods_that_compare_rewards():
    for method in ("opd", "sft", "gkd"):
        with pytest.raises(ValueError, match=f"{method} does not look at rewards"):
            make_config(method, settings={"zero_spread": "resample"})
    assert make_config("kdrl", settings={"zero_spread": "resample"}).options == {
        "zero_spread": "resample"
    }


def test_a_mode_is_a_short_word_for_its_settings():
    lean, fast = (make_config("kdrl", "gsm8k-0.5b", {"mode": mode}) for mode in ("lean", "fast"))
    assert (lean.dense_copy, lean.gradient_checkpointing) == (False, True)
    assert (fast.dense_copy, fast.gradient_checkpointing) == (True, False)
    assert make_config("kdrl", "gsm8k-0.5b").student == lean.student


def test_an_earlier_name_of_a_setting_is_read_and_keeps_its_fingerprint():
    new = make_config("kdrl", dense_copy=False)
    stored = new.model_dump(mode="json")
    stored["dense_twin"] = stored.pop("dense_copy")
    old = validated(stored)
    assert old == new == make_config("kdrl", settings={"dense_twin": "false"})
    assert fingerprint(old) == fingerprint(new) != fingerprint(make_config("kdrl"))
