"""The map of teachers, from a made-up part whose truth is known."""

import json

import pandas as pd
import pytest
from made_up import constant, part
from scipy import stats

from rlkd_lab.plots.claims import draw_claims
from rlkd_lab.plots.teacher_map import map_figure
from rlkd_lab.study.scorecard import map_lines, number
from rlkd_lab.study.study import sweep_of
from rlkd_lab.study.teacher_map import TEACHERS, gains

STARTS = {"models/start-05": 0.05, "models/start-60": 0.6}
GAINS = {("kdrl", "teacher"): 0.2, ("sft", "models/weak"): -0.1, ("opsa", "teacher"): 0.0}


def reached(step):
    """GRPO's accuracy on validation prompts; every tenth step."""
    return 0.01 * step if step % 10 == 0 else float("nan")


@pytest.fixture(scope="module")
def made():
    """A step of KDRL costs twice as many tokens as one of GRPO, and reaches the same.

    GRPO's other form is not what others are held against.
    """
    known = {("grpo_sequence", "teacher"): 0.3, ("grpo", "teacher"): 0.0, **GAINS}
    arms, curves = {}, {}
    for student, start in STARTS.items():
        for (method, teacher), gain in known.items():
            name = f"{method},student={student},teacher={teacher}"
            arms[name] = {"id avg": 0.5 + gain, "student": 1.0, "teacher": 1.0}
            curves[name] = {
                "accuracy": constant(start),
                "eval/accuracy": reached,
                "on_policy": constant(0.0 if method == "sft" else 1.0),
                "sampled_tokens": lambda step, many=1 + (method == "kdrl"): 100.0 * many * step,
                "train_seconds": lambda step: float(step),
            }
    found = part(arms, curves=curves, noise=0.01, seeds=3)
    for column in ("student", "teacher"):
        told = found.runs["arm"].str.extract(rf"{column}=([^,]+)")[0]
        found.runs[column] = told
    for table in (found.runs, found.curves):
        table["method"] = table["method"].replace("grpo_sequence", "grpo")
    # as in a table of runs: a method that asks no teacher has none
    found.runs.loc[found.runs["method"].isin(("grpo", "opsa")), "teacher"] = float("nan")
    return found


def test_each_arm_is_held_against_grpo_on_the_same_student(made):
    table = gains(made).set_index(["student", "method"])
    assert len(table) == 6 and "grpo" not in set(table.index.get_level_values("method"))
    for student, start in STARTS.items():
        name = student.partition("/")[2]
        for (method, teacher), gain in GAINS.items():
            row = table.loc[(name, method)]
            assert row["gain"] == pytest.approx(gain, abs=0.02) and row["seeds"] == 3
            assert row["start"] == pytest.approx(start, abs=0.01)
            known = "" if method == "opsa" else teacher.rpartition("/")[2]
            assert row["teacher"] == known and known in TEACHERS
            sides = [
                made.runs.loc[
                    made.runs["arm"].str.startswith(f"{one},student={student},"), "id avg"
                ]
                for one in (method, "grpo")
            ]
            found = stats.ttest_ind(*sides, equal_var=False).confidence_interval(0.95)
            assert (row["low"], row["high"]) == pytest.approx(tuple(found))


def test_at_equal_tokens_an_arm_that_samples_more_is_read_earlier(made):
    """GRPO spends 6,000 tokens. KDRL has spent these at step 30: .3 against .6.

    An arm that stops earlier than GRPO sets the budget of no other arm.
    """
    at_tokens = gains(made, "tokens").set_index(["student", "method"])["gain"]
    assert at_tokens["start-05", "kdrl"] == pytest.approx(-0.3, abs=0.02)
    assert at_tokens["start-05", "opsa"] == pytest.approx(0.0, abs=0.02)
    at_seconds = gains(made, "seconds").set_index(["student", "method"])["gain"]
    assert at_seconds["start-05", "kdrl"] == pytest.approx(0.0, abs=0.02)


def test_the_figures_of_the_map_say_their_reading_and_seeds(made, tmp_path, monkeypatch):
    monkeypatch.setattr("rlkd_lab.plots.claims.judge_claims", lambda study: [])
    paths = draw_claims({"map": made}, tmp_path)
    assert [path.name for path in paths] == ["map.png", "map_tokens.png", "map_seconds.png"]
    rows = pd.DataFrame(json.loads((tmp_path / "map.json").read_text())["gains"])
    assert rows["gain"].tolist() == pytest.approx(gains(made)["gain"].tolist())
    figure = map_figure(made)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["teacher: checking", "teacher: weak", "no teacher: a placebo"]
    assert "n = 3 seeds" in figure._supxlabel.get_text()


def test_the_scorecard_lists_each_cell_with_its_three_readings(made):
    lines = map_lines(made)
    row = next(one for one in lines if one.startswith("| 5% | checking | KDRL |"))
    readings = [row.split("|")[column].split("[")[0] for column in (4, 5, 6)]
    tables = [gains(made, one).set_index("arm")["gain"] for one in ("steps", "tokens", "seconds")]
    arm = "kdrl,student=models/start-05,teacher=teacher"
    assert [one.strip() for one in readings] == [number(table[arm]) for table in tables]
    assert sum(one.startswith(("| 5% |", "| 61% |")) for one in lines) == 6


def test_the_map_has_grpo_on_every_student_and_each_of_its_teachers():
    jobs = [job.config for job in sweep_of("map").jobs()]
    students = {one.student for one in jobs}
    assert {one.student for one in jobs if one.method == "grpo"} == students and len(students) == 5
    teachers = {one.teacher.rpartition("/")[2] for one in jobs if one.teacher}
    assert teachers == set(TEACHERS) - {""}
    fixed = {(one.method, one.teacher == "self", str(sorted(one.knobs.items()))) for one in jobs}
    assert len(fixed) == 9  # a method has one setting, whatever its student and teacher
