"""What the token inspector says: numbers, ranges, rewards, marks, and what is missing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from rlkd_lab.lab.live.completions import Shown
from rlkd_lab.lab.live.token_colours import PERCENTILE, on_axis
from rlkd_lab.lab.live.tokens import ARRAYS, MARKS, Kind, Values

RANGE_OF: dict[Kind, str] = {"step": "of this step's rollout", "probe": "of the probes shown"}
MARK_TITLES = {"dead": "dead tokens", "bound": "bounded tokens"}
MARK_LOOKS = {"dead": "struck through, in a dashed box", "bound": "underlined twice"}


# --- numbers --------------------------------------------------------------------------------------


def number(value: float) -> str:
    """Return a value with three digits and a true minus sign.

    >>> [number(value) for value in (-0.12345, -0.0, float("inf"))]
    ['−0.123', '0', 'inf']
    """
    value = value + 0.0  # no −0
    text = f"{value:.3g}" if np.isfinite(value) else str(value)
    return text.replace("-", "−")


def percent(logp: float) -> str:
    """Return a log-probability as a probability in %."""
    share = 100 * float(np.exp(logp))
    return f"{share:.2f} %" if share >= 0.01 else "< 0.01 %"


def colour_ends(name: str, limit: float) -> tuple[str, str, str]:
    """Return the values at the left end, the middle and the right end of the colours."""
    scale = ARRAYS[name].scale
    if scale == "ratio":
        return number(np.exp(-limit)), "1", number(np.exp(limit))
    if scale == "positive":
        return "0", number(limit / 2), number(limit)
    return number(-limit), "0", number(limit)


# --- sentences ------------------------------------------------------------------------------------


def range_sentence(name: str, limit: float, shown: Iterable[Values], where: str) -> str:
    """Return where the colours end, and how many of the tokens shown lie beyond."""
    beyond = int(sum((np.abs(on_axis(name, values)) > limit).sum() for values in shown))
    low, _, high = colour_ends(name, limit)
    ends = {"signed": f"±{high}", "positive": high, "ratio": f"{low} and {high}"}
    counts = {0: "no token shown lies beyond", 1: "1 token shown lies beyond"}
    count = counts.get(beyond, f"{beyond} tokens shown lie beyond")
    end = ends[ARRAYS[name].scale]
    return f"Colours end at {end} (the {PERCENTILE}th percentile {where}, zeros aside); {count}."


def constant_sentence(name: str, shown: list[Values]) -> str:
    """Return a sentence where every token has the neutral value, else an empty string."""
    if not all((np.abs(on_axis(name, values)) == 0).all() for values in shown):
        return ""
    neutral = "1" if ARRAYS[name].scale == "ratio" else "0"
    return f"It is {neutral} at every token shown."


def completion_words(row: pd.Series) -> str:
    """Return right or wrong, reward and length of a completion."""
    parts = []
    if row.get("correct") is not None:
        parts.append("right" if row["correct"] else "wrong")
    if row.get("reward") is not None:
        parts.append(f"reward {number(row['reward'])}")
    return ", ".join([*parts, f"{len(row['ids'])} tokens"])


def reward_words(row: pd.Series, weights: Mapping[str, float]) -> str:
    """Return the reward of a completion as the weighted sum of its parts.

    Args:
        row: the completion.
        weights: of the parts, by name; parts without weight are listed apart.
    """
    if row.get("reward") is None:
        return "no reward was recorded"
    parts = row.get("parts")
    parts = json.loads(parts) if isinstance(parts, str) else parts
    parts = {name: value for name, value in (parts or {}).items() if value is not None}
    words = f"reward {number(row['reward'])}"
    if not parts:
        return words + " (its parts were not recorded)"
    weighed, others = [], []
    for name, value in parts.items():
        text = f"{name} {number(value)}"
        if weights.get(name):
            weighed.append(f"{number(weights[name])} × {text}")
        else:
            others.append(text)
    if weighed:
        words += " = " + " + ".join(weighed)
    return words + (f" (without weight: {', '.join(others)})" if others else "")


def cut_words(row: pd.Series, left_out: bool) -> str:
    """Return a sentence where the length limit cut a completion, else an empty string."""
    finished = row.get("finished")
    if finished is None or finished:
        return ""
    return "Cut by the length limit" + (", so left out of the loss." if left_out else ".")


def token_label(one: Shown, position: int, name: str, values: Values | None) -> str:
    """Return the words of a token's button: place, text, value and marks."""
    words = f"token {position + 1} of {len(one.tokens)}: {one.tokens[position]}"
    if values is not None:
        words += f", {ARRAYS[name].title} {number(values[position])}"
    for mark, meaning in MARKS.items():
        if one.marked(mark, position):
            words += f", {meaning.partition(':')[0]}"
    return words


def token_values(one: Shown, position: int, across: bool) -> list[tuple[str, str]]:
    """Return every recorded value of a token, (name, value)."""
    place = f"{position + 1} of {len(one.tokens)}"
    pairs = [("token", one.tokens[position]), ("position", place)]
    if across:
        pairs.append(("step", str(one.step)))
    for name, arrays in one.data.arrays.items():
        if name in ARRAYS:
            pairs.append((ARRAYS[name].title, number(arrays[one.index][position])))
    for mark, title in (("dead", "dead"), ("bound", "bounded")):
        if one.values(mark) is not None:
            pairs.append((title, "yes" if one.marked(mark, position) else "no"))
    return pairs


def missing_words(missing: Mapping[str, str], method: str) -> list[str]:
    """Return a sentence for each reason why arrays are missing.

    TRRD's arrays are named only for TRRD.
    """
    titles: dict[str, list[str]] = {}
    for name, why in missing.items():
        if method == "trrd" or name not in ("trrd_ratio", "bound"):
            title = ARRAYS[name].title if name in ARRAYS else MARK_TITLES[name]
            titles.setdefault(why, []).append(title)
    return [f"Not here: {', '.join(names)}: {why}." for why, names in titles.items()]


def alternatives_words(frame: pd.DataFrame) -> str:
    """Return a sentence about the completions of a step that have other likely tokens."""
    groups = frame["group"].tolist()
    prompts = list(dict.fromkeys(groups))
    have = []
    for i, group in enumerate(groups):
        if "top_logps" in frame and is_list(frame["top_logps"].iloc[i]):
            sample = i - groups.index(group) + 1
            have.append(f"prompt {prompts.index(group) + 1}, sample {sample}")
    where = "; ".join(have) or "none"
    return (
        "The models' other likely tokens were not recorded for this completion: "
        f"this step has them for {where}. "
        "With “same prompt across steps” every completion has them."
    )


def is_list(value: object) -> bool:
    """Return whether a recorded cell holds several values."""
    return isinstance(value, list | tuple | np.ndarray)


def shorten(text: str, length: int = 40) -> str:
    """Return a text in one line of at most ``length`` characters."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"
