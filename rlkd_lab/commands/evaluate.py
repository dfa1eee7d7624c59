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


@app.command("eval")
def evaluate(
    targets: Annotated[
        list[str],
        typer.Argument(
            help="a run folder, an adapter folder, or a model: embedded name, folder or hub id;"
            " several runs of one method, also as 'runs/a-*'"
        ),
    ],
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="the other side, asked the same prompts; repeat it or quote a pattern for"
            " several runs; differences are TARGETS − AGAINST"
        ),
    ] = None,
    samples: Annotated[int, typer.Option(help="completions a prompt")] = 8,
    prompts: Annotated[int, typer.Option(help="prompts of each set")] = 256,
    k: Annotated[
        str | None,
        typer.Option(
            "--k", help="comma-separated k of pass@k and majority@k; powers of two by default"
        ),
    ] = None,
    split: Annotated[
        str,
        typer.Option(help="train, validation or test: choose settings on validation, report test"),
    ] = "test",
    task: Annotated[
        str | None, typer.Option(help="the run's by default, otherwise arithmetic")
    ] = None,
    difficulty: Annotated[
        str | None,
        typer.Option(help="in distribution, such as 2-5; the run's or the task's by default"),
    ] = None,
    temperature: Annotated[
        float, typer.Option(help="of the samples; the greedy completion has none")
    ] = 1.0,
    top_p: Annotated[float, typer.Option(help="1 is off")] = 1.0,
    top_k: Annotated[int, typer.Option(help="0 is off")] = 0,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            help="length limit, twice that out of distribution; the run's by default, otherwise 96"
        ),
    ] = None,
    quant: Annotated[
        str | None, typer.Option(help="nf4 or none; the run's by default, otherwise nf4")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="the model that an adapter folder belongs to")
    ] = None,
    checkpoint: Annotated[
        int | None, typer.Option(help="step of a run folder's checkpoint; the last by default")
    ] = None,
    greedy: Annotated[bool, typer.Option(help="one greedy completion a prompt too")] = True,
    ood: Annotated[
        bool, typer.Option(help="out of distribution too, where the task has such prompts")
    ] = True,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="NAME=VALUE as for `rlkd train`: chat, system_prompt, prompt_template,"
            " max_prompt_tokens, long_prompts, task.NAME",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="parquet file for every completion; RUN/eval/step_N.parquet for a run, otherwise"
            " none"
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Evaluate runs, adapters or models on held-out prompts.

    Prints avg@k, pass@k with its chance line, majority@k, greedy accuracy and lengths.
    """
    with plain_errors("nothing was written"):
        from rlkd_lab.objectives.settings import nearest
        from rlkd_lab.study import (
            about,
            asked_as,
            check_ks,
            check_sides,
            data_note,
            evaluate_target,
            expanded,
            find_target,
            settings_of,
            summarise,
            task_of,
            write_table,
        )
        from rlkd_lab.study.report import Compared
        from rlkd_lab.training.before_loading import reader_of

        ks = None if k is None else numbers(k, "--k")
        if quant is not None:
            nearest(quant, ("nf4", "none"), "quant")
        nearest(split, ("train", "validation", "test"), "split")
        check_ks(ks, samples)
        ours = [
            find_target(name, checkpoint=checkpoint, base=base, quant=quant)  # type: ignore[arg-type]
            for name in expanded(targets)
        ]
        theirs = [find_target(name, quant=quant) for name in expanded(against or ())]  # type: ignore[arg-type]
        check_sides(ours, theirs)
        pair = [*ours, *theirs]
        config = next((target.config for target in pair if target.config), None)
        given = settings_from(set_)
        asks, told = asked_as(config, given.pop("task", task), given)
        asked = task_of(asks)
        known = next((target.run for target in pair if target.run), None)
        for sentence in told + ([note] if (note := data_note(known, asks, asked)) else []):
            say(f"rlkd: warning: {sentence}", err=True)
        settings = settings_of(
            asks,
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
        written = _tables(ours, theirs, out)
        readers = (
            [reader_of(one.base, settings.chat, settings.system_prompt) for one in pair]
            if len(pair) > 1
            else []
        )
        frames = [
            evaluate_target(one.load(), asked, settings, progress=not as_json, readers=readers)
            for one in pair
        ]
        records = [about(one.describe(), asked, settings) for one in (*ours, *theirs)]
        for path, frame, record in zip(written, frames, records, strict=True):
            if path is not None:
                write_table(path, frame, record)
        summaries = [summarise(frame, ks) for frame in frames]
        shown = Compared(ours, theirs, frames, summaries, ks)
        kept = [str(path) for path in written if path is not None]
        if as_json:
            print_json({**shown.as_json(records), "out": kept})
            return
        console.print(
            f"[bold]{escape(shown.labels[0])}[/] ({ours[0].quant}), {escape(asked.name)},"
            f" split {split}, T = {temperature:g}; shares in %, lengths in tokens\n"
        )
        for table in shown.tables(samples):
            console.print(table, "")
        for line in shown.notes(asked.name):
            say(line)
        say(
            f"every completion: {', '.join(kept)}"
            if kept
            else "completions were not kept: name a file with --out"
        )


def _tables(ours: list[Any], theirs: list[Any], out: Path | None) -> list[Path | None]:
    """Where the completions of each target go, ``None`` for nowhere: the run's own table, or
    ``--out`` for a single target.
    """
    from rlkd_lab.study import check_out

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
    checkpoint: Annotated[int | None, typer.Option(help="step; the last by default")] = None,
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
) -> None:
    """Export the student of a run: its adapter or, with --merge, a whole model.

    Either folder also holds the tokenizer and a model card.
    """
    with plain_errors("nothing was written"):
        from rlkd_lab.study.export import export_run
        from rlkd_lab.study.model_card import merge_note

        found = export_run(
            run_path, out, checkpoint=checkpoint, merged=merge, into=into, dtype=dtype
        )
        if found is not None:
            say("\n".join(merge_note(found)))
        say(f"written: {out}")
