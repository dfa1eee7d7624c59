"""Draw the family of methods, `docs/family.svg`, and its table in `docs/family.md`.

`python docs/method_pages.py` writes both. What a method changes is read from its row.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from html import escape
from typing import Any

from rlkd_lab.objectives import METHODS, opd_rules, rules
from rlkd_lab.objectives.method import Method
from rlkd_lab.objectives.methods import resolve_options

COLUMNS = {
    "samples": ("samples from", "#FBE3C4"),
    "penalty": ("penalty P", "#CDEBDF"),
    "advantage": ("advantage A", "#CFE3F4"),
    "ratio": ("ratio ρ, and its clip", "#F2D8E6"),
    "numbers": ("numbers alone", "#E4E4E4"),
}
"""The terms with their titles and colours, so that terms that change together are neighbours."""
SAID: dict[Callable[..., Any] | Any, str] = {
    rules.from_student: "the student",
    rules.from_teacher: "the teacher",
    rules.from_both: "both",
    rules.from_either: "either, step by step",
    rules.importance_ratio: "π_θ/π_old",
    rules.trrd_ratio: "(π_θ/π_old)^α·(π_θ/π_T)^(1−α)",
    rules.clipped: "clipped",
    rules.cispo: "cut, its gradient kept",
    rules.shaped: "clipped; on traces p/(p + γ)",
    rules.reinforce: "1: REINFORCE",
    rules.reward_advantage: "Â",
    rules.remaining_advantage: "(1 − μ)·Â",
    rules.teacher_advantage: "d",
    rules.joint_advantage: "Â + β·d",
    rules.routed_advantage: "Â if right, β·d if wrong",
    rules.sized_advantage: "Â, its size by d",
    opd_rules.gated_advantage: "d where the verdict agrees",
    opd_rules.group_gated_advantage: "d where Â agrees",
    opd_rules.extrapolated_advantage: "d, past the teacher",
    opd_rules.centred_advantage: "d + KL(π_θ‖π_T)",
    opd_rules.positive_advantage: "max(0, d)",
    opd_rules.early_advantage: "d, more at the start",
    opd_rules.floored_advantage: "max(d, floor)",
    opd_rules.power_advantage: "π_T^a − π_old^a",
    opd_rules.sparse_advantage: "Â + β·c·tanh(d), on few tokens",
    opd_rules.unlikely_advantage: "−b on unlikely tokens",
    rules.likelihood_penalty: "−log π_θ",
    rules.trace_penalty: "−μ·p·(1 − p)·log π_θ on traces",
    rules.teacher_penalty: "β·k2 to the teacher",
    opd_rules.sigmoid_penalty: "β·σ(b·R)·R",
    opd_rules.reward_gated_penalty: "where Â agrees:",
    opd_rules.unsure_penalty: "where the teacher is unsure:",
    opd_rules.negative_penalty: "where d ≤ 0:",
}
"""What each rule is, in a few words. A new rule gets its own here."""
KLS = {"reverse": "KL(π_θ‖π_T)", "forward": "KL(π_T‖π_θ)", "jsd": "JSD"}
DIVERGENT = (
    rules.divergence_penalty,
    opd_rules.reward_gated_penalty,
    opd_rules.unsure_penalty,
    opd_rules.negative_penalty,
)
WIDE, HIGH, LEFT = 183, 61, 8
"""Of a box, and the left edge of the first, in SVG units."""


def base_of(row: Method) -> str:
    """Return the method that a row is a change of: SFT with traces, GRPO with reward, else OPD."""
    if "traces" in row.needs and "groups" not in row.needs:
        return "sft"
    return "grpo" if "rl_coef" in row.coefs or "traces" in row.needs else "opd"


def terms_of(row: Method) -> dict[str, str]:
    """Return the words for each term of a row, without its numbers."""
    ratio = "–"
    if row.ratio is not None:
        ratio = f"{SAID[row.ratio]}, {SAID[row.surrogate]}"
        if row.surrogate is rules.reinforce:
            ratio = SAID[row.surrogate]
    penalty = "–" if row.penalty is None else SAID.get(row.penalty, "")
    if row.penalty in DIVERGENT:
        penalty = f"{penalty} {KLS[str(resolve_options(row)['divergence'])]}".strip()
    return {
        "samples": SAID[row.samples],
        "penalty": penalty,
        "advantage": "–" if row.advantage is None else SAID[row.advantage],
        "ratio": ratio,
    }


def choices_of(row: Method) -> list[str]:
    """Return the options that differ from the base's, and the knobs that move."""
    mine, theirs = (resolve_options(each) for each in (row, METHODS[base_of(row)]))
    differ = [
        f"{name}={mine[name]}"
        for name in mine
        if mine[name] != theirs[name] and name not in ("divergence", "aggregation")
    ]
    if mine["aggregation"] == "constant":
        differ.append("constant length")
    return differ + [f"{name} moves" for name in row.schedules]


