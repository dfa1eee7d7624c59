"""Exercises of the notebooks: :func:`check` judges an answer in a sentence.

A wrong answer gets a hint that does not give the answer away.
Each exercise is an entry of :data:`EXERCISES`; its number is the notebook's.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from rlkd_lab.lab.course import grades
from rlkd_lab.lab.course.answers import Unreadable, Verdict, named, near
from rlkd_lab.lab.course.pictures.fits import HUMPS, binomial_fits
from rlkd_lab.lab.course.pictures.groups import advantages_of
from rlkd_lab.lab.course.pictures.trust_regions import dead_threshold
from rlkd_lab.lab.course.right_answers import (
    disagreement,
    nf4_gib,
    placebo,
    reversal_threshold,
    smallest_group,
    verdict,
    without_teacher,
)
from rlkd_lab.objectives import METHODS


@dataclass(frozen=True)
class Exercise:
    """A question, and ``grade(answer, **given)``, which returns right or wrong and a sentence."""

    question: str
    grade: Callable[..., Verdict]


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
        f"A completion of {grades.PROMPT} that weak_verifier accepts and the real verifier does"
        " not.",
        grades.fool,
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
    "02.reverse": Exercise("The same by reverse KL: q, to two decimals or better.", grades.reverse),
    "02.one_wrong_step": Exercise(
        "The teacher's accuracy, 0 to 1, when it goes on after one wrong step (give"
        " measured=… as well).",
        grades.one_wrong_step,
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
        "A = −1, ε = .2: at which of ρ = .5 and ρ = 2 is there a gradient?", grades.alive
    ),
    "04.estimators": Exercise(
        "Expected gradient of k1, k2, k3 as losses on the student's samples: 'zero',"
        " 'reverse' or 'forward' each.",
        grades.estimators,
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
        f" {', '.join(f'{gap:g}' for gap in grades.GAPS)}?",
        grades.reversed,
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
        grades.interval,
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
        "GPU-hours of 300 steps at 45 seconds (or give steps=…, seconds=…).", grades.gpu_hours
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
    "09.disagree": Exercise(
        "Gaps log π_T − log π: .5, −.2, .1 on a right completion, −1, .3, −.4, .2, −.1 on a"
        " wrong one. On which share of the tokens do teacher and verifier disagree?",
        near(
            disagreement,
            0.006,
            "Count a gap below 0 on the right completion, and one above 0 on the wrong one.",
            "OPDVR and GRPD leave just these tokens out.",
        ),
    ),
    "09.placebo": Exercise(
        "OPSA, push = .1, push_share = .2: the advantages of five tokens with the probabilities"
        " .9, .2, .99, .6, .95.",
        near(
            placebo,
            0.001,
            "A fifth of five tokens is one. Which is the least likely, and is it praised?",
            "It has read neither a reward nor a teacher.",
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
