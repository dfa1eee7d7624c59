"""The study: sweeps that belong together, their tables, and the scorecard of the claims.

Each part is a sweep file in ``sweeps/``, and ``OUT/PART`` its folder. ``OUT/scorecard.md`` and
``OUT/scorecard.csv`` say what became of the claims, from the parts that have come to their end.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from rlkd_lab.study.claims import (
    ACCURACY,
    CLAIMS,
    LENGTH,
    Check,
    Study,
    Verdict,
    effect_of,
    judge_claims,
    strict,
)
from rlkd_lab.study.results import SESSIONS, TABLES, by_arm, read_part
from rlkd_lab.study.sweep import CHOSEN, Sweep, read_sweep

PARTS: dict[str, str] = {
    "core": "eight methods, one pair",
    "estimators": "k3 and the exact divergence in KDRL's loss; rejection-sampled SFT",
    "betas": "KDRL's coefficient, fixed and annealed",
    "alphas": "TRRD's α",
    "concise": "a teacher that does not check its work",
    "weak": "a weaker student",
    "weak_concise": "a weaker student, a teacher that does not check",
    "weak_grpo": "a weaker student: GRPO at a lower rate, and averaged over tokens",
    "teacher16": "the teacher in 16 bits instead of NF4",
    "rates": "KDRL's coefficient by learning rate",
    "masks": "KDRL's mask at fixed coefficients",
    "aggregation": "GRPO's loss averaged over tokens",
    "knights": "Knights and Knaves",
    "knights_betas": "KDRL's coefficient on Knights and Knaves",
}
"""Parts and what each is about, in the order in which they are run."""
PAIRS: dict[str, tuple[str, str, str]] = {
    "core": ("student", "checking teacher", "core"),
    "concise": ("student", "concise teacher", "core"),
    "weak": ("weak student", "checking teacher", "weak"),
    "weak_concise": ("weak student", "concise teacher", "weak"),
}
"""Parts that train both embedded students with both teachers: student, teacher, and the part
with GRPO, which asks no teacher, on that student.
"""
WITH_TEACHER = ("sft", "opd", "opd_then_rl", "kdrl", "trrd")
"""Arms that all of these parts have."""
FOLDER = Path(__file__).parent / "sweeps"
EDGE = ", on the edge"
MANY = 50
"""Seeds that nobody will run: how many more is not said."""
KEPT = (*TABLES, "sweep.json", SESSIONS, CHOSEN)
"""What is copied of a part's folder."""


def sweep_of(part: str, preset: str | None = None) -> Sweep:
    """The sweep of a part, with another preset if it is not about an embedded pair.

    Raises:
        ValueError: no such part, or one that cannot have another preset.
    """
    if part not in PARTS:
        raise ValueError(f"unknown part {part!r}: valid are {', '.join(PARTS)}")
    sweep = read_sweep(FOLDER / f"{part}.toml")
    if preset is None or preset == sweep.preset:
        return sweep
    if not is_general(sweep):
        raise ValueError(f"part {part} is about an embedded pair: --preset cannot change it")
    return sweep.model_copy(update={"preset": preset})


def is_general(sweep: Sweep) -> bool:
    """Whether it leaves the pair to the preset."""
    return sweep.preset == "tiny" and not {"student", "teacher"} & sweep.settings.keys()


def parts_of(core: bool, named: Sequence[str], preset: str | None) -> list[str]:
    """Parts to run: those named, the core alone, or all that the preset allows.

    Raises:
        ValueError: an unknown part, both ways of choosing at once, or a part that cannot have the
            preset.
    """
    if core and named:
        raise ValueError("--core is one part: give --part or --core")
    for name in named:
        sweep_of(name, preset)
    if core or named:
        return list(dict.fromkeys(named)) or ["core"]
    return [name for name in PARTS if preset is None or is_general(sweep_of(name))]


def read_study(out: str | Path) -> Study:
    """The parts of a study whose tables are there, in the order of :data:`PARTS`.

    Raises:
        FileNotFoundError: there is none, or a part lacks one of its tables.
        ValueError: a table is damaged.
    """
    found = {name: read_part(Path(out) / name) for name in _over(out)}
    if not found:
        raise FileNotFoundError(
            f"{out} has no part with its tables ({', '.join(TABLES)}): run `rlkd study` first"
        )
    return found


def _over(out: str | Path) -> list[str]:
    """The parts of a study that have come to their end, by their tables."""
    return [name for name in PARTS if any((Path(out) / name / table).exists() for table in TABLES)]


