"""Exercises of the notebooks: :func:`check` judges an answer in a sentence.

A wrong answer gets a hint that does not give the answer away.
Each exercise is an entry of :data:`EXERCISES`; its number is the notebook's.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from rlkd_lab.lab.course.answers import (
    Unreadable,
    Verdict,
    named,
    near,
    number,
    numbers,
    shown,
    word,
)
from rlkd_lab.lab.course.pictures.estimators import ESTIMATORS, followed
from rlkd_lab.lab.course.pictures.fits import HUMPS, binomial_fits
from rlkd_lab.lab.course.pictures.groups import advantages_of
from rlkd_lab.lab.course.pictures.ratios import surrogate_at
from rlkd_lab.lab.course.pictures.trust_regions import dead_threshold
from rlkd_lab.lab.course.right_answers import (
    intervals,
    joint,
    nf4_gib,
    reversal_threshold,
    smallest_group,
    verdict,
    weak_verifier,
    without_teacher,
)
from rlkd_lab.objectives import METHODS
from rlkd_lab.tasks.arithmetic import ArithmeticTask, steps
from rlkd_lab.tasks.base import Example

GAPS = (-2.0, -8.0, 3.5, -9.1, -0.4)
PROMPT = "49-7+4-2?"


@dataclass(frozen=True)
class Exercise:
    """A question, and ``grade(answer, **given)``, which returns right or wrong and a sentence."""

    question: str
    grade: Callable[..., Verdict]


# --- grades ---------------------------------------------------------------------------------------


def _fool(answer: Any, prompt: str = PROMPT) -> Verdict:
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


def _reverse(answer: Any) -> Verdict:
    fits = binomial_fits("reverse", HUMPS)
    if any(abs(number(answer) - fit) <= 0.006 for fit in fits):
        return True, "Either hump will do, and reverse KL is content with one."
    return False, (
        "Reverse KL punishes what the teacher would not say: try a student that leaves one of"
        " the humps alone, and look closely near the edge."
    )


def _one_wrong_step(answer: Any, measured: float | None = None) -> Verdict:
    if measured is None:
        call = 'check("02.one_wrong_step", guess, measured=…)'
        raise Unreadable(f"give what you measured too: {call}")
    guess, truth = number(answer), number(measured)
    if not 0 <= guess <= 1:
        raise Unreadable(f"I expected an accuracy from 0 to 1 and got {shown(answer)}")
    good = abs(guess - truth) <= 0.15
    words = "within 0.15 of it" if good else "more than 0.15 away: look at a few continuations"
    return good, f"Measured: {truth:.2f}. Your prediction was {words}."


def _alive(answer: Any) -> Verdict:
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


def _estimators(answer: Any) -> Verdict:
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


def _reversed(answer: Any, gaps: Sequence[float] = GAPS) -> Verdict:
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


def _interval(answer: Any) -> Verdict:
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


def _gpu_hours(answer: Any, steps: float = 300, seconds: float = 45.0) -> Verdict:
    right = number(steps) * number(seconds) / 3600
    good = abs(number(answer) - right) <= 0.01 * abs(right) + 1e-9
    if good:
        return True, "Measure the seconds of a few steps first, on your own card."
    return False, "Steps times seconds a step are seconds; an hour has 3600 of them."


# --- the exercises --------------------------------------------------------------------------------

_FOUR = ("opd", "grpo", "kdrl", "trrd")

EXERCISES: dict[str, Exercise] = {
    "00.advantages": Exercise(
        "Rewards 1.1, 1.1, 1.1, 0.1 in one group: the four GRPO advantages, with the sample std.",
        near(
            lambda: advantages_of([1.1, 1.1, 1.1, 0.1]).tolist(),
            0.006,
            "Subtract the mean, divide by the std with n − 1 in it.",
            "Three small rewards for doing what most did, one large blame.",
        ),
    ),
    "00.method": Exercise(
        "Which of opd, grpo, kdrl and trrd has no teacher in its loss?",
        named(
            lambda: next(name for name in _FOUR if "teacher" not in METHODS[name].needs),
            _FOUR,
            "`rlkd methods` shows each formula: look for π_T or d.",
            "Its loss knows rewards alone.",
        ),
    ),
    "01.group_size": Exercise(
        "Success rate .13: the smallest group size with P(all rewards equal) < .1.",
        near(
            smallest_group,
            0.0,
            "P is .13^G + .87^G. Is yours under .1, and is the next smaller one not?",
            "Hard prompts need large groups, or most steps teach nothing.",
        ),
    ),
    "01.fool": Exercise(
        f"A completion of {PROMPT} that weak_verifier accepts and the real verifier does not.",
        _fool,
    ),
    "02.forward": Exercise(
        "Fit Binomial(2, q) to (.49, .02, .49) by forward KL: q.",
        near(
            lambda: binomial_fits("forward", HUMPS)[0],
            0.006,
            "Forward KL must not miss any outcome of the teacher: it matches the mean.",
            "It covers both humps, and puts half its mass between them.",
        ),
    ),
    "02.reverse": Exercise("The same by reverse KL: q, to two decimals or better.", _reverse),
    "02.one_wrong_step": Exercise(
        "The teacher's accuracy, 0 to 1, when it goes on after one wrong step (give"
        " measured=… as well).",
        _one_wrong_step,
    ),
    "03.advantages": Exercise(
        "Rewards 1, 1, 0, 0: GRPO's four advantages, with the sample std.",
        near(
            lambda: advantages_of([1, 1, 0, 0]).tolist(),
            0.006,
            "Subtract the mean, divide by the sample std: n − 1 in it, not n.",
            "Not ±1: the sample std of 1, 1, 0, 0 is larger than a half.",
        ),
    ),
    "03.dr_grpo": Exercise(
        "The same rewards: Dr. GRPO's four advantages.",
        near(
            lambda: advantages_of([1, 1, 0, 0], scale=False).tolist(),
            0.002,
            "Dr. GRPO leaves the division out.",
            "The reward minus the group's mean, and nothing else.",
        ),
    ),
    "03.alive": Exercise(
        "A = −1, ε = .2: at which of ρ = .5 and ρ = 2 is there a gradient?", _alive
    ),
    "04.estimators": Exercise(
        "Expected gradient of k1, k2, k3 as losses on the student's samples: 'zero',"
        " 'reverse' or 'forward' each.",
        _estimators,
    ),
    "04.threshold": Exercise(
        "kd_coef = .1, Â = .866, advantage form: the d below which the teacher turns the"
        " reward's push around.",
        near(
            reversal_threshold,
            0.02,
            "Where is Â + kd_coef·d equal to 0?",
            "That is a token the teacher finds thousands of times less likely; the smaller"
            " the coefficient, the rarer.",
        ),
    ),
    "04.reversed": Exercise(
        "The same: which token is pushed down, counting from 0, if d is"
        f" {', '.join(f'{gap:g}' for gap in GAPS)}?",
        _reversed,
    ),
    "05.dead": Exercise(
        "TRRD, α = .5, A > 0, π_old = .30, step 0: the π_T below which the token is dead.",
        near(
            lambda: 0.30 / dead_threshold(0.5, 1.0),
            0.001,
            "Dead is (π_old/π_T)^(1−α) > 1.2; solve for π_T.",
            "The teacher need not even disagree much.",
        ),
    ),
    "05.thresholds": Exercise(
        "TRRD, α = .75, step 0: the ratios [π_old/π_T for A > 0, π_T/π_old for A < 0] above"
        " which a token is dead.",
        near(
            lambda: [dead_threshold(0.75, 1.0), dead_threshold(0.75, -1.0)],
            0.02,
            "The teacher's log-ratio enters with 1 − α = ¼; the bounds are 1.2 and 0.8.",
            "The closer α is to 1, the later a token dies.",
        ),
    ),
    "06.interval": Exercise(
        "Differences .04, .01, −.02, .05, .03 over five seeds: the 95 % interval of the mean,"
        " [low, high].",
        _interval,
    ),
    "06.verdict": Exercise(
        "And the verdict: 'better', 'worse' or 'undecided'?",
        named(
            verdict,
            ("better", "worse", "undecided"),
            "Is 0 inside the interval?",
            "The interval holds 0. Four seeds of five above 0 feel like more than they are.",
        ),
    ),
    "07.memory": Exercise(
        "GiB of the NF4 weights of 1.5e9 parameters: 4 bits each, a 4-byte scale per block of"
        " 64, no double quantisation.",
        near(
            nf4_gib,
            0.006,
            "Bytes per parameter: a half, and 4/64 for the scales. A GiB is 2^30 bytes.",
            f"rlkd_lab quantises the scales as well, which leaves {nf4_gib(double=True):.2f}"
            " GiB. Embeddings, activations, cache and adapter come on top.",
        ),
    ),
    "07.gpu_hours": Exercise(
        "GPU-hours of 300 steps at 45 seconds (or give steps=…, seconds=…).", _gpu_hours
    ),
    "08.limits": Exercise(
        "Your new method adds a teacher term with a coefficient to the reward's: which known"
        " method must it be at coefficient 0?",
        named(
            without_teacher,
            tuple(METHODS),
            "Leave the teacher term out: what is left is the reward's clipped surrogate.",
            "Assert it: value and gradient, on a random batch.",
        ),
    ),
}
"""By name: the notebook's number and a word."""


