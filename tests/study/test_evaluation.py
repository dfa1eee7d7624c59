"""The table of completions, and what it adds up to."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from rlkd_lab.study import (
    Settings,
    compare_frames,
    evaluate_target,
    find_target,
    read_table,
    settings_of,
    summarise,
    write_table,
)
from rlkd_lab.study import evaluation as module
from rlkd_lab.study.cards import accuracies, cards
from rlkd_lab.study.eval_table import about, check_out
from rlkd_lab.study.evaluation import chance_of
from rlkd_lab.study.report import nested, plain
from rlkd_lab.study.summary import chance_at_k, per_prompt
from rlkd_lab.tasks import ArithmeticTask, Example, Score
from rlkd_lab.training import config_of

SMALL = Settings(prompts=12, samples=4, difficulty=(2, 3), max_new_tokens=48)


@pytest.fixture(scope="module")
def student():
    return find_target("student").load()


@pytest.fixture(scope="module")
def frame(student):
    """The student under ``SMALL``. Not for writing into."""
    return evaluate_target(student, ArithmeticTask(), SMALL)


class Guessed:
    """Answers 0–4 that a prompt does not lead to; a completion is its answer."""

    name = "guessed"
    train_difficulty = (1, 1)
    ood_difficulty = None

    def examples(self, n, seed, split="train", difficulty=None):
        rng = np.random.default_rng(seed)
        return [Example(f"prompt {i}", str(rng.integers(5)), 1, f"prompt {i}") for i in range(n)]

    def score(self, completion, example):
        return Score({"accuracy": float(completion == example.answer)}, completion or None)


def table(rows, difficulty=None, **columns):
    """``rows``: {prompt id: texts}, right where the text is "right", cut where it is "cut"."""
    found = []
    for name, texts in rows.items():
        for i, text in enumerate(texts):
            found.append(
                {
                    "prompt_id": name,
                    "set": "id",
                    "difficulty": (difficulty or {}).get(name, 1),
                    "mode": "sample",
                    "sample": i,
                    "completion": text,
                    "extracted": None if text == "cut" else text,
                    "correct": text == "right",
                    "formatted": text in ("right", "wrong"),
                    "finished": text != "cut",
                    "length": len(text),
                    "chance": 0.5,
                    "guesses": 0,
                    **columns,
                }
            )
    return pd.DataFrame(found)


def values(summary, difficulty="all", name="id"):
    part = summary[(summary["set"] == name) & (summary["difficulty"] == difficulty)]
    return part.set_index("measure")["value"].to_dict()


# --- sampling and judging -------------------------------------------------------------------------


def test_one_row_a_completion(frame):
    assert len(frame) == 2 * 12 * (4 + 1)
    counts = frame.groupby(["set", "prompt_id", "mode"]).size().unstack()
    assert (counts["sample"] == 4).all()
    assert (counts["greedy"] == 1).all()
    assert set(frame[frame["set"] == "id"]["difficulty"]) <= {2, 3}
    assert set(frame[frame["set"] == "ood"]["difficulty"]) <= {6, 7, 8}
    task = ArithmeticTask()
    expected = task.examples(12, SMALL.seed, "test", (2, 3))
    assert list(dict.fromkeys(frame[frame["set"] == "id"]["prompt"])) == [
        example.prompt for example in expected
    ]
    for row in frame.to_dict("records"):
        score = task.score(
            row["completion"],
            Example(row["prompt"], row["answer"], row["difficulty"], row["prompt_id"]),
        )
        assert row["correct"] == (score.correct and row["finished"])
        assert (None if pd.isna(row["extracted"]) else row["extracted"]) == (
            score.answer if row["finished"] else None
        )
        assert (
            row["length"] == len(row["completion"]) + row["finished"]
        )  # a token a character, and the end of sequence
    assert (frame["chance"] == 0.01).all()
    assert (frame["guesses"] == 0).all()


def test_greedy_is_the_most_likely_token_every_time(frame, student):
    prompt = frame["prompt"].iloc[0]
    ids = student.tokenizer(prompt, return_tensors="pt")["input_ids"]
    start = ids.shape[1]
    with torch.no_grad():
        while ids.shape[1] < start + 48 and int(ids[0, -1]) not in student.eos_ids:
            ids = torch.cat(
                [ids, student.causal_lm(input_ids=ids).logits[:, -1].argmax(-1, keepdim=True)], 1
            )
    found = frame[(frame["prompt"] == prompt) & (frame["mode"] == "greedy")]["completion"].item()
    assert found == student.tokenizer.decode(ids[0, start:], skip_special_tokens=True)


def test_the_same_settings_give_the_same_table_whatever_the_global_stream(frame, student):
    torch.manual_seed(99)
    expected = torch.rand(1)
    torch.manual_seed(99)
    again = evaluate_target(student, ArithmeticTask(), SMALL)
    assert torch.equal(torch.rand(1), expected)
    pd.testing.assert_frame_equal(again, frame)


def test_a_completion_that_the_limit_cut_is_wrong_and_not_badly_formatted(student):
    cut = evaluate_target(
        student,
        ArithmeticTask(),
        replace(SMALL, max_new_tokens=2, ood=False, greedy=False, samples=2),
    )
    assert not cut["correct"].any()
    assert cut.loc[~cut["finished"], "extracted"].isna().all()
    found = values(summarise(cut))
    assert found["truncated"] > 0.9
    assert found["truncated"] + found["badly_formatted"] <= 1
    assert "greedy" not in found
    assert set(cut["set"]) == {"id"}


def test_pieces_hold_every_completion_once_and_never_too_many(monkeypatch):
    monkeypatch.setattr(module, "ROWS", 6)
    for samples in (1, 4, 6, 15):
        seen = []
        for part, first, size in module._pieces(range(7), samples):
            assert len(part) * size <= 6
            seen += [(prompt, first + i) for prompt in part for i in range(size)]
        assert sorted(seen) == [(prompt, i) for prompt in range(7) for i in range(samples)]
    assert list(module._pieces(range(7), 0)) == []


def test_samples_in_several_pieces_are_numbered_through(monkeypatch, student):
    monkeypatch.setattr(module, "ROWS", 3)
    found = evaluate_target(
        student,
        ArithmeticTask(),
        Settings(prompts=2, samples=5, difficulty=(2, 2), max_new_tokens=24, ood=False),
    )
    assert (
        found[found["mode"] == "sample"].groupby("prompt_id")["sample"].agg(sorted).tolist()
        == [[0, 1, 2, 3, 4]] * 2
    )


def test_what_fitted_into_memory_is_remembered_for_the_next_set(monkeypatch, student):
    """The first call finds that two completions fit; the harder set does not try them all again."""
    asked, sample = [], module.sample

    def told(*given, at_once, **more):
        asked.append(at_once)
        return replace(sample(*given, at_once=at_once, **more), at_once=2)

    monkeypatch.setattr(module, "sample", told)
    evaluate_target(student, ArithmeticTask(), Settings(prompts=2, samples=1, max_new_tokens=8))
    assert len(asked) > 1 and asked[0] == 0 and set(asked[1:]) == {2}


def test_a_prompt_that_is_drawn_twice_is_asked_once(student):
    class Twice(ArithmeticTask):
        def examples(self, n, seed, split="train", difficulty=None):
            return [
                *super().examples(n // 2, seed, split, difficulty),
                *super().examples(n // 2, seed, split, difficulty),
            ]

    found = evaluate_target(
        student,
        Twice(),
        Settings(
            prompts=4, samples=1, max_new_tokens=8, difficulty=(2, 2), ood=False, greedy=False
        ),
    )
    assert len(found) == 2


def test_everything_that_does_not_fit_is_refused_before_anything_is_sampled(student, monkeypatch):
    monkeypatch.setattr(module, "sample", lambda *given, **more: pytest.fail("sampled"))
    with pytest.raises(ValueError, match="do not fit the context"):
        evaluate_target(
            student, ArithmeticTask(), replace(SMALL, max_new_tokens=250)
        )  # fits in distribution, and twice that does not

    class Empty(ArithmeticTask):
        def examples(self, *given, **more):
            return []

    with pytest.raises(ValueError, match="no prompts in the split test"):
        evaluate_target(student, Empty(), SMALL)


def test_settings_come_from_the_run_unless_they_are_given(trained):
    config = config_of(trained)
    assert settings_of(config).max_new_tokens == 24
    assert settings_of(config).difficulty == (2, 2)
    assert settings_of(config, max_new_tokens=30, prompts=None) == Settings(
        max_new_tokens=30, difficulty=(2, 2)
    )
    assert settings_of(None) == Settings()
    for wrong in (
        {"prompts": 0},
        {"samples": 0},
        {"temperature": 0},
        {"temperature": -1},
        {"top_p": 0},
    ):
        with pytest.raises(ValueError, match="need"):
            settings_of(None, **wrong)


def test_the_student_is_as_good_as_its_card_says():
    found = evaluate_target(find_target("student").load(), ArithmeticTask(), Settings(greedy=False))
    summary = summarise(found)
    for name, row in (("id", "nf4"), ("ood", "nf4 ood")):
        own = summary[
            (summary["set"] == name)
            & (summary["difficulty"] == "all")
            & (summary["measure"] == "avg")
        ].iloc[0]
        expected = cards()["student"]["table"][row]["accuracy"]
        slack = 1.96 * (expected * (1 - expected) / 2048) ** 0.5  # the card's own
        assert own["low"] - slack < expected < own["high"] + slack


# --- the chance line ------------------------------------------------------------------------------


def answers(task, n, samples, choose):
    """Completions as a table, from ``choose(example)``."""
    examples = task.examples(n, 0)
    rows = {example.id: [choose(example) for _ in range(samples)] for example in examples}
    found = table(rows)
    found["correct"] = found["completion"] == found["prompt_id"].map(
        {example.id: example.answer for example in examples}
    )
    return examples, found


def test_a_model_that_ignores_the_question_is_as_good_as_its_permutation_chance():
    rng = np.random.default_rng(0)
    examples, found = answers(
        Guessed(), 200, 8, lambda example: str(rng.choice(5, p=[0.6, 0.1, 0.1, 0.1, 0.1]))
    )
    chances = chance_of(Guessed(), examples, found, guesses=64)
    assert (chances["guesses"] == 64).all()
    assert found["correct"].mean() == pytest.approx(chances["chance"].mean(), abs=0.03)
    for k in (4, 8):
        assert per_prompt(found, [k])[f"pass@{k}"].mean() == pytest.approx(
            chance_at_k(chances, k), abs=0.06
        )


def test_a_model_that_reads_the_question_is_above_it():
    examples, found = answers(Guessed(), 100, 2, lambda example: example.answer)
    assert chance_of(Guessed(), examples, found)["chance"].mean() == pytest.approx(0.2, abs=0.05)


def test_the_estimated_chance_line_is_not_too_low():
    """Few guesses of a small probability, put into 1 − (1 − p)^k, would give .185 for .275."""
    rng = np.random.default_rng(1)
    guessed = pd.DataFrame({"chance": rng.binomial(32, 0.01, size=4000) / 32, "guesses": 32})
    assert chance_at_k(guessed, 32) == pytest.approx(1 - 0.99**32, abs=0.03)
    assert np.mean(1 - (1 - guessed["chance"]) ** 32) < 0.22
    assert np.isnan(chance_at_k(guessed, 64))
    assert chance_at_k(guessed.assign(chance=0.01, guesses=0), 32) == pytest.approx(1 - 0.99**32)


def test_cut_completions_and_those_to_the_prompt_itself_are_no_guesses():
    examples = [Example("a", "1", 1, "a"), Example("b", "2", 1, "b")]
    found = table({"a": ["1", "1"], "b": ["1", "1"]})
    assert chance_of(Guessed(), examples, found)["chance"].tolist() == [1, 0]
    assert chance_of(Guessed(), examples, found)["guesses"].tolist() == [
        2,
        2,
    ]  # no more than there are
    assert chance_of(Guessed(), examples, found.assign(finished=False))["chance"].tolist() == [0, 0]
    alone = chance_of(Guessed(), examples[:1], found[found["prompt_id"] == "a"])
    assert np.isnan(chance_at_k(alone, 1))


def test_a_task_that_does_not_state_its_chance_gets_an_estimate(student):
    class Silent(ArithmeticTask):
        chance = None

    found = evaluate_target(student, Silent(), replace(SMALL, greedy=False, ood=False))
    assert (found["guesses"] == 32).all()
    assert found["chance"].mean() < 0.2


def test_arithmetic_states_its_chance():
    task = ArithmeticTask()
    results = {example.answer for example in task.examples(20_000, 0)}
    assert len(results) == 100
    assert task.chance(task.examples(1, 0)[0]) == 1 / len(results)


# --- what it adds up to ---------------------------------------------------------------------------


def test_a_summary_by_hand():
    sampled = table(
        {"a": ["right", "wrong", "cut", "odd"], "b": ["right", "right", "right", "wrong"]},
        {"a": 1, "b": 2},
    )
    greedy = table({"a": ["right"], "b": ["wrong"]}, {"a": 1, "b": 2}, mode="greedy")
    found = summarise(pd.concat([greedy, sampled]).sample(frac=1, random_state=0))
    whole = values(found)
    assert whole == pytest.approx(
        {
            "prompts": 2,
            "samples": 4,
            "avg": 0.5,
            "greedy": 0.5,
            "pass@1": 0.5,
            "pass@2": (0.5 + 1) / 2,
            "pass@4": 1,
            "majority@4": (1 / 3 + 1) / 2,
            "truncated": 1 / 8,
            "badly_formatted": 1 / 8,
            "length": 37 / 8,
            "chance@1": 0.5,
            "chance@2": 0.75,
            "chance@4": 1 - 0.5**4,
            "length_correct": 5,
            "length_wrong": 17 / 4,
        }
        | {"length": (5 + 5 + 3 + 3 + 5 * 4) / 8, "length_wrong": (5 + 3 + 3 + 5) / 4}
    )
    assert values(found, 1)["avg"] == 0.25
    assert values(found, 2)["badly_formatted"] == 0
    intervals = found[(found["difficulty"] == "all") & (found["measure"] == "avg")].iloc[0]
    assert (intervals["low"], intervals["high"]) == (0.25, 0.75)
    inner = nested(found)["id"]
    assert (inner["all"]["avg_low"], inner["2"]["avg"]) == (0.25, 0.75)
    assert "avg_low" not in inner["2"]  # one prompt has no interval


def test_no_wrong_completion_has_no_length_of_wrong_ones():
    found = values(summarise(table({"a": ["right"], "b": ["right"]})))
    assert np.isnan(found["length_wrong"])
    assert plain(found)["length_wrong"] is None
    json.dumps(plain(found), allow_nan=False)


def test_k_is_checked_and_a_torn_table_is_refused(frame):
    with pytest.raises(ValueError, match="pass@8 needs 8 samples a prompt; 4 were taken"):
        summarise(frame, [8])
    with pytest.raises(ValueError, match="unequal"):
        summarise(frame.drop(index=3))


def test_a_summary_of_a_real_table(frame):
    found = summarise(frame)
    for name in ("id", "ood"):
        whole, part = values(found, name=name), frame[frame["set"] == name]
        assert whole["avg"] == pytest.approx(part[part["mode"] == "sample"]["correct"].mean())
        assert whole["avg"] == pytest.approx(whole["pass@1"])
        assert whole["pass@1"] <= whole["pass@2"] <= whole["pass@4"]
    shares = found[~found["measure"].str.startswith(("length", "prompts", "samples"))]["value"]
    assert shares.between(0, 1).all()


# --- two models -----------------------------------------------------------------------------------


def test_a_model_against_itself(frame):
    found = compare_frames(frame, frame.sample(frac=1, random_state=1))
    assert (found[["difference", "low", "high"]] == 0).all(axis=None)
    assert (found["p"] == 1).all()


def test_a_better_one():
    rng = np.random.default_rng(2)
    texts = ["wrong", "right"]
    weak = table({f"p{i}": [texts[int(rng.random() < 0.3)] for _ in range(4)] for i in range(80)})
    strong = table({f"p{i}": [texts[int(rng.random() < 0.7)] for _ in range(4)] for i in range(80)})
    forth, back = (
        compare_frames(strong, weak).set_index("measure"),
        compare_frames(weak, strong).set_index("measure"),
    )
    assert forth.loc["avg", "difference"] == pytest.approx(
        strong["correct"].mean() - weak["correct"].mean()
    )
    assert forth.loc["avg", "low"] > 0
    assert forth.loc["avg", "p"] < 0.001
    assert forth["difference"].tolist() == pytest.approx((-back["difference"]).tolist())
    assert forth.loc["length", "difference"] == 0
    assert "pass@2" in compare_frames(strong, weak[weak["sample"] < 2]).set_index("measure").index


def test_other_prompts_and_other_sets_are_refused(frame):
    with pytest.raises(ValueError, match="the same prompts"):
        compare_frames(frame, frame[frame["prompt_id"] != frame["prompt_id"].iloc[0]])
    with pytest.raises(ValueError, match="sets differ"):
        compare_frames(frame, frame[frame["set"] == "id"])


# --- files ----------------------------------------------------------------------------------------


def test_a_table_comes_back_with_its_record(frame, tmp_path):
    path = tmp_path / "new" / "a.parquet"
    record = about(find_target("student").describe(), ArithmeticTask(), SMALL)
    write_table(path, frame, record)
    back, found = read_table(path)
    pd.testing.assert_frame_equal(back, frame)
    assert found == json.loads(json.dumps(record))
    assert (
        found["version"],
        found["model"]["base"],
        found["task"],
        found["temperature"],
        found["seed"],
    ) == (1, "student", "arithmetic", 1.0, 20_000)
    assert compare_frames(back, frame)["p"].eq(1).all()
    assert [file.name for file in path.parent.iterdir()] == ["a.parquet"]


def test_a_write_that_fails_leaves_the_old_table(frame, tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    write_table(path, frame, {"version": 1})

    def fail(table, where):
        where.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(pq, "write_table", fail)
    with pytest.raises(OSError, match="no space"):
        write_table(path, frame, {"version": 1})
    pd.testing.assert_frame_equal(read_table(path)[0], frame)


def test_files_that_are_no_table_of_ours(frame, tmp_path):
    frame.to_parquet(tmp_path / "other.parquet")
    (tmp_path / "text.parquet").write_text("no parquet")
    write_table(tmp_path / "newer.parquet", frame, {"version": 99})
    for name, says in (
        ("other", "no table of"),
        ("text", "cannot be read"),
        ("newer", "update rlkd_lab"),
    ):
        with pytest.raises(ValueError, match=says):
            read_table(tmp_path / f"{name}.parquet")


def test_a_place_where_nothing_can_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "folder.parquet").mkdir()
    for place, says in (
        ("a.csv", "ends in .parquet"),
        ("folder.parquet", "is a folder"),
        ("file/a.parquet", "is a file"),
    ):
        with pytest.raises((OSError, ValueError), match=says):
            check_out(tmp_path / place)
    check_out(tmp_path / "new" / "folder" / "a.parquet")
    monkeypatch.setattr("os.access", lambda *given: False)
    with pytest.raises(PermissionError, match="choose another --out"):
        check_out(tmp_path / "a.parquet")


# --- the cards ------------------------------------------------------------------------------------


def test_the_cards_of_the_embedded_models():
    found = cards()
    four = ["teacher", "teacher-concise", "student-weak", "student"]
    assert list(found) == four + [f"knights-{name}" for name in four]
    own = find_target("student", quant="none").load().model
    assert found["student"]["parameters"] == sum(p.numel() for p in own.parameters())
    table = accuracies(found["student"]).set_index(["precision", "set"])
    assert table.loc[("NF4", "id"), "accuracy"] == found["student"]["table"]["nf4"]["accuracy"]
    assert len(table) == 4


def test_the_record_tells_tasks_of_one_name_apart():
    from rlkd_lab.tasks import find_task

    plain, other = find_task("chain_sum"), find_task("chain_sum", {"min_terms": 4}, "{question}!")
    model = find_target("student").describe()
    first, second = about(model, plain, SMALL), about(model, other, SMALL)
    assert {key for key in first if first[key] != second[key]} == {
        "task_settings",
        "prompt_template",
    }
    assert second["task_settings"] == {"min_terms": 4}
