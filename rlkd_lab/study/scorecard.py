"""The scorecard of a study, as Markdown and as a table.

``OUT/scorecard.md`` and ``OUT/scorecard.csv`` say what became of the claims.
They use the parts that have ended.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from rlkd_lab.objectives import METHODS
from rlkd_lab.study.claims import (
    CLAIMS,
    PAIRS,
    PAPERS,
    Verdict,
    judge_claims,
    on_other_pairs,
)
from rlkd_lab.study.comparing import Side
from rlkd_lab.study.effects import Check, Effect, strict
from rlkd_lab.study.parts import SESSIONS, TABLES, Part, Study, by_arm
from rlkd_lab.study.statistics import POWER
from rlkd_lab.study.study import PARTS, read_study
from rlkd_lab.study.sweep import CHOSEN
from rlkd_lab.study.teacher_map import READINGS, TEACHERS, gains

EDGE = ", on the edge"
EFFECT = ("gain", "low", "high", "seeds")
"""Columns of a cell of the map that make an effect."""
MEASURES = {
    "id avg": "accuracy",
    "ood avg": "accuracy, ood",
    "id length": "length",
    "kl_teacher_rev": "KL to the teacher",
    "sampled_tokens": "tokens sampled",
}
SECONDS = "train_seconds"
"""Shown as a median, since other work on the machine stalls single runs."""
SHORT = {"kd_coef": "β", "trrd_alpha": "α", "learning_rate": "rate", "teacher_quant": "teacher in"}
"""What words write for the settings that arms are named after."""
OWN_ARMS = {
    "grpo_sequence": "GRPO, averaged by completion",
    "kdrl_k3": "KDRL, k3",
    "kdrl_advantage_annealed": "KDRL, advantage form, annealed",
}
"""Titles of arms that are no method of the table."""


def in_words(text: str) -> str:
    """Return arms, or a comparison of arms, with the titles of methods.

    >>> in_words("kdrl_masked,kd_coef=0.03 ≥ kdrl: accuracy")
    'KDRL, masked (β 0.03) ≥ KDRL: accuracy'
    """
    text = re.sub(r"((?:,\w+=[^ ,]*[^ ,:])+)", _settings, text)
    titles = {name: method.title for name, method in METHODS.items()} | OWN_ARMS
    return re.sub(r"\w+", lambda word: titles.get(word[0], word[0]), text)


def _settings(found: re.Match[str]) -> str:
    pairs = [one.split("=") for one in found[0][1:].split(",")]
    shown = [f"{SHORT.get(name, name)} {value}" for name, value in pairs]
    return re.sub(r"linear:([\d.]+):", r"\1 to ", f" ({', '.join(shown)})")


def comparisons(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """Return a row for each comparison, with its claim: what ``scorecard.csv`` holds."""
    rows: list[dict[str, Any]] = []
    for verdict in verdicts:
        claim = CLAIMS[verdict.number - 1]
        shared = {
            "claim": claim.number,
            "source": claim.source,
            "text": claim.text,
            "verdict": verdict.outcome,
            "on_the_edge": verdict.edge,
        }
        found = [_comparison(check, verdict.among) for check in verdict.checks] or [{}]
        rows += [{**shared, **one, "note": in_words(verdict.note)} for one in found]
    table = pd.DataFrame(rows)
    return table.astype({"seeds": "Int64"}) if "seeds" in table else table


def _comparison(check: Check, among: int) -> dict[str, Any]:
    ours, theirs = check.collapsed or (None, None)
    best = check.best or Effect(math.nan, math.nan, math.nan, 0)
    return {
        "comparison": in_words(check.text),
        "effect": check.effect.mean,
        "low": check.effect.low,
        "high": check.effect.high,
        "degrees_of_freedom": check.effect.df,
        "seeds": check.effect.seeds,
        "would_see": check.seen,
        "would_support_equality": check.seen_if_equal,
        "best_effect": best.mean,
        "best_low": best.low,
        "best_high": best.high,
        "collapsed": ours,
        "collapsed_other": theirs,
        "outcome": check.outcome,
        "outcome_at_face_value": check.face,
        "outcome_of_all": strict(check, among),
        "doubt": check.doubt,
    }


def scorecard(study: Study, out: str | Path) -> str:
    """Return the scorecard of a study as Markdown.

    It has claims, comparisons, how settings were chosen, means, and cost.
    """
    verdicts = judge_claims(study)
    sections = [("# Scorecard", claim_lines(verdicts))]
    sections += [("## Comparisons", comparison_lines(verdicts))]
    for part in ("core", "logic"):
        if rows := pair_lines(study, part):
            sections += [(f"## The comparisons of `{part}` with other models", rows)]
    if "map" in study:
        sections += [("## When a teacher helps", map_lines(study["map"]))]
    sections += [("## Settings and their choice", _tuning(study, Path(out)))]
    sections += [("## Methods, means over seeds", _methods(study))]
    sections += [("## Cost", _cost(study, Path(out)))]
    return "\n".join(line for title, lines in sections for line in (title, "", *lines, ""))


def write_scorecard(out: str | Path) -> Path:
    """Judge the tables in a study's folder, and write ``scorecard.md`` and ``scorecard.csv``."""
    study, target = read_study(out), Path(out)
    comparisons(judge_claims(study)).to_csv(target / "scorecard.csv", index=False)
    (target / "scorecard.md").write_text(scorecard(study, out), encoding="utf-8")
    return target / "scorecard.md"


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _table(head: str, rows: Iterable[str]) -> list[str]:
    """Return the lines of a Markdown table."""
    return [head, "|---" * (head.count("|") - 1) + "|", *rows]


