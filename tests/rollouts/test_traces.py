"""Teacher traces: drawn once, filtered, cached with what they were made with."""

import json
from collections.abc import Iterator
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import torch

from rlkd_lab.models import load_policy, load_teacher, policy_logps
from rlkd_lab.rollouts import Sampling, Stopped, teacher_traces, traces
from rlkd_lab.rollouts.traces import sequences_of
from rlkd_lab.tasks import ArithmeticTask, Score

SHORT = Sampling(1.0, 24)


@pytest.fixture(scope="module")
def teacher():
    return load_teacher("teacher-concise", "nf4")


def draw(teacher, cache, n=24, seed=3, keep="all", **settings):
    return teacher_traces(
        teacher, ArithmeticTask(), n, seed, cache, keep=keep, **({"sampling": SHORT} | settings)
    )


def test_a_trace_has_all_its_columns_and_the_file_says_what_made_it(teacher, tmp_path):
    table = draw(teacher, tmp_path / "deep" / "traces.parquet")
    stored = pq.read_table(tmp_path / "deep" / "traces.parquet")
    assert stored.to_pylist() == table.to_pylist()
    assert stored.schema.metadata[b"rlkd_traces"] == table.schema.metadata[b"rlkd_traces"]
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["traces.parquet"]
    assert stored.column_names == [
        "example_id",
        "prompt",
        "answer",
        "completion",
        "completion_ids",
        "correct",
        "finished",
    ]
    about = json.loads(stored.schema.metadata[b"rlkd_traces"])
    expected = {
        "version": 1,
        "teacher": "teacher-concise",
        "temperature": 1.0,
        "seed": 3,
        "sampled": 24,
        "keep": "all",
        "task": "arithmetic",
    }
    assert expected.items() <= about.items()
    examples, task = ArithmeticTask().examples(24, 3, "train"), ArithmeticTask()
    for row, example in zip(stored.to_pylist(), examples, strict=True):
        assert (row["example_id"], row["prompt"], row["answer"]) == (
            example.id,
            example.prompt,
            example.answer,
        )
        assert row["completion"] == teacher.tokenizer.decode(
            row["completion_ids"], skip_special_tokens=True
        )
        assert row["finished"] == (row["completion_ids"][-1] == teacher.tokenizer.eos_token_id)
        assert row["correct"] == (
            row["finished"] and task.score(row["completion"], example).correct
        )


def test_a_cache_that_fits_is_read_and_nothing_is_drawn(teacher, tmp_path, monkeypatch):
    first = draw(teacher, tmp_path / "t.parquet")
    monkeypatch.setattr(traces, "sample", lambda *_, **__: pytest.fail("drawn again"))
    assert draw(teacher, tmp_path / "t.parquet").to_pylist() == first.to_pylist()


def test_the_seed_decides_and_the_batch_does_not_change_the_prompts(teacher, tmp_path):
    first, again, smaller, other = (
        draw(teacher, tmp_path / f"{i}.parquet", n=12, seed=seed, batch=batch)
        for i, (seed, batch) in enumerate([(3, 128), (3, 128), (3, 7), (4, 128)])
    )
    assert first.equals(again)
    assert first["prompt"].to_pylist() == smaller["prompt"].to_pylist()
    assert first["completion"].to_pylist() != other["completion"].to_pylist()


def test_filters_keep_what_they_say(teacher, tmp_path):
    every = draw(teacher, tmp_path / "all.parquet", n=40).to_pylist()
    finished = draw(teacher, tmp_path / "finished.parquet", n=40, keep="finished").to_pylist()
    correct = draw(teacher, tmp_path / "correct.parquet", n=40, keep="correct").to_pylist()
    assert len(every) == 40
    assert finished == [row for row in every if row["finished"]]
    assert correct == [row for row in every if row["correct"]]
    # with room for 24 tokens some are cut
    assert 0 < len(correct) <= len(finished) < 40


class Lenient(ArithmeticTask):
    """Whatever is said is right."""

    def score(self, completion, example):
        return Score({"accuracy": 1.0})


def test_a_completion_cut_by_the_limit_is_not_correct(teacher, tmp_path):
    rows = teacher_traces(
        teacher, Lenient(), 24, 3, tmp_path / "t.parquet", keep="all", sampling=SHORT
    ).to_pylist()
    assert 0 < sum(row["finished"] for row in rows) < 24
    assert [row["correct"] for row in rows] == [row["finished"] for row in rows]


def test_nothing_left_is_an_error_in_words_and_leaves_no_file(teacher, tmp_path):
    with pytest.raises(
        ValueError, match="none of the teacher's 5 traces is finished: raise max_new_tokens"
    ):
        draw(teacher, tmp_path / "t.parquet", n=5, keep="finished", sampling=Sampling(1.0, 1))
    assert list(tmp_path.iterdir()) == []


