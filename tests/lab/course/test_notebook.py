import pytest

from rlkd_lab.lab import Notebook
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
    assert [run.path.name for run in Notebook("04").recorded(name)] == found


def test_an_unknown_name_lists_those_that_there_are(here):
    with pytest.raises(
        FileNotFoundError,
        match=r"no recorded run 'grpo'; there are kdrl, kdrl-0.5, kdrl-k3, kdrl_masked",
    ):
        Notebook("04").recorded("grpo")


def test_the_short_form_writes_nothing_beside_the_notebook(here, monkeypatch):
    monkeypatch.delenv("RLKD_SHORT", raising=False)
    assert (Notebook("04").n(60), str(Notebook("04").runs)) == (60, "../runs/notebook_04")
    monkeypatch.setenv("RLKD_SHORT", "1")
    notebook = Notebook("04")
    assert notebook.n(60) == 3
    assert here.parent not in notebook.runs.parents or "recorded" not in str(notebook.runs)
    assert notebook.runs != Notebook("04").runs