def numbers_of(row: Method) -> str:
    """Return the options, schedules and shared coefficients that differ from the base's."""
    base = METHODS[base_of(row)].coefs
    shared = [name for name in row.coefs if name in base and name not in row.schedules]
    differ = [f"{n}={row.coefs[n]:g}" for n in shared if row.coefs[n] not in (base[n], None)]
    return ", ".join(choices_of(row) + differ)


def changed(key: str) -> list[str]:
    """Return the terms in which a method differs from its base; ``numbers`` if only they do."""
    row = METHODS[key]
    base = terms_of(METHODS[base_of(row)])
    found = [name for name, words in terms_of(row).items() if words != base[name]]
    return found or (["numbers"] if numbers_of(row) else [])


def table() -> str:
    """Return the family as a table; what a method changes is bold."""
    titles = [title for title, _ in COLUMNS.values()]
    lines = ["| method | " + " | ".join([*titles[:-1], "numbers"]) + " |", "|---" * 6 + "|"]
    for base in ("sft", "grpo", "opd"):
        for key in _members(base):
            new = changed(key)
            row = METHODS[key]
            cells = [
                f"**{words}**" if name in new else words for name, words in terms_of(row).items()
            ]
            cells.append("" if key == base else numbers_of(row))
            cells = [cell.replace("|", "\\|").replace("_", "\\_") for cell in cells]
            lines.append(f"| [{row.title}](methods/{key}.md) | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def drawing() -> str:
    """Return the map as SVG: a band for each base, a box for each method over what it changes."""
    lines: list[str] = []

    def text(x: float, y: float, words: str, more: str = "") -> None:
        lines.append(f'<text x="{x:g}" y="{y:g}"{more}>{escape(words)}</text>')

    bold, middle = ' font-weight="bold"', ' text-anchor="middle"'
    for at, (title, colour) in enumerate(COLUMNS.values()):
        x = LEFT + at * WIDE
        lines.append(f'<rect x="{x}" y="8" width="{WIDE - 8}" height="26" fill="{colour}"/>')
        text(x + (WIDE - 8) / 2, 26, title, middle + bold)
    y = 46
    for base in ("sft", "grpo", "opd"):
        lines.append(f'<path d="M{LEFT} {y}h{5 * WIDE - 8}" stroke="#222"/>')
        row = METHODS[base]
        text(LEFT, y + 22, row.title, bold + ' font-size="15"')
        for at, words in enumerate(terms_of(row).values()):
            text(LEFT + at * WIDE + (6 if at else 60), y + 22, words.replace("–", "none"))
        y += 34
        places, rows = _places([key for key in _members(base) if key != base])
        for key, (first, last, line) in places.items():
            _box(lines, text, key, LEFT + first * WIDE, y + line * HIGH, last - first + 1)
        y += rows * HIGH + 10
    size = (LEFT + 5 * WIDE, y)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]} {size[1]}"'
        ' font-size="12.5" font-family="sans-serif" fill="#222">'
        f'<rect width="{size[0]}" height="{size[1]}" fill="white"/>'
    )
    return "\n".join([head, *lines, "</svg>", ""])


def _members(base: str) -> list[str]:
    """Return the methods of a base, itself first, those that change the same terms together."""
    order = list(COLUMNS)
    keys = [key for key, row in METHODS.items() if base_of(row) == base and key != base]
    return [base, *sorted(keys, key=lambda key: sorted(map(order.index, changed(key))))]


def _places(keys: list[str]) -> tuple[dict[str, tuple[int, int, int]], int]:
    """Return first column, last column and line of each box, and the number of lines."""
    order, taken = list(COLUMNS), [0] * len(COLUMNS)
    found = {}
    for key in sorted(keys, key=lambda key: -len(changed(key))):
        at = sorted(map(order.index, changed(key)))
        line = max(taken[at[0] : at[-1] + 1])
        for column in range(at[0], at[-1] + 1):
            taken[column] = line + 1
        found[key] = (at[0], at[-1], line)
    return found, max(taken)


def _box(
    lines: list[str], text: Callable[..., None], key: str, x: float, y: float, span: int
) -> None:
    """Draw a method over the terms that it changes, each in its colour, with its words."""
    row, new, terms = METHODS[key], changed(key), list(COLUMNS)
    first = terms.index(new[0])
    for at in range(first, first + span):
        _, colour = COLUMNS[terms[at]]
        wide = WIDE if at < first + span - 1 else WIDE - 8
        left = x + (at - first) * WIDE
        lines.append(
            f'<rect x="{left}" y="{y}" width="{wide}" height="{HIGH - 6}" fill="{colour}"/>'
        )
        words = terms_of(row).get(terms[at], numbers_of(row)).replace("–", "none")
        if at == first and new != ["numbers"]:
            words = ", ".join([words, *choices_of(row)])
        for n, part in enumerate(textwrap.wrap(words, 32, break_on_hyphens=False)):
            text(left + 6, y + (28 if at == first else 15) + 11 * n, part, ' font-size="10"')
    text(x + 6, y + 15, row.title, ' font-weight="bold"')