OTHER = {
    "n": {"n": 25},
    "seed": {"seed": 4},
    "keep": {"keep": "finished"},
    "temperature": {"sampling": Sampling(0.9, 24)},
    "max_new_tokens": {"sampling": Sampling(1.0, 25)},
    "top_p": {"sampling": Sampling(1.0, 24, top_p=0.5)},
    "top_k": {"sampling": Sampling(1.0, 24, top_k=2)},
}


@pytest.mark.parametrize("what", OTHER)
def test_a_cache_made_with_other_settings_is_an_error(teacher, tmp_path, what):
    draw(teacher, tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="made with other settings"):
        draw(teacher, tmp_path / "t.parquet", **OTHER[what])


def test_a_cache_made_by_another_teacher_is_an_error(teacher, tmp_path):
    draw(teacher, tmp_path / "t.parquet", n=4)
    for other in (load_teacher("teacher", "nf4"), load_teacher("teacher-concise", "none")):
        with pytest.raises(ValueError, match="made with other settings"):
            draw(other, tmp_path / "t.parquet", n=4)


def test_a_cache_made_with_another_adapter_is_an_error(make_model, make_adapter, tmp_path):
    # three teachers on one base
    bare, *adapted = (
        load_teacher(make_model(), "none", adapter=adapter)
        for adapter in (None, make_adapter(make_model(), 1), make_adapter(make_model(), 2))
    )
    draw(bare, tmp_path / "bare.parquet", n=4, sampling=Sampling(1.0, 4))
    draw(adapted[0], tmp_path / "first.parquet", n=4, sampling=Sampling(1.0, 4))
    for teacher, cache in ((adapted[0], "bare"), (adapted[1], "first"), (bare, "first")):
        with pytest.raises(ValueError, match="made with other settings"):
            draw(teacher, tmp_path / f"{cache}.parquet", n=4, sampling=Sampling(1.0, 4))


def test_a_cache_made_with_other_prompts_or_answers_is_an_error(teacher, tmp_path):
    class Other(ArithmeticTask):
        def __init__(self, **change):
            self.change = change

        def examples(self, *given, **more):
            return [replace(example, **self.change) for example in super().examples(*given, **more)]

    draw(teacher, tmp_path / "t.parquet", n=4)
    for change in ({"prompt": "1+1?"}, {"answer": "7"}):
        with pytest.raises(ValueError, match="made with other settings"):
            teacher_traces(
                teacher, Other(**change), 4, 3, tmp_path / "t.parquet", keep="all", sampling=SHORT
            )


def test_a_file_that_holds_no_traces_is_an_error_and_stays(teacher, tmp_path):
    import pyarrow as pa

    pq.write_table(pa.table({"a": [1]}), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="made with other settings"):
        draw(teacher, tmp_path / "t.parquet")
    assert pq.read_table(tmp_path / "t.parquet").to_pydict() == {"a": [1]}


def test_a_damaged_file_is_an_error_in_words(teacher, tmp_path):
    (tmp_path / "t.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(ValueError, match=r"t\.parquet"):
        draw(teacher, tmp_path / "t.parquet")


def stop_after(calls: int) -> Iterator[bool]:
    yield from [False] * calls
    while True:
        yield True


def test_a_stop_or_a_failed_write_leaves_nothing_half_written(teacher, tmp_path, monkeypatch):
    cache, asked = tmp_path / "t.parquet", stop_after(30)
    with pytest.raises(Stopped):
        draw(teacher, cache, batch=8, stop=lambda: next(asked))
    assert list(tmp_path.iterdir()) == []

    def torn(table, path):
        path.write_bytes(b"PAR1")
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(traces.pq, "write_table", torn)
        with pytest.raises(OSError, match="disk full"):
            draw(teacher, cache)
    assert not cache.exists()
    assert len(draw(teacher, cache)) == 24
    assert [p.name for p in tmp_path.iterdir()] == ["t.parquet"]


def test_traces_train_a_student_of_the_same_family(teacher, tmp_path):
    rows = draw(teacher, tmp_path / "t.parquet", n=6, keep="all").to_pylist()
    student = load_policy("student", "nf4")
    sequences = sequences_of(
        student, [row["prompt"] for row in rows], [row["completion_ids"] for row in rows]
    )
    for row, ids, mask in zip(
        rows, sequences.completion_ids, sequences.completion_mask, strict=True
    ):
        assert ids[mask.bool()].tolist() == row["completion_ids"]
        assert set(ids[~mask.bool()].tolist()) <= {student.tokenizer.pad_token_id}
    prompts = [
        student.tokenizer.decode(ids[mask.bool()])
        for ids, mask in zip(sequences.prompt_ids, sequences.prompt_mask, strict=True)
    ]
    assert prompts == [row["prompt"] for row in rows]
    logps, _ = policy_logps(student, sequences)
    assert bool(torch.isfinite(logps).all())
