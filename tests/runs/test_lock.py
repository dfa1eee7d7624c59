"""One at a time in a folder."""

import json
import os
import signal
import threading
import time

import pytest

from rlkd_lab.runs.lock import LOCK, alone


@pytest.fixture(autouse=True)
def hurry(request, monkeypatch):
    if "waited_for" not in request.node.name:
        monkeypatch.setattr("rlkd_lab.runs.lock.PATIENCE", 0)


def test_the_second_is_told_who_holds_it(tmp_path, another):
    with (
        another(tmp_path) as pid,
        pytest.raises(ValueError, match=f"is being trained by process {pid}: two at once"),
        alone(tmp_path, "trained"),
    ):
        pytest.fail("two hold it")
    with alone(tmp_path, "trained"):
        pass


def test_a_holder_that_is_clearing_up_is_waited_for(tmp_path):
    held = threading.Event()

    def clear_up():
        with alone(tmp_path, "trained"):
            held.set()
            time.sleep(0.3)

    thread = threading.Thread(target=clear_up)
    thread.start()
    assert held.wait(5)
    with alone(tmp_path, "trained"):
        pass
    thread.join()


def test_a_killed_holder_holds_nothing(tmp_path, another):
    with another(tmp_path) as pid:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        with alone(tmp_path, "trained"):
            assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("elsewhere", [False, True])
def test_another_thread_of_the_process_is_another(tmp_path, elsewhere):
    refused = []

    def second():
        with (
            pytest.raises(ValueError, match="by this process already") as error,
            alone(tmp_path, "trained"),
        ):
            pass
        refused.append(error)

    with alone(tmp_path, "trained"):
        if elsewhere:
            thread = threading.Thread(target=second)
            thread.start()
            thread.join()
        else:
            second()
    assert refused


def test_another_host_is_named(tmp_path, another):
    with another(tmp_path) as pid:
        (tmp_path / LOCK).write_text(json.dumps({"pid": pid, "host": "far away", "since": 0}))
        with (
            pytest.raises(ValueError, match=f"process {pid} of far away"),
            alone(tmp_path, "trained"),
        ):
            pass


@pytest.mark.parametrize("text", ["", "[", "[]", '{"pid": "x"}', "\0" * 9])
def test_whatever_the_file_says_the_lock_is_what_counts(tmp_path, another, text):
    (tmp_path / LOCK).write_text(text)
    with alone(tmp_path, "trained"):
        pass
    with another(tmp_path):
        (tmp_path / LOCK).write_text(text)
        with pytest.raises(ValueError, match="by another process"), alone(tmp_path, "trained"):
            pass