def claim_lines(verdicts: Sequence[Verdict]) -> list[str]:
    """Return a table of the claims and what became of them."""
    rows = [
        _row(c.number, c.source, c.text, f"**{v.outcome}**{EDGE * v.edge}", _sentences(v.note))
        for c, v in zip(CLAIMS, verdicts, strict=True)
    ]
    papers = ", ".join(f"{name} is {paper}" for name, paper in PAPERS.items())
    return [f"Sources: {papers}.", "", *_table("| | source | claim | here | note |", rows)]


def _sentences(note: str) -> str:
    """Return the parts of a note as sentences."""
    parts = [in_words(part) for part in note.split("; ") if part]
    return " ".join(f"{part[0].upper()}{part[1:]}." for part in parts)


def comparison_lines(verdicts: Sequence[Verdict]) -> list[str]:
    """Return a table of the comparisons, with what it means."""
    among = max(verdict.among for verdict in verdicts)
    words = [
        "**Effect**: at the last step, on test prompts, with its 95 % interval over seeds. Arms are"
        " independent groups of runs (Welch). All runs answer the same test prompts.",
        "**Best**: the same at each run's best checkpoint on validation prompts, where checkpoints"
        " were evaluated on test prompts.",
        f"**Would see**: the smallest true difference that would have been decided with a"
        f" probability of {POWER:.0%}, other prompts included. A smaller one may be there unseen.",
        "**Collapsed**: runs of either side that lost half of the accuracy that they had reached,"
        " or diverged.",
        f"**Of all**: the outcome if {among} intervals must hold at once with 95 %, those of"
        " parts that are not run yet included"
        " (Bonferroni). A verdict that would not be the same is on the edge.",
    ]
    rows = [
        _row(
            verdict.number,
            in_words(check.text),
            _with_interval(check.effect),
            _with_interval(check.best) if check.best else "–",
            number(check.seen).lstrip("+"),
            check.effect.seeds,
            " and ".join(map(str, check.collapsed)) if check.collapsed else "–",
            said(check, verdict.why),
            strict(check, verdict.among),
        )
        for verdict in verdicts
        for check in verdict.checks
    ]
    head = "| claim | comparison | effect | best | would see | seeds | collapsed | here | of all |"
    return [*(f"- {one}" for one in words), "", *_table(head, rows)]


