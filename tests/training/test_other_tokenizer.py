"""A teacher with another tokenizer than the student."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlkd_lab.training import replay, resume, run
from rlkd_lab.training.before_loading import asked_prompts, check_pair
from tests.short import SHORT
from tests.tokenizers_of_text import byte_pairs, teacher_with

CHAT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}answer: "


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    return teacher_with(byte_pairs(), tmp_path_factory.mktemp("stranger"), chat=CHAT)


def said(folder, prompt, text, ended):
    """Log-probability of a text by a plain forward of transformers."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    before = tokenizer(f"user: {prompt}\nanswer: ")["input_ids"]
    ids = tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] * ended
    with torch.no_grad():
        logps = lm(torch.tensor([before + ids])).logits[0].log_softmax(-1)
    return float(sum(logps[len(before) + i - 1, one] for i, one in enumerate(ids)))


def short(tiny, method, stranger, **more):
    overrides = {"quant": "none", "teacher_quant": "none", "samples_every": 1, **more}
    return tiny(method, {}, **{"teacher": stranger, **overrides})


@pytest.mark.parametrize("method", ["opd", "trrd"])
def test_what_it_says_adds_up_to_its_log_probability_of_the_text(tiny, tmp_path, stranger, method):
    folder = run(short(tiny, method, stranger, steps=2), tmp_path / "run")
    row, table = folder.rows()[0], folder.samples(1)
    for one in table.to_dict("records"):
        wanted = said(stranger, one["prompt"], one["completion"], one["finished"])
        assert sum(one["teacher_logps"]) == pytest.approx(wanted, abs=1e-2)
    assert row["teacher/aligned"] == 1 and row["teacher/span_tokens"] > 1
    assert "kl_teacher_k2" not in row and "kl_teacher_rev" not in row
    gaps = [sum(one) for one in table["logps"] - table["teacher_logps"]]
    tokens = sum(map(len, table["ids"]))
    assert row["kl_teacher_k1"] == pytest.approx(sum(gaps) / tokens, abs=1e-4)
    assert row["grad_norm"] > 0


def test_such_a_run_is_killed_resumed_and_replayed_to_the_same_rows(tiny, tmp_path, stranger):
    config = short(tiny, "kdrl_advantage", stranger, steps=2, checkpoint_every=1)
    whole = run(config, tmp_path / "whole")

    def stop(session, row):
        session.stopping = row["step"] == 1

    run(config, tmp_path / "cut", on_step=stop)
    kept = ("loss/policy", "kl_teacher_k1", "grad_norm", "teacher/span_tokens")
    rows = [
        [[row[name] for name in kept] for row in folder.rows()]
        for folder in (whole, resume(tmp_path / "cut"))
    ]
    assert rows[0] == rows[1]
    assert replay(tmp_path / "cut", tmp_path / "again").difference is None


def test_its_traces_are_written_in_the_students_tokens(tiny, tmp_path, stranger):
    config = short(tiny, "sft", stranger, steps=1, options={"keep_traces": "all"}, traces=8)
    table = run(config, tmp_path / "run").samples(1)
    tokenizer = AutoTokenizer.from_pretrained(SHORT["student"])
    for row in table.to_dict("records"):
        assert len(row["ids"]) <= config.max_new_tokens
        read = tokenizer.decode(row["ids"], skip_special_tokens=True)
        assert row["completion"].startswith(read) and "<unk>" not in read


@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [
        ("kdrl", {}, "use kdrl_advantage"),
        ("kdrl_masked", {"options": {"estimator": "exact"}}, "whole distributions"),
        ("kd_forward", {}, "use opd, kdrl_advantage"),
        ("eopd", {}, "whole distributions"),
        ("opd", {"teacher": "{},student"}, "Several teachers"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_loaded(
    tiny, stranger, method, settings, words
):
    name = settings.pop("teacher", "{}").format(stranger)
    with pytest.raises(ValueError, match=words):
        check_pair(short(tiny, method, name, **settings))


def test_a_teachers_prompt_is_measured_in_its_own_tokens(tiny, stranger):
    long = "{prompt}" + "é" * 150  # each two of its tokens, and one of the student's
    with pytest.raises(ValueError, match=r"as teacher_prompt makes them.*context of 256 tokens"):
        asked_prompts(short(tiny, "opd", stranger, teacher_prompt=long))
    asked_prompts(short(tiny, "opd", stranger, teacher_prompt=long[:60]))