def copy_tables(out: str | Path, target: str | Path) -> None:
    """Copy the tables of every part that has come to its end, and of its trials, without the run
    folders: small enough for a repository.

    Raises:
        ValueError: the target is the study's own folder.
    """
    if Path(target).resolve() == Path(out).resolve():
        raise ValueError(f"--keep {target} is the study's own folder: its tables are there")
    for name in _over(out):
        for inner in (Path(name), Path(name) / "tuning"):
            found = [
                Path(out) / inner / each for each in KEPT if (Path(out) / inner / each).exists()
            ]
            if found:
                (Path(target) / inner).mkdir(parents=True, exist_ok=True)
            for file in found:
                shutil.copy(file, Path(target) / inner / file.name)


def by_teacher(study: Study) -> pd.DataFrame:
    """Where a teacher helps and what it costs: a row for each student, teacher, arm and seed, with
    ``accuracy``, ``ood`` and ``length`` of the arm minus those of GRPO on that student and seed. No
    row where no pair but the core's was run, which may be that of another preset.
    """
    measures = {"accuracy": ACCURACY, "ood": "ood avg", "length": LENGTH}
    there = {part: pair for part, pair in PAIRS.items() if part in study and pair[2] in study}
    frames = [
        pd.DataFrame(
            {
                name: study[part].of(arm, measure) - study[alone].of("grpo", measure)
                for name, measure in measures.items()
            }
        )
        .rename_axis("seed")
        .reset_index()
        .assign(student=student, teacher=teacher, arm=arm)
        for part, (student, teacher, alone) in there.items()
        if there.keys() - {"core"}
        for arm in WITH_TEACHER
    ]
    columns = ["student", "teacher", "arm", "seed", *measures]
    return (
        pd.concat(frames, ignore_index=True)[columns] if frames else pd.DataFrame(columns=columns)
    )


# --- the scorecard --------------------------------------------------------------------------------