def pair_lines(study: Study, part: str) -> list[str]:
    """Return a table of a part's comparisons on all models; empty where it was not repeated."""
    names = [name for name, (of, _) in PAIRS.items() if of == part and {of, name} <= study.keys()]
    rows = []
    for claim in CLAIMS:
        others = on_other_pairs(claim, study) if claim.needs == (part,) else {}
        for check in claim.checks(study).checks if others else ():
            found = [check, *(each.get(check.text) for each in others.values())]
            shown = (_with_interval(each.effect) if each else "–" for each in found)
            rows.append(_row(claim.number, in_words(check.text), *shown))
    heads = (PAIRS[name][1] for name in names)
    return _table(_row("claim", "comparison", f"`{part}`", *heads), rows) if names else []


def map_lines(part: Part) -> list[str]:
    """Return a table of the map's cells, with what it means."""
    tables = [gains(part, reading) for reading in READINGS]
    seeds = " or ".join(map(str, sorted(set(tables[0]["seeds"]))))
    rows = []
    for cell, *others in zip(*(table.to_dict("records") for table in tables), strict=True):
        effects = [Effect(*(one[name] for name in EFFECT)) for one in (cell, *others)]
        shown = map(_with_interval, effects)
        teacher = TEACHERS.get(cell["teacher"], cell["teacher"])
        title, start = in_words(str(cell["method"])), f"{cell['start']:.0%}"
        rows.append(_row(start, teacher, title, *shown, cell["collapsed"]))
    words = (
        f"Accuracy minus GRPO's on the same student, with Welch's 95 % interval over {seeds} seeds."
        " The last step is read on test prompts. Equal tokens and seconds are read on"
        " validation prompts, where the cheaper of the two had spent all of them."
        " The start is the student's accuracy before training."
    )
    head = "| start | teacher | method | last step | equal tokens | equal seconds | collapsed |"
    return [words, "", *_table(head, rows)]


def said(check: Check, why: str = "") -> str:
    """Return the outcome with the reason for a doubt, or with the power for an equality.

    Where the whole claim is undecided (``why``), an outcome is one at face value.
    """
    if check.doubt:
        face = "" if check.face == "undecided" else f" (at face value {check.face})"
        return f"undecided{face}: {in_words(check.doubt)}"
    if check.equal and check.outcome == "undecided" and check.seen_if_equal == check.seen_if_equal:
        return (
            "undecided (were they equal, these runs would say so with a probability of"
            f" {check.seen_if_equal:.1%})"
        )
    return f"at face value {check.face}" if why and check.face != "undecided" else check.face


def number(value: float) -> str:
    """Return ``+0.012``, ``−3.1``, or a dash for what is not known."""
    return "–" if value != value else f"{value:+.{1 if abs(value) >= 10 else 3}f}".replace("-", "−")


def _with_interval(effect: Effect) -> str:
    return f"{number(effect.mean)} [{number(effect.low)}, {number(effect.high)}]"


