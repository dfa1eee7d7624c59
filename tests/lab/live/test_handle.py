"""Handles: a run in a thread, in a process of its own, or attached to."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from rlkd_lab.lab import RunFailed, launch, open_run, panel, start
from rlkd_lab.runs import RunFolder, first_difference
from rlkd_lab.runs.tail import Tail
from rlkd_lab.training import load_or_train, make_config, run, schedule_from
from rlkd_lab.training.folders import create
from rlkd_lab.training.trainer import Trainer
from tests.short import SHORT

FIELDS = {
    "steps": 3, "prompts_per_step": 2, "group_size": 2, "max_new_tokens": 24, "difficulty": (2, 2),
    "eval_every": 0, "samples_every": 0, "checkpoint_every": 1, "seed": 3, **SHORT,
}  # fmt: skip


def config(method="kdrl", **fields):
    return make_config(method, **{**FIELDS, **fields})


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return run(config(), tmp_path_factory.mktemp("plain") / "run")


def until(condition, seconds=90):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_run_in_a_thread_is_the_run_in_the_foreground(plain, tmp_path):
    handle = start(config(), tmp_path / "run")
    assert handle.status().where == "thread"
    folder = handle.wait(120)
    assert first_difference(folder.rows(), plain.rows()) == (None, 0.0)
    assert handle.status().state == "done"
    assert "done, step 3 of 3" in repr(handle)


def test_a_run_in_a_process_is_the_same_run(plain, tmp_path):
    handle = launch(config(), tmp_path / "run")
    assert handle.status().where == "process"
    assert first_difference(handle.wait(240).rows(), plain.rows()) == (None, 0.0)
    assert (handle.path / "log.txt").exists()


def test_starting_what_is_done_loads_it_and_other_settings_are_refused(plain):
    assert start(config(), plain.path).status().state == "done"
    with pytest.raises(ValueError, match="other settings"):
        start(config(seed=4), plain.path)


@pytest.mark.parametrize(
    "ask",
    [
        lambda h: h.request("kd_coef", 0.5),
        lambda h: h.release("kd_coef"),
        lambda h: h.fork("off"),
        lambda h: h.begin(),
        lambda h: h.pause(),
        lambda h: h.step(),
        lambda h: h.stop(),
        lambda h: h.checkpoint(),
        lambda h: h.unpause(),
    ],
)
def test_a_done_run_refuses_in_words_and_nothing_is_written(plain, ask):
    before = {path.name: path.read_bytes() for path in plain.path.iterdir() if path.is_file()}
    with pytest.raises(RuntimeError, match="done"):
        ask(open_run(plain.path))
    assert before == {
        path.name: path.read_bytes() for path in plain.path.iterdir() if path.is_file()
    }


def test_a_bad_request_is_refused_at_once_and_not_written(tmp_path):
    handle = start(config(), tmp_path / "run", fork="off", begin=False)
    before = (handle.path / "requests.jsonl").read_text()
    with pytest.raises(ValueError, match="lies in 0–10"):
        handle.request("kd_coef", 11)
    with pytest.raises(ValueError, match="did you mean"):
        handle.request("kd_coeff", 1)
    with pytest.raises(ValueError, match="did you mean"):
        handle.release("kd_coeff")
    assert (handle.path / "requests.jsonl").read_text() == before
    assert handle.status().state == "idle"
    for button in (handle.pause, handle.step, handle.stop, handle.checkpoint, handle.unpause):
        with pytest.raises(RuntimeError, match=r"idle|not running"):
            button()


def test_buttons(tmp_path):
    handle = start(config(steps=40), tmp_path / "run", fork="off")
    handle.pause()
    until(lambda: handle.status().state == "paused")
    step = handle.status().step
    handle.step()
    until(lambda: handle.status().step == step + 1 and handle.status().state == "paused")
    handle.request("kd_coef", 0.5)
    handle.begin()  # a paused run goes on
    until(lambda: handle.status().step > step + 1)
    handle.stop()
    assert handle.status().state in ("stopping", "idle")
    handle.wait(60)
    assert handle.status().state == "idle"
    rows = {row["step"]: row["coef/kd_coef"] for row in handle.folder.rows()}
    assert rows[step + 1] == 0.1
    assert rows[step + 2] == 0.5
    handle.begin()
    until(lambda: handle.status().step > max(rows))
    handle.stop()
    handle.wait(60)


def test_start_goes_on_while_the_stopped_run_is_still_clearing_up(tmp_path, monkeypatch):
    monkeypatch.setattr("rlkd_lab.runs.lock.PATIENCE", 0)
    clear_up = Trainer.close
    monkeypatch.setattr(Trainer, "close", lambda trainer: (time.sleep(1), clear_up(trainer)))
    handle = start(config(steps=50), tmp_path / "run")
    until(lambda: handle.status().step)
    handle.stop()
    until(lambda: handle.status().state == "idle")
    stopped = handle.status().step
    handle.begin()
    until(lambda: handle.status().step > stopped)
    handle.stop()
    handle.wait(60)
    assert handle.status().state == "idle"


def test_a_stop_that_was_obeyed_is_over_when_somebody_else_goes_on(tmp_path):
    folder = create(config(), tmp_path / "run")
    handle = open_run(folder.path)
    folder.set_status("running", 1)
    handle.stop()
    assert handle.status().state == "stopping"
    folder.set_status("idle", 1)
    assert handle.status().state == "idle"
    folder.set_status("running", 1)
    assert handle.status().state == "running"


def test_wait_raises_what_the_loop_raised(tmp_path):
    handle = start(config(student="/no/such/model"), tmp_path / "run")
    with pytest.raises((ValueError, OSError), match="no/such/model"):
        handle.wait(60)
    assert handle.status().state == "failed"
    assert "no/such/model" in (handle.status().why or "")
    with pytest.raises(RunFailed, match="no/such/model"):  # from a later kernel
        handle_of_another_kernel(handle.path).wait(1)


def handle_of_another_kernel(path):
    from rlkd_lab.lab.live import handle

    handle._workers.pop(path, None)
    return open_run(path)


def test_a_killed_process_is_lost_and_start_goes_on(plain, tmp_path):
    handle = launch(config(steps=3), tmp_path / "run", fork="off")
    until(lambda: len(handle.folder.rows()) >= 1)
    os.kill(handle.folder.status()["pid"], signal.SIGKILL)
    until(lambda: handle.status().state == "lost")
    with pytest.raises(RunFailed, match="is gone"):
        handle.wait(1)
    with pytest.raises(RuntimeError, match="lost"):
        handle.pause()
    assert "Start continues" in repr(handle)
    again = open_run(handle.path)
    again.begin()
    assert first_difference(again.wait(120).rows(), plain.rows()) == (None, 0.0)


def test_a_panel_attaches_to_a_run_whose_kernel_is_gone(tmp_path):
    """The kernel that launched it exits; the run goes on and another process steers it."""
    folder = create(config(steps=60), tmp_path / "run")
    code = (
        f"from rlkd_lab.lab import open_run; open_run({str(folder.path)!r},"
        " drive='process').begin()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    handle = open_run(folder.path)
    until(lambda: len(folder.rows()) >= 1)
    assert handle.status().where == "elsewhere"
    handle.request("kd_coef", 0.5)
    until(lambda: any(row["coef/kd_coef"] == 0.5 for row in folder.rows()))
    handle.stop()
    handle.wait(60)
    assert handle.status().state == "idle"


def test_settle_blocks_nobody_who_reads(tmp_path, monkeypatch, capsys):
    handle = start(config(steps=60), tmp_path / "run", fork="off")
    monkeypatch.delenv("RLKD_WAIT", raising=False)
    monkeypatch.delenv("RLKD_SHORT", raising=False)
    handle.settle()
    assert "running" in capsys.readouterr().out
    handle.stop()
    monkeypatch.setenv("RLKD_WAIT", "1")
    handle.settle()
    assert "idle" in capsys.readouterr().out


def test_a_schedule_found_by_hand_is_rerun_on_another_seed_as_an_ordinary_run(tmp_path):
    def ask(loop, row):
        loop.folder.ask("knob", knob="kd_coef", value=row["step"] / 10)
        if row["step"] == 3:
            loop.folder.ask("release", knob="kd_coef")

    touched = run(config(steps=5), tmp_path / "touched", on_step=ask)
    values = [row["coef/kd_coef"] for row in touched.rows()]
    assert values == [0.1, 0.1, 0.2, 0.1, 0.4]
    ordinary = run(schedule_from(touched, seed=3), tmp_path / "same")
    assert not ordinary.touched
    assert first_difference(ordinary.rows(), touched.rows()) == (None, 0.0)
    other = run(schedule_from(touched, seed=8), tmp_path / "other")
    assert [row["coef/kd_coef"] for row in other.rows()] == values
    assert (
        other.rows()[0]["reward"] != touched.rows()[0]["reward"]
        or other.rows()[0]["entropy"] != touched.rows()[0]["entropy"]
    )
    with pytest.raises(ValueError, match="no knob was moved"):
        schedule_from(RunFolder(create(config(), tmp_path / "idle").path), seed=1)


def test_a_folder_that_is_gone_is_said_in_words(plain, tmp_path):
    run = open_run(shutil.copytree(plain.path, tmp_path / "copy"))
    shown = panel(run)
    shutil.rmtree(tmp_path / "copy")
    shown.update()
    assert "run folder is gone" in shown.banner.value
    assert all(button.disabled for button in shown.buttons.values())
    for ask in (run.status, run.begin, run.stop, lambda: run.request("kd_coef", 0.3)):
        with pytest.raises(FileNotFoundError, match="is gone: deleted or moved"):
            ask()


def test_two_runs_that_start_at_once_load_one_after_the_other(tmp_path):
    both = [start(config(seed=seed), tmp_path / str(seed), fork="off") for seed in (1, 2)]
    for seed, handle in zip((1, 2), both, strict=True):
        alone = run(config(seed=seed), tmp_path / f"alone {seed}")
        assert first_difference(handle.wait().rows(), alone.rows()) == (None, 0.0)


def test_a_second_loop_is_refused_while_the_first_one_loads(tmp_path, monkeypatch):
    monkeypatch.setattr("rlkd_lab.runs.lock.PATIENCE", 0)
    handle = start(config(), tmp_path / "run", fork="off")
    lock = handle.path / "lock"
    until(lambda: lock.exists() and lock.read_text())
    with pytest.raises(ValueError, match="by this process already: two at once"):
        load_or_train(config(), tmp_path / "run")
    assert len(handle.wait().rows()) == 3


@pytest.mark.parametrize("value", ["0.3", "off", True, [1], {}, 10**400])
def test_a_value_that_is_no_number_is_refused_in_words(tmp_path, value):
    handle = open_run(create(config(), tmp_path / "run").path)
    with pytest.raises(ValueError, match=r"kd_coef=.* (is no value of a knob|is out of range)"):
        handle.request("kd_coef", value)
    for knob in (None, 3):
        with pytest.raises(ValueError, match="unknown knob"):
            handle.request(knob, 0.3)


def test_a_fork_that_was_switched_off_by_hand_stays_off_when_its_cell_is_run_again(tmp_path):
    def asked():
        return [
            request["kind"]
            for request in Tail(tmp_path / "run" / "requests.jsonl").read()
            if request["request"] == "twin"
        ]

    with pytest.raises(ValueError, match="unknown fork"):
        start(config(), tmp_path / "run", fork="x", begin=False)
    assert not (tmp_path / "run").exists()
    start(config(), tmp_path / "run", fork="noise", begin=False).fork("off")
    start(config(), tmp_path / "run", fork="noise", begin=False)
    assert asked() == ["noise", "off"]
    start(config(), tmp_path / "run", fork="untouched", begin=False)  # the cell was changed
    assert asked() == ["noise", "off", "untouched"]
