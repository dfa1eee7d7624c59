"""Knights and Knaves in the compact notation: puzzles, traces and scores, against a solver
written another way.
"""

import itertools
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlkd_lab.tasks import Example, KnightsTask, find_task
from rlkd_lab.tasks.base import split_of
from rlkd_lab.tasks.knights import NAMES, assignments, renamed, solutions, tried, twins, worked

TASK = KnightsTask()
EVERY_SIZE = pytest.mark.parametrize("people", [2, 3, 4, 5])
PUZZLE = Example("A:-B&-C;B:-A;C:A/B?", "aBC", 3, "x")


def claims(prompt):
    """Speaker and claim as a Python expression over the people."""
    for part in prompt.removesuffix("?").split(";"):
        speaker, said = part.split(":")
        for name in NAMES:
            said = said.replace(f"+{name}", name).replace(f"-{name}", f"(not {name})")
        yield (
            speaker,
            said.replace("&", " and ")
            .replace("|", " or ")
            .replace("=", " == ")
            .replace("/", " != "),
        )


def solve(prompt):
    """Every solution, by Python's own logic."""
    said = list(claims(prompt))
    found = []
    for values in itertools.product([True, False], repeat=len(said)):
        world = dict(zip(NAMES, values, strict=False))
        if all(eval(claim, {}, world) == world[speaker] for speaker, claim in said):
            found.append(
                "".join(
                    name if value else name.lower()
                    for name, value in zip(NAMES, values, strict=False)
                )
            )
    return found


@EVERY_SIZE
def test_a_puzzle_has_one_solution_and_it_is_the_answer(people):
    for puzzle in TASK.examples(150, 0, "train", (people, people)):
        assert solve(puzzle.prompt) == solutions(puzzle.prompt) == [puzzle.answer]
        assert [speaker for speaker, _ in claims(puzzle.prompt)] == list(NAMES[:people])
        assert puzzle.difficulty == people == len(puzzle.answer)
        assert TASK.chance(puzzle) == 2**-people


def test_puzzles_with_no_or_several_solutions_are_told_apart():
    for prompt in ("A:-B;B:-A?", "A:+B;B:+A?", "A:-B;B:+A?", "A:+B;B:+A;C:A=B?"):
        assert solutions(prompt) == solve(prompt)
        assert len(solve(prompt)) != 1


def test_no_answer_can_be_guessed_from_the_size():
    """Else the chance line would be too low."""
    for people in (2, 3, 4):
        counts = Counter(
            puzzle.answer for puzzle in TASK.examples(1500, 1, "train", (people, people))
        )
        assert len(counts) == 2**people
        assert max(counts.values()) < 1.6 * 1500 / 2**people


@EVERY_SIZE
def test_worked_completions_try_in_order_and_stop_at_the_solution(people):
    for puzzle in TASK.examples(60, 2, "train", (people, people)):
        texts = {style: worked(puzzle, style) for style in ("direct", "steps", "checked")}
        for text in texts.values():
            assert TASK.score(text, puzzle).parts == {"accuracy": 1.0, "format": 1.0}
        tries = texts["steps"].partition("#")[0].split(";")
        assert [line.partition(":")[0] for line in tries] == assignments(people)[: len(tries)]
        for line in tries:
            assignment, _, judged = line.partition(":")
            world = {person.upper(): person.isupper() for person in assignment}
            judgements = re.findall("([A-Ea-e])([01]*)([tf])", judged)
            said = list(claims(puzzle.prompt))
            assert "".join(person for person, _, _ in judgements) == assignment[: len(judgements)]
            assert [verdict == "t" for _, _, verdict in judgements] == [
                bool(eval(claim, {}, world)) for _, claim in said
            ][: len(judgements)]
            for (_, parts, _), (_, claim) in zip(judgements, said, strict=False):
                two = re.split(" and | or | == | != ", claim)
                assert parts == (
                    "".join(f"{eval(part, {}, world):d}" for part in two) if len(two) == 2 else ""
                )
            # every statement fits its speaker, but for the last one of a try that fails
            fits = [person.isupper() == (verdict == "t") for person, _, verdict in judgements]
            assert all(fits[:-1])
            assert fits[-1] == (assignment == puzzle.answer)
        checked = texts["checked"].partition("#")[0]
        assert [
            line.partition(":")[0] for line in re.split("[;!]", checked) if line
        ] == assignments(people)
        assert TASK.checking(texts["checked"]).startswith("!")
        assert TASK.checking(texts["steps"]) == ""


