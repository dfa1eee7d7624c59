"""Every parser of ours, on what it was made for, on the same with something changed, and on
anything: an answer or an error in words.
"""

import contextlib
import json
import math
import re
import string

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rlkd_lab.objectives.schedules import parse_schedule, values_of
from rlkd_lab.study.sweep import Sweep, read_sweep, settled
from rlkd_lab.tasks import ArithmeticTask, Example, KnightsTask
from rlkd_lab.tasks import arithmetic as arithmetic_task
from rlkd_lab.tasks import knights as knights_task
from rlkd_lab.tasks.answers import final_answer, grade, why_not
from rlkd_lab.tasks.answers.extract import TAIL
from rlkd_lab.tasks.mathematics import LONGEST, harmless
from rlkd_lab.training.config import RunConfig
from rlkd_lab.training.make_config import make_config
from rlkd_lab.training.validated import validated

MANY = settings(
    max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
SOME = settings(MANY, max_examples=40)
ANY_TEXT = st.text(st.characters(codec=None, categories=None), max_size=60)
"""Halves of surrogate pairs and null bytes too."""
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | ANY_TEXT
    | st.sampled_from([10**400, -(10**400), 1e308, "off", "linear:1:0", ""]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY_TEXT, inner, max_size=4),
    max_leaves=8,
)


@st.composite
def changed(draw, texts):
    """A text with a few characters taken out, put in or doubled."""
    text = draw(texts)
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(text)))
        to = draw(st.integers(at, min(len(text), at + 5)))
        text = (
            text[:at]
            + draw(
                st.sampled_from(["", text[at:to] * 2])
                | st.text(string.printable + "٤²\x00\ud800", max_size=3)
            )
            + text[to:]
        )
    return text


def one_line(error):
    assert type(error) is ValueError, f"{type(error).__name__}: {error}"
    assert str(error).strip()
    assert "\n" not in str(error), str(error)


@contextlib.contextmanager
def refused_in_words():
    """Inside, nothing is raised but a ValueError of one line."""
    try:
        yield
    except ValueError as error:
        one_line(error)


# --- final answers --------------------------------------------------------------------------------

MARKED = st.sampled_from(
    [
        r"\boxed{",
        "}",
        "{",
        "####",
        "<answer>",
        "</answer>",
        "\n",
        r"\frac{1}{2}",
        "42",
        "x^2",
        r"\{",
        r"\\",
        " ",
        "$",
        "-1.5",
        r"\text{cat}",
    ]
)
ANSWERS = st.lists(MARKED, max_size=12).map("".join)


@MANY
@given(changed(ANSWERS) | ANY_TEXT)
@example("\\boxed{" * 3)
@example("#### ")
@example("<answer>\n")
@example("\\boxed{3} and \\boxed{4}")
@example("\\boxed{" + "9" * 5000 + "}")
@example("<answer>" + "9" * 5000 + "</answer>")
def test_a_final_answer_is_a_part_of_the_text(text):
    answer, marked = final_answer(text)
    assert all(part in text for part in answer.split(" or "))
    assert answer == answer.strip()
    assert len(answer) <= TAIL
    assert marked <= bool(answer)
    assert final_answer(text + "\n\\boxed{7}") == ("7", True)


@SOME
@given(changed(ANSWERS) | ANY_TEXT, st.booleans())
def test_reading_and_comparing_never_raise(text, marked):
    answer, _ = final_answer(text)
    for gold in (
        "42",
        "x^2+1",
        r"\{1,2\}",
        "cat",
        "7:00",
        "May 3",
        "[0,1)",
        "(B) 5",
        "no",
        "5 km/h",
        answer or "1",
    ):
        found = grade(gold, answer, marked)
        assert isinstance(found.text, str | None)
        assert found.correct in (True, False)
    if answer and marked and why_not(answer) is None:
        assert grade(answer, answer).correct


