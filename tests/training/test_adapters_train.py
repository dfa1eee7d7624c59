"""Runs on adapters that a dense copy cannot hold: what the loop reads is what plain
transformers and peft compute.
"""

import warnings

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlkd_lab.models import locate
from rlkd_lab.study.evaluation import Settings, evaluate_target
from rlkd_lab.study.targets import find_target
from rlkd_lab.tasks import ArithmeticTask
from rlkd_lab.training import run
from rlkd_lab.training.context import Context
from rlkd_lab.training.trainer import Trainer

KINDS = {
    "dora": {"use_dora": True},
    "embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
    "saved norm": {"modules_to_save": ["norm"]},
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """``plain(kind)``: the folder of an adapter for the shipped student, written by peft alone,
    in which every weight has moved.
    """
    made = {}

    def make(kind):
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp("adapter")
            torch.manual_seed(0)
            settings = {
                "r": 4,
                "lora_alpha": 8,
                "target_modules": ["q_proj", "v_proj", "down_proj"],
                "task_type": "CAUSAL_LM",
            } | KINDS[kind]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                adapted = get_peft_model(
                    AutoModelForCausalLM.from_pretrained(locate("student"), dtype=torch.float32),
                    LoraConfig(**settings),
                )
                for parameter in adapted.parameters():
                    if parameter.requires_grad:
                        parameter.data += torch.randn_like(parameter) * 0.05
                adapted.save_pretrained(made[kind])
        return str(made[kind])

    return make


def logps_of(adapter, prompt_ids, completion_ids):
    """By plain transformers and peft."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(locate("student"), dtype=torch.float32), adapter
        ).eval()
    found = []
    with torch.no_grad():
        for prompt, completion in zip(prompt_ids, completion_ids, strict=True):
            logps = model(torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
            found.append(
                [float(logps[len(prompt) + i - 1, token]) for i, token in enumerate(completion)]
            )
    return found


def thought_of(adapter, table):
    """The log-probabilities of a table of samples by plain transformers and peft, a list a row."""
    tokenizer = AutoTokenizer.from_pretrained(locate("student"))
    prompts = [tokenizer(prompt)["input_ids"] for prompt in table["prompt"]]
    return logps_of(adapter, prompts, [list(map(int, ids)) for ids in table["ids"]])


def assert_equal(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert list(one) == pytest.approx(list(other), abs=2e-4)


@pytest.mark.parametrize("role", ["teacher", "student"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_on_the_adapter_that_peft_computes(tiny, tmp_path, plain, kind, role):
    """Teacher, reference and the policy itself after an update, by the recorded tokens; the
    policy goes on from a checkpoint as it went.
    """
    other = "dora" if kind != "dora" else "embeddings"
    student, teacher = (
        (plain(kind), plain(other)) if role == "student" else (plain(other), plain(kind))
    )
    fields = {
        "quant": "none",
        "teacher_quant": "none",
        "student": "student",
        "teacher": "student",
        "samples_every": 1,
        "checkpoint_every": 1,
        "keep_checkpoints": 0,
    }
    config = tiny(
        "kdrl",
        {"learning_rate": "0.01", "kl_coef": "0.1"},
        adapter=student,
        teacher_adapter=teacher,
        **fields,
    )
    with pytest.warns(UserWarning, match="run without a dense copy"):
        folder = run(config, tmp_path / "run")
    table = folder.samples(2)
    after_one = tmp_path / "run" / "checkpoints" / "step_000001"
    assert_equal(table["teacher_logps"], thought_of(teacher, table))
    assert_equal(table["ref_logps"], thought_of(student, table))
    assert_equal(table["logps"], thought_of(str(after_one), table))
    moved = np.concatenate(table["logps"].tolist()) - np.concatenate(table["ref_logps"].tolist())
    assert np.abs(moved).max() > 1e-2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again, context = Trainer(config), Context(config, folder)
    again.policy.model.train()
    again.load(context, after_one)
    folder.writes = False
    row, recorded = again.step(context), folder.rows()[1]
    assert {
        name: row[name] for name in ("loss/policy", "grad_norm", "reward", "entropy") if name in row
    } == {
        name: recorded[name]
        for name in ("loss/policy", "grad_norm", "reward", "entropy")
        if name in row
    }


def test_in_4_bit_it_trains_too(tiny, tmp_path, plain):
    with pytest.warns(UserWarning, match="DoRA magnitudes"):
        folder = run(
            tiny(
                "kdrl",
                adapter=plain("dora"),
                student="student",
                teacher="student",
                teacher_adapter=plain("dora"),
                steps=1,
            ),
            tmp_path / "run",
        )
    row = folder.rows()[0]
    assert abs(row["kl_teacher_rev"]) < 1e-6  # before the first update the two are one model
    assert row["sampling/logp_difference_max"] < 1e-3


def test_an_evaluation_decodes_the_adapter_and_not_its_base(plain):
    target = find_target(plain("dora"), base="student", quant="none")
    with pytest.warns(UserWarning, match="a copy would lose DoRA magnitudes"):
        table = evaluate_target(
            target.load(),
            ArithmeticTask(),
            Settings(prompts=4, samples=1, max_new_tokens=16, difficulty=(2, 2), ood=False),
        )
    greedy = table[table["mode"] == "greedy"]
    tokenizer = AutoTokenizer.from_pretrained(locate("student"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(locate("student"), dtype=torch.float32),
            plain("dora"),
        ).eval()
    for prompt, completion in zip(greedy["prompt"], greedy["completion"], strict=True):
        ids = tokenizer(prompt)["input_ids"]
        start = len(ids)
        with torch.no_grad():
            while len(ids) < start + 16 and ids[-1] != tokenizer.eos_token_id:
                ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
        assert completion == tokenizer.decode(ids[start:], skip_special_tokens=True)
