"""Models of one's own: families that our decoder does not know, and pairs that cannot be,
refused before anything is loaded.
"""

import shutil
import warnings

import pytest
from tokenizers import Tokenizer
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
)
from typer.testing import CliRunner

from rlkd_lab.commands import app
from rlkd_lab.models import loading
from rlkd_lab.training import run
from rlkd_lab.training.session import within_memory
from rlkd_lab.zoo.tokenizer import character_tokenizer

pytestmark = pytest.mark.loads

FAMILIES = {
    "gpt_neox": (
        GPTNeoXForCausalLM,
        GPTNeoXConfig,
        {"intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
    ),
    "opt": (
        OPTForCausalLM,
        OPTConfig,
        {
            "ffn_dim": 64,
            "word_embed_proj_dim": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
        },
    ),
}


@pytest.fixture
def family(tmp_path):
    """``family(kind)``: folder of a random model of that family."""

    def make(kind):
        model, config, fields = FAMILIES[kind]
        made = model(
            config(
                vocab_size=128,
                hidden_size=64,
                max_position_embeddings=128,
                bos_token_id=None,
                eos_token_id=1,
                pad_token_id=0,
                **fields,
            )
        )
        made.save_pretrained(tmp_path / kind)
        character_tokenizer().save_pretrained(tmp_path / kind)
        return str(tmp_path / kind)

    return make


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_family_that_our_decoder_does_not_know_runs_through_its_own_forward(
    tiny, tmp_path, family, make_model, kind, role
):
    models = {"student": make_model(), "teacher": make_model(), role: family(kind)}
    folder = run(
        tiny("kdrl", steps=2, quant="none", teacher_quant="none", **models), tmp_path / "run"
    )
    assert folder.status()["state"] == "done"
    assert folder.metrics()["sampling/logp_difference_max"].max() < 1e-3


@pytest.fixture
def pairs(make_model, tmp_path, monkeypatch):
    """What cannot be, and why; nothing may be loaded to find out."""
    other = tmp_path / "other"
    shutil.copytree(make_model(), other)
    tokenizer = character_tokenizer()
    text = tokenizer.backend_tokenizer.to_str().replace('"7":', '"¬":')
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(text), pad_token="<pad>", eos_token="<eos>"
    ).save_pretrained(other)
    bare = tmp_path / "bare"
    shutil.copytree(make_model(), bare)
    for file in bare.glob("*.safetensors"):
        file.rename(file.with_suffix(".bin"))
    monkeypatch.setattr(loading, "load_base", lambda *rest: pytest.fail("a model was loaded"))
    return {
        "tokenizers": (
            {"student": make_model(), "teacher": str(other)},
            "have different tokenizers",
        ),
        "context": (
            {"student": make_model(), "teacher": make_model(max_position_embeddings=32)},
            "do not fit the context of 32 tokens of",
        ),
        "weights": ({"student": str(bare), "teacher": make_model()}, "has no *.safetensors"),
        "folder": (
            {"student": str(tmp_path / "nowhere"), "teacher": make_model()},
            "there is no folder",
        ),
    }


@pytest.mark.parametrize("command", ["plan", "train"])
@pytest.mark.parametrize("case", ["tokenizers", "context", "weights", "folder"])
@pytest.mark.parametrize("method", ["kdrl", "grpo"])
def test_a_pair_that_cannot_be_is_refused_before_anything_is_loaded(
    pairs, tmp_path, command, case, method
):
    models, says = pairs[case]
    if (case, method) == ("tokenizers", "grpo"):
        pytest.skip("its KL curve can be had over spans")
    settings = [
        part
        for name, value in {**models, "max_new_tokens": 64}.items()
        for part in ("--set", f"{name}={value}")
    ]
    out = ["--out", str(tmp_path / "run")] if command == "train" else []
    result = CliRunner(env={"COLUMNS": "200"}).invoke(
        app, [command, "--method", method, *settings, *out]
    )
    assert result.exit_code == 2, result.output
    assert says in result.stderr
    assert ("--set teacher=off" in result.stderr) == (method == "grpo" and case == "context")
    assert not (tmp_path / "run").exists()


def test_a_token_that_the_teacher_has_no_row_for_is_said(tiny, tmp_path, make_model):
    """With random weights a student's padding is as likely as the rest."""
    models = {"student": make_model(vocabulary=640), "teacher": make_model()}
    with pytest.raises(
        ValueError, match=r"a token of its padding \(640 rows\), which .* has no row for \(128\)"
    ):
        run(tiny("kdrl", quant="none", teacher_quant="none", **models), tmp_path / "run")


def test_a_teachers_context_is_looked_at_without_a_plan_too(tiny, tmp_path, make_model):
    models = {"student": make_model(), "teacher": make_model(max_position_embeddings=16)}
    with pytest.raises(ValueError, match="do not fit the context of 16 tokens"):
        run(
            tiny("kdrl", plan="off", quant="none", teacher_quant="none", **models), tmp_path / "run"
        )
    assert not (tmp_path / "run").exists()


def test_a_plan_that_changes_nothing_says_nothing_of_planned_moves(tiny):
    config = tiny(steps=3, moves=[{"step": 2, "knob": "kd_coef", "value": 0.3}])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*the run is made with")
        assert within_memory(config) == config


def test_a_file_that_evaluations_cannot_ask_is_refused_too(tiny, tmp_path, make_model, monkeypatch):
    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", None)
    (tmp_path / "held.csv").write_text("question,solution\n1+1?,2\n", encoding="utf-8")
    for name, says in (("held.csv", "column"), ("gone.csv", "gone.csv")):
        config = tiny("grpo", student=make_model(), eval_every=1, eval_task=str(tmp_path / name))
        with pytest.raises((ValueError, OSError), match=says):
            run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