def comparisons(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """A row a comparison, with its claim: what stands in ``scorecard.csv``."""
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
        for check in verdict.checks or (None,):
            row: dict[str, Any] = dict(shared)
            if check is not None:
                effect = check.effect
                row |= {
                    "comparison": check.text,
                    "effect": effect.mean,
                    "low": effect.low,
                    "high": effect.high,
                    "seeds": effect.seeds,
                    "outcome": check.outcome,
                }
                row |= {
                    "outcome_of_all": strict(check, verdict.among),
                    "seeds_needed": check.needed,
                }
            rows.append(row | {"note": verdict.note})
    return (
        pd.DataFrame(rows).astype({"seeds": "Int64", "seeds_needed": "Int64"})
        if any(v.checks for v in verdicts)
        else pd.DataFrame(rows)
    )


def scorecard(study: Study, out: str | Path) -> str:
    """The scorecard of a study as Markdown: claims, comparisons, how settings were chosen, what
    it cost.
    """
    verdicts = judge_claims(study)
    lines = [
        "# Scorecard",
        "",
        *_claims(verdicts),
        "",
        "## Comparisons",
        "",
        *_comparisons(verdicts),
    ]
    if rows := _by_teacher(study):
        lines += ["", "## Where a teacher helps", "", *rows]
    lines += [
        "",
        "## Settings and their choice",
        "",
        *_tuning(study, Path(out)),
        "",
        "## Methods, means over seeds",
        "",
    ]
    for name, part in study.items():
        lines += [f"### {name}: {PARTS[name]}", "", *_means(part.runs), ""]
        lines += [f"Left out: {', '.join(part.left_out)}.", ""] if part.left_out else []
    lines += ["## Cost", "", *_cost(study, Path(out)), ""]
    return "\n".join(lines)


def write_scorecard(out: str | Path) -> Path:
    """Judge what lies in a study's folder, and write ``scorecard.md`` and ``scorecard.csv``
    there.
    """
    study, target = read_study(out), Path(out)
    comparisons(judge_claims(study)).to_csv(target / "scorecard.csv", index=False)
    (target / "scorecard.md").write_text(scorecard(study, out), encoding="utf-8")
    return target / "scorecard.md"


def _claims(verdicts: Sequence[Verdict]) -> list[str]:
    lines = ["| | source | claim | here | note |", "|---|---|---|---|---|"]
    lines += [
        f"| {c.number} | {c.source} | {c.text} | **{v.outcome}**{EDGE * v.edge} | {v.note} |"
        for c, v in zip(CLAIMS, verdicts, strict=True)
    ]
    return lines


def _comparisons(verdicts: Sequence[Verdict]) -> list[str]:
    among = max(verdict.among for verdict in verdicts)
    lines = [
        "Effect and 95 % interval over seeds (Student's t, paired by seed; all runs answer"
        " the same test prompts). Last column: the outcome if the intervals"
        f" were so wide that all {among} hold at once with 95 % (Bonferroni); a verdict that"
        " would not be the same is on the edge.",
        "",
        "| claim | comparison | effect | interval | seeds | here | of all |",
        "|---|---|---|---|---|---|---|",
    ]
    for verdict in verdicts:
        for check in verdict.checks:
            effect = check.effect
            interval = f"[{number(effect.low)}, {number(effect.high)}]"
            cells = (
                verdict.number,
                check.text,
                number(effect.mean),
                interval,
                effect.seeds,
                said(check),
                strict(check, verdict.among),
            )
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def _by_teacher(study: Study) -> list[str]:
    lines = [
        "Each arm minus GRPO, which asks no teacher, on the same student; mean and 95 %"
        " interval over seeds (Student's t, paired by seed).",
        "",
    ]
    lines += [
        "| student | teacher | arm | accuracy | accuracy, ood | length |",
        "|---|---|---|---|---|---|",
    ]
    for (student, teacher, arm), rows in by_teacher(study).groupby(
        ["student", "teacher", "arm"], sort=False
    ):
        effects = [effect_of(rows[name]) for name in ("accuracy", "ood", "length")]
        cells = [
            f"{number(effect.mean)} [{number(effect.low)}, {number(effect.high)}]"
            for effect in effects
        ]
        lines.append(f"| {student} | {teacher} | {arm} | {' | '.join(cells)} |")
    return lines if len(lines) > 4 else []


def said(check: Check) -> str:
    """``supported``, or ``undecided (12 seeds like these would say supported)``."""
    if check.outcome != "undecided" or check.needed is None:
        return check.outcome
    return (
        f"undecided ({check.needed if check.needed <= MANY else f'more than {MANY}'} seeds"
        f" like these would say {check.leans})"
    )


def number(value: float) -> str:
    """``+0.012``, ``−3.1``; a dash for what is not known."""
    return "–" if value != value else f"{value:+.{1 if abs(value) >= 10 else 3}f}".replace("-", "−")


def _tuning(study: Study, out: Path) -> list[str]:
    lines = [
        "| part | arm | trials | chosen | validation accuracy of each trial |",
        "|---|---|---|---|---|",
    ]
    for name in study:
        if not (out / name / CHOSEN).exists():
            lines.append(f"| {name} | all | 0 | nothing was chosen: the grid is the question | |")
            continue
        try:
            arms = json.loads((out / name / CHOSEN).read_text(encoding="utf-8"))["arms"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"{out / name / CHOSEN} is damaged: delete it, and start the study again"
            ) from None
        for arm, found in arms.items():
            best = found["trials"][found["best"] - 1]["settings"]
            scores = ", ".join(
                "diverged" if trial["accuracy"] is None else f"{trial['accuracy']:.3f}"
                for trial in found["trials"]
            )
            lines.append(
                f"| {name} | {arm} | {len(found['trials'])} |"
                f" {', '.join(f'{key} = {value}' for key, value in best.items())} | {scores}"
                " |"
            )
    return lines


MEASURES = {
    "id avg": "accuracy",
    "ood avg": "accuracy, ood",
    "id length": "length",
    "kl_teacher_rev": "KL to the teacher",
    "sampled_tokens": "tokens sampled",
    "train_seconds": "seconds of training",
}


def _means(runs: pd.DataFrame) -> list[str]:
    there = [name for name in MEASURES if name in runs]
    lines = [
        f"| arm | seeds | {' | '.join(MEASURES[name] for name in there)} |",
        "|---|---" + "|---" * len(there) + "|",
    ]
    for row in by_arm(runs, there).to_dict("records"):
        cells = [f"{plain(row[name])} ± {plain(row[f'{name} ±'])}" for name in there]
        lines.append(f"| {row['arm']} | {row['runs']} | {' | '.join(cells)} |")
    return lines


def plain(value: float) -> str:
    """Three digits below ten, whole numbers from a thousand on."""
    return (
        "–"
        if value != value
        else f"{value:,.0f}"
        if abs(value) >= 1000
        else f"{value:.1f}"
        if abs(value) >= 10
        else f"{value:.3f}"
    )


def _sessions(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except ValueError:
        raise ValueError(f"{path} is damaged: delete the line that is no JSON") from None


def _cost(study: Study, out: Path) -> list[str]:
    """Hours of workers from the runs themselves, trials included: a sweep that was killed still
    shows them.
    """
    lines = [
        "| part | runs and trials | worker hours | workers | memory of a worker, GiB | where |",
        "|---|---|---|---|---|---|",
    ]
    for name in study:
        folders = [out / name / "tuning", out / name]
        runs = pd.concat(
            [pd.read_csv(folder / TABLES[0]) for folder in folders if (folder / TABLES[0]).exists()]
        )
        sessions = [session for folder in folders for session in _sessions(folder / SESSIONS)]
        workers, places = (
            sorted({str(one[key]) for one in sessions}) for key in ("workers", "device")
        )
        hours = runs["worker_seconds"].sum() / 3600
        lines.append(
            f"| {name} | {len(runs)} | {hours:.2f} | {', '.join(workers)} |"
            f" {runs['worker_gib'].max():.2f} | {', '.join(places)} |"
        )
    return lines
