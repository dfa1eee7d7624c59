"""Guards: what is watched in every step, and what is done about it, as the config declares (``--set
guard.NAME=ACTION[:LIMIT[:STEPS]]``).

``warn`` writes an event; ``skip`` leaves out the update that is about to be made; ``pause`` leaves
it out too, or lets the step end, and then waits with all of the run in memory; ``stop`` ends the
run, which can be resumed from its last checkpoint. A guard that has spoken is silent until its
cause is gone.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

Action = Literal["off", "warn", "skip", "pause", "stop"]
MANY = 10
"""Updates left out in a row after which a run stops all the same."""


@dataclass(frozen=True)
class Guard:
    """It speaks after ``steps`` in a row beyond ``limit``.

    ``update``: it speaks before an update, which can be left out.
    """

    remedy: str
    action: Action
    limit: float | None = None
    steps: int = 1
    update: bool = False


GUARDS: Mapping[str, Guard] = {
    # a loss, a gradient or a log-probability that is NaN or infinite
    "loss": Guard(
        "lower learning_rate, or bound the ratio (ratio_cap, trrd_gap_bound)",
        "stop",
        update=True,
    ),
    # a teacher that gives a sampled token the log-probability −∞ or NaN, where the method needs it
    "teacher": Guard(
        "load it with --set teacher_quant=none to see whether quantisation does that, or take"
        " another teacher",
        "stop",
        update=True,
    ),
    # the largest probability ratio ρ of new to old policy over a rollout's tokens
    "ratio": Guard(
        "lower learning_rate or updates_per_rollout, or cap the ratio (ratio_cap)",
        "warn",
        limit=1000.0,
        update=True,
    ),
    # steps in which every group's rewards are all equal, so that the reward teaches nothing
    "rewards": Guard(
        "the prompts are too easy or too hard: change difficulty, or let the teacher speak"
        " (kd_coef)",
        "warn",
        steps=10,
    ),
    # the policy's entropy below the limit, in nats a token: it samples one completion again
    "entropy": Guard(
        "raise temperature or clip_high, or lower learning_rate",
        "warn",
        limit=0.005,
        steps=10,
    ),
    # the KL to the reference or to the teacher above the limit, in nats a token
    "kl": Guard(
        "lower learning_rate, or raise kl_coef or kd_coef",
        "warn",
        limit=3.0,
        steps=3,
    ),
}
"""Limits: in 204 finished runs of the study's first four parts and of Knights and Knaves,
``entropy`` and ``rewards`` would not have spoken, ``kl`` in one (a trial of GRPO at the highest
learning rate, 8 nats).
"""


def declared(settings: Mapping[str, str]) -> dict[str, Guard]:
    """The guards with a config's settings, ``ACTION[:LIMIT[:STEPS]]`` each.

    >>> declared({"kl": "pause:1.5"})["kl"].limit
    1.5

    Raises:
        ValueError: in one sentence.
    """
    found = dict(GUARDS)
    for name, text in settings.items():
        if name not in GUARDS:
            raise ValueError(f"unknown guard {name!r}: the guards are {', '.join(GUARDS)}")
        guard = GUARDS[name]
        action, *numbers = text.split(":")
        actions = [one for one in get_args(Action) if one != "skip" or guard.update]
        if action not in actions:
            raise ValueError(
                f"guard.{name}={text}: {action!r} is none of {', '.join(actions)}"
                + (" (there is no update to skip)" if action == "skip" else "")
            )
        try:
            limit = float(numbers[0]) if numbers and numbers[0] else guard.limit
            steps = int(numbers[1]) if len(numbers) > 1 else guard.steps
        except ValueError:
            raise ValueError(
                f"guard.{name}={text}: write ACTION, ACTION:LIMIT or ACTION:LIMIT:STEPS"
            ) from None
        if (
            len(numbers) > 2
            or steps < 1
            or (limit is not None and not 0 <= limit < math.inf)
            or (numbers and numbers[0] and guard.limit is None)
        ):
            has = (
                ""
                if guard.limit is not None
                else f"; {name} has no limit: {name}=ACTION or ACTION::STEPS"
            )
            raise ValueError(
                f"guard.{name}={text}: a finite limit of 0 or more, and 1 step or more{has}"
            )
        found[name] = replace(guard, action=action, limit=limit, steps=steps)  # type: ignore[arg-type]
    return found


def _changes(recorded: Sequence[Mapping[str, Any]]) -> dict[int, Mapping[str, Guard]]:
    """By the step after which they hold."""
    try:
        return {int(event["step"]): declared(dict(event["settings"])) for event in recorded}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"an event of the guards is damaged: {type(error).__name__}: {error}"
        ) from None


class Guards:
    """The guards of one run or fork.

    Args:
        settings: as the config declares them.
        tell: takes every event.
        recorded: events of a run that is replayed, in which guards were declared anew.

    Raises:
        ValueError: a recorded event is damaged.
    """

    def __init__(
        self,
        settings: Mapping[str, str],
        tell: Callable[[dict[str, Any]], object],
        recorded: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.guards: Mapping[str, Guard] = declared(settings)
        self.tell = tell
        self.pause: str | None = None
        """Why the run should wait after this step."""
        self._changes = _changes(recorded)
        if self._changes:
            self.guards = self._changes.get(0, declared({}))
        self._spoken: set[str] = set()
        self._held: dict[str, int] = {}
        self._skipped = 0

    def begin(self, step: int) -> None:
        """Use the guards that were declared before this step."""
        self.guards = self._changes.get(step - 1, self.guards)

    # --- before an update -------------------------------------------------------------------------

    def update(self, step: int, found: Mapping[str, str | None]) -> bool:
        """Whether to make an update.

        Args:
            step: the step it belongs to.
            found: by guard what is wrong, in words, or ``None`` where nothing is.

        Raises:
            FloatingPointError: a guard stops the run.
        """
        make = True
        for name, why in found.items():
            action = self.guards[name].action
            if why is None or action == "off":
                self._spoken.discard(name)
                continue
            make &= action == "warn"
            self._speak(name, step, f"{why} in step {step}", again=action != "warn")
        self._skipped = 0 if make else self._skipped + 1
        if self._skipped == MANY:
            raise FloatingPointError(
                f"{MANY} updates in a row were left out: go back to an earlier checkpoint, or"
                " begin again with a lower learning_rate"
            )
        return make

    def over(self, name: str, value: float) -> bool:
        """Whether a value is above the limit of a guard."""
        limit = self.guards[name].limit
        return limit is not None and not value <= limit

    # --- after a step -----------------------------------------------------------------------------

    def after(self, row: Mapping[str, Any]) -> None:
        """Look at the row of a step.

        Raises:
            FloatingPointError: a guard stops the run.
        """
        for name, why in self._counted(row).items():
            if why is None:
                self._spoken.discard(name)
            elif self._held[name] >= self.guards[name].steps and self.guards[name].action != "off":
                self._speak(name, row["step"], f"{why} as of step {row['step']}")

    def remember(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """The rows of an earlier life: what held at its end still counts, and is not said again."""
        for row in rows:
            self._counted(row)
        self._spoken = {
            name for name, count in self._held.items() if count >= self.guards[name].steps
        }

    def _counted(self, row: Mapping[str, Any]) -> dict[str, str | None]:
        """What the row shows, added to how long it has lasted."""
        found = self._held_in(row)
        for name, why in found.items():
            self._held[name] = 0 if why is None else self._held.get(name, 0) + 1
        return found

    def _held_in(self, row: Mapping[str, Any]) -> dict[str, str | None]:
        """By guard what the row shows, or ``None``; a guard is left out where the row has
        nothing to say of it.
        """
        found: dict[str, str | None] = {}
        flat, entropy = row.get("frac_reward_zero_std"), row.get("entropy")
        kl = max(
            (row[name] for name in ("kl_ref", "kl_teacher_rev") if row.get(name) is not None),
            default=None,
        )
        if flat is not None:
            found["rewards"] = (
                f"no group's rewards differed for {self.guards['rewards'].steps} steps"
                if flat == 1
                else None
            )
        if entropy is not None:
            found["entropy"] = (
                f"the entropy is {entropy:.2g} nats a token"
                if not self.over("entropy", entropy)
                else None
            )
        if kl is not None:
            found["kl"] = (
                f"the KL to the reference or the teacher is {kl:.2g} nats a token"
                if self.over("kl", kl)
                else None
            )
        return found

    def _speak(self, name: str, step: int, why: str, again: bool = False) -> None:
        """Say it, and do what is declared;

        ``again``: even if it was said before and has not ceased since.
        """
        guard = self.guards[name]
        if name in self._spoken and not again:
            return
        self._spoken.add(name)
        said = {"why": why, "remedy": guard.remedy, "text": f"{why}: {guard.remedy}"}
        if guard.action in ("warn", "skip"):  # the others are said where the run waits or ends
            warnings.warn(f"{why}: {guard.remedy}", stacklevel=2)
        self.tell(
            {
                "event": "guard",
                "step": step,
                "guard": name,
                "action": guard.action,
                **said,
                "time": time.time(),
            }
        )
        if guard.action == "pause":
            self.pause = f"{why}: {guard.remedy}; then let it go on"
        if guard.action == "stop":
            raise FloatingPointError(
                f"{why}: {guard.remedy} (a knob that is asked for now, `rlkd ask RUN"
                " NAME=VALUE`, holds when the run goes on)"
            )
