"""A byte-pair tokenizer and a chat template on a CSV of questions: train, kill, resume, replay,
eval, export, load in plain peft.
"""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from peft import PeftModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from typer.testing import CliRunner

from rlkd_lab.commands import app
from rlkd_lab.runs import RunFolder, first_difference

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor"
    " %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SYSTEM = "Add the numbers."
ROWS = [(f'How much is {i} + {i + 1}, "dear"?\nSay it – in digits.', 2 * i + 1) for i in range(24)]


def byte_pairs(folder, ending=False):
    """Save a byte-level tokenizer with a ChatML template; with ``ending`` its post-processor
    puts the end of sequence after every text.
    """
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([question for question, _ in ROWS] + [SYSTEM], trainer)
    if ending:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A <|im_end|>", special_tokens=[("<|im_end|>", 2)]
        )
    whole = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    whole.chat_template = CHATML
    whole.save_pretrained(folder)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Folder of a model, its twin with another seed as a teacher, and a file of questions of
    which one is long.
    """
    folder = tmp_path_factory.mktemp("own")
    config = Qwen2Config(
        vocab_size=400,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        eos_token_id=2,
        pad_token_id=0,
        bos_token_id=None,
        tie_word_embeddings=True,
    )
    for seed, name in enumerate(("student", "teacher")):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            Qwen2ForCausalLM(config).save_pretrained(folder / name)
        byte_pairs(folder / name, ending=True)
    with (folder / "sums.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerows([("Frage", "Lösung"), *ROWS[:16], ("1+" * 300 + "1?", 301), *ROWS[16:]])
    return folder


def rlkd(*words):
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, list(map(str, words)))


def train_words(places, out):
    settings = {
        "student": places / "student",
        "teacher": places / "teacher",
        "quant": "none",
        "teacher_quant": "none",
        "task": places / "sums.csv",
        "task.question": "Frage",
        "task.answer": "Lösung",
        "system_prompt": SYSTEM,
        "prompts_per_step": 2,
        "group_size": 2,
        "max_new_tokens": 8,
        "difficulty": "0-0",
        "eval_every": 2,
        "eval_prompts": 2,
        "checkpoint_every": 1,
        "samples_every": 0,
        "learning_rate": "0.01",
    }
    return [
        "train",
        "--method",
        "kdrl",
        "--steps",
        4,
        "--out",
        out,
        *(word for item in settings.items() for word in ("--set", f"{item[0]}={item[1]}")),
    ]


def test_from_a_csv_to_an_adapter_that_peft_loads(places, tmp_path):
    left_alone = rlkd(*train_words(places, tmp_path / "whole"))
    assert left_alone.exit_code == 0, left_alone.stderr
    assert "1 of 25 rows have prompts above 248 tokens" in left_alone.stderr
    assert "(sums.csv, row 17)" in left_alone.stderr

    process = subprocess.Popen(
        [sys.executable, "-m", "rlkd_lab", *map(str, train_words(places, tmp_path / "run"))],
        stderr=subprocess.DEVNULL,
    )
    rows = tmp_path / "run" / "metrics.jsonl"
    deadline = time.time() + 400
    while time.time() < deadline and not (rows.exists() and rows.read_bytes().count(b"\n") >= 2):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    resumed = rlkd("resume", tmp_path / "run")
    assert resumed.exit_code == 0, resumed.stderr
    whole, cut = (RunFolder.open(tmp_path / name) for name in ("whole", "run"))
    assert len(cut.rows()) == 4
    assert first_difference(cut.rows(), whole.rows(), 0.0)[0] is None
    replayed = rlkd("replay", tmp_path / "run", "--out", tmp_path / "again")
    assert (replayed.exit_code, "the same: 4 steps" in replayed.stdout) == (0, True), (
        replayed.stderr
    )

    evaluated = rlkd(
        "eval", tmp_path / "run", "--prompts", 2, "--samples", 2, "--split", "validation", "--json"
    )
    assert evaluated.exit_code == 0, evaluated.stderr
    record = json.loads(evaluated.stdout)
    assert (record["system_prompt"], record["chat"], record["task_settings"]) == (
        SYSTEM,
        "auto",
        {"question": "Frage", "answer": "Lösung"},
    )

    exported = rlkd("export", tmp_path / "run", "--out", tmp_path / "adapter")
    assert exported.exit_code == 0, exported.stderr
    base = AutoModelForCausalLM.from_pretrained(places / "student", dtype=torch.float32)
    model = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "adapter")
    turns = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": ROWS[0][0]}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        trained = torch.log_softmax(model(ids).logits[0, -1], -1)
        with model.disable_adapter():
            bare = torch.log_softmax(model(ids).logits[0, -1], -1)
    assert (trained - bare).abs().max() > 1e-3

    from rlkd_lab.study import find_target

    ours = find_target(str(tmp_path / "run")).load()
    ours.use_chat("auto", SYSTEM)
    assert ours.prompt_ids([ROWS[0][0]]) == ids.tolist()
    with torch.no_grad(), ours.active():
        same = torch.log_softmax(ours.causal_lm(ids).logits[0, -1].float(), -1)
    torch.testing.assert_close(same, trained, rtol=0, atol=1e-5)
