"""The committed study: its scorecard, figures and findings say what its tables say."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import stats

from rlkd_lab.study.claims import CLAIMS, judge_claims
from rlkd_lab.study.effects import SEEDS
from rlkd_lab.study.parts import TABLES
from rlkd_lab.study.scorecard import scorecard
from rlkd_lab.study.study import PARTS, read_study, sweep_of
from rlkd_lab.study.teacher_map import STARTS
from rlkd_lab.study.versions import UNKNOWN

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
        row = re.search(rf"^\| {claim.number} \| .*$", text, re.MULTILINE)
        assert row and f"**{verdict.outcome}**" in row.group(), (claim.number, verdict.outcome)
    assert "Claims 1–6 are KDRL's, 7–9 RLAD's, 10–14 S's." in text
    assert [claim.source for claim in CLAIMS] == ["KDRL"] * 6 + ["RLAD"] * 3 + ["S"] * 5


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
        fewest = 3 if name == "map" else SEEDS  # the map decides no claim
        assert part.runs.groupby("arm")["seed"].nunique().min() >= fewest, name
        assert part.runs["steps"].eq(sweep_of(name).steps).all(), name


def test_the_tables_are_small_enough_for_a_repository():
    assert sum(path.stat().st_size for path in RESULTS.rglob("*") if path.is_file()) < 25e6
    assert {path.name for name in PARTS for path in (RESULTS / name).glob("*.*")} >= set(TABLES)


# --- recomputed with other code -------------------------------------------------------------------


def accuracies(part, arm):
    """By seed, from the outcomes by prompt: (seeds, prompts), shares of right completions."""
    file, wanted = RESULTS / part / "outcomes.parquet", [("arm", "=", arm), ("set", "=", "id")]
    rows = pq.read_table(file, filters=wanted).to_pylist()
    seeds, prompts = (sorted({row[name] for row in rows}) for name in ("seed", "prompt_id"))
    shares = np.full((len(seeds), len(prompts)), np.nan)
    places = [{one: place for place, one in enumerate(each)} for each in (seeds, prompts)]
    for row in rows:
        at = places[0][row["seed"]], places[1][row["prompt_id"]]
        shares[at] = row["right"] / row["samples"]
    assert not np.isnan(shares).any()
    return shares


def outcome(low, high, margin):
    return "supported" if low > margin else "contradicted" if high < margin else "undecided"


RECOMPUTED = {
    1: [("KDRL > OPD: accuracy", "kdrl", "opd", 0.0), ("OPD > GRPO: accuracy", "opd", "grpo", 0.0),
        ("GRPO > SFT: accuracy", "grpo", "sft", 0.0)],
    4: [("k2 > k3: accuracy", "kdrl", "kdrl_k3", 0.0)],
    5: [("KDRL, annealed > KDRL (β 0.01): accuracy", "kdrl_annealed", "kdrl,kd_coef=0.01", 0.0)],
    6: [("KDRL, masked ≥ KDRL: accuracy", "kdrl_masked", "kdrl", -0.02)],
}  # fmt: skip


@pytest.mark.parametrize("number", RECOMPUTED)
def test_verdicts_follow_from_the_outcomes_with_numpy_and_scipy_alone(number):
    with (RESULTS / "scorecard.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["claim"] == str(number)]
    rows = [row for row in rows if row["comparison"].endswith("accuracy")]
    assert [row["comparison"] for row in rows] == [text for text, *_ in RECOMPUTED[number]]
    outcomes = []
    for row, (_, ours, theirs, margin) in zip(rows, RECOMPUTED[number], strict=True):
        parts = ("betas" if "kd_coef" in arm else "core" for arm in (ours, theirs))
        one, other = map(accuracies, parts, (ours, theirs))
        a, b = one.mean(axis=1), other.mean(axis=1)
        low, high = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
        assert float(row["effect"]) == pytest.approx(a.mean() - b.mean(), abs=1e-9)
        assert (float(row["low"]), float(row["high"])) == pytest.approx((low, high), abs=1e-9)
        face = outcome(low, high, margin)
        assert row["outcome_at_face_value"] == face
        # other prompts too: the variance of the prompts' differences joins that of the seeds
        half, freedom = (high - low) / 2, float(row["degrees_of_freedom"])
        bound = stats.t.ppf(0.975, freedom)
        by_prompt = (one.mean(axis=0) - other.mean(axis=0)).std(ddof=1) / np.sqrt(one.shape[1])
        error = np.hypot(half / bound, by_prompt)
        mean = a.mean() - b.mean()
        wide = outcome(mean - bound * error, mean + bound * error, margin)
        assert (row["outcome"] == face) == (row["doubt"] == "") and (wide == face or row["doubt"])
        shift = float(row["would_see"]) / error
        assert stats.nct.sf(bound, freedom, shift) == pytest.approx(0.8, abs=1e-6)
        outcomes.append(row["outcome"])
    if number != 6:  # it compares lengths too
        whole = (
            "contradicted" if "contradicted" in outcomes
            else "undecided" if "undecided" in outcomes else "supported"
        )  # fmt: skip
        assert {row["verdict"] for row in rows} == {whole}


CELLS = [("kdrl", "start-05", "teacher-concise"), ("opd", "start-60", "weak"),
         ("sft", "start-30", "one-way"), ("opdvr", "start-45", "teacher")]  # fmt: skip


def spent(arm, column):
    """By seed what was spent and what was reached, where the run was evaluated."""
    file = RESULTS / "map" / "curves.parquet"
    rows = pq.read_table(file, filters=[("arm", "=", arm)]).to_pylist()
    known = [row for row in rows if row["eval/accuracy"] == row["eval/accuracy"]]
    known = [row for row in known if row["eval/accuracy"] is not None]
    seeds = sorted({row["seed"] for row in rows})
    most = max(row[column] for row in rows)
    curves = [
        [(row[column], row["eval/accuracy"]) for row in known if row["seed"] == seed]
        for seed in seeds
    ]
    return most, curves


@pytest.mark.parametrize("cell", CELLS, ids=" ".join)
def test_cells_of_the_map_follow_from_its_tables_with_numpy_and_scipy_alone(cell):
    method, student, teacher = cell
    teacher = teacher if teacher.startswith("teacher") else f"runs/map_models/{teacher}"
    arm = f"{method},student=runs/map_models/{student},teacher={teacher}"
    grpo = f"grpo,student=runs/map_models/{student}"

    def shown(name):
        (row,) = [
            one
            for one in json.loads((ROOT / "figures" / name).read_text())["gains"]
            if one["arm"] == arm
        ]
        return pytest.approx((row["gain"], row["low"], row["high"]), abs=1e-6)

    def gain(a, b):
        bounds = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
        return np.mean(a) - np.mean(b), *bounds

    last = [accuracies("map", one).mean(axis=1) for one in (arm, grpo)]
    assert gain(*last) == shown("map.json")
    for name, column in (("map_tokens", "sampled_tokens"), ("map_seconds", "train_seconds")):
        both = [spent(one, column) for one in (arm, grpo)]
        budget = min(most for most, _ in both)
        read = [[np.interp(budget, *zip(*one, strict=True)) for one in each] for _, each in both]
        assert gain(*read) == shown(f"{name}.json")


def test_the_starts_of_the_map_are_those_that_were_measured():
    made = json.loads((RESULTS / "map" / "models.json").read_text())
    measured = {name: round(one["accuracy"], 3) for name, one in made.items() if name in STARTS}
    assert measured == STARTS


def test_every_part_is_of_one_version_of_the_program(study):
    for name, part in study.items():
        versions = {version for arm in part.runs["arm"] for version in part.versions(arm)}
        assert len(versions) == 1 and versions != {UNKNOWN}, name
