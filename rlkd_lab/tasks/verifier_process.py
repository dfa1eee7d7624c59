"""A process of its own in which a task judges: whatever its verifier does there, it can be ended,
and the run goes on.

A thread would be no guard (a regular expression and a large integer hold the interpreter until they
are done), and a fork would inherit locks and the state of CUDA: the process is a fresh interpreter,
which makes the task anew. It reads requests (pickled, with their length before them) from its
standard input and writes a line of JSON for each to what was its standard output; what a task
prints goes to standard error.

It ends with the run: at the end of its input, or by itself where a call goes on though nobody is
left to end it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from rlkd_lab.tasks.base import Example, Task

MEMORY = 2 << 30
"""Bytes that a verifier may take beyond what its task holds; on Linux alone, elsewhere nothing
bounds it.
"""
STARTING = 120.0
"""Seconds in which the task must have been made."""
GRACE = 5.0
"""Seconds after the limit at which the process ends itself."""
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from rlkd_lab.tasks.verifier_process"
    " import serve; serve()"
)
Work = Callable[[Task, str, str, Example | None], dict[str, Any]]
"""(task, method, completion, example) → an answer that JSON can hold."""


class Unjudged(Exception):
    """Why there is no score, in words."""


@dataclass(frozen=True)
class Answer:
    """What came back; where nothing did, why."""

    value: dict[str, Any] | None = None
    why: str = ""
    machine: bool = False
    """Whether another machine might have got an answer: it took too long, too much memory, or
    the process died.
    """
    worn: bool = False
    """Whether earlier calls may have had a part in it: all but time."""


class VerifierProcess:
    """The process of one task, started by the first call, and again after one that it did not
    survive.

    Args:
        make: makes the task there.
        given: its arguments; both are pickled.
        work: what a call does.
        seconds: time limit of a call.
    """

    def __init__(
        self, make: Callable[..., Task], given: tuple[Any, ...], work: Work, seconds: float
    ) -> None:
        self.seconds = seconds
        self._first = pickle.dumps((make, given, work, seconds))
        self._folder = os.getcwd()
        self._process: subprocess.Popen[bytes] | None = None
        self._end: Callable[[], object] = lambda: None
        self._lock = threading.Lock()

    def call(self, method: str, completion: str, example: Example | None) -> Answer:
        """One call.

        Where earlier ones may have worn the process out, it is made once more, in a fresh one.
        """
        try:
            request = pickle.dumps((method, completion, example))
        except Exception as error:
            return Answer(
                why="the verifier cannot be given the example in a process of its own"
                f" ({brief(error)}); Example.meta is to hold plain values"
            )
        with self._lock:
            used = self._process is not None and self._process.poll() is None
            answer = self._exchange(request, self.seconds) if used else self._fresh(request)
            if answer.worn and used:
                self._end()
                answer = self._fresh(request)
            if answer.machine:
                self._end()
            return answer

    def close(self) -> None:
        """End the process; another call would start it again."""
        with self._lock:
            self._end()

    def _fresh(self, request: bytes) -> Answer:
        """Return the answer of a new process."""
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START, json.dumps(sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=self._folder,
                env={
                    **os.environ,
                    "PYTHONHASHSEED": "0",
                },  # a set has the same order in every process
                start_new_session=True,  # Ctrl-C is for the run
            )
        except OSError as error:
            return Answer(
                why=f"the verifier cannot be called in a process of its own ({brief(error)})",
                machine=True,
            )
        self._end = weakref.finalize(self, _kill, self._process)
        made = self._exchange(self._first, STARTING)
        if made.value is None:
            self._end()
            return Answer(
                why=f"the verifier cannot be called in a process of its own ({made.why})",
                machine=True,
            )
        return self._exchange(request, self.seconds)

    def _exchange(self, request: bytes, seconds: float) -> Answer:
        """Send and receive; the process is ended when the time is over."""
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        over = threading.Event()

        def stop() -> None:
            over.set()
            _signal(process)

        timer = threading.Timer(seconds, stop)
        timer.daemon = True
        timer.start()
        try:
            process.stdin.write(len(request).to_bytes(8, "big") + request)
            process.stdin.flush()
            line = process.stdout.readline()
            if line.endswith(b"\n"):
                return Answer(**json.loads(line))
        except (OSError, ValueError, TypeError):  # it is gone
            pass
        except BaseException:  # an answer that comes late would be taken for the next one
            self._end()
            raise
        finally:
            timer.cancel()
        if over.is_set():
            return Answer(why=f"the verifier took longer than {seconds:g} s", machine=True)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1)
        return Answer(
            why=f"the verifier ended its process (exit code {process.poll()})",
            machine=True,
            worn=True,
        )


def attempt(
    work: Work, task: Task, method: str, completion: str, example: Example | None
) -> Answer:
    """Call the task in this process."""
    try:
        return Answer(work(task, method, completion, example))
    except Unjudged as error:
        return Answer(why=str(error))
    except MemoryError:
        return Answer(why=f"{method} needed too much memory", machine=True, worn=True)
    except (Exception, SystemExit) as error:
        return Answer(why=f"{method} raised {brief(error)}")


def _signal(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and what it has started."""
    with contextlib.suppress(OSError):
        if process.poll() is not None:
            pass
        elif hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()


def _kill(process: subprocess.Popen[bytes]) -> None:
    _signal(process)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            if pipe is not None:
                pipe.close()


# --- in that process ------------------------------------------------------------------------------


def serve() -> None:
    """Answer requests until there are no more."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(2, 1)

    def answer(found: Answer) -> None:
        answers.write(json.dumps(asdict(found)).encode() + b"\n")
        answers.flush()

    make, given, work, seconds = pickle.loads(_next(requests))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the run has given them
            task = make(*given)
    except BaseException as error:
        answer(Answer(why=brief(error)))
        return
    answer(Answer({}))
    _bound_memory()
    while request := _next(requests):
        # a thread in C, which needs no turn of the interpreter's
        faulthandler.dump_traceback_later(seconds + GRACE, exit=True, file=nothing)
        try:
            found = attempt(work, task, *pickle.loads(request))
        except BaseException as error:
            found = Answer(why=brief(error))
        faulthandler.cancel_dump_traceback_later()
        answer(found)


def _next(requests: Any) -> bytes:
    length = requests.read(8)
    return requests.read(int.from_bytes(length, "big")) if len(length) == 8 else b""


def _bound_memory() -> None:
    """At most :data:`MEMORY` more than now, where the system tells what that is."""
    try:
        import resource

        with open("/proc/self/statm", encoding="utf-8") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = now + MEMORY if hard == resource.RLIM_INFINITY else min(now + MEMORY, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    except (ImportError, OSError, ValueError):
        pass


def brief(error: BaseException) -> str:
    """Return an error in one short line, whatever its text is."""
    try:
        text = " ".join(str(error).split())[:200]
    except BaseException:
        text = "an error without a text"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