@MANY
@given(st.text(r"0123456789^*!(){}[]\expfracsinhGamma|., +-/", max_size=LONGEST + 5))
def test_harmless_answers_have_no_large_power(answer):
    if harmless(answer):
        assert len(answer) <= LONGEST
        for grown in (
            answer + "!!",
            answer + "^{9^9}",
            answer + "^{99999}",
            answer + "^({9999})",
            answer + r"\exp(\exp(9))",
            "(" * 9 + answer,
        ):
            assert not harmless(grown)


@SOME
@given(st.integers(-(10**9), 10**9), st.integers(1, 9999))
def test_equal_numbers_are_equal_however_they_are_written(number, below):
    for text in (
        f"{number}.0",
        rf"\frac{{{2 * number}}}{{2}}",
        f"${number}$",
        f"x={number}",
        rf"{number}\%" if number >= 0 else str(number),
    ):
        assert grade(str(number), text).correct, text
        assert not grade(str(number + 1), text).correct, text
    assert grade(rf"\frac{{{number}}}{{{below}}}", f"{number}/{below}").correct
    assert grade(str(number), str(number)).text == str(number)


# --- the verifiers of our own tasks ---------------------------------------------------------------

SUM, PUZZLE = ArithmeticTask().examples(1, 5)[0], KnightsTask().examples(1, 5)[0]
STYLES = st.sampled_from(["direct", "steps", "checked"])
STEPS = r"(?:\d{1,3}[+-]\d{1,3}=-?\d{1,3};)+"
TRY = r"[A-Ea-e]{2,5}:(?:[A-Ea-e](?:[01]{2})?[tf])+"
TRIES = rf"{TRY}(?:;{TRY})*"
ARITHMETIC_FORM = re.compile(rf"(?:{STEPS}(?:!{STEPS})?)?#-?\d{{1,6}}", re.ASCII)
KNIGHTS_FORM = re.compile(rf"(?:{TRIES}(?:!(?:{TRIES})?)?)?#[A-Ea-e]{{2,5}}", re.ASCII)
"""The whole form in one pattern: easy to read, and too large in memory for a megabyte."""


@MANY
@given(changed(STYLES.map(lambda style: arithmetic_task.worked(SUM, style))) | ANY_TEXT)
def test_arithmetic_is_right_where_it_ends_in_the_answer(text):
    score = ArithmeticTask().score(text, SUM)
    _, hash_sign, end = text.rpartition("#")
    right = (
        bool(hash_sign)
        and end.isascii()
        and end.removeprefix("-").isdigit()
        and len(end) <= 7
        and int(end) == int(SUM.answer)
    )
    assert score.correct == right
    assert score.parts["format"] == float(ARITHMETIC_FORM.fullmatch(text) is not None)
    if score.answer is not None:
        assert score.answer == str(int(score.answer))


@MANY
@given(changed(STYLES.map(lambda style: knights_task.worked(PUZZLE, style))) | ANY_TEXT)
def test_knights_are_right_where_they_end_in_the_answer(text):
    score = KnightsTask().score(text, PUZZLE)
    assert score.correct == text.endswith("#" + PUZZLE.answer)
    assert score.parts["format"] == float(KNIGHTS_FORM.fullmatch(text) is not None)


@MANY
@given(
    changed(
        st.sampled_from(
            [
                "<answer>7</answer>",
                "so <answer>\n7 </answer>.",
                "<answer>1</answer><answer>7</answer>",
            ]
        )
    )
    | ANY_TEXT
)
def test_a_set_is_judged_by_what_stands_between_its_last_tags(text):
    import rlkd_lab.tasks.reasoning as reasoning

    task, seen = reasoning.ReasoningGymTask.__new__(reasoning.ReasoningGymTask), []
    task.name = "chain_sum"
    task._credit = lambda answer, _: seen.append(answer) or float(answer == "7")
    score = task.score(text, Example("", "7", 0, ""))
    assert set(score.parts) == {"accuracy", "credit", "format"}
    if not seen:
        assert set(score.parts.values()) == {0.0}
        return
    (answer,) = seen
    assert "<answer>" not in answer
    assert "</answer>" not in answer
    assert answer in text
    assert score.correct == (answer == "7")
    assert score.parts["format"] == float(text.count("<answer>") == 1)


