"""What the papers claim, and whether it holds here: supported, contradicted or undecided.

A claim is one or several comparisons (:mod:`rlkd_lab.study.effects`).
It is supported if all of them are, and contradicted if one is.

The intervals are not corrected for their number.
Of twenty comparisons without any effect, one is expected to be decided wrongly.
A verdict is on the edge if it would not stand with corrected intervals.
The correction is Bonferroni's, over all comparisons of the scorecard.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from rlkd_lab.study.claim_checks import (
    Found,
    alpha_near_a_half,
    annealed_against_fixed,
    cost_of_a_step,
    fewer_steps,
    k2_against_k3,
    masking,
    order_of_lengths,
    order_of_methods,
    trrd_on_logic,
)
from rlkd_lab.study.effects import SEEDS, Check, Outcome, all_of, strict
from rlkd_lab.study.parts import Study
from rlkd_lab.study.sequential_checks import (
    betas_of_tasks,
    joint_on_logic,
    passes,
    sequential_or_joint,
    weight_signs,
)

PLANNED = 30
"""Comparisons of all claims, whether their parts were run or not."""
PAIRS = {
    "pair_2": ("core", "a second pair"),
    "pair_3": ("core", "a third pair"),
    "logic_2": ("logic", "a second student"),
    "logic_3": ("logic", "a third student and another teacher"),
}
"""Parts that repeat another part with other models: which one, and the models in words."""


@dataclass(frozen=True)
class Verdict:
    """What became of a claim."""

    number: int
    outcome: Outcome
    checks: tuple[Check, ...]
    note: str = ""
    """What to know beside the numbers, and every reason why they may not decide."""
    why: str = ""
    """Why the whole claim is undecided whatever its comparisons say, if so."""
    among: int = 1
    """Comparisons that must hold with it."""

    @property
    def edge(self) -> bool:
        """Whether corrected intervals would give another verdict."""
        corrected = all_of([strict(check, self.among) for check in self.checks])
        return self.outcome not in ("undecided", corrected)


@dataclass(frozen=True)
class Claim:
    """A sentence of a paper and the comparisons that it comes to here."""

    number: int
    source: str
    text: str
    needs: tuple[str, ...]
    """Parts of the study."""
    checks: Callable[[Study], Found]

    def missing(self, study: Study) -> list[str]:
        """Return the parts that the claim needs and that were not run."""
        return [name for name in self.needs if name not in study]


def judge_claims(study: Study) -> list[Verdict]:
    """Return a verdict for every claim; a claim whose parts were not run is undecided."""
    verdicts = [_judge(claim, study) for claim in CLAIMS]
    return [replace(verdict, among=PLANNED) for verdict in verdicts]


def _judge(claim: Claim, study: Study) -> Verdict:
    if missing := claim.missing(study):
        return Verdict(claim.number, "undecided", (), f"not run: {', '.join(missing)}")
    found, others = claim.checks(study), on_other_pairs(claim, study)
    found = replace(found, checks=_with_pairs(found.checks, others, study))
    if unfinished := [name for name in (*claim.needs, *others) if not study[name].whole]:
        words = f"not finished: {', '.join(unfinished)}"
        found = replace(found, why="; ".join(filter(None, (words, found.why))))
    notes = [words for words in (found.why, found.note) if words]
    had = min((check.effect.seeds for check in found.checks), default=SEEDS)
    if had < SEEDS:
        notes.insert(0, f"{had} seed{'s' * (had != 1)} where at least {SEEDS} are needed")
    notes += [
        f"{words} ({one} of {len(found.checks)} comparisons)"
        for words, one in Counter(
            part for check in found.checks for part in check.doubt.split("; ") if part
        ).items()
    ]
    if absent := [name for name in _repeats(claim) if name not in study]:
        notes.append(f"not run with other models: {', '.join(absent)}")
    if blind := [name for name in claim.needs if study[name].outcomes is None]:
        notes.append(f"no outcomes by prompt, so other prompts are left out: {', '.join(blind)}")
    omitted = {name: len(study[name].left_out) for name in claim.needs if study[name].left_out}
    if omitted:
        counts = ", ".join(f"{name} {count}" for name, count in omitted.items())
        notes.append(f"runs that do not count, named below: {counts}")
    outcome = all_of([check.outcome for check in found.checks]) if not found.why else "undecided"
    return Verdict(claim.number, outcome, tuple(found.checks), "; ".join(notes), found.why)


def _repeats(claim: Claim) -> list[str]:
    """Return the parts that repeat, with other models, the one part that a claim needs."""
    return [name for name, (of, _) in PAIRS.items() if claim.needs == (of,)]


def on_other_pairs(claim: Claim, study: Study) -> dict[str, dict[str, Check]]:
    """Return by part, and by text, a claim's comparisons with other models that were run."""
    return {
        name: {check.text: check for check in claim.checks({PAIRS[name][0]: study[name]}).checks}
        for name in _repeats(claim)
        if name in study
    }


