"""The model card of an exported student.

It says how to load the folder, and has method, knobs, merge, evaluation and run.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from rlkd_lab.models import locate
from rlkd_lab.models.locating import zoo_names
from rlkd_lab.models.merging import Merged
from rlkd_lab.objectives import METHODS
from rlkd_lab.objectives.methods import resolve_options
from rlkd_lab.runs import RunFolder
from rlkd_lab.runs.compare import flat
from rlkd_lab.runs.overview import HOW_OFTEN
from rlkd_lab.study import report
from rlkd_lab.study.eval_table import read_record, read_table
from rlkd_lab.study.evaluation import Settings
from rlkd_lab.study.summary import SETS, summarise
from rlkd_lab.study.targets import ASKED, Target
from rlkd_lab.training import RunConfig
from rlkd_lab.training.evaluation import evaluated_on
from rlkd_lab.training.fingerprint import fingerprint

ALWAYS = (
    "teacher",
    "teacher_quant",
    "task",
    "lora_rank",
    "lora_alpha",
    "prompts_per_step",
    "group_size",
    "max_new_tokens",
    "updates_per_rollout",
)
"""Settings that every card names; others are named where they differ from the defaults."""
ELSEWHERE = {
    "method",
    "preset",
    "steps",
    "seed",
    "student",
    "quant",
    "knobs",
    "options",
    "moves",
    *HOW_OFTEN,
}
"""Settings that stand elsewhere in the card, or do not change what is trained."""
OPTIONS = ("split", "prompts", "samples", "temperature", "top_p", "top_k", "max_new_tokens")
"""Of `rlkd eval`."""


def model_card(
    target: Target, name: str, prompt: str, *, chat: bool, merged: Merged | None = None
) -> str:
    """Return the README.md of a model folder, with the hub's front matter.

    Args:
        target: a run's student.
        name: the folder's name.
        prompt: the prompt of the example.
        chat: whether the example uses the chat template.
        merged: what the merge changed; ``None``: the folder holds the adapter.

    Raises:
        ValueError: the run's events or its evaluation are damaged.
    """
    assert target.config is not None and target.run is not None
    config, run = target.config, RunFolder.open(target.run)
    method = METHODS[config.method]
    base = f"`{target.base}`" + (
        ", a model that comes with rlkd_lab" + (" and lies in `base/`" if merged is None else "")
        if target.base in zoo_names()
        else ""
    )
    aim = f"on the task `{config.task}`" + (
        f", with the teacher `{config.teacher}`" if {"teacher", "traces"} & method.needs else ""
    )
    parts = [
        f"# {name}",
        f"A LoRA adapter {'for' if merged is None else 'merged into'} {base}. It was trained"
        f" by rlkd_lab with {method.title} (`{config.method}`), {aim}, beside"
        f" the base's weights in {_precision(target.quant)}.",
        "## Use",
        _snippet(target, run, name, prompt, chat, merged is not None),
        "## Method",
        f"    {method.formula}",
        f"Source: {method.source}.",
        *_choices(config, run, target.step or 0),
        *([] if merged is None else ["## Merge", *merge_note(merged)]),
        "## Evaluation",
        *_evaluation(target, config, run, name, merged is not None),
        "## Run",
        _record(target, config, run),
    ]
    return (
        f"---\n{_front_matter(target.base, config.method, merged is not None)}\n---\n\n"
        + "\n\n".join(parts)
        + "\n"
    )


def merge_note(merged: Merged) -> list[str]:
    """Return two paragraphs: what a merge did, and what it changed."""
    weights = (
        "the base's NF4 weights, dequantised"
        if merged.into == "nf4"
        else "the base's weights in full precision"
    )
    return [
        f"The update was added in float32 to {weights}, and the sum rounded to"
        f" {merged.dtype}: {100 * merged.rounding.kept:.1f} % of the update is"
        f" kept, and the rounding is {merged.rounding.error:.2g} times as large as the update.",
        f"KL(policy ‖ merged model) is {merged.shift:.2g} nats a token on average and"
        f" {merged.largest:.2g} at most, between the policy as it was trained and"
        f" the model as it was saved and loaded again ({merged.tokens} tokens: completions by"
        f" the policy to {merged.prompts} validation prompts, T = 1)."
        f" For scale: KL(policy ‖ policy without its adapter) is {merged.trained:.2g} there.",
    ]


def _front_matter(base: str, method: str, merged: bool) -> str:
    aims = {
        "teacher": "knowledge-distillation",
        "traces": "knowledge-distillation",
        "groups": "reinforcement-learning",
    }
    tags = [
        "rlkd_lab",
        method,
        "lora",
        *dict.fromkeys(aim for need, aim in aims.items() if need in METHODS[method].needs),
    ]
    library = "transformers" if merged else "peft"
    return ModelCardData(
        base_model=base,
        library_name=library,
        pipeline_tag="text-generation",
        tags=tags,
        **_license(base),
    ).to_yaml()


def _license(base: str) -> dict[str, Any]:
    """Return the license that the base's card states, or nothing."""
    card = locate(base) / "README.md"
    # a folder may have the name of a model on the hub
    if not card.exists() and (base in zoo_names() or Path(base).is_dir()):
        return {}
    try:
        stated = ModelCard.load(str(card) if card.exists() else base).data.to_dict()
    except Exception:  # a card that cannot be fetched or read must not stop the export
        return {}
    return {
        key: stated[key] for key in ("license", "license_name", "license_link") if stated.get(key)
    }


