"""Worked completions for two reasoning-gym sets, in the words of their prompts and in the form
their verifiers read.

``knights_knaves``: who is what is tried from all knights down to all knaves. A try goes through the
    statements, says of each whether it would be true, and
ends at the first that does not suit its speaker:

    Samuel angel, Aria angel? Samuel: if false then true, so true. Aria: true or false, so true. All
    fit.

``countdown`` with three numbers: one of them is set aside as the last, what the other two must come
to is worked out, and then what they can come to:

    Last 49: 217-49=168, 217+49=266, 217/49 no. 5+28=33, 28-5=23, 5*28=140, 28/5 no. None.
    Last 28: 217-28=189, 217+28=245, 217/28 no. 5+49=54, 49-5=44, 5*49=245 yes.

At the very end dividing by the last number is tried. With targets of at least 100 and numbers up to
100 this finds every solution over whole numbers.
"""

from __future__ import annotations

import random
from itertools import product
from typing import Any, Literal

from rlkd_lab.tasks import Example

Style = Literal["direct", "steps", "checked", "corrupted"]
DIRECT, CHECK = "<answer>", "Check:"
"""What a completion without steps starts with, and what a checked one has in it."""


def worked(example: Example, style: Style, rng: random.Random) -> str:
    """A completion of an example of ``knights_knaves`` or ``countdown``.

    Args:
        example: of :class:`rlkd_lab.tasks.ReasoningGymTask`; of Countdown, with three numbers.
        style: ``direct`` answers at once; ``steps`` stops at the solution; ``checked`` goes on to
            see that no other assignment fits, or computes the solution again; in ``corrupted`` one
            step is wrong and the rest follows from it.
        rng: says which step is wrong; the other styles draw nothing.
    """
    about = example.meta["metadata"]
    if about["source_dataset"] == "knights_knaves":
        steps, answer = _knights(about, style, rng)
    else:
        steps, answer = _countdown(about, style, rng)
    return ("" if style == "direct" else steps) + f"<answer>{answer}</answer>"


# --- Knights and Knaves ---------------------------------------------------------------------------


def _knights(about: dict[str, Any], style: Style, rng: random.Random) -> tuple[str, str]:
    tries = list(product((True, False), repeat=len(about["names"])))
    wrong_try = (
        rng.randrange(tries.index(tuple(about["solution"])) + 1) if style == "corrupted" else None
    )
    lines = []
    for number, assignment in enumerate(tries):
        line, fits, judged = tried(about, assignment)
        if number == wrong_try:
            line, fits, _ = tried(about, assignment, wrong_at=judged - 1)
        lines.append(line)
        if fits:
            break
    if style == "checked":
        lines += [f"{CHECK}\n", *(tried(about, other)[0] for other in tries[number + 1 :])]
    terms = about["knight_knave_terms"]
    said = [
        f"{name} is {terms['a_knight' if knight else 'a_knave']}"
        for name, knight in zip(about["names"], assignment, strict=True)
    ]
    return "".join(lines), f"{', '.join(said[:-1])}, and {said[-1]}."


def tried(
    about: dict[str, Any], assignment: tuple[bool, ...], wrong_at: int | None = None
) -> tuple[str, bool, int]:
    """An assignment held against the statements, up to the first that does not suit its speaker;
    statement ``wrong_at`` is judged wrongly.

    Returns:
        The line, whether all fits, and the number of statements judged.
    """
    terms = about["knight_knave_terms"]
    line = (
        ", ".join(
            f"{name} {terms['knight' if knight else 'knave']}"
            for name, knight in zip(about["names"], assignment, strict=True)
        )
        + "?"
    )
    for index, (name, knight, statement) in enumerate(
        zip(about["names"], assignment, about["statements"], strict=True)
    ):
        words, true = _judged(statement, assignment)
        true = true != (index == wrong_at)
        verdict = "true" if true else "false"
        line += (
            f" {name}: {verdict}."
            if words in ("true", "false")
            else f" {name}: {words}, so {verdict}."
        )
        if true != knight:
            return f"{line} No.\n", False, index + 1
    return f"{line} All fit.\n", True, len(assignment)


