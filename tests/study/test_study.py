"""The study's parts, what it keeps, and the scorecard it writes."""

import json
import re
import shutil

import pandas as pd
import pytest
from made_up import TRUE, core, written

from rlkd_lab.study import scorecard as module
from rlkd_lab.study.claims import CLAIMS, judge_claims
from rlkd_lab.study.effects import SEEDS
from rlkd_lab.study.parts import read_part
from rlkd_lab.study.scorecard import (
    comparisons,
    scorecard,
    write_scorecard,
)
from rlkd_lab.study.study import PARTS, copy_tables, is_general, parts_of, read_study, sweep_of
from rlkd_lab.training.presets import PRESETS, Preset


@pytest.fixture
def out(tmp_path):
    for name, part in TRUE.items():
        written(tmp_path / name, part)
    return tmp_path


@pytest.mark.parametrize("name", PARTS)
def test_every_part_is_a_sweep_with_enough_seeds_that_evaluates_on_test_prompts(name):
    sweep = sweep_of(name)
    assert len(sweep.all_seeds) >= (3 if name == "map" else SEEDS)  # the map decides no claim
    assert (sweep.evaluate is None) == (name == "cost")  # which is about seconds alone
    assert sweep.evaluate is None or sweep.evaluate.split == "test"
    jobs = sweep.tuning().jobs() if sweep.tune else sweep.jobs()
    assert jobs and all(job.config.steps == sweep.steps for job in jobs)


