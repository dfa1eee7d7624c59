"""Make the models of the map that are not shipped: five students and two teachers of arithmetic.

    python benchmarks/map_models.py --out runs/map_models

- ``start-05`` to ``start-60`` are checkpoints of one student. It has the recipe of the embedded
  student, and trains longer. Half of its answers are direct and mostly wrong, so it stays near
  45 %. After step 2,600 it sees fewer of them. Each start is the checkpoint nearest to its
  accuracy.
- ``weak`` is the checkpoint of the concise teacher's recipe that is nearest to 60 %.
- ``one-way`` is the concise teacher after it has learned one mistake: it takes each 9 for an 8.
  So it is wrong wherever an operand is 9, and nowhere else.

Accuracies are those in NF4 at T = 1, on 1,024 validation prompts. ``models.json`` has them.
A stopped script goes on where it was. On two idle cores it takes about 20 minutes.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from transformers import AutoModelForCausalLM

from rlkd_lab.models import locate
from rlkd_lab.tasks import find_task
from rlkd_lab.tasks.arithmetic import steps
from rlkd_lab.zoo.build import RECIPES, batch_for, measured_at
from rlkd_lab.zoo.pretraining import pretrain, save
from rlkd_lab.zoo.recipe import Part, parts_of, row_of
from rlkd_lab.zoo.tokenizer import character_tokenizer

STARTS = (0.05, 0.15, 0.30, 0.45, 0.60)
WEAK = 0.60
EVERY = {"student": 50, "teacher-concise": 10}
LAST = {"student": 2900, "teacher-concise": 350}
"""Steps to train, by recipe. The teacher's learning rate falls as if it trained to its end."""
FEWER_DIRECT, DIRECT = 2600, 0.3
"""From this step on, this share of the student's texts answers at once; it is .5 before."""
PROMPTS = 1024


def train(name: str, work: Path) -> None:
    """Train a recipe of the zoo to its last step here, with a checkpoint every 50 steps."""
    torch.set_num_threads(1)
    recipe = RECIPES[name]
    if name == "student":  # its learning rate is constant, so more steps change no earlier one
        recipe = replace(recipe, steps=LAST[name])

    def batches(start: int) -> Iterator[list[Part]]:
        for step in range(start, LAST[name]):
            late = name == "student" and step >= FEWER_DIRECT
            yield batch_for(step, replace(recipe, direct=DIRECT) if late else recipe)

    every = EVERY[name]
    for step, loss, seconds in pretrain(recipe, character_tokenizer(), batches, work / name, every):
        if step % every == 0:
            print(f"{name}: step {step}/{LAST[name]}  loss {loss:.3f}  {seconds:.0f} s", flush=True)


def mistaken(prompt: str) -> str:
    """Return a worked completion that takes each 9 for an 8, and stays within 0 to 99.

    >>> mistaken("49-9+4?")
    '49-9=41;41+4=45;#45'
    """
    lines, value = [], int(re.match(r"\d+", prompt)[0])
    for sign, digit in re.findall(r"([+-])(\d)", prompt):
        amount = 8 if digit == "9" else int(digit)
        result = min(max(value + amount if sign == "+" else value - amount, 0), 99)
        lines.append(f"{value}{sign}{digit}={result};")
        value = result
    return "".join(lines) + f"#{value}"


def teach_the_mistake(work: Path, last: int = 300, batch: int = 64) -> None:
    """Train the concise teacher on :func:`mistaken` completions of training prompts."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    task, tokenizer = find_task("arithmetic"), character_tokenizer()
    model = AutoModelForCausalLM.from_pretrained(locate("teacher-concise"), dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, last)
    for step in range(last):
        examples = task.examples(batch, random.Random(step).randrange(2**31))
        rows = [row_of(one.prompt, mistaken(one.prompt), tokenizer) for one in examples]
        ((ids, labels),) = parts_of(rows, None, tokenizer.pad_token_id)
        logits = model(input_ids=ids).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(f"one-way: step {step}/{last}  loss {loss.item():.3f}", flush=True)
    save(model, tokenizer, work / "one-way" / "step_1")


def accuracies(work: Path, name: str) -> dict[int, dict[str, float]]:
    """Return what every checkpoint of a recipe reaches; measured once."""
    file = work / name / "measured.json"
    if not file.exists():
        found = {}
        for place in (work / name).glob("step_*"):
            step = int(place.name.removeprefix("step_"))
            found[step] = measured_at(place, "arithmetic", "nf4", PROMPTS, "validation", ood=False)
        file.write_text(json.dumps(dict(sorted(found.items())), indent=1), encoding="utf-8")
    return {int(step): row for step, row in json.loads(file.read_text(encoding="utf-8")).items()}


def make(name: str, work: Path) -> None:
    """Train one recipe, unless it is there, and measure its checkpoints."""
    if not (work / name / "measured.json").exists():
        if name == "one-way":
            teach_the_mistake(work)
        else:
            train(name, work)
    accuracies(work, name)


def right_without_nine() -> float:
    """Return the share of prompts that :func:`mistaken` still answers rightly."""
    examples = find_task("arithmetic").examples(4096, 0)
    answers = [mistaken(one.prompt).partition("#")[2] for one in examples]
    assert all(steps(one.prompt)[1] == int(one.answer) for one in examples)
    return sum(a == one.answer for a, one in zip(answers, examples, strict=True)) / len(examples)


def main(
    out: Annotated[Path, typer.Option(help="folder of the models")] = Path("runs/map_models"),
) -> None:
    """Make the models, and write which checkpoint each one is."""
    work = out / "work"
    work.mkdir(parents=True, exist_ok=True)
    jobs = [(name, work) for name in ("student", "teacher-concise", "one-way")]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.starmap(make, jobs, chunksize=1)
    wanted = {f"start-{share * 100:02.0f}": ("student", share) for share in STARTS}
    wanted |= {"weak": ("teacher-concise", WEAK), "one-way": ("one-way", 0.0)}
    record = {}
    for name, (source, share) in wanted.items():
        measured = accuracies(work, source)
        step = min(measured, key=lambda one: abs(measured[one]["accuracy"] - share))
        shutil.copytree(work / source / f"step_{step}", out / name, dirs_exist_ok=True)
        record[name] = {"from": source, "step": step, **measured[step]}
        print(f"{name}: {source}, step {step}, {measured[step]['accuracy']:.1%}", flush=True)
    record["one-way"]["share of prompts without its mistake"] = right_without_nine()
    (out / "models.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
