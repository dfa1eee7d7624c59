"""The scorecard: verdicts from made-up studies whose truth is known."""

import functools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import TRUE, betas, conflicts, constant, core, costs, logic, part, rising
from scipy import stats

from rlkd_lab.objectives import METHODS
from rlkd_lab.study.claim_checks import POINTS, steps_to_reach
from rlkd_lab.study.claims import CLAIMS, PAIRS, PLANNED, judge_claims
from rlkd_lab.study.comparing import Side
from rlkd_lab.study.effects import SEEDS, Check, Effect, all_of, effect_of, strict, unpaired
from rlkd_lab.study.parts import Part
from rlkd_lab.study.scorecard import pair_lines
from rlkd_lab.study.sequential_checks import best_beta
from rlkd_lab.study.study import sweep_of

ROOT = Path(__file__).parents[2]
KNOWN = {claim.number: claim for claim in CLAIMS}


FALSE = {
    1: {"core": core(arms={"opd": {"id avg": 0.85}})},
    2: {
        "core": core(
            curves={"grpo": {"accuracy": rising(0.03)}, "kdrl": {"accuracy": rising(0.01)}}
        )
    },
    3: {"core": core(arms={"grpo": {"id length": 70.0}})},
    4: {"core": core(arms={"kdrl_k3": {"id avg": 0.9}})},
    5: {"core": core(arms={"kdrl_annealed": {"id avg": 0.6}})},
    6: {"core": core(arms={"kdrl_masked": {"id avg": 0.7}})},
    7: {"logic": logic(lead_grows=False)},
    8: {
        "alphas": part(
            {"trrd,trrd_alpha=0.4": 0.6, "trrd,trrd_alpha=0.5": 0.7, "trrd,trrd_alpha=0.6": 0.7}
        )
    },
    9: {"cost": costs(trrd=2.0)},
    10: {"logic": logic(kdrl_advantage=0.5)},
    11: {"logic": logic(kdrl_advantage=0.5)},
    12: {"logic": logic(opd_then_rl=0.7)},
    13: {"betas": betas(0.1), "logic_betas": betas(0.1)},
    14: {"logic": replace(logic(), signs=conflicts(0.3, 0.4, 0.2))},
}


SAME = {name: core() if of == "core" else logic() for name, (of, _) in PAIRS.items()}
TURNED = {
    "core": (4, core(arms={"kdrl_k3": {"id avg": 0.9}}), "| 4 | k2 > k3: accuracy", [0.2, -0.1]),
    "logic": (12, logic(opd_then_rl=0.7), "| 12 | OPD-then-RL", None),
}
"""By part: a claim whose sign is turned with other models, their table, and its row."""


@pytest.mark.parametrize("pair", PAIRS)
def test_a_verdict_needs_the_same_sign_with_all_models_that_were_run(pair):
    """One claim is turned with other models: it decides nothing. All others stay."""
    of, words = PAIRS[pair]
    number, turned, begins, expected = TURNED[of]
    held = verdicts(TRUE | SAME)
    assert {one.outcome for one in held.values()} == {"supported"}
    found = verdicts(TRUE | SAME | {pair: turned})
    assert {one.number for one in found.values() if one.outcome != "supported"} == {number}
    assert found[number].checks[0].doubt == f"on {words} it points the other way"
    unfinished = replace(SAME[pair], left_out=("kdrl, seed 3: not run",))
    found = verdicts(TRUE | {pair: unfinished})
    assert found[number].outcome == "undecided" and f"not finished: {pair}" in found[number].note
    row = next(one for one in pair_lines(TRUE | {pair: turned}, of) if one.startswith(begins))
    means = [float(cell.split()[0].replace("−", "-")) for cell in row.split("|")[3:5]]
    assert means == pytest.approx(expected or means, abs=0.005) and means[1] < -0.02
    assert not pair_lines(TRUE, of)


def test_other_models_that_were_not_measured_or_not_by_this_program_decide_nothing():
    """A part may lack signs, an arm, or be of another version: no verdict, and no traceback."""
    whole = logic()
    runs, seen = whole.runs, "on a second student"
    for other, words in (
        (runs[runs["arm"] != "trrd"], f"{seen} it was not measured"),
        (runs.assign(results_version=4), f"another version of the program ran {seen}"),
    ):
        study = TRUE | {"logic_2": replace(whole, runs=other)}
        found = verdicts(study)[10]
        assert found.outcome == "undecided" and words in found.note
        assert pair_lines(study, "logic")
    found = verdicts(TRUE | {"logic_2": replace(whole, signs=None)})
    assert found[14].outcome == "undecided" and found[10].outcome == "supported"


