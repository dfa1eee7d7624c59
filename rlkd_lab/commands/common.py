"""What all commands share: the app, errors in one sentence, options, how values are read."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from rlkd_lab.terminal import as_utf8, replace_what_it_lacks, say, writes

app = typer.Typer(
    help="Knowledge distillation and reinforcement learning on a 4-bit LoRA student.",
    no_args_is_help=True,
)


console = Console(highlight=False)


def main() -> None:
    """The command ``rlkd``."""
    replace_what_it_lacks()
    app()


RunPath = Annotated[Path, typer.Argument(help="a run folder")]


Json = Annotated[bool, typer.Option("--json", help="print JSON and nothing else")]


def print_json(value: Any) -> None:
    """One JSON value on stdout."""
    from rlkd_lab.study.report import plain

    text = json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False)
    say(text if writes(text) else json.dumps(plain(value), indent=2, allow_nan=False))


def method_names() -> list[str]:
    """For shell completion."""
    from rlkd_lab.objectives import METHODS

    return list(METHODS)


@contextlib.contextmanager
def ended_like_ctrl_c() -> Iterator[None]:
    """Who ends the process (a batch system, say) or closes its terminal stops it as Ctrl-C
    does: what is finished is kept.
    """

    def interrupt(number: int, frame: object) -> None:
        for one in ours:
            signal.signal(one, signal.SIG_IGN)  # another one must not cut the last checkpoint
        raise KeyboardInterrupt

    ours = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    ours = [
        one
        for one in ours
        if threading.current_thread() is threading.main_thread()
        and signal.getsignal(one) == signal.SIG_DFL
    ]
    for one in ours:
        signal.signal(one, interrupt)
    try:
        yield
    finally:
        for one in ours:
            signal.signal(one, signal.SIG_DFL)


@contextlib.contextmanager
def plain_errors(stopped: str = "`rlkd resume` goes on from the last checkpoint") -> Iterator[None]:
    """Mistakes of the user end in one sentence and status 2, failures of a run in one sentence
    and status 1; a warning is one sentence too.
    """
    try:
        with (
            ended_like_ctrl_c(),
            warnings.catch_warnings(),
        ):  # puts the process's own way of showing them back
            warnings.showwarning = lambda message, *_, **__: say(
                f"rlkd: warning: {message}", err=True
            )
            yield
    except (ValueError, OSError) as error:
        words = [
            part
            for part in (getattr(error, "strerror", None), getattr(error, "filename", None))
            if part
        ]  # without the number of the error
        say(f"rlkd: {': '.join(map(str, words)) or error}", err=True)
        raise typer.Exit(2) from None
    except (FloatingPointError, MemoryError, RuntimeError) as error:
        import torch

        if not isinstance(error, FloatingPointError | MemoryError | torch.OutOfMemoryError):
            raise
        say(f"rlkd: the run failed: {error}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        say(f"rlkd: stopped; {stopped}", err=True)
        raise typer.Exit(130) from None


def settings_from(items: list[str] | None) -> dict[str, str]:
    """Of --set NAME=VALUE."""
    from rlkd_lab.training.make_config import split_settings

    return {name: as_utf8(value) for name, value in split_settings(items or []).items()}


def is_first() -> bool:
    """Whether this process is the one that speaks, of those that `accelerate launch` started."""
    return os.environ.get("RANK", "0") == "0"


def numbers(text: str, option: str) -> list[int]:
    """1,4,8."""
    try:
        return sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise ValueError(f"{option} {text}: write numbers and commas, such as 1,4,8") from None


def number_range(text: str) -> tuple[int, int]:
    """2-5, or one number."""
    low, _, high = text.partition("-")
    try:
        return int(low), int(high or low)
    except ValueError:
        raise ValueError(f"--difficulty {text}: write a range such as 2-5") from None
