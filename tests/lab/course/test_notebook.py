import pytest

from rlkd_lab.lab import Stage
from rlkd_lab.runs import RunFolder


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("kdrl-0", "kdrl-1", "kdrl-k3-0", "kdrl-0.5-0", "kdrl_masked-0"):
        RunFolder.create(tmp_path / "recorded" / name, {"method": "kdrl", "seed": 0}, {})
    return tmp_path


@pytest.mark.parametrize(
    ("name", "found"),
    [("kdrl", ["kdrl-0", "kdrl-1"]), ("kdrl-k3", ["kdrl-k3-0"]), ("kdrl-0.5", ["kdrl-0.5-0"])],
)
def test_recorded_runs_of_one_name_one_a_seed(here, name, found):
    assert [run.path.name for run in Stage("04").recorded(name)] == found


def test_an_unknown_name_lists_those_that_there_are(here):
    with pytest.raises(
        FileNotFoundError,
        match=r"no recorded run 'grpo'; there are kdrl, kdrl-0.5, kdrl-k3, kdrl_masked",
    ):
        Stage("04").recorded("grpo")


def test_the_short_form_writes_nothing_beside_the_notebook(here, monkeypatch):
    monkeypatch.delenv("RLKD_SHORT", raising=False)
    assert (Stage("04").n(60), str(Stage("04").runs)) == (60, "../runs/notebook_04")
    monkeypatch.setenv("RLKD_SHORT", "1")
    stage = Stage("04")
    assert stage.n(60) == 3
    assert here.parent not in stage.runs.parents or "recorded" not in str(stage.runs)
    assert stage.runs != Stage("04").runs
