"""A disk that refuses: the run waits with all it has in memory, and goes on when there is room;
nothing is lost or doubled.
"""

import contextlib
import errno
import os
import shutil
import subprocess
import threading
import time

import pytest

from rlkd_lab.runs import RunFolder, first_difference
from rlkd_lab.training import requests, resume, run
from rlkd_lab.training.folders import create


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr(requests, "RETRY", 0.05)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 16 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    if (
        os.geteuid()
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)],
            capture_output=True,
            check=False,
        ).returncode
    ):
        pytest.skip("a file system can only be mounted by root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def waiting(folder, until=lambda: None):
    """A hand that waits for the pause, does something, and returns what the status said."""
    seen = []

    def hand():
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            now = folder.status()
            if now["state"] == "paused":
                seen.append(now)
                break
            time.sleep(0.02)
        until()

    thread = threading.Thread(target=hand)
    thread.start()
    return thread, seen


@pytest.mark.parametrize("room", [0, 700, 5000, 60_000, 400_000])
def test_a_full_disk_pauses_the_run_and_a_freed_one_lets_it_go_on(tiny, tmp_path, small_disk, room):
    """``room``: bytes left when step 2 is done, so that it is a row, an event, a checkpoint or
    a rollout that does not fit.
    """
    config = tiny(steps=4, checkpoint_every=1, samples_every=1, keep_checkpoints=1)
    expected = run(config, tmp_path / "expected")
    folder = create(config, small_disk / "run")
    ballast = small_disk / "ballast"

    def fill(loop, row):
        if row["step"] == 2:
            with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while file.write(b"0" * 4096):
                    pass
            if room:
                os.truncate(ballast, max(ballast.stat().st_size // 4096 * 4096 - room, 0))

    thread, seen = waiting(folder, lambda: ballast.unlink(missing_ok=True))
    with pytest.warns(
        UserWarning, match="the disk is full: free some space, and the run goes on by itself"
    ):
        resume(folder.path, on_step=fill)
    thread.join()
    assert "the disk is full" in seen[0]["why"]
    assert first_difference(folder.rows(), expected.rows()) == (None, 0.0)
    assert folder.status()["state"] == "done"
    (event,) = [event for event in folder.rows("events.jsonl") if event["event"] == "disk"]
    assert "the disk is full" in event["text"]
    assert folder.sample_steps() == [1, 2, 3, 4]


@pytest.fixture
def refusing(monkeypatch):
    """``refusing(number, name)``: from now on a file whose path holds ``name`` cannot be opened
    for writing, until the returned function is called.
    """
    from pathlib import Path

    def make(number, name):
        real, on = Path.open, [True]

        def opened(self, mode="r", *rest, **more):
            if on and name in str(self) and mode != "r" and mode != "rb":
                raise OSError(number, os.strerror(number), str(self))
            return real(self, mode, *rest, **more)

        monkeypatch.setattr(Path, "open", opened)
        return on.clear

    return make


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EIO])
def test_a_folder_that_cannot_be_written_is_waited_for(
    tiny, tmp_path, refusing, number, monkeypatch
):
    config = tiny(steps=2)
    expected = run(config, tmp_path / "expected")
    folder = create(config, tmp_path / "run")
    mend = []
    thread, seen = waiting(folder, lambda: mend[0]())
    with pytest.warns(UserWarning, match="make it writable"):
        resume(
            folder.path,
            on_step=lambda loop, row: (
                mend.append(refusing(number, "metrics.jsonl")) if row["step"] == 1 else None
            ),
        )
    thread.join()
    assert os.strerror(number) in seen[0]["why"]
    assert first_difference(folder.rows(), expected.rows()) == (None, 0.0)


def test_a_stop_ends_the_waiting_and_the_run_can_go_on_later(tiny, tmp_path, refusing):
    config = tiny(steps=3, checkpoint_every=1)
    expected = run(config, tmp_path / "expected")
    folder = create(config, tmp_path / "run")
    mend = []
    thread, _ = waiting(folder, lambda: folder.ask("stop"))
    with pytest.warns(UserWarning, match="paused"):
        resume(
            folder.path,
            on_step=lambda loop, row: (
                mend.append(refusing(errno.ENOSPC, "metrics.jsonl")) if row["step"] == 1 else None
            ),
        )
    thread.join()
    assert folder.status()["state"] == "idle"
    assert [row["step"] for row in folder.rows()] == [1]
    mend[0]()
    assert first_difference(resume(folder.path).rows(), expected.rows()) == (None, 0.0)


def test_an_error_that_does_not_pass_is_raised(tiny, tmp_path, refusing):
    with pytest.raises(OSError, match="Too many open files"):
        run(
            tiny(),
            tmp_path / "run",
            on_step=lambda loop, row: refusing(errno.EMFILE, "metrics.jsonl"),
        )
    assert RunFolder.open(tmp_path / "run").status()["state"] == "failed"


def test_a_folder_that_is_removed_during_the_run_is_said(tiny, tmp_path):
    with pytest.raises(FileNotFoundError, match="was moved or deleted while the run was going on"):
        run(tiny(), tmp_path / "run", on_step=lambda loop, row: shutil.rmtree(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_no_half_of_a_line_stays_where_the_disk_is_full(tmp_path, monkeypatch):
    folder = RunFolder.create(tmp_path / "run", {"method": "grpo"}, {})
    folder.append("metrics.jsonl", {"step": 1})
    from pathlib import Path

    real = Path.open

    class Half:
        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def write(self, data):
            return self.file.write(data[: len(data) // 2])

    monkeypatch.setattr(Path, "open", lambda self, *rest, **more: Half(real(self, *rest, **more)))
    with pytest.raises(OSError, match="no space left"):
        folder.append("metrics.jsonl", {"step": 2, "reward": 0.123456789})
    monkeypatch.undo()
    assert (folder.path / "metrics.jsonl").read_bytes() == b'{"step": 1}\n'


def test_a_disk_without_room_for_a_run_is_said_before_it_begins(tmp_path, monkeypatch):
    def full(*rest):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RunFolder, "write_json", full)
    with pytest.raises(
        OSError, match=r"no space left for .*run: free some, or choose another --out"
    ):
        RunFolder.create(tmp_path / "run", {}, {})
    assert not list(tmp_path.iterdir())