def check(name: str, answer: Any, **given: Any) -> bool:
    """Print whether an answer is right, in a sentence, and return it.

    An answer that cannot be read gets a sentence and False.
    ``...`` stands for no answer yet: the question is printed, and False returned.

    Args:
        name: of an exercise, see :func:`exercises`.
        answer: number, list, word or text, as the question says.
        given: what some exercises take besides: ``measured`` (02.one_wrong_step), ``prompt``
            (01.fool), ``gaps`` (04.reversed), ``steps`` and ``seconds`` (07.gpu_hours).

    Raises:
        ValueError: an unknown name.
        TypeError: something given that the exercise does not take.

    >>> check("03.dr_grpo", [0.5, 0.5, -0.5, -0.5])
    Right. The reward minus the group's mean, and nothing else.
    True
    """
    if name not in EXERCISES:
        (close,) = difflib.get_close_matches(str(name), EXERCISES, n=1, cutoff=0.0)
        names = ", ".join(EXERCISES)
        raise ValueError(
            f"unknown exercise {name!r}: did you mean {close!r}? The exercises are {names}"
        )
    if answer is ...:
        print(f"Your answer here. {EXERCISES[name].question}")
        return False
    try:
        right, words = EXERCISES[name].grade(answer, **given)
        print(f"{'Right.' if right else 'Not yet.'} {words}")
    except Unreadable as error:
        right = False
        print(f"Not yet: {error}.")
    return right


def exercises() -> pd.DataFrame:
    """Return all exercises, a row each: ``name`` and ``question``."""
    rows = [{"name": name, "question": each.question} for name, each in EXERCISES.items()]
    return pd.DataFrame(rows)
