"""Recorded completions in a run's report, coloured as the token inspector colours them."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import numpy as np

from rlkd_lab.lab.live.completions import Shown, choose
from rlkd_lab.lab.live.inspector_html import cells, legend_html, text, tokens_html
from rlkd_lab.lab.live.inspector_words import completion_words, reward_words, shorten
from rlkd_lab.lab.live.token_colours import colour_limit
from rlkd_lab.lab.live.token_view import PAGE
from rlkd_lab.lab.live.tokens import ARRAYS, Kind, token_arrays
from rlkd_lab.runs import RunFolder

STEPS = 4
"""Recorded steps at which a fixed prompt is shown."""
TOKENS = 200
"""Tokens of a completion; later ones are left out."""
PROMPT = 600
"""Letters of a prompt."""


def samples(folder: RunFolder, config: dict[str, Any]) -> str:
    """Return fixed prompts at several steps, and completions of the last recorded step."""
    parts = []
    kinds: tuple[tuple[Kind, str], ...] = (
        ("probe", "The same prompts at several steps"),
        ("step", "The last recorded step"),
    )
    for kind, title in kinds:
        if folder.sample_steps(kind):
            try:
                part = _part(folder, config, kind)
            except (OSError, ValueError, KeyError) as error:
                part = f"<p>Not shown: {text(error)}</p>"
            parts.append(f"<h3>{title}</h3>{part}")
    return "".join(parts) or "<p>No completions were recorded (<code>samples_every</code>).</p>"


def _part(folder: RunFolder, config: dict[str, Any], kind: Kind) -> str:
    recorded = folder.sample_steps(kind)
    across = kind == "probe"
    places = np.linspace(0, len(recorded) - 1, min(STEPS, len(recorded)))
    steps = [recorded[i] for i in places.round().astype(int)] if across else recorded[-1:]
    sets = [token_arrays(folder, step, kind=kind) for step in steps]
    asked = [(0, 0), (1, 0)] if across else [(i, k) for i in range(3) for k in range(2)]
    shown: dict[int, dict[tuple[int, int], Shown]] = {}
    for prompt, sample in asked:
        for data in sets:
            one = choose(data, across, prompt, sample)  # cut to what there is
            shown.setdefault(one.prompt, {})[one.step, one.sample] = one
    every = [one for group in shown.values() for one in group.values()]
    name = next(name for name in ARRAYS if name in sets[0].arrays)
    limit = colour_limit(name, [values for data in sets for values in data.arrays.get(name, [])])
    legend = legend_html(every, name, limit, kind, str(config.get("method")), 0)
    groups = "".join(_group([*group.values()], name, limit, config) for group in shown.values())
    words = f"Step {', '.join(map(str, steps))}; {len(recorded)} recorded."
    paper = f'<div class="paper">{legend}<div style="{PAGE}">{groups}</div></div>'
    return f"<p>{words}</p>{paper}"


def _group(shown: Sequence[Shown], name: str, limit: float, config: dict[str, Any]) -> str:
    """Return completions of one prompt below it."""
    row = shown[0].row
    prompt = text(shorten(str(row["prompt"]), PROMPT))
    head = f'<p style="margin:16px 0 4px"><b>Prompt</b> {prompt}'
    if row.get("answer") is not None:
        head += f" <b>answer</b> {text(shorten(str(row['answer']), PROMPT))}"
    return head + "</p>" + "".join(_completion(one, name, limit, config) for one in shown)


def _completion(one: Shown, name: str, limit: float, config: dict[str, Any]) -> str:
    total = len(one.tokens)
    window = f"the first {TOKENS} of {total} tokens" if total > TOKENS else ""
    block = {
        "title": f"step {one.step}, sample {one.sample + 1}: {completion_words(one.row)}",
        "cells": cells(one, 0, min(total, TOKENS), name, limit),
        "window": window,
    }
    reward = html.escape(reward_words(one.row, dict(config.get("reward", {}))))
    return f'{tokens_html(block, None)}<div style="font-size:13px">{reward}</div>'
