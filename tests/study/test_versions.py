"""Every row of results says which version of the program made it."""

import pandas as pd
from made_up import TRUE, written

from rlkd_lab.study.parts import read_part
from rlkd_lab.study.results import curves_of, table_of
from rlkd_lab.study.versions import UNKNOWN, VERSION, version_of
from rlkd_lab.training import config_of, make_config
from rlkd_lab.training import fingerprint as module


def test_a_run_and_its_tables_carry_the_version(trained, tmp_path):
    now = str(module.RESULTS)
    assert version_of(trained) == now
    assert table_of([trained])[VERSION].tolist() == [now]
    steps = curves_of(trained, "grpo", 0, "grpo")
    assert len(steps) == 2 and set(steps[VERSION]) == {now}
    old = {name: value for name, value in trained.env().items() if name != VERSION}
    made_before = type("Run", (), {"env": lambda self: old})()
    assert version_of(made_before) == UNKNOWN


def test_a_version_that_is_raised_refuses_checkpoints(monkeypatch, trained):
    config = config_of(trained)
    before = module.fingerprint(config)
    monkeypatch.setattr(module, "RESULTS", module.RESULTS + 1)
    assert module.fingerprint(config) != before
    assert module.fingerprint(make_config("grpo")) != module.fingerprint(config)


def test_tables_without_a_version_say_so(tmp_path):
    written(tmp_path / "core", TRUE["core"])
    assert read_part(tmp_path / "core").versions("grpo") == {UNKNOWN}
    runs = pd.read_csv(tmp_path / "core" / "runs.csv")
    runs.loc[runs["seed"] < 4, VERSION] = 3  # and one seed of before
    runs.to_csv(tmp_path / "core" / "runs.csv", index=False)
    assert read_part(tmp_path / "core").versions("grpo") == {"3", UNKNOWN}