def test_a_part_without_outcomes_by_prompt_says_so():
    blind = TRUE | {"core": replace(TRUE["core"], outcomes=None)}
    assert "no outcomes by prompt, so other prompts are left out: core" in verdicts(blind)[4].note


def test_parts_with_other_models_have_the_settings_that_were_chosen():
    for name, (of, _) in PAIRS.items():
        chosen = json.loads((ROOT / f"results/embedded/{of}/tuned.json").read_text())["arms"]
        arms = {arm.name: arm.settings for arm in sweep_of(name).arms}
        assert arms.keys() == {arm.name for arm in sweep_of(of).arms} - {"grpo_sequence"}
        for arm in sweep_of(of).arms:
            best = chosen[arm.name]["trials"][chosen[arm.name]["best"] - 1]["settings"]
            assert arms.get(arm.name) in (None, {**arm.settings, **best})


def test_grpo_averages_as_the_methods_do_that_are_held_against_it():
    """Otherwise a difference may be one of averaging, and not of a teacher."""
    for name in ("core", "map", "logic", *PAIRS):
        sweep = sweep_of(name)
        jobs = (sweep.first_round() if sweep.tune else sweep).jobs()
        configs = [job.config for job in jobs if not job.arm.startswith("grpo_sequence")]
        options = [METHODS[one.method].options | one.options for one in configs]
        assert {one["aggregation"] for one in options if one} == {"token"}


def test_an_annealed_coefficient_must_beat_the_best_of_all_fixed_ones():
    found = verdicts(TRUE | {"betas": betas(0.01, height_of_best=0.95)})[5]
    assert found.outcome == "contradicted" and "kdrl,kd_coef=0.01" in found.checks[0].text
    assert verdicts(TRUE)[5].checks[0].text == "kdrl_annealed > kdrl: accuracy"


def verdicts(study):
    return {verdict.number: verdict for verdict in judge_claims(study)}


@functools.cache
def judged(without="", seeds=None):
    """Verdicts on the whole study, without a part or with its first seeds alone."""

    def first(whole):
        if not seeds:
            return whole
        names = ("runs", "curves", "levels", "signs")
        tables = {name: getattr(whole, name) for name in names}
        return Part(**{n: t[t["seed"] < seeds] for n, t in tables.items() if t is not None})

    return verdicts({name: first(whole) for name, whole in TRUE.items() if name != without})


def test_there_are_fourteen_claims_in_order():
    assert [claim.number for claim in CLAIMS] == list(range(1, 15))
    assert {claim.source for claim in CLAIMS} == {"KDRL", "RLAD", "S"}


@pytest.mark.parametrize("number", range(1, 15))
def test_a_claim_that_holds_is_supported_and_one_that_does_not_is_contradicted(number):
    assert judged()[number].outcome == "supported"
    assert verdicts(TRUE | FALSE[number])[number].outcome == "contradicted"


@pytest.mark.parametrize("number", range(1, 15))
def test_too_few_seeds_decide_nothing_and_say_so(number):
    verdict = judged(seeds=SEEDS - 1)[number]
    assert verdict.outcome == "undecided"
    assert f"{SEEDS - 1} seeds where at least {SEEDS} are needed" in verdict.note
    assert judged(seeds=1)[number].outcome == "undecided"


@pytest.mark.parametrize("number", range(1, 15))
def test_a_part_that_was_not_run_is_named(number):
    for name in KNOWN[number].needs:
        verdict = judged(without=name)[number]
        assert verdict.outcome == "undecided" and name in verdict.note


def test_a_lead_that_hangs_on_how_curves_are_smoothed_decides_nothing():
    """GRPO ends at .6;

    KDRL touches that for nine steps early on, and for good where GRPO does: only a window of nine
    or less sees the touch.
    """

    def touches(step):
        return 0.6 if 20 <= step < 29 else min(0.6, 0.012 * step) - 0.2 * (step < 50)

    verdict = verdicts(
        TRUE
        | {
            "core": core(
                curves={"grpo": {"accuracy": rising(0.012, 0.6)}, "kdrl": {"accuracy": touches}},
                noise=1e-12,
            )
        }
    )[2]
    assert verdict.checks[0].outcome == "supported" and verdict.outcome == "undecided"
    assert "depends on the window of the trailing mean" in verdict.note and "13: −" in verdict.note