def _tuning(study: Study, out: Path) -> list[str]:
    rows = []
    for name in study:
        file = out / name / CHOSEN
        if not file.exists():
            words = "nothing was chosen: the grid is the question"
            if name in PAIRS:
                words = f"the settings of `{PAIRS[name][0]}`"
            rows.append(f"| {name} | all | 0 | {words} | | |")
            continue
        try:
            arms = json.loads(file.read_text(encoding="utf-8"))["arms"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{file} is damaged: delete it, and start the study again") from None
        for arm, found in arms.items():
            trials = found["trials"]
            best = trials[found["best"] - 1]["settings"]
            scores = [trial["accuracy"] for trial in trials]
            chosen = ", ".join(f"{key} = {value}" for key, value in best.items())
            seeds = [trial.get("seeds", 1) for trial in trials]
            shown = ", ".join(map(_of_trial, scores, seeds))
            edge = ", ".join(at_an_edge([trial["settings"] for trial in trials], best))
            rows.append(_row(name, in_words(arm), len(trials), chosen, edge or "–", shown))
    head = "| part | arm | trials | chosen | at an edge | validation accuracy of each trial |"
    return _table(head, rows)


def _of_trial(score: float | None, seeds: int) -> str:
    """Return the accuracy of a trial, with its number of seeds if there are several."""
    return "diverged" if score is None else f"{score:.3f}" + f" ({seeds} seeds)" * (seeds > 1)


def at_an_edge(tried: Sequence[dict[str, Any]], best: dict[str, Any]) -> list[str]:
    """Return the settings of which the lowest or the highest value that was tried was chosen.

    Schedules are ordered by their numbers.

    >>> at_an_edge([{"rate": 1, "beta": 2}, {"rate": 3, "beta": 2}], {"rate": 3, "beta": 2})
    ['rate']
    >>> tried = [{"beta": f"linear:{start}:0:0.3"} for start in (0.1, 0.2, 0.4)]
    >>> at_an_edge(tried, tried[0]), at_an_edge(tried, tried[1])
    (['beta'], [])
    """
    sizes = {name: {_size(one[name]) for one in tried if name in one} for name in best}
    return [
        name
        for name, values in sizes.items()
        if len(values) > 1 and _size(best[name]) in (min(values), max(values))
    ]


def _size(value: object) -> tuple[float, ...]:
    """Return the numbers in a setting."""
    return tuple(map(float, re.findall(r"\d+(?:\.\d+)?(?:e-?\d+)?", str(value))))


def _methods(study: Study) -> list[str]:
    lines: list[str] = []
    for name, part in study.items():
        there = [measure for measure in MEASURES if measure in part.runs]
        rows = []
        for row in by_arm(part.runs, there).to_dict("records"):
            cells = [f"{plain(row[one])} ± {plain(row[f'{one} ±'])}" for one in there]
            if SECONDS in part.runs:
                cells.append(plain(part.runs.loc[part.runs["arm"] == row["arm"], SECONDS].median()))
            rows.append(
                _row(in_words(row["arm"]), row["runs"], Side(part, row["arm"]).lost, *cells)
            )
        titles = [MEASURES[measure] for measure in there]
        titles += ["seconds of training, median"] * (SECONDS in part.runs)
        head = _row("arm", "seeds", "collapsed", *titles)
        made = "; ".join(sorted(part.programs))
        lines += [f"### {name}: {PARTS[name]}", "", f"Version of the program: {made}.", ""]
        lines += [*_table(head, rows), ""]
        if part.left_out:
            lines += [f"Left out: {', '.join(part.left_out)}.", ""]
    return lines[:-1]


def plain(value: float) -> str:
    """Return three digits below ten, one below a thousand, and whole numbers above."""
    if value != value:
        return "–"
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 3
    return f"{value:,.{digits}f}"


def _sessions(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except ValueError:
        raise ValueError(f"{path} is damaged: delete the line that is no JSON") from None


def _cost(study: Study, out: Path) -> list[str]:
    """Return hours of workers from the runs themselves, so that a killed sweep shows them too."""
    rows = []
    for name in study:
        folders = [out / name / "tuning", out / name / "finals", out / name]
        tables = [folder / TABLES[0] for folder in folders if (folder / TABLES[0]).exists()]
        runs = pd.concat([pd.read_csv(table) for table in tables])
        sessions = [session for folder in folders for session in _sessions(folder / SESSIONS)]
        workers, places = (
            ", ".join(sorted({str(one[key]) for one in sessions})) for key in ("workers", "device")
        )
        hours = f"{runs['worker_seconds'].sum() / 3600:.2f}"
        gib = f"{runs['worker_gib'].max():.2f}"
        rows.append(_row(name, len(runs), hours, workers, gib, places))
    head = "| part | runs and trials | worker hours | workers | memory of a worker, GiB | where |"
    return _table(head, rows)
