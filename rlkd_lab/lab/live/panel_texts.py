"""What the panel says: state, banner, tooltips, explanations. Functions without widgets."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlkd_lab.lab.live.curve_data import number
from rlkd_lab.objectives import METHODS
from rlkd_lab.objectives.methods import resolve_options
from rlkd_lab.training import RunConfig
from rlkd_lab.training.evaluation import evaluated_on
from rlkd_lab.training.remote import LIVE, Status

SHOWN_EVENTS = ("warning", "guard", "verifier")
"""Events of which the last two stand in the banner."""
WHERE = {
    "thread": "in a thread of this kernel",
    "process": "in another process of this machine",
    "elsewhere": "driven from elsewhere",
    "nowhere": "",
}
TABLE = (
    ("reward", "reward"),
    ("KL to the teacher", "kl_teacher_rev"),
    ("response length", "completions/mean_length"),
    ("entropy", "entropy"),
    ("accuracy, held out", "eval/accuracy"),
)
"""The small table below the curves: labels and metrics."""
FORKS = {"off": "off", "untouched": "untouched", "untouched and chance": "noise"}
"""Kinds of fork by the words of the menu."""
FORK_HELP = {
    "off": "No fork: what a moved knob does cannot be told from what would have happened anyway.",
    "untouched": "The first moved knob forks the run: the same weights, prompts and samples"
    " without the move, dotted. Their difference is the knob's.",
    "noise": "Beside the untouched fork another one with other samples, grey: how far these two"
    " drift apart is what chance alone does.",
}


def values_table(values: Mapping[str, float], config: RunConfig) -> str:
    """Return the last values of the metrics of :data:`TABLE` in HTML."""
    on = {"eval/accuracy": f", {html.escape(evaluated_on(config))}"}
    there = [(label + on.get(name, ""), name) for label, name in TABLE if name in values]
    room = "style='padding:2px 14px 2px 0;text-align:left'"
    head = "".join(f"<th {room}>{label}</th>" for label, _ in there)
    body = "".join(f"<td {room}>{number(values[name])}</td>" for _, name in there)
    return f"<table><tr>{head}</tr><tr>{body}</tr></table>"


def state_words(now: Status, asked: str | None) -> str:
    """Return the state of a run in words.

    Args:
        now: the status.
        asked: a button whose effect has not come yet, or ``None``.
    """
    words = {
        "idle": "stopped; Start continues" if now.step else "idle; Start begins",
        "running": "running" + (f" ({now.why})" if now.why else ""),
        "paused": "paused between two steps",
        "stopping": "stopping; the step that is being computed is given up",
        "done": "done",
        "failed": "failed",
        "lost": "lost",
    }[now.state]
    return f"{words}, {asked} was asked for" if asked else words


def state_sentence(now: Status, asked: str | None, taken: Sequence[tuple[float, int]]) -> str:
    """Return state, step, rate, time left, and where the run is driven.

    Args:
        now: the status.
        asked: a button whose effect has not come yet, or ``None``.
        taken: (seconds, step) of the last finished steps.
    """
    parts = [state_words(now, asked), f"step {now.step} of {now.steps}"]
    if len(taken) > 2:
        (began, first), (ended, last) = taken[0], taken[-1]
        if last > first and ended > began:
            each = (ended - began) / (last - first)
            rate = f"{each:.1f} s a step" if each >= 0.95 else f"{1 / each:.1f} steps a second"
            parts += [rate, f"{duration(each * (now.steps - now.step))} left"]
    if now.state in LIVE and WHERE[now.where]:
        parts.append(WHERE[now.where])
    return " · ".join(parts)


def duration(seconds: float) -> str:
    """Return a duration in words.

    >>> [duration(seconds) for seconds in (4, 90, 7300)]
    ['about 4 s', 'about 2 min', 'about 2.0 h']
    """
    if seconds < 60:
        return f"about {max(seconds, 1):.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


# --- banner ---------------------------------------------------------------------------------------


def banner(
    now: Status,
    path: Path,
    problem: str,
    damaged: int,
    notice: str,
    events: Iterable[dict[str, Any]],
) -> str:
    """Return errors and warnings as HTML.

    Args:
        now: the status.
        path: the run folder.
        problem: an error of the panel's drawing, or empty.
        damaged: lines of the run folder that could not be read.
        notice: what the last request led to, or empty.
        events: of the run.
    """
    found = [("error", words) for words in _errors(now, path, problem)]
    if damaged:
        place = html.escape(str(path))
        found.append(("warn", f"{damaged} damaged lines in {place} are left out."))
    if notice:
        found.append(("warn", html.escape(notice)))
    warnings = [event for event in events if event.get("event") in SHOWN_EVENTS]
    found += [("warn", html.escape(str(event.get("text", "")))) for event in warnings[-2:]]
    return "".join(_alert(kind, words) for kind, words in found)


def _errors(now: Status, path: Path, problem: str) -> list[str]:
    found = []
    if now.state == "failed":
        why = html.escape(now.why or "no reason given")
        found.append(
            f"<b>The run failed:</b> {why}. "
            "Finished steps are kept. Start continues from the last checkpoint; "
            "if it fails again, change what the reason names and start a new run."
        )
    elif now.state == "paused" and now.why:
        found.append(f"<b>The run waits:</b> {html.escape(now.why)}.")
    elif now.state == "lost":
        found.append(
            "<b>The run is lost:</b> the process that drove it is gone. "
            f"What it wrote is kept in {html.escape(str(path))}. "
            "Start (or <code>rlkd resume</code>) continues from the last checkpoint; "
            "the steps after it are computed again."
        )
    if problem:
        found.append(
            f"<b>The panel could not draw:</b> {html.escape(problem)}. The run itself is not"
            " affected; run the cell again."
        )
    return found


def _alert(kind: str, words: str) -> str:
    colour = {"error": "#b00020", "warn": "#c77700"}[kind]
    border = f"border-left:4px solid var(--jp-{kind}-color1, {colour})"
    style = f"{border};padding:4px 10px;margin:2px 0;line-height:1.4"
    return f"<div role='alert' style='{style}'>{words}</div>"


CLOSED = (
    "<div role='alert'><b>This panel is closed:</b> a newer panel of this kernel shows the run."
    " Run this cell again to open it here.</div>"
)
NO_TOKENS = (
    "No completions are recorded yet. The setting <code>samples_every</code> says when they are."
    " Open this tab again then."
)


def gone_words(path: Path) -> str:
    """Return the banner of a run folder that is gone."""
    place = html.escape(str(path))
    return f"<div role='alert'><b>The run folder is gone</b>, deleted or moved: {place}.</div>"


# --- buttons and records --------------------------------------------------------------------------


def button_help(now: Status) -> dict[str, tuple[bool, str]]:
    """Return for each button whether it can be pressed, and its tooltip."""
    live, name = now.state in ("running", "paused"), now.state
    start = name in ("idle", "failed", "lost")
    then = "; Run again starts another one" if name == "done" else ""
    buttons = {
        "Start": (start, "start, or continue from the last checkpoint"),
        "Pause": (live, "continue" if name == "paused" else "wait after the step that is running"),
        "Step": (live, "one step, then pause"),
        "Stop": (live, "stop now; finished steps are kept"),
        "Checkpoint": (live, "write a checkpoint after the step that is running"),
    }
    return {
        title: (allowed, words if allowed else f"{title}: the run is {name}{then}")
        for title, (allowed, words) in buttons.items()
    }


def records_words(samples: Sequence[int], checkpoint: int | None) -> str:
    """Return what was recorded: steps with completions, and the last checkpoint."""
    words = []
    if samples:
        steps = "1 step" if len(samples) == 1 else f"{len(samples)} steps"
        words.append(f"completions recorded at {steps}, last {samples[-1]}: see <i>tokens</i>")
    if checkpoint is not None:
        words.append(f"checkpoint at step {checkpoint}")
    return f"<small>{' · '.join(words)}</small>"


def options_html(config: RunConfig) -> str:
    """Return the options of a run as HTML: they can be read, not moved."""
    method = METHODS[config.method]
    options = resolve_options(method, config.options)
    names = {*method.options, *config.options}
    if "teacher" in method.needs:
        names |= {"estimator", "kd_mask", "divergence"}
    rows = "".join(
        f"<tr><td style='padding-right:16px'>{name}</td><td>{html.escape(str(value))}</td></tr>"
        for name, value in options.items()
        if name in names
    )
    words = "Chosen before the start; they cannot be moved while a run is running."
    return f"<small>{words}</small><table>{rows or '<tr><td>none</td></tr>'}</table>"
