"""Multi-step arithmetic, small enough for a model of a million parameters and hard enough to need
steps.

Prompt ``49-7+4-2?``; a worked completion ``49-7=42;42+4=46;46-2=44;#44``; a direct one ``#44``. A
careful worker repeats the steps as a check after a ``!``. Difficulty is the number of operations:
2–5 in training, 6–8 out of distribution. Every intermediate value lies in 0–99. A teacher's prompt
may hold ``{steps}``, a worked solution without its answer.
"""

from __future__ import annotations

import random
import re
from typing import Literal

from rlkd_lab.tasks.base import Example, Score, Split, check_split, made_of, seeded, split_of

Style = Literal["direct", "steps", "checked"]

_STEP = re.compile(r"\d{1,3}[+-]\d{1,3}=-?\d{1,3};", re.ASCII)
_ANSWER = re.compile(r"#(-?\d{1,6})\Z", re.ASCII)
_OPERATION = re.compile(r"([+-])(\d+)")


class ArithmeticTask:
    """Chains of additions and subtractions with a two-digit start and one-digit operands.

    Parts: ``accuracy``, 1 where the completion ends in ``#`` and the right number; ``format``, 1
        where the whole of it has the expected shape.
    """

    name = "arithmetic"
    train_difficulty = (2, 5)
    ood_difficulty: tuple[int, int] | None = (6, 8)

    def examples(
        self, n: int, seed: int, split: Split = "train", difficulty: tuple[int, int] | None = None
    ) -> list[Example]:
        low, high = difficulty or self.train_difficulty
        if not 1 <= low <= high <= 20:
            raise ValueError(f"difficulty is a range of operations within 1–20; got {low}–{high}")
        check_split(split)
        rng = seeded(self.name, seed, split, low, high)
        found: list[Example] = []
        while len(found) < n:
            example = _draw(rng.randint(low, high), rng)
            if split_of(example.prompt) == split:
                found.append(example)
        return found

    def score(self, completion: str, example: Example) -> Score:
        found = _ANSWER.search(completion[-16:])
        answer = None if found is None else str(int(found.group(1)))
        return Score(
            {"accuracy": float(answer == example.answer), "format": float(well_formed(completion))},
            answer,
        )

    def checking(self, completion: str) -> str:
        """Return the part of a completion that repeats the steps as a check, from the ``!`` up to
        the answer.
        """
        return re.sub(r"#.*", "", "".join(completion.partition("!")[1:]), flags=re.DOTALL)

    def trace(self, example: Example) -> str:
        """Return a worked solution."""
        return worked(example, "steps")

    def chance(self, example: Example) -> float:
        """Return the probability that a blind guess is right: every result is one of 0–99."""
        return 0.01


def well_formed(completion: str) -> bool:
    """Whether it is an answer alone, one after steps, or one after steps and steps that check them.

    >>> texts = ("#4", "2+2=4;#4", "2+2=4;!2+2=4;#4", "2+2=4;!#4", "2+2=4#4")
    >>> [well_formed(text) for text in texts]
    [True, True, True, False, False]
    """
    worked, mark, answer = completion.partition("#")
    steps, again, check = worked.partition("!")
    before = not worked or (made_of(_STEP, steps) and (not again or made_of(_STEP, check)))
    return before and _ANSWER.fullmatch(mark + answer) is not None


def _draw(operations: int, rng: random.Random) -> Example:
    start = value = rng.randint(10, 99)
    text = str(start)
    for _ in range(operations):
        operand = rng.randint(1, 9)
        sign = rng.choice("+-")
        if not 0 <= (value + operand if sign == "+" else value - operand) <= 99:
            sign = "-" if sign == "+" else "+"
        value = value + operand if sign == "+" else value - operand
        text += f"{sign}{operand}"
    prompt = text + "?"
    return Example(prompt, str(value), operations, prompt, {"steps": "".join(steps(prompt)[0])})


def steps(prompt: str, wrong_at: int | None = None, error: int = 0) -> tuple[list[str], int]:
    """Return the worked steps of a prompt and their final value; step ``wrong_at`` is off by
    ``error`` and the rest follows from it.

    >>> steps("49-7+4-2?")
    (['49-7=42;', '42+4=46;', '46-2=44;'], 44)
    """
    start, rest = re.match(r"(\d+)(.*)\?", prompt).groups()  # type: ignore[union-attr]
    value, lines = int(start), []
    for index, (sign, digits) in enumerate(_OPERATION.findall(rest)):
        result = value + int(digits) if sign == "+" else value - int(digits)
        if index == wrong_at:
            result = min(max(result + error, 0), 99)
        lines.append(f"{value}{sign}{digits}={result};")
        value = result
    return lines, value


def worked(example: Example, style: Style) -> str:
    """Return a right completion in one of three styles.

    >>> worked(ArithmeticTask().examples(1, seed=0)[0], "direct").startswith("#")
    True
    """
    if style == "direct":
        return f"#{example.answer}"
    lines, value = steps(example.prompt)
    body = "".join(lines)
    return f"{body}!{body}#{value}" if style == "checked" else f"{body}#{value}"