@pytest.mark.parametrize("name", ["core", "logic"])
def test_all_arms_of_a_comparison_try_the_same_rates_with_three_seeds(name):
    sweep = sweep_of(name)
    assert len(sweep.tune.seeds) == 3
    rates = {
        arm.name: sorted({trial["learning_rate"] for trial in sweep.trials_of(arm)})
        for arm in sweep.arms
    }
    assert set(map(tuple, rates.values())) == {(0.00016, 0.0004, 0.001, 0.0025)}
    own = {arm.name: len(sweep.trials_of(arm)) // 4 for arm in sweep.arms}
    plain = {arm: own.pop(arm) for arm in ("grpo", "grpo_sequence", "sft", "opd") if arm in own}
    assert set(plain.values()) == {1} and len(set(own.values())) == 1


def test_the_annealed_coefficient_falls_as_the_paper_has_it():
    """KDRL, section 3.3: to a fifth of its start, reached at step 80 of 280."""
    arms = {arm.name: arm for name in ("core", "logic") for arm in sweep_of(name).arms}
    for name in ("kdrl_annealed", "kdrl_advantage_annealed"):
        for text in arms[name].grid["kd_coef"]:
            start, end, share = map(float, text.removeprefix("linear:").split(":"))
            assert start / end == pytest.approx(5) and share == pytest.approx(80 / 280, abs=1e-3)


def test_the_arms_that_claims_ask_for_are_in_their_parts():
    """A claim about an arm that no sweep has would be undecided for ever."""
    arms = {name: {arm.name for arm in sweep_of(name).arms} for name in PARTS}
    assert arms["core"] == {*TRUE["core"].runs["arm"], "grpo_sequence"}
    assert arms["cost"] == set(TRUE["cost"].runs["arm"])
    assert arms["logic"] >= set(TRUE["logic"].runs["arm"])
    assert arms["betas"] == arms["logic_betas"] == {"kdrl"}
    assert {f"trrd,trrd_alpha={alpha}" for alpha in (0.4, 0.5, 0.6)} == {
        job.arm for job in sweep_of("alphas").jobs()
    }
    assert {need for claim in CLAIMS for need in claim.needs} <= set(PARTS)


def test_another_preset_goes_only_where_the_pair_is_the_presets(monkeypatch):
    monkeypatch.setitem(PRESETS, "mine", Preset("mine", {"group_size": 6}))
    general = parts_of(False, [], "mine")
    assert general == ["core", "betas", "alphas", "cost"]
    assert all(is_general(sweep_of(name)) for name in general)
    assert {job.config.group_size for job in sweep_of("core", "mine").tuning().jobs()} == {6}
    with pytest.raises(ValueError, match="part map is about an embedded pair"):
        parts_of(False, ["map"], "mine")


def test_parts_are_chosen_in_one_way():
    assert parts_of(True, [], None) == ["core"]
    assert parts_of(False, ["betas", "betas"], None) == ["betas"]
    assert parts_of(False, [], None) == list(PARTS)
    with pytest.raises(ValueError, match="give --part or --core"):
        parts_of(True, ["betas"], None)
    with pytest.raises(ValueError, match="unknown part 'bets'"):
        parts_of(False, ["bets"], None)


def test_tables_come_back_as_they_were_written(out):
    study = read_study(out)
    assert list(study) == [name for name in PARTS if name in TRUE]
    for verdict in judge_claims(study):
        assert verdict.outcome == "supported", verdict


def test_runs_that_diverged_or_were_moved_by_hand_do_not_count(tmp_path):
    made = core()
    diverged = (made.runs["arm"] == "kdrl") & (made.runs["seed"] == 0)
    touched = (made.runs["arm"] == "grpo") & (made.runs["seed"] == 1)
    part = read_part(written(tmp_path / "core", made, diverged=diverged, touched=touched))
    assert part.left_out == ("kdrl, seed 0: diverged", "grpo, seed 1: moved by hand")
    assert list(part.of("kdrl", "id avg").index) == [1, 2, 3, 4] and set(
        part.curve("grpo", "accuracy")
    ) == {0, 2, 3, 4}
    first = judge_claims({"core": part})[0]
    assert first.outcome == "undecided" and "seeds where at least 5 are needed" in first.note
    assert "Left out: kdrl, seed 0: diverged, grpo, seed 1: moved by hand." in scorecard(
        {"core": part}, tmp_path
    )


def test_the_scorecard_has_every_claim_and_every_comparison(out):
    text = write_scorecard(out).read_text()
    for claim in CLAIMS:
        assert re.search(
            rf"^\| {claim.number} \| {claim.source} \| {re.escape(claim.text)} \|"
            r" \*\*supported\*\* \|",
            text,
            re.MULTILINE,
        )
    table = pd.read_csv(out / "scorecard.csv")
    assert set(table["claim"]) == set(range(1, 15)) and (table["seeds"] == 5).all()
    assert all(comparison in text for comparison in table["comparison"])
    assert "| core | 40 | 2.00 | 2 | 0.50 | CPU (made up) |" in text


def test_the_scorecard_says_what_is_on_the_edge_and_where_more_seeds_would_lead():
    few = {"core": core(noise=0.03)}
    judged = judge_claims(few)
    text = "\n".join(module.claim_lines(judged) + module.comparison_lines(judged))
    table = comparisons(judged)
    assert set(table["outcome_of_all"].dropna()) <= {"supported", "contradicted", "undecided"}
    for verdict in judged:
        assert ("**, on the edge |" in text.splitlines()[verdict.number + 3]) == verdict.edge
    assert {verdict.edge for verdict in judged} == {
        True,
        False,
    }
    assert "would have been decided with a probability of 80%" in text
    assert (table["would_see"].dropna() > 0).all()


def test_a_part_that_is_missing_leaves_its_claims_undecided(out):
    shutil.rmtree(out / "logic")
    table = comparisons(judge_claims(read_study(out))).set_index("claim")
    assert table.loc[10, "verdict"] == "undecided" and "not run: logic" in table.loc[10, "note"]
    assert table.loc[6, "verdict"].tolist() == ["supported", "supported"]


def test_the_budget_of_the_choice_stands_in_the_scorecard(out):
    chosen = {
        "best": 2,
        "trials": [
            {"settings": {"learning_rate": 0.001}, "accuracy": 0.5},
            {"settings": {"learning_rate": 0.002}, "accuracy": 0.61, "seeds": 3},
        ],
    }
    (out / "core" / "tuned.json").write_text(json.dumps({"tuning": {}, "arms": {"grpo": chosen}}))
    assert (
        "| core | GRPO | 2 | learning_rate = 0.002 | learning_rate | 0.500, 0.610 (3 seeds) |"
        in write_scorecard(out).read_text()
    )


def test_what_is_kept_is_enough_to_judge(out, tmp_path):
    (out / "core" / "runs" / "grpo" / "seed_0").mkdir(parents=True)
    (out / "map" / "tuning").mkdir(parents=True)  # its trials have just begun
    (out / "map" / "tuning" / "sweep.json").write_text("{}")
    copy_tables(out, tmp_path / "kept")
    assert (
        not (tmp_path / "kept" / "core" / "runs").exists()
        and not (tmp_path / "kept" / "map").exists()
    )
    assert write_scorecard(tmp_path / "kept").read_text() == write_scorecard(out).read_text()


def test_a_folder_without_tables_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no part with its tables"):
        read_study(tmp_path)
    (tmp_path / "core").mkdir()
    with pytest.raises(FileNotFoundError, match=r"has no runs\.csv: run the sweep first"):
        read_part(tmp_path / "core")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("runs.csv", "", "runs.csv is damaged: No columns"),
        ("runs.csv", "a,b\n1,2\n", "runs.csv is damaged: it has no column 'arm'"),
        ("levels.csv", "a,b\n1,2\n", "levels.csv is damaged: it has no column 'arm'"),
        ("curves.parquet", "no parquet", "curves.parquet is damaged"),
        ("runs.csv", None, r"core has no runs\.csv"),
        ("levels.csv", None, r"core has no levels\.csv"),
        ("tuned.json", "{}", "tuned.json is damaged"),
        ("sessions.jsonl", "{]\n", "sessions.jsonl is damaged"),
    ],
)
def test_what_is_damaged_is_named_and_leaves_the_scorecard_alone(out, name, content, says):
    write_scorecard(out)
    before = (out / "scorecard.md").read_text()
    if content is None:
        (out / "core" / name).unlink()
    else:
        (out / "core" / name).write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=says) as raised:
        write_scorecard(out)
    assert "\n" not in str(raised.value) and (out / "scorecard.md").read_text() == before