def _snippet(
    target: Target, run: RunFolder, name: str, prompt: str, chat: bool, merged: bool
) -> str:
    """Return code that loads the folder and asks one prompt, without this package."""
    assert target.config is not None
    load = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"folder = {_text(name)}",
        "model = AutoModelForCausalLM.from_pretrained(folder)",
    ]
    if not merged:
        load = _load_adapter(target, run, name)
    asked = f'tokenizer({_text(prompt)}, return_tensors="pt")'
    if chat:
        turns = [{"role": "user", "content": prompt}]
        if target.config.system_prompt:
            turns.insert(0, {"role": "system", "content": target.config.system_prompt})
        asked = (
            f"tokenizer.apply_chat_template({_text(turns)}, add_generation_prompt=True,"
            ' return_dict=True, return_tensors="pt")'
        )
    ask = [
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        f"asked = {asked}.to(model.device)",
        f"said = model.generate(**asked, max_new_tokens={target.config.max_new_tokens})",
        "print(tokenizer.decode(said[0], skip_special_tokens=True))",
    ]
    return "\n".join(["```python", *load, *ask, "```"])


def _load_adapter(target: Target, run: RunFolder, name: str) -> list[str]:
    """Return code that loads the base as in training, with the adapter beside it."""
    embedded, nf4 = target.base in zoo_names(), target.quant == "nf4"
    on_cpu = str(run.env().get("device")).startswith("CPU")
    base = 'f"{folder}/base"' if embedded else _text(target.base)
    lines = [
        "import torch",
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM,"
        f" AutoTokenizer{', BitsAndBytesConfig' if nf4 else ''}",
        "",
        f"folder, dtype = {_text(name)}, {'torch.float32' if on_cpu else 'torch.bfloat16'}",
    ]
    if nf4:
        lines += [
            "nf4 = BitsAndBytesConfig(",
            '    load_in_4bit=True, bnb_4bit_quant_type="nf4",'
            " bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype",
            ")  # as in training; without it the adapter lies beside other weights than"
            " it was trained beside",
        ]
    return [
        *lines,
        f"base = AutoModelForCausalLM.from_pretrained({base},"
        f" dtype=dtype{', quantization_config=nf4' if nf4 else ''})",
        "model = PeftModel.from_pretrained(base, folder)",
    ]


def _text(value: Any) -> str:
    """Return a value as Python reads it, in double quotes."""
    return json.dumps(value, ensure_ascii=False)


def _choices(config: RunConfig, run: RunFolder, step: int) -> list[str]:
    """Return tables of knobs with their schedules, moves by hand, options and settings."""
    events = [event for event in run.rows("events.jsonl") if event["event"] == "knob"]
    moves = [
        move
        for move in [*(move.model_dump() for move in config.moves), *events]
        if move["step"] <= step
    ]
    moved = [
        (
            move["step"],
            move["knob"],
            "back to its schedule" if move.get("release") else move.get("value"),
        )
        for move in moves
    ]
    options = resolve_options(
        METHODS[config.method], {"constant_length": config.max_new_tokens, **config.options}
    )
    defaults = flat(RunConfig().model_dump())
    settings = {
        name: value
        for name, value in flat(config.model_dump(exclude=ELSEWHERE)).items()
        if name in ALWAYS or name not in defaults or value != defaults[name]
    }
    return [
        _table(("knob", "value"), config.schedules().items()),
        *(
            ["Moved by hand, each from that step on:", _table(("step", "knob", "value"), moved)]
            if moved
            else ["No knob was moved by hand."]
        ),
        _table(("option", "value"), options.items()),
        _table(("setting", "value"), settings.items()),
    ]