# --- schedules ------------------------------------------------------------------------------------

NUMBER = (
    st.floats().map(str)
    | st.integers(-5, 5).map(str)
    | st.sampled_from(["", "off", "1e999", "-0", "nan", "٣", "1_0", "0x1"])
)
SCHEDULES = st.tuples(
    st.sampled_from(["linear", "switch", "cosine", "warmup:0.5:cosine", "warmup", "", "Linear"]),
    st.lists(NUMBER, max_size=4),
).map(lambda pair: ":".join([pair[0], *pair[1]]))


@MANY
@given(changed(SCHEDULES) | NUMBER | ANY_TEXT | st.none() | st.floats() | st.integers())
def test_a_schedule_is_read_written_and_read_again_or_refused(text):
    with refused_in_words():
        schedule = parse_schedule(text)
        again = parse_schedule(str(schedule))
        assert str(again) == str(schedule)
        finite = [value for value in values_of(schedule) if value is not None]
        if all(math.isfinite(value) for value in finite):
            assert again == schedule
            for total in (1, 2, 7, 1000):
                for step in {1, (total + 1) // 2, total}:
                    value = schedule.at(step, total)
                    assert value is None if not finite else min(finite) <= value <= max(finite)


# --- configs --------------------------------------------------------------------------------------

FIELDS = st.sampled_from(sorted(RunConfig.model_fields))
NAMES = FIELDS | st.sampled_from(
    [
        "kd_coef",
        "temperature",
        "learning_rate",
        "clip_low",
        "topk",
        "constant_length",
        "estimator",
        "kd_mask",
        "zero_spread",
        "mode",
        "reward.format",
        "reward.",
        "task.x",
        "kl_coef",
    ]
)
TEXTS = (
    ANY_TEXT
    | NUMBER
    | SCHEDULES
    | st.sampled_from(
        ["off", "true", "auto", "fast", "3-5", "-", "²", "--3", "[" * 100_000, "9" * 5000, "none"]
    )
)


@MANY
@given(
    st.sampled_from(["grpo", "kdrl", "trrd", "sft", "kdlr", ""]),
    st.dictionaries(changed(NAMES), TEXTS, max_size=3),
)
@example("grpo", {"task.x": "[" * 100_000})
@example("grpo", {"task.x": "9" * 5000})
@example("grpo", {"topk": "²"})
@example("grpo", {"system_prompt": "\ud800"})
@example("grpo", {"task.x": '["\\ud800"]'})
@example("grpo", {"task.x": "1e999"})
@example("grpo", {"reward.format": "nan"})
@example("grpo", {"weight_decay": "inf"})
def test_settings_make_a_config_or_one_line(method, given_settings):
    with refused_in_words():
        round_trip(make_config(method, settings=given_settings))


@MANY
@given(st.dictionaries(FIELDS | ANY_TEXT, JSON, max_size=3))
@example({"method": ["grpo"]})
@example({"options": {"topk": 10**400}})
@example({"knobs": {"kl_coef": 10**400}})
@example({"moves": [{"step": 1, "knob": "kl_coef", "value": 10**400}]})
@example({"task_settings": {"x": float("nan")}})
@example({"seed": 10**400})
@example({"max_new_tokens": 10**400})
def test_anything_in_a_config_file_is_a_config_or_one_line(values):
    with refused_in_words():
        round_trip(validated(values))


@MANY
@given(st.dictionaries(FIELDS, JSON, max_size=2))
def test_fields_make_a_config_or_one_line(fields):
    fields = {name: value for name, value in fields.items() if name not in ("method", "preset")}
    with refused_in_words():
        round_trip(make_config("kdrl", **fields))


def round_trip(config):
    """Through the file and back it is the same config, with the same values of its knobs."""
    text = json.dumps(config.model_dump(), ensure_ascii=False, allow_nan=False)
    text.encode()
    again = validated(json.loads(text))
    assert again == config
    assert again.model_dump_json() == config.model_dump_json()
    for name, schedule in config.schedules().items():
        for step in {1, config.steps}:
            value = schedule.at(step, config.steps)
            assert value is None or math.isfinite(value), name


# --- sweeps ---------------------------------------------------------------------------------------

SWEEP = """
preset = "tiny"
steps = 4
seeds = 2
settings = {interference_every = 5}
[evaluate]
prompts = 8
samples = 2
[tune]
seed = 1000
[[arms]]
name = "kdrl"
method = "kdrl"
settings = {teacher = "teacher-concise"}
trials = [{kd_coef = 0.05}, {kd_coef = 0.2}]
[[arms]]
name = "grpo"
method = "grpo"
trials = [{kl_coef = 0.0}, {kl_coef = 0.01}]
"""


WHOLE = (
    "group_size",
    "lora_rank",
    "lora_alpha",
    "micro_batch",
    "prompts_per_step",
    "max_new_tokens",
    "minibatches",
    "logits_mib",
)


def all_of(sweep):
    if sweep.tune is not None:
        sweep.tuning().jobs()
        sweep = sweep.tuned(dict.fromkeys((arm.name for arm in sweep.arms), 1))
    jobs = sweep.jobs()
    assert jobs
    assert len({(job.arm, job.seed) for job in jobs}) == len(jobs)


@SOME
@given(
    changed(st.just(SWEEP))
    | changed(st.just(SWEEP)).map(lambda text: text.replace("[tune]", "[other]"))
    | ANY_TEXT
)
@example(SWEEP.replace("seeds = 2", "seeds = 1000000000000"))
@example(SWEEP.replace("seeds = 2", "seeds = -1"))
@example(
    "[[arms]]\nname='a'\nmethod='grpo'\ngrid={"
    + ",".join(f"{name}=[2,3,4,5,6,7,8,9]" for name in WHOLE)
    + "}"
)
@example("x = " + "[" * 5000)
@example("[[arms]]\nname='a'\nmethod='grpo'\nsettings={kl_coef=1979-05-27}")
@example("[[arms]]\nname='a\n'\nmethod='grpo'")
@example('[[arms]]\nname="a\\n"\nmethod="grpo"\n[tune]\n')
def test_a_sweep_file_is_a_sweep_or_one_line(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "sweep.toml"
    path.write_bytes(text.encode(errors="surrogatepass"))
    with refused_in_words():
        all_of(read_sweep(path))


def test_the_sweep_that_is_changed_here_is_one(tmp_path):
    path = tmp_path / "sweep.toml"
    path.write_text(SWEEP)
    all_of(read_sweep(path))


@MANY
@given(st.dictionaries(st.sampled_from([*Sweep.model_fields, "x"]), JSON, max_size=3), JSON)
def test_anything_in_a_sweep_is_a_sweep_or_one_line(values, arms):
    from pydantic import ValidationError

    with refused_in_words():
        try:
            sweep = Sweep(
                **{
                    "arms": [
                        {
                            "name": "a",
                            "method": "grpo",
                            "settings": arms if isinstance(arms, dict) else {},
                        }
                    ],
                    **values,
                }
            )
        except ValidationError:
            return
        all_of(sweep)


@SOME
@given(st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode()))
@example(b"{}")
@example(b'{"tuning": {}}')
def test_a_damaged_choice_of_settings_is_one_line(tmp_path_factory, content):
    folder = tmp_path_factory.getbasetemp()
    path = folder / "whole.toml"
    path.write_text(SWEEP)
    (folder / "tuned.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"tuned\.json") as raised:
        settled(read_sweep(path), folder)
    one_line(raised.value)