def test_a_run_counts_once(out):
    runs = pd.read_csv(out / "core" / "runs.csv")
    pd.concat([runs, runs.tail(1)]).to_csv(out / "core" / "runs.csv", index=False)
    with pytest.raises(ValueError, match=r"runs\.csv has trrd, seed 4 twice"):
        read_study(out)


def test_runs_that_the_sweep_asks_for_and_the_table_lacks_are_named(out):
    """As after a run that failed, or a table that was cut."""
    (out / "logic_betas" / "sweep.json").write_text(
        json.dumps(
            {
                "seeds": 6,
                "arms": [{"name": "kdrl", "method": "kdrl", "grid": {"kd_coef": [0.01, 0.1, 1.0]}}],
            }
        )
    )
    found = read_study(out)
    assert found["logic_betas"].left_out == tuple(
        f"kdrl,kd_coef={beta}, seed 5: not run" for beta in ("0.01", "0.1", "1.0")
    )
    assert "runs that do not count, named below: logic_betas 3" in judge_claims(found)[12].note
    alone = "not run with other models: pair_2, pair_3"
    blind = "no outcomes by prompt, so other prompts are left out: core"
    assert judge_claims(found)[0].note == f"{alone}; {blind}"


def test_a_method_all_of_whose_runs_diverged_leaves_its_claims_undecided_and_no_other(out):
    runs = pd.read_csv(out / "core" / "runs.csv")
    runs.assign(diverged=runs["arm"] == "kdrl_annealed").to_csv(
        out / "core" / "runs.csv", index=False
    )
    verdicts = judge_claims(read_study(out))
    assert verdicts[4].outcome == "undecided" and "0 seeds where at least 5" in verdicts[4].note
    assert {verdict.outcome for verdict in verdicts if verdict.number != 5} == {"supported"}
    betas = pd.read_csv(out / "betas" / "runs.csv")
    betas.assign(diverged=True).to_csv(out / "betas" / "runs.csv", index=False)
    assert judge_claims(read_study(out))[12].outcome == "undecided"
    assert write_scorecard(out).exists()


def test_tables_are_not_copied_onto_themselves(out):
    with pytest.raises(ValueError, match="is the study's own folder"):
        copy_tables(out, out / "." / "core" / "..")


def test_numbers_are_written_with_a_sign_and_a_dash_for_what_is_unknown():
    assert [module.number(value) for value in (0.0123, -3.1, 12.34, float("nan"))] == [
        "+0.012",
        "−3.100",
        "+12.3",
        "–",
    ]
    assert [module.plain(value) for value in (0.5, 45.25, 12345.6, float("nan"))] == [
        "0.500",
        "45.2",
        "12,346",
        "–",
    ]
