"""What a table of completions adds up to, and how two models compare on the same prompts.

Everything here works on the table alone, without a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from rlkd_lab.study.statistics import (
    Difference,
    avg_at_k,
    bootstrap,
    chance_pass_at_k,
    check_k,
    majority_at_k,
    paired_bootstrap,
    pass_at_k,
    pass_at_k_of_counts,
)

SETS = {"id": "in distribution", "ood": "out of distribution"}


def powers_of_two(samples: int) -> list[int]:
    """Return 1, 2, 4, … up to the number of samples: the k that are reported by default.

    >>> powers_of_two(12)
    [1, 2, 4, 8]
    """
    return [2**i for i in range(samples.bit_length())]


def samples_of(frame: pd.DataFrame) -> int:
    """Return the number of samples per prompt in a table."""
    return int(frame.loc[frame["mode"] == "sample", "sample"].max()) + 1


def check_ks(ks: Sequence[int] | None, samples: int) -> None:
    """Raise ValueError for a k that this number of samples cannot give."""
    for k in ks or ():
        check_k(k, samples)


def per_prompt(frame: pd.DataFrame, ks: Sequence[int]) -> pd.DataFrame:
    """Return a row for each prompt of one set, with a column for each measure.

    The measures are ``avg``, ``greedy`` (where there is one), ``pass@k`` for each k,
    ``majority@k`` for each k above 2, ``truncated``, ``badly_formatted`` and ``length``.
    A truncated completion is never badly formatted: the two shares do not overlap.

    Raises:
        ValueError: a k is larger than the number of samples, or prompts have unequal numbers
            of samples.
    """
    sampled = frame[frame["mode"] == "sample"].sort_values(["prompt_id", "sample"], kind="stable")
    counts = sampled.groupby("prompt_id").size()
    if counts.empty or counts.nunique() > 1:
        raise ValueError("the table is torn: its prompts have unequal numbers of samples, or none")

    def matrix(name: str) -> Any:
        return sampled[name].to_numpy().reshape(len(counts), int(counts.iloc[0]))

    correct, formatted, finished = map(matrix, ("correct", "formatted", "finished"))
    answers = matrix("extracted").astype(object)
    answers[pd.isna(answers)] = None
    measures = {"avg": avg_at_k(correct)}
    greedy = frame[frame["mode"] == "greedy"].set_index("prompt_id")["correct"]
    if len(greedy):
        measures["greedy"] = greedy.reindex(counts.index).to_numpy(dtype=float)
    measures |= {f"pass@{k}": pass_at_k(correct, k) for k in ks}
    # of one or two answers the majority is the average
    measures |= {f"majority@{k}": majority_at_k(answers.tolist(), correct, k) for k in ks if k > 2}
    measures["truncated"] = 1.0 - finished.mean(1)
    measures["badly_formatted"] = (finished & ~formatted).mean(1)
    measures["length"] = matrix("length").mean(1)
    return pd.DataFrame(measures, index=counts.index)


def chance_at_k(chances: pd.DataFrame, k: int) -> float:
    """Return pass@k of guesses, from ``chance`` and ``guesses`` by prompt.

    An estimated chance gives an unbiased pass@k of the same guesses.
    A noisy probability in 1 − (1 − p)^k would make the line too low.
    NaN: there are fewer guesses than k.
    """
    guesses = int(chances["guesses"].min())
    if int(chances["guesses"].max()) == 0:
        return chance_pass_at_k(chances["chance"], k)
    if guesses < k:
        return float("nan")
    return float(pass_at_k_of_counts((chances["chance"] * guesses).round(), guesses, k).mean())


def summarise(frame: pd.DataFrame, ks: Sequence[int] | None = None) -> pd.DataFrame:
    """Return what a table adds up to, a row for each number.

    The columns are ``set``, ``difficulty`` ("all" or one level), ``measure``, ``value``,
    ``low`` and ``high``.
    Measures of :func:`per_prompt` have a 95 % bootstrap interval over prompts.
    Others have none: ``chance@k``, ``prompts``, ``samples``, ``length_correct``, ``length_wrong``.
    The last two are tokens over completions; NaN: there is no such completion.

    Raises:
        ValueError: a k is larger than the number of samples.
    """
    ks = powers_of_two(samples_of(frame)) if ks is None else ks
    columns = ["set", "difficulty", "measure", "value", "low", "high"]
    rows = []
    for name, part in frame.groupby("set", sort=False):
        table = per_prompt(part, ks)
        for level in ("all", *sorted(part["difficulty"].unique().tolist())):
            chosen = part if level == "all" else part[part["difficulty"] == level]
            rows += [(name, level, *row) for row in _numbers(chosen, table, ks)]
    return pd.DataFrame(rows, columns=columns)


def _numbers(
    part: pd.DataFrame, table: pd.DataFrame, ks: Sequence[int]
) -> Iterator[tuple[str, float, float, float]]:
    """Return (measure, value, low, high) of some prompts of one set."""
    none = (float("nan"), float("nan"))
    prompts = part.drop_duplicates("prompt_id").set_index("prompt_id")
    yield "prompts", len(prompts), *none
    yield "samples", samples_of(part), *none
    for measure, values in table.loc[prompts.index].items():
        interval = bootstrap(values)
        yield str(measure), interval.mean, interval.low, interval.high
    for k in ks:
        yield f"chance@{k}", chance_at_k(prompts, k), *none
    sampled = part[part["mode"] == "sample"]
    for suffix, right in (("correct", True), ("wrong", False)):
        lengths = sampled.loc[sampled["correct"] == right, "length"]
        yield f"length_{suffix}", float(lengths.mean()), *none


def compare_frames(
    a: pd.DataFrame, b: pd.DataFrame, ks: Sequence[int] | None = None
) -> pd.DataFrame:
    """Compare two models on the same prompts, a row for each set and measure.

    The columns are both means, ``difference`` (a − b), its 95 % interval ``low`` to ``high``,
    and ``p``.
    Interval and ``p`` are over prompts and samples, so they are about these two checkpoints.
    Two seeds of one method have p < .05 in about half of all pairs.
    :func:`~rlkd_lab.study.sides.compare_runs` compares methods.

    Raises:
        ValueError: the prompts or sets differ, or a k is larger than the number of samples of
            either.
    """
    ks = powers_of_two(min(samples_of(a), samples_of(b))) if ks is None else ks
    if sorted(a["set"].unique()) != sorted(b["set"].unique()):
        raise ValueError(
            f"the sets differ: {', '.join(a['set'].unique())} against"
            f" {', '.join(b['set'].unique())}"
        )
    rows = []
    for name in a["set"].unique():
        ours, theirs = (per_prompt(frame[frame["set"] == name], ks) for frame in (a, b))
        for measure in [measure for measure in ours if measure in theirs]:
            found = paired_bootstrap(ours[measure], theirs[measure])
            means = {"a": ours[measure].mean(), "b": theirs[measure].mean()}
            rows.append({"set": name, "measure": measure, **means, **difference_row(found)})
    return pd.DataFrame(rows)


def difference_row(found: Difference) -> dict[str, float]:
    """Return the columns of a comparison that say how the two sides differ."""
    return {"difference": found.mean, "low": found.low, "high": found.high, "p": found.p}