def _with_pairs(
    checks: Sequence[Check], pairs: Mapping[str, Mapping[str, Check]], study: Study
) -> list[Check]:
    """Doubt the comparisons that other models do not confirm."""
    doubts: dict[str, list[str]] = {check.text: [check.doubt] for check in checks}
    for name, others in pairs.items():
        of, words = PAIRS[name]
        one_program = study[name].programs == study[of].programs
        for check in checks:
            other = others.get(check.text)
            if other is None or math.isnan(other.effect.mean):
                doubts[check.text].append(f"on {words} it was not measured")
            elif not one_program:
                doubts[check.text].append(f"another version of the program ran on {words}")
            elif check.turns(other.effect.mean):
                doubts[check.text].append(f"on {words} it points the other way")
    return [replace(check, doubt="; ".join(filter(None, doubts[check.text]))) for check in checks]


CLAIMS: tuple[Claim, ...] = (
    Claim(1, "KDRL", "accuracy: KDRL > OPD > GRPO > SFT", ("core",), order_of_methods),
    Claim(2, "KDRL", "KDRL reaches GRPO's final score in fewer steps", ("core",), fewer_steps),
    Claim(
        3,
        "KDRL",
        "OPD writes the longest completions, KDRL lies between it and GRPO",
        ("core",),
        order_of_lengths,
    ),
    Claim(4, "KDRL", "k2 is better than k3 as KDRL's loss", ("core",), k2_against_k3),
    Claim(
        5,
        "KDRL",
        "an annealed coefficient beats the best fixed one",
        ("core", "betas"),
        annealed_against_fixed,
    ),
    Claim(
        6,
        "KDRL",
        "masking right responses keeps the accuracy and shortens completions",
        ("core",),
        masking,
    ),
    Claim(
        7,
        "RLAD",
        "TRRD > KDRL > GRPO on Knights and Knaves, most on the largest puzzles",
        ("logic",),
        trrd_on_logic,
    ),
    Claim(8, "RLAD", "α near .5 does not matter", ("alphas",), alpha_near_a_half),
    Claim(
        9,
        "RLAD",
        "a step of TRRD costs what KDRL's does, 15 % more than GRPO's",
        ("cost",),
        cost_of_a_step,
    ),
    Claim(
        10,
        "S",
        "joint methods beat pure GRPO and pure OPD on logic",
        ("logic",),
        joint_on_logic,
    ),
    Claim(
        11,
        "S",
        "KDRL raises pass@1 and lowers pass@32 against OPD, TRRD stays close to it",
        ("logic",),
        passes,
    ),
    Claim(12, "S", 'OPD-then-RL ≥ "KDRL, annealed" ≥ KDRL', ("logic",), sequential_or_joint),
    Claim(
        13,
        "S",
        "the best coefficient differs between tasks, by up to 100 times",
        ("betas", "logic_betas"),
        betas_of_tasks,
    ),
    Claim(14, "S", "conflict with OPD's update: GRPO > KDRL > TRRD", ("logic",), weight_signs),
)
PAPERS = {"KDRL": "arXiv 2506.02208", "RLAD": "arXiv 2602.22495", "S": "arXiv 2609.04108"}
"""The paper of each source. The title of S is "Sequential Beats Joint"."""
