"""Grades of exercises that need more than a number or a word: right or wrong, and a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlkd_lab.lab.course.answers import Unreadable, Verdict, number, numbers, shown, word
from rlkd_lab.lab.course.pictures.estimators import ESTIMATORS, followed
from rlkd_lab.lab.course.pictures.fits import HUMPS, binomial_fits
from rlkd_lab.lab.course.pictures.ratios import surrogate_at
from rlkd_lab.lab.course.right_answers import intervals, joint, weak_verifier
from rlkd_lab.tasks.arithmetic import ArithmeticTask, steps
from rlkd_lab.tasks.base import Example

GAPS = (-2.0, -8.0, 3.5, -9.1, -0.4)
PROMPT = "49-7+4-2?"


def fool(answer: Any, prompt: str = PROMPT) -> Verdict:
    if not isinstance(answer, str):
        raise Unreadable(f"I expected a completion, a text in quotes, and got {shown(answer)}")
    example = _example(prompt)
    fooled = weak_verifier(answer, example.answer)
    score = ArithmeticTask().score(answer, example)
    if fooled and not score.correct:
        return True, (
            "The weak verifier takes it and the real one gives 0. A policy that is paid by"
            " the weak one would find this too."
        )
    if score.correct:
        return False, (
            "The real verifier accepts this as well: it is simply right. Look for a text that"
            " only mentions the number."
        )
    return False, (
        "The weak verifier does not take it: the right number must stand somewhere in it, by"
        " itself."
    )


def _example(prompt: str) -> Example:
    operations = prompt.count("+") + prompt.count("-")
    return Example(prompt, str(steps(prompt)[1]), operations, prompt)


def reverse(answer: Any) -> Verdict:
    fits = binomial_fits("reverse", HUMPS)
    if any(abs(number(answer) - fit) <= 0.006 for fit in fits):
        return True, "Either hump will do, and reverse KL is content with one."
    return False, (
        "Reverse KL punishes what the teacher would not say: try a student that leaves one of"
        " the humps alone, and look closely near the edge."
    )


def one_wrong_step(answer: Any, measured: float | None = None) -> Verdict:
    if measured is None:
        call = 'check("02.one_wrong_step", guess, measured=…)'
        raise Unreadable(f"give what you measured too: {call}")
    guess, truth = number(answer), number(measured)
    if not 0 <= guess <= 1:
        raise Unreadable(f"I expected an accuracy from 0 to 1 and got {shown(answer)}")
    good = abs(guess - truth) <= 0.15
    words = "within 0.15 of it" if good else "more than 0.15 away: look at a few continuations"
    return good, f"Measured: {truth:.2f}. Your prediction was {words}."


def alive(answer: Any) -> Verdict:
    given = number(answer)
    if given not in (0.5, 2.0):
        raise Unreadable(f"I expected .5 or 2 and got {shown(answer)}")
    (push,) = surrogate_at([given], -1.0)[1]
    if push != 0:
        return True, (
            "It has moved the wrong way, up, and the minimum keeps the unclipped branch, so"
            " it is pushed down."
        )
    return False, (
        "For A < 0 the aim is a smaller ρ. Which of the two has got there already, and needs"
        " no further push?"
    )


def estimators(answer: Any) -> Verdict:
    names = list(ESTIMATORS)
    if isinstance(answer, Mapping):
        if set(answer) != set(names):
            raise Unreadable(
                f"I expected the keys {', '.join(names)} and got {shown(list(answer))}"
            )
        given = [word(answer[name]) for name in names]
    elif isinstance(answer, list | tuple) and len(answer) == len(names):
        given = [word(part) for part in answer]
    else:
        wanted = ", ".join(names)
        raise Unreadable(f"I expected three words, for {wanted}, and got {shown(answer)}")
    given = [one.removesuffix("_kl") for one in given]
    if not set(given) <= {"zero", "reverse", "forward"}:
        words = "'zero', 'reverse' and 'forward'"
        raise Unreadable(f"the words are {words}; I got {shown(answer)}")
    wrong = [name for name, each in zip(names, given, strict=True) if each != followed(name)]
    if not wrong:
        return True, (
            "Enumerated over the tokens: k1's teacher drops out, k2 is the reverse KL's"
            " gradient, k3 the forward KL's."
        )
    return False, (
        f"{' and '.join(wrong)}: write the gradient as (a factor)·∇log π_θ and take the mean"
        " over π_θ; a constant factor gives 0."
    )


def reversed(answer: Any, gaps: Sequence[float] = GAPS) -> Verdict:
    index, gaps = number(answer), numbers(gaps, len(list(gaps)))
    if index != int(index) or not 0 <= index < len(gaps):
        raise Unreadable(f"I expected an index from 0 to {len(gaps) - 1} and got {shown(answer)}")
    here = joint(0.1, 0.866, gaps)[int(index)]
    if here < 0:
        return True, f"Its advantage is {here:+.3f}, although the completion is right."
    return False, (
        f"Token {int(index)} has the advantage {here:+.3f}, which is not below 0: compare"
        " kd_coef·d with Â."
    )


def interval(answer: Any) -> Verdict:
    given = numbers(answer, 2)
    right = intervals()
    for name, bounds in right.items():
        if all(abs(a - b) <= 0.003 for a, b in zip(given, bounds, strict=True)):
            (other,) = [key for key in right if key != name]
            low, high = right[other]
            return True, (
                f"That is the {name}. The other way gives another one ({other}: {low:+.3f} to"
                f" {high:+.3f}): with five seeds the bootstrap is too narrow."
            )
    if given[0] > given[1]:
        return False, "The lower bound comes first."
    return False, (
        "Mean ± t·s/√5 with the t of 4 degrees of freedom, or"
        " rlkd_lab.study.statistics.bootstrap; answer [low, high]."
    )


def gpu_hours(answer: Any, steps: float = 300, seconds: float = 45.0) -> Verdict:
    right = number(steps) * number(seconds) / 3600
    good = abs(number(answer) - right) <= 0.01 * abs(right) + 1e-9
    if good:
        return True, "Measure the seconds of a few steps first, on your own card."
    return False, "Steps times seconds a step are seconds; an hour has 3600 of them."
