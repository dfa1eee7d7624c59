"""A stored teacher: what a run learns from its file, and which files are refused."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from rlkd_lab.commands import app
from rlkd_lab.rollouts.stored import read_stored
from rlkd_lab.training import make_config, replay, resume, run
from rlkd_lab.training.knobs import Knobs
from rlkd_lab.training.plan import plan
from rlkd_lab.training.teacher_cache import stored_teacher
from tests.short import SHORT
from tests.training.conftest import TINY

SETTINGS = ("max_new_tokens", "traces", "difficulty", "keep_traces")


def store(out, *more):
    """Call the command; return what it prints."""
    given = {**TINY, "difficulty": "2-2", "keep_traces": "all", **SHORT}
    items = [f"--set={name}={given[name]}" for name in (*SETTINGS, *SHORT)]
    return CliRunner().invoke(
        app, ["teacher-cache", "--method", "kd_forward", "--out", str(out), *items, *more]
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two files of one teacher: of the whole vocabulary, and of 16 tokens and other prompts."""
    folder = tmp_path_factory.mktemp("stored")
    for name, more in (("whole", ["--topk=128"]), ("few", ["--topk=16", "--seed=5"])):
        done = store(folder / f"{name}.parquet", *more)
        assert done.exit_code == 0, done.output
        assert "8 traces of" in done.output
    assert sorted(path.name for path in folder.iterdir()) == ["few.parquet", "whole.parquet"]
    return folder


@pytest.fixture
def cached(tiny, files):
    """``cached(file, method, …)``: a config that reads a file."""
    return lambda file="few", method="kd_forward", settings=None, **fields: tiny(
        method, settings, teacher_cache=str(files / f"{file}.parquet"), **fields
    )


def test_a_file_of_the_whole_vocabulary_trains_like_the_teacher_in_memory(
    trained, cached, tmp_path
):
    folder = run(cached("whole"), tmp_path / "run")
    for ours, theirs in zip(folder.rows(), trained("kd_forward").rows(), strict=True):
        assert ours["loss/kd"] == pytest.approx(theirs["loss/kd"], rel=1e-5)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
        lost = {name for name in theirs if name not in ours}
        assert {"kl_teacher_k1", "kl_teacher_fwd", "time/teacher"} <= lost
        assert all("teacher" in name or name == "time/divergences" for name in lost)
    assert (folder.path / "traces.parquet").exists()  # tokens of the teacher are counted from it


def test_a_run_is_resumed_and_replayed_to_the_bit_and_a_changed_file_is_noticed(
    cached, files, tmp_path
):
    file = tmp_path / "few.parquet"
    shutil.copy(files / "few.parquet", file)
    config = cached(steps=3, options={"topk": 4}).model_copy(update={"teacher_cache": str(file)})
    whole = run(config, tmp_path / "whole")

    def stop(session, row):
        session.stopping = True

    run(config, tmp_path / "cut", on_step=stop)
    shutil.copy(files / "whole.parquet", file)
    with pytest.raises(ValueError, match=r"the files of teacher_cache=.*few.parquet were changed"):
        resume(tmp_path / "cut")
    shutil.copy(files / "few.parquet", file)
    cut = resume(tmp_path / "cut")
    assert [row["loss/kd"] for row in cut.rows()] == [row["loss/kd"] for row in whole.rows()]
    again = replay(tmp_path / "cut", tmp_path / "again")
    assert (again.difference, again.largest, again.steps) == (None, 0.0, 3)


def test_sft_and_gkd_read_the_file_of_another_method_and_seed(cached, tmp_path):
    config = cached("few", "gkd", on_policy_frac=0.0, seed=9, steps=1)
    assert run(config, tmp_path / "gkd").rows()[0]["loss/kd"] > 0
    assert stored_teacher(cached("few", "sft", seed=9)) is not None


CHANGED = {
    "traces": ({"traces": 9}, "made with traces=8: give --set traces=8, or make another file"),
    "difficulty": ({"difficulty": (2, 3)}, "made with difficulty=2-2: give --set difficulty=2-2"),
    "length": ({"max_new_tokens": 25}, "made with max_new_tokens=24"),
    "filter": ({"options": {"keep_traces": "finished"}}, "made with keep_traces=all"),
    "teacher": ({"teacher": "teacher"}, r"made by another teacher: give --set teacher=.*teacher,"),
    "adapter": ({"teacher_adapter": "a/b"}, "another teacher: give --set teacher_adapter=off"),
    "topk": ({"options": {"topk": 17}}, "holds 16 tokens at each place, and topk=17"),
    "task": ({"task": "knights"}, "the prompts or answers of knights are others"),
}