def test_a_verdict_that_would_not_stand_among_so_many_is_on_the_edge():
    def lead_of_k2(gaps):
        made = core()
        made.runs.loc[made.runs["arm"] == "kdrl_k3", "id avg"] = 0.6
        made.runs.loc[made.runs["arm"] == "kdrl", "id avg"] = 0.6 + np.array(gaps)
        verdict = verdicts(TRUE | {"core": made})[4]
        return verdict.outcome, verdict.edge

    assert lead_of_k2([0.09, 0.10, 0.10, 0.10, 0.11]) == ("supported", False)
    assert lead_of_k2([0.01, 0.03, 0.06, 0.08, 0.10]) == (
        "supported",
        True,
    )  # p = .03, one of some twenty
    assert lead_of_k2([-0.10, 0.03, 0.06, 0.08, 0.10]) == ("undecided", False)
    assert not any(verdict.edge for verdict in verdicts({}).values())


def test_what_chance_could_do_is_undecided():
    """Claim 11 names k = 32; where guesses reach 5 % with that many, a smaller k is shown and
    nothing is decided.
    """
    verdict = verdicts(TRUE | {"logic": logic(chances={1: 0.01, 4: 0.04, 32: 0.27})})[11]
    assert verdict.outcome == "undecided" and "pass@32 is not decided here" in verdict.note
    assert [check.text for check in verdict.checks][1] == "opd > kdrl_advantage: pass@4"
    only_one = verdicts(TRUE | {"logic": logic(chances={1: 0.15, 4: 0.4, 32: 0.9})})[11]
    assert only_one.outcome == "undecided" and len(only_one.checks) == 1


def test_weights_that_were_not_compared_decide_nothing_and_the_floor_is_shown():
    assert "OPD against OPD of another seed: 0.102" in verdicts(TRUE)[14].note
    verdict = verdicts(TRUE | {"logic": replace(logic(), signs=None)})[14]
    assert verdict.outcome == "undecided" and "not compared" in verdict.why


# --- doubts ---------------------------------------------------------------------------------------


def test_arms_of_two_versions_of_the_program_are_not_compared():
    def made_by(ours, theirs):
        made = as_version(core(), ours)
        made.runs.loc[made.runs["arm"] == "kdrl_k3", "results_version"] = theirs
        return verdicts(TRUE | {"core": made})[4]

    assert made_by("3", "3").outcome == "supported"
    verdict = made_by("3", "4")
    assert verdict.outcome == "undecided" and verdict.checks[0].face == "supported"
    assert "two versions of the program made its sides (3 and 4)" in verdict.note
    assert strict(verdict.checks[0], 1) == "undecided"
    assert "(3 and unknown: before 3)" in made_by("3", None).note


def as_version(made, version):
    return replace(made, runs=made.runs.assign(results_version=version))


def test_runs_that_diverged_count_as_wrong_in_accuracy_and_silence_other_measures():
    """Five runs of KDRL are left of twenty: they alone would put it above OPD."""
    first, *_ = verdicts({"core": replace(core(), diverged={"kdrl": 15})})[1].checks
    assert first.face == "supported" and first.collapsed == (15, 0)
    assert first.outcome == "undecided" and "with 0 for the runs that diverged" in first.doubt
    one = verdicts({"core": replace(core(), diverged={"opd": 15})})
    assert one[1].checks[0].outcome == "supported"  # OPD would only lie lower still
    assert one[3].checks[0].doubt == "runs diverged"
    assert "15 runs collapsed" in verdicts({"core": replace(core(), diverged={"grpo": 15})})[2].note


def test_a_part_that_is_not_finished_decides_nothing():
    cut = replace(core(), left_out=("kdrl, seed 5: not run",))
    assert all(verdicts(TRUE | {"core": cut})[n].outcome == "undecided" for n in (1, 3, 4, 5, 6))
    assert "not finished: core" in verdicts(TRUE | {"core": cut})[1].note
    lost = replace(core(), left_out=("kdrl, seed 5: moved by hand",))
    assert verdicts(TRUE | {"core": lost})[1].outcome == "supported"


