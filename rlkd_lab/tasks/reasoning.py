r"""Every set of reasoning-gym, each with its own verifier.

Difficulty is the level of the set's curriculum: level k takes the k-th segment of every attribute
(an attribute with fewer levels stays at its last). Levels 0–1 are for training, 2–3 out of
distribution; a set without a curriculum, or with one that does not work, has its default config and
level 0 alone. ``knights_knaves`` counts people instead: 2–4 in training, 5–6 out of distribution.

Some verifiers hand the answer to Python's ``eval``, or to sympy's parser, which calls it; some
repeat a move as often as the answer says. Such an answer must look like a right one (:data:`SAFE`);
any other is wrong and never gets there. How long the others take is not ours to bound: a run calls
them in a process of its own (:mod:`rlkd_lab.tasks.verifier`). codeio runs the programs of
reasoning-gym's own data to make its prompts.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import functools
import json
import random
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

from rlkd_lab.tasks.base import Example, Score, Split, check_split, seeded, split_of

INSTRUCTION = "\nThink step by step, then give the answer between <answer> and </answer>.\n"
TEMPLATE = "{question}" + INSTRUCTION
LONGEST = 2000
"""Characters of an answer that a verifier is shown, or twice the reference answer's length."""
MISSES = 300
"""Draws in a row without a question of the split after which the search is given up; the chance
that a split of 10 % is missed by so many is 2e-14.
"""

_LITERAL = re.compile(r"[0-9A-Z_,\[\]'\"\s-]*", re.ASCII)
_SUM = re.compile(r"(?:[0-9+\-/()\s]|\*(?!\s*\*))*", re.ASCII)
_NAME = r"(?:[A-Za-z]|sin|cos|tan|exp|log|sqrt|asin|acos|atan|sinh|cosh|pi)(?![A-Za-z_0-9])"
# Exponents are small whole numbers, below ten on a bracket, and no more than two brackets have one:
# ((9**99)**99)**99 takes hours.
_FORMULA = re.compile(
    rf"(?!(?s:.*?\)\s*\*\*){{3}})(?!(?s:.*?)\)\s*\*\*\s*\d\d)(?:{_NAME}|\d{{1,40}}(?:\.\d{{1,20}})?(?![\d.])|[+\-/(),\s]|\*\*\s*\d{{1,2}}(?![\d.])(?!\s*\*\*)|\*(?!\*))*",
    re.ASCII,
)
_FRACTION = re.compile(r"[0-9.,/\s]*(?:[eE]-?\d{1,3})?\s*", re.ASCII)
SAFE: Mapping[str, re.Pattern[str]] = {
    # eval of the answer
    **dict.fromkeys(("binary_matrix", "n_queens", "spiral_matrix", "string_insertion"), _LITERAL),
    # sympy's parser, which evals
    **dict.fromkeys(("countdown", "puzzle24"), _SUM),
    **dict.fromkeys(
        ("intermediate_integration", "polynomial_multiplication", "simple_integration"), _FORMULA
    ),
    # Fraction("1e999999999") takes all memory
    "coin_flip": _FRACTION,
    # how near a number is to the right one: to a NaN every number is near
    "complex_arithmetic": re.compile(r"[0-9.eEiIjJ+\-()\s]*", re.ASCII),
    # a move is made as often as its number says, or for ever
    **dict.fromkeys(("rubiks_cube", "rush_hour"), re.compile(r"(?:\D|(?<!\d)\d(?!\d))*")),
    # quadratic and worse in the depth of a formula
    "propositional_logic": re.compile(r".{0,300}", re.DOTALL),
}
"""What an answer may consist of, for the verifiers that would run it, take for ever on it or be
fooled by it.
"""
COMPARED = ("game_of_life_halting",)
"""Sets whose verifier accepts any text; here the answer is compared with the reference."""


def _near(answer: str, reference: str) -> bool:
    return abs(Fraction(answer) - Fraction(reference)) <= Fraction(1, 10_000)


def _makes_24(answer: str, reference: str) -> bool:
    from sympy.parsing.sympy_parser import parse_expr  # which evals: the answer has passed SAFE

    numbers, wanted = (sorted(map(int, re.findall(r"\d+", text))) for text in (answer, reference))
    return numbers == wanted and parse_expr(answer) == 24


