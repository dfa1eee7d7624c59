"""Commands about a trained student: eval, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rlkd_lab.commands.common import (
    Json,
    RunPath,
    app,
    console,
    number_range,
    numbers,
    plain_errors,
    print_json,
    settings_from,
)
from rlkd_lab.terminal import escape, say

Targets = Annotated[
    list[str],
    typer.Argument(
        help="a run folder, an adapter folder, or a model: embedded name, folder or hub id;"
        " several runs of one method, also as 'runs/a-*'"
    ),
]
Against = Annotated[
    list[str] | None,
    typer.Option(
        help="the other side, asked the same prompts; repeat it or quote a pattern for"
        " several runs; differences are TARGETS − AGAINST"
    ),
]
Ks = Annotated[
    str | None,
    typer.Option("--k", help="comma-separated k of pass@k and majority@k; 1, 2, 4, … by default"),
]
Split = Annotated[
    str, typer.Option(help="train, validation or test: choose settings on validation, report test")
]
Difficulty = Annotated[
    str | None,
    typer.Option(help="in distribution, such as 2-5; the run's or the task's by default"),
]
Length = Annotated[
    int | None,
    typer.Option(
        help="length limit, twice that out of distribution; the run's by default, otherwise 96"
    ),
]
Checkpoint = Annotated[
    str | None,
    typer.Option(
        help="of a run folder: best by validation accuracy, last, or a step; last by default"
    ),
]
EvalSettings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="NAME=VALUE as for `rlkd train`: chat, system_prompt, prompt_template,"
        " max_prompt_tokens, long_prompts, task.NAME",
    ),
]
TableFile = Annotated[
    Path | None,
    typer.Option(
        help="parquet file for every completion; RUN/eval/step_N.parquet for a run, otherwise none"
    ),
]


@app.command("eval")
def evaluate(
    targets: Targets,
    against: Against = None,
    samples: Annotated[int, typer.Option(help="completions a prompt")] = 8,
    prompts: Annotated[int, typer.Option(help="prompts of each set")] = 256,
    k: Ks = None,
    split: Split = "test",
    task: Annotated[str | None, typer.Option(help="the run's, else arithmetic")] = None,
    difficulty: Difficulty = None,
    temperature: Annotated[float, typer.Option(help="of the samples; greedy has none")] = 1.0,
    top_p: Annotated[float, typer.Option(help="1 is off")] = 1.0,
    top_k: Annotated[int, typer.Option(help="0 is off")] = 0,
    max_new_tokens: Length = None,
    quant: Annotated[str | None, typer.Option(help="nf4 or none; the run's, else nf4")] = None,
    base: Annotated[str | None, typer.Option(help="the model of an adapter folder")] = None,
    checkpoint: Checkpoint = None,
    greedy: Annotated[bool, typer.Option(help="one greedy completion a prompt too")] = True,
    ood: Annotated[bool, typer.Option(help="out of distribution too, if the task can")] = True,
    set_: EvalSettings = None,
    out: TableFile = None,
    as_json: Json = False,
) -> None:
    """Evaluate runs, adapters or models on held-out prompts.

    Prints avg@k, pass@k with its chance line, majority@k, greedy accuracy and lengths.
    """
    with plain_errors("nothing of this model was written"):
        from rlkd_lab.objectives.settings import nearest
        from rlkd_lab.study import find_target, settings_of
        from rlkd_lab.study.sides import check_sides, expanded
        from rlkd_lab.study.summary import check_ks

        ks = None if k is None else numbers(k, "--k")
        if quant is not None:
            nearest(quant, ("nf4", "none"), "quant")
        nearest(split, ("train", "validation", "test"), "split")
        check_ks(ks, samples)
        ours: list[Any] = [
            find_target(name, checkpoint=checkpoint, base=base, quant=quant)  # type: ignore[arg-type]
            for name in expanded(targets)
        ]
        _tell_best(ours, checkpoint)
        others = expanded(against or ())
        theirs: list[Any] = [find_target(name, quant=quant) for name in others]  # type: ignore[arg-type]
        check_sides(ours, theirs)
        config, asked = _question(ours + theirs, task, settings_from(set_))
        settings = settings_of(
            config,
            prompts=prompts,
            samples=samples,
            split=split,
            difficulty=None if difficulty is None else number_range(difficulty),
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            max_new_tokens=max_new_tokens,
            greedy=greedy,
            ood=ood,
        )
        _evaluate(ours, theirs, asked, settings, ks, _tables(ours, theirs, out), as_json)


def _tell_best(targets: list[Any], checkpoint: str | None) -> None:
    """Say which step is the best checkpoint, and on which prompts."""
    from rlkd_lab.training.evaluation import evaluated_on

    for one in targets if checkpoint == "best" else ():
        on = evaluated_on(one.config)
        say(f"{one.name}: step {one.step} is the best, on validation prompts of {on}", err=True)


def _question(pair: list[Any], task: str | None, given: dict[str, str]) -> tuple[Any, Any]:
    """Return config and task for all targets; warn of what differs from a run's own."""
    from rlkd_lab.study import task_of
    from rlkd_lab.study.targets import asked_as, data_note

    config = next((target.config for target in pair if target.config), None)
    config, told = asked_as(config, given.pop("task", task), given)
    asked = task_of(config)
    known = next((target.run for target in pair if target.run), None)
    for sentence in told + ([note] if (note := data_note(known, config, asked)) else []):
        say(f"rlkd: warning: {sentence}", err=True)
    return config, asked