def test_the_correction_is_for_all_comparisons_that_are_planned():
    """So a verdict of one part is as much on the edge before the other parts were run as after."""
    assert sum(len(verdict.checks) for verdict in judge_claims(TRUE)) == PLANNED
    assert {verdict.among for verdict in judge_claims({"core": core()})} == {PLANNED}


def test_a_run_of_two_versions_within_an_arm_is_not_compared_either():
    made = as_version(core(), "3")
    first = (made.runs["arm"] == "kdrl") & (made.runs["seed"] == 0)
    made.runs.loc[first, "results_version"] = "4"
    assert verdicts({"core": made})[1].checks[0].doubt.endswith("(3 and 4)")


def falling(*seeds, to=0.0):
    """KDRL's accuracy in training and on test prompts, of which some seeds collapse."""
    made = core(arms={"kdrl": {"id avg": 0.9}}, curves={"kdrl": {"accuracy": constant(0.9)}})
    rows = (made.runs["arm"] == "kdrl") & made.runs["seed"].isin(seeds)
    made.runs.loc[rows, "id avg"] = to
    late = (made.curves["arm"] == "kdrl") & made.curves["seed"].isin(seeds)
    made.curves.loc[late & (made.curves["step"] > 40), "accuracy"] = 0.0
    return made


def test_a_run_that_collapsed_is_counted_and_a_verdict_that_hangs_on_it_is_none():
    """With seed 2 KDRL's mean is .72 with a wide interval; without it .9 and far above OPD."""
    check = verdicts({"core": falling(2)})[1].checks[0]
    assert check.collapsed == (1, 0) and check.outcome == "undecided"
    whole = verdicts({"core": core(arms={"kdrl": {"id avg": 0.9}})})[1].checks[0]
    assert whole.collapsed == (0, 0) and whole.outcome == "supported"
    most = verdicts({"core": falling(0, 1, 2, to=0.8)})[1].checks[0]
    assert most.face == "supported" and most.outcome == "undecided"
    assert "without the runs that collapsed it is undecided" in most.doubt
    every = verdicts({"core": falling(*range(5), to=0.6)})[1].checks[0]
    assert every.collapsed == (5, 0) and every.outcome == "contradicted"
    fewer = Part(*(frame[frame["seed"] != 2] for frame in parts_of(falling(2))))
    assert Side(fewer, "kdrl").lost == 0
    assert Side(replace(fewer, diverged={"kdrl": 1}), "kdrl").lost == 1


def parts_of(made):
    return made.runs, made.curves, made.levels


def test_the_last_step_decides_only_where_the_best_checkpoint_does_not_point_the_other_way():
    def at_best(kdrl, opd):
        best = {"kdrl": {"best id avg": kdrl}, "opd": {"best id avg": opd}}
        return verdicts({"core": core(arms=best)})[1].checks[0]

    check = at_best(0.8, 0.9)
    assert check.face == "supported" and check.best.mean == pytest.approx(-0.1, abs=0.01)
    assert check.outcome == "undecided" and "the best checkpoint" in check.doubt
    assert at_best(0.8, 0.78).outcome == "supported"


# --- effects --------------------------------------------------------------------------------------

VALUES = st.lists(st.floats(-1, 1), min_size=3, max_size=12).filter(
    lambda values: np.std(values) > 1e-3
)


@given(VALUES)
def test_the_interval_is_students(values):
    effect = effect_of(pd.Series(values))
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (effect.low, effect.high) == pytest.approx((low, high))
    assert effect.mean == pytest.approx(np.mean(values)) and effect.seeds == len(values)


@given(VALUES, st.integers(1, 50))
def test_an_interval_that_holds_with_others_is_bonferronis(values, comparisons):
    effect = effect_of(pd.Series(values)).of_many(comparisons)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(1 - 0.05 / comparisons)
    assert (effect.low, effect.high) == pytest.approx((low, high))


@pytest.mark.parametrize(
    "effect", [Effect(0.5, math.nan, math.nan, 1), Effect(math.nan, math.nan, math.nan, 0)]
)
def test_what_has_no_interval_has_none_among_others(effect):
    assert effect.of_many(20) is effect


