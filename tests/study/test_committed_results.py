"""The committed study: its scorecard, figures and findings say what its tables say."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from rlkd_lab.study.claims import CLAIMS, judge_claims
from rlkd_lab.study.effects import SEEDS
from rlkd_lab.study.parts import TABLES
from rlkd_lab.study.scorecard import scorecard
from rlkd_lab.study.study import PARTS, read_study, sweep_of

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results" / "embedded"


@pytest.fixture(scope="module")
def study():
    return read_study(RESULTS)


def test_the_scorecard_is_what_the_tables_say(study):
    assert (RESULTS / "scorecard.md").read_text() == scorecard(study, RESULTS)


def test_the_findings_give_the_same_verdicts(study):
    text = (ROOT / "docs" / "findings.md").read_text()
    for claim, verdict in zip(CLAIMS, judge_claims(study), strict=True):
        row = re.search(rf"^\| {claim.number} \| {claim.source} \|.*$", text, re.MULTILINE)
        assert row and f"**{verdict.outcome}**" in row.group(), (claim.number, verdict.outcome)


def test_the_figures_give_the_same_verdicts(study):
    for claim, verdict in zip(CLAIMS, judge_claims(study), strict=True):
        side = ROOT / "figures" / f"claim_{claim.number:02d}.json"
        assert side.exists() == all(name in study for name in claim.needs), side.name
        if side.exists():
            assert json.loads(side.read_text())["verdict"] == verdict.outcome
            assert side.with_suffix(".png").exists()


def test_every_part_that_is_there_is_whole_and_has_its_seeds(study):
    for name, part in study.items():
        arms = {arm.name for arm in sweep_of(name).arms}
        assert {arm.split(",")[0] for arm in part.runs["arm"]} == arms, name
        assert part.runs.groupby("arm")["seed"].nunique().min() >= SEEDS, name
        assert part.runs["steps"].eq(sweep_of(name).steps).all(), name


def test_the_tables_are_small_enough_for_a_repository():
    assert sum(path.stat().st_size for path in RESULTS.rglob("*") if path.is_file()) < 20e6
    assert {path.name for name in PARTS for path in (RESULTS / name).glob("*.*")} >= set(TABLES)


# --- recomputed with other code -------------------------------------------------------------------


def accuracies(part, arm):
    with (RESULTS / part / "runs.csv").open() as file:
        return np.array([float(row["id avg"]) for row in csv.DictReader(file) if row["arm"] == arm])


def judged(one, other):
    """Welch's interval of a difference, and whether it lies above 0 or below."""
    low, high = stats.ttest_ind(one, other, equal_var=False).confidence_interval(0.95)
    return (low, high), "supported" if low > 0 else "contradicted" if high < 0 else "undecided"


RECOMPUTED = {
    1: [
        ("KDRL > OPD: accuracy", ("core", "kdrl"), ("core", "opd")),
        ("OPD > GRPO: accuracy", ("core", "opd"), ("core", "grpo")),
        ("GRPO > SFT: accuracy", ("core", "grpo"), ("core", "sft")),
    ],
    4: [("k2 > k3: accuracy", ("core", "kdrl"), ("estimators", "kdrl_k3"))],
    10: [
        ("KDRL > GRPO: accuracy", ("knights", "kdrl"), ("knights", "grpo")),
        ("KDRL > OPD: accuracy", ("knights", "kdrl"), ("knights", "opd")),
        ("TRRD > GRPO: accuracy", ("knights", "trrd"), ("knights", "grpo")),
        ("TRRD > OPD: accuracy", ("knights", "trrd"), ("knights", "opd")),
    ],
}


@pytest.mark.parametrize("number", RECOMPUTED)
def test_verdicts_follow_from_the_tables_with_numpy_and_scipy_alone(number):
    with (RESULTS / "scorecard.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["claim"] == str(number)]
    assert [row["comparison"] for row in rows] == [text for text, *_ in RECOMPUTED[number]]
    outcomes = []
    for row, (_, ours, theirs) in zip(rows, RECOMPUTED[number], strict=True):
        one, other = accuracies(*ours), accuracies(*theirs)
        (low, high), outcome = judged(one, other)
        assert float(row["effect"]) == pytest.approx(one.mean() - other.mean())
        assert (float(row["low"]), float(row["high"])) == pytest.approx((low, high))
        assert row["outcome_at_face_value"] == outcome
        error = np.sqrt(one.var(ddof=1) / len(one) + other.var(ddof=1) / len(other))
        freedom = float(row["degrees_of_freedom"])
        bound, shift = stats.t.ppf(0.975, freedom), float(row["would_see"]) / error
        assert stats.nct.sf(bound, freedom, shift) == pytest.approx(0.8, abs=1e-6)
        outcomes.append(outcome)
    whole = "contradicted" if "contradicted" in outcomes else "supported"
    if number == 10:  # KDRL's loss is not the form that the claim is about
        whole = "undecided"
    assert {row["verdict"] for row in rows} == {whole}


def test_every_part_has_a_program_and_no_comparison_takes_one_side_from_each(study):
    record = json.loads((RESULTS / "programs.json").read_text())
    runs = dict.fromkeys(record["runs"], 0)
    for name, part in study.items():
        runs[record["parts"][name]] += len(part.runs)
    assert runs == record["runs"]
    crossed = {6: "(β 0.1)", 13: "powers of ten"}
    with (RESULTS / "scorecard.csv").open() as file:
        for row in csv.DictReader(file):
            if crossed.get(int(row["claim"]), "\0") in row["comparison"]:
                assert row["outcome"] == "undecided" and "two versions" in row["doubt"]