def _judged(statement: tuple[Any, ...], assignment: tuple[bool, ...]) -> tuple[str, bool]:
    """A statement with the values of its parts in their places, and its own value.

    >>> _judged(("->", ("lying", 1), ("telling-truth", 0)), (True, True))
    ('if false then true', True)
    """
    kind, *parts = statement
    if kind in ("telling-truth", "lying"):
        value = assignment[parts[0]] == (kind == "telling-truth")
        return "true" if value else "false", value
    words, values = zip(*(_judged(part, assignment) for part in parts), strict=True)
    if kind == "not":
        # the prompt has "B is a knave" for "not: B is a knight"
        plain = parts[0][0] in ("telling-truth", "lying")
        return ("false" if values[0] else "true") if plain else f"not ({words[0]})", not values[0]
    words = tuple(word if word in ("true", "false") else f"({word})" for word in words)
    if kind == "->":
        return f"if {words[0]} then {words[1]}", not values[0] or values[1]
    if kind == "<=>":
        return f"{words[0]} if and only if {words[1]}", values[0] == values[1]
    return f" {kind} ".join(words), all(values) if kind == "and" else any(values)


# --- Countdown ------------------------------------------------------------------------------------


def _countdown(about: dict[str, Any], style: Style, rng: random.Random) -> tuple[str, str]:
    numbers, target = [int(number) for number in about["numbers"]], int(about["target"])
    if len(numbers) != 3:
        raise ValueError(
            f"worked Countdown has three numbers; this puzzle has {len(numbers)}: set"
            " task.min_numbers=3 and task.max_numbers=3"
        )
    steps, answer, check, results = _search(numbers, target)
    if style == "corrupted":
        wrong_at, error = rng.randrange(results), rng.choice((-1, 1)) * rng.randint(1, 10)
        steps, answer, check, _ = _search(numbers, target, wrong_at, error)
    return steps + (f"{CHECK} {check}.\n" if style == "checked" else ""), answer


def _search(
    numbers: list[int], target: int, wrong_at: int | None = None, error: int = 0
) -> tuple[str, str, str, int]:
    """The steps, the answer, the answer computed step by step, and how many results of two numbers
    there are; result ``wrong_at`` is off by ``error``.

    Where nothing is found (a wrong result can hide the solution) the answer is what was tried last.
    """
    text, count = "", 0
    for last, one, two in _orders(numbers):
        needed = {target - last: "+", target + last: "-"}
        quotient = f"{target}/{last} no"
        if target % last == 0:
            needed.setdefault(target // last, "*")
            quotient = f"{target}/{last}={target // last}"
        text += (
            f"Last {last}: {target}-{last}={target - last}, {target}+{last}={target + last},"
            f" {quotient}."
        )
        for sign, value in _results(one, two):
            written = (
                f"{one}{sign}{two}" if sign in "+*" else f"{max(one, two)}{sign}{min(one, two)}"
            )
            separator = " " if sign == "+" else ", "
            if value is None:
                text += f"{separator}{written} no"
                continue
            value += error * (count == wrong_at)
            count += 1
            text += f"{separator}{written}={value}"
            if value in needed:
                return (
                    f"{text} yes.\n",
                    f"({written}){needed[value]}{last}",
                    f"{written}={value}, {value}{needed[value]}{last}={target}",
                    count,
                )
        text += ". None.\n"
    for last, one, two in _orders(numbers):
        value = one * two + error * (count == wrong_at)
        count += 1
        text += f"Divide by {last}: {target}*{last}={target * last}. {one}*{two}={value}"
        written, check = f"({one}*{two})/{last}", f"{one}*{two}={value}, {value}/{last}={target}"
        if value == target * last:
            return f"{text} yes.\n", written, check, count
        text += ". None.\n"
    return text, written, check, count


def _orders(numbers: list[int]) -> list[tuple[int, int, int]]:
    """Each number as the last one, from the back, with the other two in the prompt's order."""
    one, two, three = numbers
    return [(three, one, two), (two, one, three), (one, two, three)]


def _results(one: int, two: int) -> list[tuple[str, int | None]]:
    """What two numbers can come to; None where they do not divide."""
    large, small = max(one, two), min(one, two)
    return [
        ("+", one + two),
        ("-", large - small),
        ("*", one * two),
        ("/", None if large % small else large // small),
    ]
