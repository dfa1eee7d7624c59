"""Accuracy against its price: response length, tokens sampled, seconds of training.

``curves`` is a table with a row for each step: ``curves.parquet`` of a sweep, or
``pandas.concat`` of :func:`rlkd_lab.study.results.curves_of` for other runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from rlkd_lab.plots.points import (
    check_columns,
    count_seeds,
    dot_style,
    note_repeats,
    runs_that_count,
)
from rlkd_lab.plots.styles import (
    finish,
    in_print,
    label_of,
    line,
    literal,
    panel_figure,
    styles_of,
    title_of_arm,
)
from rlkd_lab.study.budgets import Budget, check_steps, shared_budget


@in_print
def plot_frontier(
    runs: pd.DataFrame,
    cost: str = "id length",
    gain: str = "id avg",
    title: str | None = None,
) -> Figure:
    """Draw accuracy against length: a dot for each run, a marker for the mean of each arm.

    The dashed line joins the arms that no other arm beats in both.
    """
    _, kept, omitted = runs_that_count(runs, cost, gain)
    seeds = count_seeds(kept) + omitted + note_repeats(kept, "arm")
    figure, (axes,) = panel_figure(1, height=2.6, columns=1)
    means = kept.groupby("arm", sort=False)[[cost, gain]].mean()
    for arm in dict.fromkeys(kept["arm"]):
        rows = kept[kept["arm"] == arm]
        colour, marker = dot_style(str(rows["method"].iloc[0]))
        axes.scatter(rows[cost], rows[gain], s=9, color=colour, alpha=0.35, linewidths=0)
        x, y = means.loc[arm, cost], means.loc[arm, gain]
        label = literal(title_of_arm(arm), legend=True)
        axes.plot(x, y, marker, color=colour, markersize=6, label=label)
    best = _unbeaten(means, cost, gain)
    axes.plot(best[cost], best[gain], color="#888888", linewidth=1, linestyle="--", zorder=0)
    axes.set_xlabel(label_of(cost))
    axes.set_ylabel(label_of(gain))
    joined = "dashed: arms that no other beats in both"
    if len(best) == 1:
        joined = (
            f"no arm is shorter or more accurate in the mean than {title_of_arm(best.index[0])}"
        )
    return finish(figure, title, f"small dots: seeds; large: means over {seeds}; {joined}")


def _unbeaten(means: pd.DataFrame, cost: str, gain: str) -> pd.DataFrame:
    """Return the arms that no other arm beats in both columns, cheapest first."""
    beaten = []
    for x, y in means.to_numpy():
        as_good = (means[cost] <= x) & (means[gain] >= y)
        better = (means[cost] < x) | (means[gain] > y)
        beaten.append(bool((as_good & better).any()))
    return means[~np.array(beaten)].sort_values(cost)


@in_print
def plot_budget(
    curves: pd.DataFrame,
    budgets: Sequence[Budget] = ("sampled_tokens", "train_seconds"),
    metric: str = "eval/accuracy",
    title: str | None = None,
) -> Figure:
    """Draw a metric against what was spent, a panel for each budget.

    Both budgets include the teacher's share.
    Each seed is faint; the line is the mean of each evaluation over seeds.
    The vertical line is :func:`~rlkd_lab.study.budgets.shared_budget`.

    Raises:
        ValueError: a missing column.
    """
    check_columns(budgets, "budget")
    check_steps(curves, *budgets, metric)
    figure, panels = panel_figure(len(budgets), height=2.4, columns=2)
    arms = list(dict.fromkeys(curves["arm"]))
    methods = {arm: str(curves.loc[curves["arm"] == arm, "method"].iloc[0]) for arm in arms}
    styles = styles_of(methods)
    for axes, budget in zip(panels, budgets, strict=True):
        for arm in arms:
            rows = curves[(curves["arm"] == arm) & curves[metric].notna()]
            for _, one in rows.groupby("seed"):
                axes.plot(one[budget], one[metric], alpha=0.2, linewidth=0.6, color=styles[arm][0])
            mean = rows.groupby("step")[[budget, metric]].mean()
            look = line(styles[arm], label=literal(title_of_arm(arm), legend=True))
            axes.plot(mean[budget], mean[metric], marker="o", markersize=3, **look)
        limit = shared_budget(curves, budget)
        axes.axvline(limit, color="#888888", linewidth=0.8, linestyle="--")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 40k
        axes.set_xlabel(label_of(budget))
        axes.set_ylabel(label_of(metric))
    seeds = count_seeds(curves.dropna(subset=[metric]))
    caption = f"each seed faint, mean over {seeds}; dashed: what the cheapest arm spends"
    return finish(figure, title, caption)
