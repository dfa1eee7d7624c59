import pytest

from rlkd_lab.runs import RunFolder, compare


@pytest.fixture
def make(tmp_path):
    def run(name, rows, **config):
        folder = RunFolder.create(
            tmp_path / name, {"method": "grpo", "seed": 0, "knobs": {"rl_coef": 1.0}, **config}, {}
        )
        for row in rows:
            folder.append("metrics.jsonl", row)
        return folder

    return run


def test_settings_that_differ_are_columns_and_others_are_not(make):
    table = compare(
        [
            make("a", [{"step": 1, "reward": 1.0}]),
            make("b", [{"step": 1, "reward": 0.0}], seed=1, knobs={"rl_coef": 2.0}),
        ]
    )
    assert table["seed"].tolist() == [0, 1]
    assert table["knobs.rl_coef"].tolist() == [1.0, 2.0]
    assert "steps" in table
    assert not {"format", "preset"} & set(table)


def test_a_setting_that_one_run_lacks_is_a_difference(make):
    table = compare([make("a", []), make("b", [], options={"kd_mask": "wrong"})])
    assert table["options.kd_mask"].tolist()[1] == "wrong"


def test_last_values(make):
    rows = [
        {"step": s, "reward": float(s), "eval/accuracy": 0.25 * s if s in (2, 3) else None}
        for s in range(1, 5)
    ]
    table = compare([make("a", rows)], window=2)
    assert table["reward"].tolist() == [3.5]
    assert table["eval/accuracy"].tolist() == [0.75]  # the last evaluation, not a mean
    assert table["steps"].tolist() == [4]
    assert "kl_teacher_rev" not in table


def test_a_touched_run_is_marked(make):
    calm, moved = make("a", [{"step": 1}]), make("b", [{"step": 1}])
    moved.append("events.jsonl", {"event": "knob", "step": 1, "knob": "rl_coef", "value": 2.0})
    assert compare([calm, moved])["touched"].tolist() == [False, True]


def test_runs_without_a_step_do_not_break_the_table(make):
    assert compare([make("a", []), make("b", [{"step": 1, "reward": 1.0}])])["steps"].tolist() == [
        0,
        1,
    ]