def test_a_misjudged_statement_is_followed_through():
    assert worked(PUZZLE, "steps") == "ABC:A00f;ABc:A01f;AbC:A10f;Abc:A11tbfc10t;aBC:a00fBtC01t#aBC"
    puzzle = Example("A:-B;B:A/B?", "aB", 2, "x")
    assert (
        worked(puzzle, "steps", wrong_try=0) == "AB:AtB11f;Ab:Atb10t;aB:afB01t#aB"
    )  # found out by the next statement
    assert worked(puzzle, "steps", wrong_try=1) == "AB:Af;Ab:Atb10f#Ab"
    assert (
        worked(puzzle, "steps", wrong_try=2) == "AB:Af;Ab:Atb10t;aB:afB01f;ab:at#ab"
    )  # nothing fits: the last one
    assert tried(puzzle.prompt, "Ab", wrong_at=1) == ("Ab:Atb10f", True)


TABLE = [
    ("#aBC", 1, 1),
    ("#aBc", 1, 0),
    ("#aBCD", 1, 0),
    ("#aB", 1, 0),
    ("#ABC", 1, 0),
    ("ABC:A00f#aBC", 1, 1),
    ("ABC:A00f;ABc:A01f#aBC", 1, 1),
    ("ABC:A00f!#aBC", 1, 1),
    ("ABC:A00f!abc:at#aBC", 1, 1),
    ("!abc:at#aBC", 0, 1),
    ("so it is #aBC", 0, 1),
    ("#aBC ", 0, 0),
    ("#aBC.", 0, 0),
    ("#aBC#aBC", 0, 1),
    ("#aBC#aBc", 0, 0),
    ("aBC", 0, 0),
    ("", 0, 0),
    ("#", 0, 0),
    ("#a BC", 0, 0),
    ("#аВС", 0, 0),
    ("#" + "aB" * 50_000, 0, 0),
    ("ABC:A00f;#aBC", 0, 1),
    ("ABC:A0f#aBC", 0, 1),
    ("ABC:A00x#aBC", 0, 1),
    ("\x00#aBC", 0, 1),
    ("#aBC\n", 0, 0),
]


@pytest.mark.parametrize(
    ("completion", "form", "accuracy"), TABLE, ids=lambda value: repr(value)[:24]
)
def test_scores(completion, form, accuracy):
    assert TASK.score(completion, PUZZLE).parts == {"format": form, "accuracy": accuracy}


@given(st.text(alphabet="01:#!;ABCabctf?\n+-&|=/", max_size=80))
def test_a_verifier_never_raises(text):
    parts = TASK.score(text, PUZZLE).parts
    assert set(parts.values()) <= {0.0, 1.0}


# --- people called otherwise ----------------------------------------------------------------------


@pytest.mark.parametrize("people", [2, 3, 4])
def test_a_twin_has_the_same_solution_under_its_names(people):
    for puzzle in TASK.examples(20, 1, "train", (people, people)):
        others = twins(puzzle.prompt)
        knights = sum(map(str.isupper, puzzle.answer))
        assert puzzle.prompt in others and len(others) <= len(
            list(itertools.permutations(range(people)))
        )
        for other in others:
            (answer,) = solve(other)
            assert sum(map(str.isupper, answer)) == knights and renamed(other) == renamed(
                puzzle.prompt
            )


def test_no_puzzle_held_out_up_to_names_is_trained_on_under_other_names():
    task = find_task("knights", {"held_out": "renamed"})
    trained = {renamed(one.prompt) for one in task.examples(300, 0, "train", (2, 3))}
    for split in ("validation", "test"):
        assert not trained & {renamed(one.prompt) for one in task.examples(40, 0, split, (2, 3))}
        for puzzle in task.examples(10, 0, split):
            assert solve(puzzle.prompt) == [puzzle.answer]
    with pytest.raises(ValueError, match="held_out is text or renamed"):
        find_task("knights", {"held_out": "names"})


def test_the_split_by_text_holds_out_puzzles_whose_twins_are_trained_on():
    """Why the other exists: nearly every puzzle of the study has a twin among training prompts."""
    held_out = {one.prompt for one in TASK.examples(256, 0, "test")}
    seen = [one for one in held_out if "train" in map(split_of, twins(one))]
    assert len(seen) > 0.9 * len(held_out)