ALSO: Mapping[str, Callable[[str, str], bool]] = {"coin_flip": _near, "puzzle24": _makes_24}
"""What an answer and the reference must satisfy beside the set's own verifier. coin_flip's gives 1
to a number that begins like the right one, so that ``0`` wins everywhere. puzzle24's takes any four
numbers, and 24.8 for 24.
"""
FAULTS: Mapping[str, str] = {
    "propositional_logic": "premises that contradict each other make its verifier accept any"
    " statement (a quarter of level 1, half of levels 2 and 3), and one"
    " constant answer, (P ∨ Q), is accepted in all questions of level 0 and in three quarters"
    " of the others",
    "syllogism": "in levels 2 and 3 about one question in nine has a wrong reference: it calls a"
    " syllogism valid whose middle term is never distributed",
    "intermediate_integration": "some references are an unevaluated Integral(…), which no answer"
    " equals",
    "jugs": "in some puzzles its own solution fails its own simulation",
}
"""Sets that are wrong upstream (reasoning-gym 0.1.25), and why.

They can be trained on; a run and an evaluation say so when they begin.
"""
TOP_LEVEL = {"countdown": 0, "jugs": 1, "puzzle24": 0}
"""Level 1 of countdown takes a second a puzzle and level 3 five (its sizes are settings too:
task.max_numbers=4), level 2 of jugs ten; puzzle24 looks for 24 in large numbers alone for minutes,
or for ever.
"""
DRAWN_AT_ONCE = ("acre", "gsm_symbolic", "list_functions", "word_ladder")
"""Sets that draw or count all their puzzles when they are made: a puzzle with a seed of its own
needs a set of its own.
"""
DRAWN: dict[tuple[str, str, bool, int, int], dict[str, Any] | None] = {}
"""Puzzles that were drawn, by set, settings, level and seed.

A run asks for the same ones several times before its first step, and one can take a tenth of a
second.
"""
KEPT = 5_000
"""Puzzles of :data:`DRAWN`."""


class ReasoningGymTask:
    """Prompts and verifier of one reasoning-gym set.

    Three parts make the score:

    - ``accuracy`` is 1 where the set's verifier gives 1;
    - ``credit`` is what the verifier gives. Some sets have partial credit, and some give a
      hundredth for any text;
    - ``format`` is 1 where there is one ``<answer>…</answer>``. The last such pair counts.

    Args:
        name: of the set.
        settings: fields of the set's config; they win over the curriculum's.
        template: with ``{question}``. Splits go by the question, so another template moves no
            prompt to another split.

    Raises:
        ValueError: an unknown field, or values that the set refuses.
    """

    def __init__(
        self, name: str, settings: Mapping[str, Any] | None = None, template: str | None = None
    ) -> None:
        self.name = name
        self.settings = dict(settings or {})
        self.template = template or TEMPLATE
        self._sets: dict[int, Any] = {}
        self.leveled = False
        _check_fields(name, self.settings)
        self.unit, self.lowest, self.highest = "levels", 0, 0
        self.ood_difficulty: tuple[int, int] | None
        if name == "knights_knaves":
            self.unit, self.lowest, self.highest = "people", 2, 10
            self.train_difficulty, self.ood_difficulty = (2, 4), (5, 6)
            return
        self.leveled = self._works(0)
        if self.leveled:
            while self.highest < min(3, TOP_LEVEL.get(name, 3), _top_level(name)) and self._works(
                self.highest + 1
            ):
                self.highest += 1
        else:
            self._config(0, seed=0)  # a set that refuses its settings says so
        self.train_difficulty = (0, min(1, self.highest))
        self.ood_difficulty = (2, self.highest) if self.highest >= 2 else None

    def examples(
        self, n: int, seed: int, split: Split = "train", difficulty: tuple[int, int] | None = None
    ) -> list[Example]:
        low, high = difficulty or self.train_difficulty
        if not self.lowest <= low <= high <= self.highest:
            raise ValueError(
                f"{self.name}: difficulty is a range of {self.unit} within"
                f" {self.lowest}–{self.highest}; got {low}–{high}"
            )
        check_split(split)
        rng = seeded(self.name, seed, split, low, high)
        found: list[Example] = []
        misses = 0
        while len(found) < n:
            level = rng.randint(low, high)
            row = self._row(level, rng.randrange(2**31))
            key = "" if row is None else row["question"] + INSTRUCTION
            if row is None or split_of(key) != split:
                misses += 1
                if misses == MISSES:
                    raise ValueError(
                        f"{self.name} gave no {split} question in {MISSES} draws: with these"
                        " settings it has too few different ones"
                    )
                continue
            misses = 0
            prompt = self.template.replace("{question}", row["question"])
            found.append(
                Example(
                    prompt,
                    row["answer"] or "",
                    level,
                    key,
                    {"answer": row["answer"], "metadata": row["metadata"]},
                )
            )
        return found

    def score(self, completion: str, example: Example) -> Score:
        # from the back, and without a pattern: a pattern that looks for pairs takes quadratic time
        # on a thousand open tags
        before, opening, rest = completion.rpartition("<answer>")
        answer, closing, _ = rest.partition("</answer>")
        if not opening or not closing:
            return Score({"accuracy": 0.0, "credit": 0.0, "format": 0.0})
        shown = answer.strip()[: max(LONGEST, 2 * len(example.answer))]
        credit = self._credit(shown, example)
        return Score(
            {
                "accuracy": float(credit == 1.0),
                "credit": credit,
                "format": float("<answer>" not in before),
            },
            " ".join(shown.lower().split()),
        )

    def _credit(self, answer: str, example: Example) -> float:
        """Return the verifier's value in [0, 1]; 0 for an answer that it stumbles over."""
        if self.name in COMPARED:
            return float(answer.lower() == example.answer.strip().lower())
        if self.name in SAFE and not SAFE[self.name].fullmatch(answer):
            return 0.0
        try:
            # in this order a NaN is 0
            credit = min(
                max(0.0, float(self._set(example.difficulty).score_answer(answer, example.meta))),
                1.0,
            )
            return (
                0.0
                if credit == 1 and self.name in ALSO and not ALSO[self.name](answer, example.answer)
                else credit
            )
        except Exception:
            return 0.0

    def _row(self, level: int, seed: int) -> dict[str, Any] | None:
        """Return the puzzle of a seed; None where the set finds none for it."""
        settings = json.dumps(self.settings, sort_keys=True, default=repr)
        key = (self.name, settings, self.leveled, level, seed)
        try:
            row = DRAWN[key]
        except KeyError:
            if len(DRAWN) >= KEPT:
                DRAWN.clear()
            row = DRAWN[key] = self._new_row(level, seed)
        return copy.deepcopy(row)  # whoever has it may change it

    def _new_row(self, level: int, seed: int) -> dict[str, Any] | None:
        try:
            return (
                self._make(level, seed)[0] if self.name in DRAWN_AT_ONCE else self._set(level)[seed]
            )
        except (AssertionError, ValueError, IndexError):
            return None

    def _set(self, level: int) -> Any:
        if level not in self._sets:
            self._sets[level] = self._make(level, 0)
        return self._sets[level]

    def _make(self, level: int, seed: int) -> Any:
        dataset, _ = _reasoning_gym().DATASETS[self.name]
        return dataset(self._config(level, seed))

    def _works(self, level: int) -> bool:
        """Whether the curriculum has a level and a puzzle can be drawn at it."""
        self.leveled = True
        try:
            return _reasoning_gym().has_curriculum(self.name) and any(
                self._row(level, seed) is not None for seed in range(5)
            )
        except ValueError:
            return False
        finally:
            self._sets.pop(level, None)

    def _config(self, level: int, seed: int) -> Any:
        gym = _reasoning_gym()
        _, config_class = gym.DATASETS[self.name]
        given = {**self.settings, "seed": seed, "size": 1}
        try:
            if self.name == "knights_knaves":
                config = config_class(
                    **{"n_people": level, "depth_constraint": 2, "width_constraint": 2, **given}
                )
            elif self.leveled:
                curriculum = gym.create_curriculum(self.name)
                curriculum.set_global_level(level)
                config = dataclasses.replace(
                    curriculum.generate_configuration(context=gym.segments), **given
                )
            else:
                config = config_class(**given)
            if hasattr(config, "validate"):
                config.validate()
        except (AssertionError, TypeError, ValueError) as error:
            raise ValueError(
                f"reasoning-gym's {self.name} refuses {self.settings or 'its own settings'}:"
                f" {error}"
            ) from error
        return config


