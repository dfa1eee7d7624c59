"""Steps that train on traces of the teacher beside the student's completions."""

import numpy as np
import pandas as pd
import pytest

from rlkd_lab.training import make_config, replay, resume, run
from tests.short import SHORT

FIELDS = {"checkpoint_every": 1, "samples_every": 1}


class Killed(BaseException):
    """Stands for a kill."""


@pytest.fixture(scope="module", params=["luffy", "chord"])
def folder(request, tiny, tmp_path_factory):
    """Return a run of two steps with the importance correction on, killed after the first."""

    def kill(session, row):
        raise Killed

    place = tmp_path_factory.mktemp("beside") / "run"
    with pytest.raises(Killed):
        run(tiny(request.param, {"importance_cap": "2"}, **FIELDS), place, on_step=kill)
    return resume(place)


def samples(folder, step):
    return pd.read_parquet(folder.path / "samples" / f"step_{step:06d}.parquet")


@pytest.mark.slow
def test_a_trace_ends_each_group_and_metrics_look_at_the_other_rows(folder):
    written = pd.read_parquet(folder.path / "traces.parquet")
    for step, row in enumerate(folder.rows(), 1):
        found = samples(folder, step)
        assert found["trace"].tolist() == [False, False, True] * 2
        assert found.groupby("group")["prompt"].nunique().tolist() == [1, 1]
        theirs, mine = found[found["trace"]], found[~found["trace"]]
        texts = {(each.prompt, each.completion) for each in written.itertuples()}
        assert {(each.prompt, each.completion) for each in theirs.itertuples()} <= texts
        assert not {(each.prompt, each.completion) for each in mine.itertuples()} & texts
        assert row["reward"] == pytest.approx(mine["reward"].mean())
        assert row["traces/reward"] == pytest.approx(theirs["reward"].mean())
        assert row["traces/tokens"] == theirs["ids"].map(len).sum()
        assert row["completions/mean_length"] == mine["ids"].map(len).mean()
        assert row["traces/logp"] == pytest.approx(np.concatenate(list(theirs["logps"])).mean())
        assert row["entropy"] == pytest.approx(np.concatenate(list(mine["entropy"])).mean())
        reverse = np.concatenate(list(mine["kl_teacher_rev"])).mean()
        assert row["kl_teacher_rev"] == pytest.approx(reverse, rel=1e-4)
        assert row["sampling/logp_difference_max"] < 1e-3


@pytest.mark.slow
def test_a_replay_of_the_resumed_run_has_its_rows_and_texts(folder, tmp_path):
    found = replay(folder.path, tmp_path / "again")
    assert (found.difference, found.largest, found.steps) == (None, 0.0, 2)
    for step in (1, 2):
        again = samples(found.folder, step)
        assert again["completion"].tolist() == samples(folder, step)["completion"].tolist()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"group_size": "2"}, "group_size=3 or more"),
        ({"zero_spread": "resample"}, "zero_spread=resample draws prompts again"),
        ({"teacher": "off"}, "luffy needs a teacher"),
        ({"teacher": "http://127.0.0.1:1"}, "luffy needs texts of the teacher"),
        ({"teacher": "teacher,student"}, "luffy needs the texts of one teacher"),
        ({"teacher_prompt": "{prompt} {answer}"}, "luffy trains on the teacher's texts"),
    ],
)
def test_what_cannot_be_is_refused_in_words(settings, says):
    given = {**SHORT, **settings}
    with pytest.raises(ValueError, match=says):
        make_config("luffy", settings=given)