@pytest.mark.parametrize("what", CHANGED)
def test_a_file_that_does_not_fit_the_run_is_refused_in_one_sentence(cached, what):
    change, words = CHANGED[what]
    with pytest.raises(ValueError, match=words) as caught:
        stored_teacher(cached(**change))
    assert "\n" not in str(caught.value)


ABOUT = {
    "version": ({"version": 2}, "it is of version 2, and 1 is read"),
    "files": ({"weights": {"teacher": "0"}}, "the files of teacher=.* are not those that"),
    "context": ({"context": 30}, "has a context of 30 tokens, too few .* max_prompt_tokens=6"),
    "tokenizer": ({"tokenizer": "0"}, "the tokenizer of .* is another"),
    "prompts": ({"prompts": "0"}, "become other tokens"),
    "vocabulary": ({"vocabulary": 160}, "has 128 tokens, and .* is for 160"),
}


@pytest.mark.parametrize("what", ABOUT)
def test_a_file_made_elsewhere_is_refused_by_what_it_says_of_itself(cached, tmp_path, what):
    change, words = ABOUT[what]
    config = cached()
    table = pq.read_table(config.teacher_cache)
    metadata = dict(table.schema.metadata)
    about = json.loads(metadata[b"rlkd_teacher_cache"]) | change
    metadata[b"rlkd_teacher_cache"] = json.dumps(about).encode()
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "other.parquet")
    config = config.model_copy(update={"teacher_cache": str(tmp_path / "other.parquet")})
    with pytest.raises(ValueError, match=words):
        stored_teacher(config)


def test_a_file_that_is_cut_damaged_or_something_else_is_refused(files, tmp_path):
    good, file = (files / "few.parquet").read_bytes(), tmp_path / "f.parquet"
    middle = len(good) // 2
    flipped = good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :]
    for content in (good[:-100], good[:middle], flipped, b"", b"{}"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"f.parquet holds no stored teacher, or is damaged"):
            read_stored(file)
    pq.write_table(pa.table({"a": [1]}), file)
    with pytest.raises(ValueError, match="it lacks what a stored teacher has"):
        read_stored(file)
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none\.parquet"):
        read_stored(tmp_path / "none.parquet")


REFUSED = {
    "grpo": ("grpo", {}, "and grpo trains on the student's: use sft"),
    "gkd": ("gkd", {"on_policy_frac": 0.1}, "gkd with on_policy_frac=0"),
    "self": ("kd_forward", {"teacher": "self"}, "teacher=self is not: name that model"),
    "host": ("sft", {"teacher_home": "host"}, "leave teacher_home=host out"),
    "temperature": ("kd_forward", {"knobs": {"temperature": "0.7"}}, "so leave it at 1"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_settings_that_need_a_teacher_in_memory_are_refused(what):
    method, fields, words = REFUSED[what]
    with pytest.raises(ValueError, match=words):
        make_config(method, teacher_cache="t.parquet", **fields)


def test_a_temperature_that_the_file_lacks_cannot_be_asked_for_while_a_run_goes_on(cached):
    with pytest.raises(ValueError, match="holds the teacher at temperature 1"):
        Knobs(cached()).request("temperature", 0.7)
    Knobs(cached(method="sft")).request("temperature", 0.7)  # it does not compare


def test_the_plan_counts_no_teacher(cached):
    assert plan(cached(), True, 20).held["teacher"] == 0


def test_the_command_keeps_what_is_there_and_leaves_no_half_of_a_file(files, tmp_path):
    before = (files / "few.parquet").read_bytes()
    done = store(files / "few.parquet")
    assert done.exit_code == 2
    assert "exists already" in done.output
    assert (files / "few.parquet").read_bytes() == before
    failed = store(tmp_path / "t.parquet", "--set=max_new_tokens=1", "--set=keep_traces=finished")
    assert failed.exit_code == 2
    assert "traces is finished: raise max_new_tokens" in failed.output
    assert list(tmp_path.iterdir()) == []