def fault_of(task: str) -> str | None:
    """Return a sentence about a set that is wrong upstream; ``None`` for every other task."""
    return (
        f"reasoning-gym's {task} has a fault of its makers: {FAULTS[task]}"
        if task in FAULTS
        else None
    )


def reasoning_gym_sets() -> list[str]:
    """Return names of all sets, but for the one that only mixes others."""
    return sorted(name for name in _reasoning_gym().DATASETS if name != "composite")


@functools.cache
def _reasoning_gym() -> Any:
    """Return what is needed of reasoning-gym: a second to import, and the arithmetic task has no
    need of it.
    """
    state = random.getstate()
    from reasoning_gym import factory
    from reasoning_gym.coaching.base_curriculum import DefaultCurriculumContext, RangeAttributeMode

    random.setstate(state)  # the import draws from the global random stream
    return SimpleNamespace(
        DATASETS=factory.DATASETS,
        has_curriculum=factory.has_curriculum,
        create_curriculum=factory.create_curriculum,
        segments=DefaultCurriculumContext(mode=RangeAttributeMode.UPPER_BOUND),
    )


def _top_level(name: str) -> int:
    return (
        max(
            len(attribute.levels)
            for attribute in _reasoning_gym().create_curriculum(name).attributes.values()
        )
        - 1
    )


def _check_fields(name: str, settings: Mapping[str, Any]) -> None:
    _, config_class = _reasoning_gym().DATASETS[name]
    ours = ("seed", "size", "n_people") if name == "knights_knaves" else ("seed", "size")
    fields = [field.name for field in dataclasses.fields(config_class) if field.name not in ours]
    for field in settings:
        if field in ours:
            raise ValueError(
                f"task.{field} is not for you to set: seeds and sizes follow the run's seed,"
                " and people are the difficulty"
            )
        if field not in fields:
            close = difflib.get_close_matches(field, fields, n=1, cutoff=0.4)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ValueError(
                f"unknown setting task.{field} of {name}: {hint}It has {', '.join(fields)}"
            )
