"""Knights and Knaves in a compact notation: knights say the truth, knaves do not, and who is what
follows from what they say.

Prompt ``A:-B&-C;B:-A;C:A/B?``: A says "B is a knave and C is a knave", B says "A is a knave", C
says "one of A and B is a knight" (``+`` knight, ``-`` knave, ``&`` and, ``|`` or, ``=`` alike,
``/`` not alike). The answer writes knights large and knaves small: ``#aBC``. A worked completion
tries the assignments from all knights down to all knaves and stops at the one that fits:
``ABC:A00f;ABc:A01f;AbC:A10f;Abc:A11tbfc10t;aBC:a00fBtC01t#aBC``. Under ``Abc`` both parts of A's
statement are true (``11``), so it is (``t``), as a knight's must be; b's is false, as a knave's
must be; c's parts are true and false and the statement true: it does not fit, and the next is
tried. A direct completion is ``#aBC``. A careful worker tries the remaining assignments too, after
a ``!``, to see that none of them fits. Every puzzle has one solution. Difficulty is the number of
people: 2–4 in training, 5 out of distribution.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import combinations, permutations, product
from typing import Literal

from rlkd_lab.tasks.base import Example, Score, Split, check_split, made_of, seeded, split_of

Style = Literal["direct", "steps", "checked"]
HeldOut = Literal["text", "renamed"]
NAMES = "ABCDE"

_PEOPLE = re.compile(r"[A-Ea-e]{2,5}", re.ASCII)
_JUDGED = re.compile(r"[A-Ea-e](?:[01]{2})?[tf]", re.ASCII)
_ANSWER = re.compile(r"#([A-Ea-e]{1,8})\Z", re.ASCII)
_STATEMENT = re.compile(r"[A-E]:([+-])?([A-E])(?:([&|=/])([+-])?([A-E]))?")


class KnightsTask:
    """Who is a knight? Puzzles of 2–5 people with one solution each.

    Two parts make the score:

    - ``accuracy`` is 1 where the completion ends in ``#`` and the right assignment, with knights
      in capitals and knaves in small letters;
    - ``format`` is 1 where the whole completion has the expected shape.

    Args:
        held_out: what a split shares with no other. ``text``: its prompts. ``renamed``: its
            puzzles, whatever the people are called.
    """

    name = "knights"
    train_difficulty = (2, 4)
    ood_difficulty: tuple[int, int] | None = (5, 5)

    def __init__(self, held_out: HeldOut = "text") -> None:
        if held_out not in ("text", "renamed"):
            raise ValueError(f"held_out is text or renamed; got {held_out!r}")
        self.settings = {} if held_out == "text" else {"held_out": held_out}
        self._form = renamed if held_out == "renamed" else str

    def examples(
        self, n: int, seed: int, split: Split = "train", difficulty: tuple[int, int] | None = None
    ) -> list[Example]:
        low, high = difficulty or self.train_difficulty
        if not 2 <= low <= high <= len(NAMES):
            raise ValueError(
                f"difficulty is a range of people within 2–{len(NAMES)}; got {low}–{high}"
            )
        check_split(split)
        rng = seeded(self.name, seed, split, low, high)
        found: list[Example] = []
        while len(found) < n:
            people = rng.randint(low, high)
            while (
                split_of(self._form(prompt := _draw(people, rng))) != split
                or len(fitting := solutions(prompt)) != 1
            ):
                pass
            found.append(Example(prompt, fitting[0], people, prompt))
        return found

    def score(self, completion: str, example: Example) -> Score:
        found = _ANSWER.search(completion[-16:])
        answer = None if found is None else found.group(1)
        return Score(
            {"accuracy": float(answer == example.answer), "format": float(well_formed(completion))},
            answer,
        )

    def checking(self, completion: str) -> str:
        """Return the part of a completion that tries the remaining assignments, from the ``!`` up
        to the answer.
        """
        return re.sub(r"#.*", "", "".join(completion.partition("!")[1:]), flags=re.DOTALL)

    def trace(self, example: Example) -> str:
        """Return a worked solution."""
        return worked(example, "steps")

    def chance(self, example: Example) -> float:
        """Return the probability that a blind guess is right: 2^-people."""
        return 0.5**example.difficulty


def well_formed(completion: str) -> bool:
    """Whether it is an answer alone, or one after tries, which may be followed by ``!`` and the
    other tries.

    >>> [well_formed(text) for text in ("#aB", "AB:Af;Ab:Atb10t#aB", "AB:Af!#aB", "AB:Af!ab:at#aB")]
    [True, True, True, True]
    >>> well_formed("AB:#aB"), well_formed("#a")
    (False, False)
    """
    worked, mark, answer = completion.partition("#")
    tries, _, others = worked.partition("!")
    before = not worked or (_all_tries(tries) and (not others or _all_tries(others)))
    return before and bool(mark) and _PEOPLE.fullmatch(answer) is not None


def _all_tries(text: str) -> bool:
    tries = (one.partition(":") for one in text.split(";"))
    return all(
        _PEOPLE.fullmatch(people) and made_of(_JUDGED, judged) for people, _, judged in tries
    )


def _draw(people: int, rng: random.Random) -> str:
    """Return a puzzle, with however many solutions: half of the statements about one other person,
    half about two people.
    """
    said = []
    for speaker in NAMES[:people]:
        if rng.random() < 0.5:
            sign, others = rng.choice("+-"), [name for name in NAMES[:people] if name != speaker]
            said.append(f"{speaker}:{sign}{rng.choice(others)}")
            continue
        first, second = rng.choice(list(combinations(NAMES[:people], 2)))
        link = rng.choice("&|=/")
        left, right = ("", "") if link in "=/" else (rng.choice("+-"), rng.choice("+-"))
        said.append(f"{speaker}:{left}{first}{link}{right}{second}")
    return ";".join(said) + "?"


@lru_cache(maxsize=4096)
def renamed(prompt: str) -> str:
    """Return the form that a puzzle shares with all puzzles that differ in names alone.

    It is the first, by text, of the puzzles with the people called otherwise.

    >>> renamed("A:-B;B:A/B?") == renamed("A:A/B;B:-A?") != renamed("A:-B;B:A=B?")
    True
    """
    return min(twins(prompt))


def twins(prompt: str) -> set[str]:
    """Return a puzzle with its people called in every other way, itself included.

    >>> sorted(twins("A:-A&+B;B:-A?"))
    ['A:-A&+B;B:-A?', 'A:-B;B:+A&-B?']
    """
    said = _STATEMENT.findall(prompt)
    found = set()
    for names in permutations(NAMES[: len(said)]):
        told = []
        for name, (sign, first, link, other_sign, second) in zip(names, said, strict=True):
            parts = [(names[NAMES.index(first)], sign)]
            parts += [(names[NAMES.index(second)], other_sign)] if second else []
            told.append(f"{name}:{link.join(sign + who for who, sign in sorted(parts))}")
        found.add(";".join(sorted(told)) + "?")
    return found


def statements(prompt: str, assignment: str) -> Iterator[tuple[str, str, bool]]:
    """Return each person, as knight or knave, with the values of the two parts of what they say (""
    where it has one) and whether it is true.

    >>> list(statements("A:-B;B:A/B?", "aB"))
    [('a', '', False), ('B', '01', True)]
    """
    knight = {person.upper(): person.isupper() for person in assignment}
    for person, (sign, first, link, other_sign, second) in zip(
        assignment, _STATEMENT.findall(prompt), strict=True
    ):
        one = knight[first] == (sign != "-")
        other = bool(second) and knight[second] == (other_sign != "-")
        true = {
            "": one,
            "&": one and other,
            "|": one or other,
            "=": one == other,
            "/": one != other,
        }[link]
        yield person, f"{one:d}{other:d}" if link else "", true


def assignments(people: int) -> list[str]:
    """From all knights to all knaves.

    >>> assignments(2)
    ['AB', 'Ab', 'aB', 'ab']
    """
    return [
        "".join(persons) for persons in product(*(name + name.lower() for name in NAMES[:people]))
    ]


def solutions(prompt: str) -> list[str]:
    """Return every assignment under which knights say the truth and knaves do not.

    >>> solutions("A:-B;B:A/B?")
    ['aB']
    """
    return [
        a
        for a in assignments(prompt.count(":"))
        if all(true == person.isupper() for person, _, true in statements(prompt, a))
    ]


def tried(prompt: str, assignment: str, wrong_at: int | None = None) -> tuple[str, bool]:
    """Return an assignment held against the statements, up to the first that does not fit;
    statement ``wrong_at`` is judged wrongly. Whether it fits, too.

    >>> tried("A:-B;B:A/B?", "Ab"), tried("A:-B;B:A/B?", "aB")
    (('Ab:Atb10t', False), ('aB:afB01t', True))
    """
    text = f"{assignment}:"
    for index, (person, parts, true) in enumerate(statements(prompt, assignment)):
        true = true != (index == wrong_at)
        text += f"{person}{parts}{'t' if true else 'f'}"
        if true != person.isupper():
            return text, False
    return text, True


def worked(example: Example, style: Style, wrong_try: int | None = None) -> str:
    """Return a completion in one of three styles; in try ``wrong_try`` (0 is the first) the
    deciding statement is judged wrongly and the rest follows from it.

    >>> puzzle = Example("A:-B;B:A/B?", "aB", 2, "")
    >>> worked(puzzle, "direct"), worked(puzzle, "steps"), worked(puzzle, "checked")
    ('#aB', 'AB:Af;Ab:Atb10t;aB:afB01t#aB', 'AB:Af;Ab:Atb10t;aB:afB01t!ab:at#aB')
    """
    if style == "direct":
        return f"#{example.answer}"
    lines, rest = [], assignments(example.difficulty)
    for number, assignment in enumerate(assignments(example.difficulty)):
        line, fits = tried(example.prompt, assignment)
        if number == wrong_try:
            line, fits = tried(
                example.prompt, assignment, wrong_at=line.count("t") + line.count("f") - 1
            )
        lines.append(line)
        rest.remove(assignment)
        if fits:
            break
    check = (
        "!" + ";".join(tried(example.prompt, other)[0] for other in rest)
        if style == "checked"
        else ""
    )
    return ";".join(lines) + check + f"#{assignment}"
