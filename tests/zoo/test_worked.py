"""Worked completions of reasoning-gym's Knights & Knaves and Countdown, against the sets' own
verifiers and a solver written another way.
"""

import functools
import random
import re
from fractions import Fraction

import pytest

from rlkd_lab.zoo.midsize import RECIPES
from rlkd_lab.zoo.midsize_batches import LONG, learn_tokenizer, task_of
from rlkd_lab.zoo.worked import CHECK, DIRECT, _judged, worked

TASKS = ("knights", "countdown")
EVERY_TASK = pytest.mark.parametrize("name", TASKS)


@functools.cache
def puzzles(name, difficulty=None):
    return task_of(name)[0].examples(
        1000 if name == "knights" and not difficulty else 200, 3, difficulty=difficulty
    )


def drawn(name, n=200, difficulty=None):
    task, limit = task_of(name)
    return task, limit, puzzles(name, difficulty)[:n]


@EVERY_TASK
@pytest.mark.parametrize("style", ["direct", "steps", "checked"])
def test_every_trace_is_right_by_the_tasks_own_verifier(name, style):
    task, _, examples = drawn(name)
    for example in examples:
        text = worked(example, style, random.Random(0))
        assert task.score(text, example).parts == {"accuracy": 1.0, "credit": 1.0, "format": 1.0}, (
            text
        )
        assert text.startswith(DIRECT) == (style == "direct")
        assert (CHECK in text) == (style == "checked")


@EVERY_TASK
def test_a_corrupted_trace_has_one_wrong_step_and_follows_it(name):
    task, _, examples = drawn(name)
    rng = random.Random(0)
    wrong = 0
    for example in examples:
        text, right = worked(example, "corrupted", rng), worked(example, "steps", rng)
        assert text != right
        assert task.score(text, example).parts["format"] == 1.0
        wrong += not task.score(text, example).correct
    assert 0 < wrong < len(examples)  # some find the solution all the same


def test_the_same_stream_gives_the_same_corruption():
    for name in TASKS:
        _, _, examples = drawn(name, 5)
        assert [worked(e, "corrupted", random.Random(7)) for e in examples] == [
            worked(e, "corrupted", random.Random(7)) for e in examples
        ]


def value(statement, world):
    """What a statement is worth, by Python's own logic."""
    kinds = {
        "telling-truth": lambda i: world[i],
        "lying": lambda i: not world[i],
        "not": lambda a: not a,
    }
    kinds |= {
        "and": lambda *a: all(a),
        "or": lambda *a: any(a),
        "->": lambda a, b: (not a) or b,
        "<=>": lambda a, b: a is b,
    }
    return kinds[statement[0]](
        *(value(part, world) if isinstance(part, tuple) else part for part in statement[1:])
    )


def test_knights_are_tried_in_order_and_judged_rightly():
    _, _, examples = drawn("knights")
    for example in examples:
        about = example.meta["metadata"]
        names, terms = [str(name) for name in about["names"]], about["knight_knave_terms"]
        lines = worked(example, "checked", random.Random(0)).splitlines()
        check = lines.index(CHECK)
        assert all(line.endswith(" No.") for line in lines[: check - 1] + lines[check + 1 : -1])
        assert lines[check - 1].endswith(" All fit.")
        tries = lines[:check] + lines[check + 1 : -1]
        assert len(tries) == 2 ** len(names)
        worlds = []
        for line in tries:
            roles, _, judged = line.partition("?")
            world = [
                part == f"{name} {terms['knight']}"
                for name, part in zip(names, roles.split(", "), strict=True)
            ]
            worlds.append(world)
            verdicts = re.findall(r"(?<=: )[^.]*?(true|false)\.", judged)
            truth = [value(statement, world) for statement in about["statements"]]
            assert [verdict == "true" for verdict in verdicts] == truth[: len(verdicts)]
            suits = [knight == true for knight, true in zip(world, truth, strict=True)]
            assert len(verdicts) == (len(names) if all(suits) else suits.index(False) + 1)
        assert worlds == sorted(worlds, reverse=True)


def test_a_statement_in_words():
    world = (True, False)
    assert _judged(("not", ("and", ("lying", 1), ("telling-truth", 0))), world) == (
        "not (true and true)",
        False,
    )
    assert _judged(
        ("or", ("not", ("lying", 1)), ("not", ("or", ("lying", 0), ("lying", 0)))), world
    ) == ("false or (not (false or false))", True)
    assert _judged(("<=>", ("telling-truth", 1), ("lying", 0)), world) == (
        "false if and only if false",
        True,
    )


def test_countdowns_arithmetic_is_right_and_stops_at_the_first_solution():
    _, _, examples = drawn("countdown")
    for example in examples:
        text = worked(example, "checked", random.Random(0))
        for left, sign, right, result in re.findall(r"(\d+)([-+*/])(\d+)=(-?\d+)", text):
            a, b = int(left), int(right)
            assert {"+": a + b, "-": a - b, "*": a * b, "/": Fraction(a, b)}[sign] == int(result), (
                text
            )
        for left, right in re.findall(r"(\d+)/(\d+) no", text):
            assert int(left) % int(right) != 0
        assert text.count(" yes.") == 1
        assert text.partition(" yes.")[0].count("\n") == text.partition(" yes.")[0].count("None.")


def test_countdown_with_other_sizes_is_refused():
    _, _, (example, *_) = drawn("countdown", 1)
    example.meta["metadata"]["numbers"].append(3)
    try:
        with pytest.raises(ValueError, match=r"three numbers.*task\.max_numbers=3"):
            worked(example, "steps", random.Random(0))
    finally:
        example.meta["metadata"]["numbers"].pop()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return learn_tokenizer(RECIPES["teacher"], 600, tmp_path_factory.mktemp("tokenizer"))


@EVERY_TASK
@pytest.mark.parametrize("style", ["direct", "steps", "checked", "corrupted"])
def test_999_of_1000_traces_fit_the_presets_limit(name, style, tokenizer):
    _, limit, examples = drawn(name, 1000)
    rng = random.Random(1)
    lengths = sorted(
        len(tokenizer(worked(example, style, rng))["input_ids"]) + 1 for example in examples
    )
    assert lengths[-1 - len(lengths) // 1000] <= limit


def test_long_prompts_fit_the_context(tokenizer):
    _, limit, examples = drawn("knights", difficulty=LONG)
    rng = random.Random(1)
    assert (
        max(len(tokenizer(e.prompt + worked(e, "checked", rng))["input_ids"]) + 1 for e in examples)
        <= 2048
    )
    task, _ = task_of("knights")
    prompts = task.examples(200, 3, difficulty=task.ood_difficulty)
    assert max(len(tokenizer(e.prompt)["input_ids"]) for e in prompts) + 2 * limit <= 2048


def test_the_tokenizer_reads_numbers_digit_by_digit_and_can_write_anything(tokenizer):
    assert tokenizer.convert_ids_to_tokens(tokenizer("128*37=4736")["input_ids"]) == list(
        "128*37=4736"
    )
    assert not [
        token for token in tokenizer.get_vocab() if len(token) > 1 and re.search("[0-9]", token)
    ]
    for text in ("Emma is a knight.", "  naïve\n\t – ‘quoted’ 🙂", "<answer>3</answer>"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)
    assert len(tokenizer) <= 2000


def test_the_tokenizer_is_a_pure_function_of_its_seed(tokenizer, tmp_path):
    assert (
        learn_tokenizer(RECIPES["teacher"], 600, tmp_path).backend_tokenizer.to_str()
        == tokenizer.backend_tokenizer.to_str()
    )