def _evaluation(
    target: Target, config: RunConfig, run: RunFolder, name: str, merged: bool
) -> list[str]:
    """Return the table of ``rlkd eval`` for this step, or the last evaluation during training."""
    whose = (
        " These are numbers of the policy as it was trained, before the merge." if merged else ""
    )
    again = f"`{_command(target, config, name, merged)}` measures this folder."
    if target.table is not None and target.table.exists():
        frame, record = read_table(target.table)
        summary = summarise(frame)
        counts = summary[(summary["measure"] == "prompts") & (summary["difficulty"] == "all")]
        prompts = ", ".join(
            f"{row['value']:.0f} prompts {SETS[row['set']]}" for row in counts.to_dict("records")
        )
        cut = "".join(
            f", {key} {record[key]:g}"
            for key, off in (("top_p", 1), ("top_k", 0))
            if record[key] != off
        )
        settings = (
            f"`rlkd eval`, {record['task']}, split {record['split']}: {prompts};"
            f" {record['samples']} samples each at T = {record['temperature']:g}{cut}; at"
            f" most {record['max_new_tokens']} tokens, out of distribution twice that; base"
            f" in {_precision(record['model']['quant'])}. Shares in %, lengths in"
            f" tokens. {report.interval_note(False).capitalize()}.{whose}"
        )
        tables = [
            _table(
                (SETS[part], "value", "95 % interval", "chance"),
                (row[1:] for row in report.lines(summary, part)),
            )
            for part in dict.fromkeys(summary["set"])
        ]
        return [settings, *tables, again]
    rows = [
        row
        for row in run.rows()
        if row["step"] <= (target.step or 0) and row.get("eval/accuracy") is not None
    ]
    if not rows:
        return [f"Not evaluated. {again}"]
    measured = [
        (key, f"{value:.3g}")
        for key, value in rows[-1].items()
        if key.startswith("eval/") and value is not None
    ]
    settings = (
        "`rlkd eval` was not run. This was measured during training, at step"
        f" {rows[-1]['step']}: {config.eval_prompts} validation prompts of"
        f" {evaluated_on(config)}, {config.eval_samples} a prompt at T = 1; no intervals.{whose}"
    )
    return [settings, _table(("metric", "value"), measured), again]


def _command(target: Target, config: RunConfig, name: str, merged: bool) -> str:
    """Return the command that asks the folder as the run's student was asked."""
    words = ["rlkd", "eval", name, "--quant", "none" if merged else target.quant]
    asked: dict[str, Any] = {"max_new_tokens": config.max_new_tokens}
    task, of_task, difficulty = config.task, config.task_settings, config.difficulty
    own = {key: getattr(config, key) for key in ASKED}
    if target.table is not None and target.table.exists():
        record = read_record(target.table)
        asked = {key: record[key] for key in OPTIONS}
        difficulty = record["difficulty"]
        if record["task"] != task:  # another one was asked than the run's
            task, of_task = record["task"], record["task_settings"]
            own["prompt_template"] = record["prompt_template"]
        words += [f"--no-{key}" for key in ("greedy", "ood") if not record[key]]
    usual = {field.name: field.default for field in fields(Settings)}
    for key, value in asked.items():
        words += [] if value == usual[key] else [f"--{key.replace('_', '-')}", f"{value}"]
    words[5:5] = ["--task", task]
    if difficulty is not None:
        words += ["--difficulty", "-".join(map(str, difficulty))]
    for key, value in {**own, **{f"task.{name}": one for name, one in of_task.items()}}.items():
        default = RunConfig.model_fields[key].default if key in RunConfig.model_fields else None
        words += [] if value == default else ["--set", f"{key}={value}"]
    return shlex.join(words)


def _precision(quant: str) -> str:
    return "NF4" if quant == "nf4" else "full precision"


def _record(target: Target, config: RunConfig, run: RunFolder) -> str:
    env = run.env()
    rows = {
        "run": f"{run.path.resolve().name}, config {fingerprint(config)}",
        "step": f"{target.step} of {config.steps}",
        "seed": config.seed,
        "commit of rlkd_lab": env.get("commit") or "not known",
        "device": env.get("device", "not known"),
        "versions": ", ".join(
            f"{package} {version}"
            for package, version in env.get("versions", {}).items()
            if version
        ),
    }
    return _table(("record", ""), rows.items())


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    shown = (
        [
            "off" if cell is None else str(cell).replace("|", "\\|").replace("\n", " ")
            for cell in row
        ]
        for row in rows
    )
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *shown])