@given(VALUES, VALUES)
def test_arms_are_two_groups_of_runs_with_welchs_interval(one, other):
    effect = unpaired(pd.Series(one), pd.Series(other))
    found = stats.ttest_ind(one, other, equal_var=False)
    assert (effect.low, effect.high) == pytest.approx(found.confidence_interval(0.95))
    assert (effect.df, effect.seeds) == (pytest.approx(found.df), min(len(one), len(other)))
    wide = found.confidence_interval(1 - 0.05 / 20)
    assert (effect.of_many(20).low, effect.of_many(20).high) == pytest.approx(wide)
    assert math.isnan(unpaired(pd.Series(one), pd.Series(other[:1])).low)


def test_differences_are_taken_seed_by_seed_over_the_seeds_that_both_have():
    a, b = pd.Series({0: 0.5, 1: 0.9, 3: 0.2}), pd.Series({1: 0.8, 0: 0.4, 2: 0.0})
    effect = effect_of(a - b)
    assert (
        effect.seeds == 2
        and effect.mean == pytest.approx(0.1)
        and effect.high - effect.low == pytest.approx(0, abs=1e-12)
    )


@pytest.mark.parametrize(
    ("effect", "order", "same"),
    [
        (Effect(0.05, 0.03, 0.07, 5), "supported", "contradicted"),
        (Effect(-0.05, -0.07, -0.03, 5), "contradicted", "contradicted"),
        (Effect(0.0, -0.01, 0.01, 5), "undecided", "supported"),
        (Effect(0.01, 0.005, 0.015, 5), "supported", "supported"),
        (Effect(0.02, -0.01, 0.05, 5), "undecided", "undecided"),
        (Effect(0.05, 0.03, 0.07, 4), "undecided", "undecided"),
        (Effect(math.nan, math.nan, math.nan, 0), "undecided", "undecided"),
    ],
)
def test_orders_and_equalities(effect, order, same):
    assert Check("", effect).outcome == order
    assert Check("", effect, POINTS, equal=True).outcome == same


def test_not_worse_is_an_order_with_a_margin():
    assert Check("", Effect(0.0, -0.01, 0.01, 5), -POINTS).outcome == "supported"
    assert Check("", Effect(-0.05, -0.06, -0.04, 5), -POINTS).outcome == "contradicted"


def test_one_contradicted_comparison_contradicts_the_claim():
    assert all_of(["supported", "undecided", "contradicted"]) == "contradicted"
    assert all_of(["supported", "undecided"]) == "undecided"
    assert all_of(["supported", "supported"]) == "supported"
    assert all_of([]) == "undecided"


def test_reaching_a_level_needs_a_whole_window():
    curve = pd.Series(np.r_[np.zeros(20), np.ones(20)], index=range(1, 41))
    assert steps_to_reach(curve, 1.0, window=5) == 25
    assert steps_to_reach(curve, 0.2, window=5) == 21
    assert steps_to_reach(curve, 0.0, window=5) == 5
    assert steps_to_reach(curve, 1.1, window=5) == 41


def test_best_coefficients_at_the_end_of_the_grid_do_not_contradict_that_they_differ():
    """Both tasks do best with the smallest: they may differ by any factor below it.

    Where one is at each end, the difference is at least what it seems.
    """
    verdict = verdicts(TRUE | {"betas": betas(0.01), "logic_betas": betas(0.01)})[13]
    assert verdict.outcome == "undecided" and verdict.checks[0].outcome == "contradicted"
    assert "the grid ends too early" in verdict.why
    assert "Knights and Knaves 5 of 5 seeds" in verdict.note
    assert verdicts(TRUE)[13].outcome == "supported" and "too early" not in verdicts(TRUE)[13].note


def test_a_flat_curve_does_not_contradict_that_the_best_coefficients_differ():
    """.1 is best in every seed by a hair, and the seeds differ by far more than that."""
    hair = betas(0.1, 0.501)
    hair.curves["eval/accuracy"] += 0.05 * hair.curves["seed"]
    flat = {"betas": hair, "logic_betas": betas(0.1)}
    verdict = verdicts(TRUE | flat)[13]
    assert verdict.outcome == "undecided" and "the curve is flat" in verdict.why


def test_the_best_coefficient_is_chosen_on_validation_prompts_alone():
    """The test accuracy of the others may be higher: it is not looked at."""
    part_ = betas(0.01)
    part_.runs.loc[part_.runs["arm"] == "kdrl,kd_coef=1.0", "id avg"] = 0.99
    assert best_beta(part_).tolist() == pytest.approx([-2.0] * 5, abs=1e-5)