def _evaluate(
    ours: list[Any],
    theirs: list[Any],
    task: Any,
    settings: Any,
    ks: list[int] | None,
    written: list[Path | None],
    as_json: bool,
) -> None:
    """Evaluate the targets one by one, write each one's table, print what they add up to."""
    from rlkd_lab.study import evaluate_target, summarise, write_table
    from rlkd_lab.study.eval_table import about
    from rlkd_lab.study.report import Compared
    from rlkd_lab.training.before_loading import reader_of

    pair = ours + theirs
    readers = (
        [reader_of(one.base, settings.chat, settings.system_prompt) for one in pair]
        if len(pair) > 1
        else []
    )
    frames, records = [], []
    for one, path in zip(pair, written, strict=True):
        frames.append(
            evaluate_target(one.load(), task, settings, progress=not as_json, readers=readers)
        )
        records.append(about(one.describe(), task, settings))
        if path is not None:
            _say_what_is_replaced(path, task.name, settings)
            write_table(path, frames[-1], records[-1])
    shown = Compared(ours, theirs, frames, [summarise(frame, ks) for frame in frames], ks)
    kept = [str(path) for path in written if path is not None]
    if as_json:
        print_json({**shown.as_json(records), "out": kept})
        return
    console.print(
        f"[bold]{escape(shown.labels[0])}[/] ({ours[0].quant}), {escape(task.name)},"
        f" split {settings.split}, T = {settings.temperature:g}; shares in %, lengths in tokens\n"
    )
    for table in shown.tables(settings.samples):
        console.print(table, "")
    for line in shown.notes(task.name):
        say(line)
    where = "completions were not kept: name a file with --out"
    say(f"every completion: {', '.join(kept)}" if kept else where)


def _say_what_is_replaced(path: Path, task: str, settings: Any) -> None:
    """Warn of a table that holds an evaluation of another kind."""
    from rlkd_lab.study.eval_table import read_record

    try:
        record = read_record(path)
    except (OSError, ValueError):  # there is none, or a damaged one
        return
    if (record["task"], record["split"]) != (task, settings.split):
        say(
            f"rlkd: warning: this replaces the evaluation on {record['task']}, split"
            f" {record['split']}, in {path}: --out FILE.parquet keeps both",
            err=True,
        )


def _tables(ours: list[Any], theirs: list[Any], out: Path | None) -> list[Path | None]:
    """Where the completions of each target go, ``None`` for nowhere: the run's own table, or
    ``--out`` for a single target.
    """
    from rlkd_lab.study.eval_table import check_out

    if out is not None and (len(ours) > 1 or len(theirs) > 1):
        raise ValueError(
            "--out is for a single target: with several runs each one's completions go to RUN/eval"
        )
    found = [target.table for target in (*ours, *theirs)]
    if len(ours) == 1 and len(theirs) <= 1:
        first = out or found[0]
        found = [
            first,
            *(
                [None if first is None else first.with_name(f"{first.stem}-against.parquet")]
                * len(theirs)
            ),
        ]
    for path in found:
        if path is not None:
            check_out(path)
    return found


@app.command()
def export(
    run_path: RunPath,
    out: Annotated[Path, typer.Option(help="the folder to make")],
    checkpoint: Checkpoint = None,
    merge: Annotated[
        bool,
        typer.Option(
            "--merge",
            help="one dense model instead of an adapter; needs 4 bytes of memory for each weight",
        ),
    ] = False,
    into: Annotated[
        str | None,
        typer.Option(
            help="with --merge, the base weights: nf4 (as it was trained) or full; as in the run"
            " by default"
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="with --merge: bfloat16, float16 or float32; bfloat16 by default"),
    ] = None,
    push: Annotated[
        str | None, typer.Option(help="OWNER/NAME: upload the folder there, private if it is new")
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="with --push: everybody may see it")
    ] = False,
) -> None:
    """Export the student of a run: its adapter or, with --merge, a whole model.

    Either folder also holds the tokenizer and a model card.
    """
    with plain_errors("nothing was written"):
        from rlkd_lab.study.export import export_run
        from rlkd_lab.study.model_card import merge_note
        from rlkd_lab.study.push import check_place
        from rlkd_lab.study.push import push as upload

        if push is not None:
            check_place(push, public)
        found = export_run(
            run_path, out, checkpoint=checkpoint, merged=merge, into=into, dtype=dtype
        )
        if found is not None:
            say("\n".join(merge_note(found)))
        say(f"written: {out}")
        if push is not None:
            say(f"uploaded: {upload(out, push, public)}")
