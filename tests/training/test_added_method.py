"""A method of one's own in a run: it trains, and where it is missing this is said in one
sentence.
"""

from dataclasses import replace

import pytest

from rlkd_lab.lab import launch, open_run, start
from rlkd_lab.objectives import METHODS, add_method, adding, methods
from rlkd_lab.objectives.rules import reward_advantage
from rlkd_lab.plots import plot_runs, png
from rlkd_lab.training import config_of, make_config, resume, run


@pytest.fixture
def mine(tiny):
    def half(batch, coefs, options):
        return 0.5 * reward_advantage(batch, coefs, options)

    add_method("mine", replace(METHODS["kdrl"], title="half of the reward", advantage=half))
    config = tiny("mine", {"kd_coef": "0.3"}, checkpoint_every=1)
    yield config
    methods._table.pop("mine", None)
    adding._added.discard("mine")


def test_it_trains_like_any_other(mine, tmp_path):
    rows = run(mine, tmp_path / "run").metrics()
    assert len(rows) == 2
    assert (rows["coef/kd_coef"] == 0.3).all()
    assert rows["loss/kd"].notna().all()
    assert start(mine, tmp_path / "run").status().state == "done"


def test_it_is_not_handed_to_a_process_that_does_not_have_it(mine, tmp_path):
    with pytest.raises(ValueError, match=r"mine was added in this process.*start\(\)"):
        launch(mine, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_where_it_is_missing_this_is_said_and_its_curves_can_be_drawn(mine, tmp_path):
    folder = run(mine, tmp_path / "run")
    methods._table.pop("mine")
    for attempt in (resume, open_run, lambda path: config_of(folder)):
        with pytest.raises(
            ValueError,
            match=r"'mine', a method that this process does not have: .*call add_method with the"
            r" same code and name first",
        ):
            attempt(folder.path)
    assert folder.status()["state"] == "done"
    assert png(plot_runs([folder])).startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="unknown method 'mine'"):
        make_config("mine")
