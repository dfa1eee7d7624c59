"""The committed study: its scorecard, figures and findings say what its tables say."""

import json
import re
from pathlib import Path

import pytest

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
