"""Policy, reference and teacher: views of one base that must not disturb each other; and what
is refused at the door.
"""

import json
import logging
import re
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    BloomConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    MambaConfig,
    MixtralConfig,
    T5Config,
)

from rlkd_lab.models import (
    Sequences,
    default_device,
    load_policy,
    load_teacher,
    loading,
    locate,
    locating,
    policy_logps,
    reference_of,
    verification,
)
from rlkd_lab.models.dense_copy import DenseCopy
from rlkd_lab.models.loading import compute_dtype, load_base
from rlkd_lab.models.locating import zoo_names
from rlkd_lab.models.logprobs import hidden_states, token_divergence
from rlkd_lab.models.lora import Lora
from rlkd_lab.models.tokenizers import difference_of_tokenizers, load_tokenizer
from rlkd_lab.models.verification import dequantised, verify_head
from rlkd_lab.training import make_config
from rlkd_lab.training.model_shape import Shape
from rlkd_lab.training.plan import plan

PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def logps(lm, sequences):
    with torch.no_grad():
        return policy_logps(lm, sequences)[0]


def gradients(policy, sequences):
    policy.model.zero_grad()
    policy_logps(policy, sequences)[0].sum().backward()
    return {
        name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None
    }


def update(policy, sequences, lr=0.5):
    """One step of gradient ascent, large enough to be seen."""
    gradients(policy, sequences)
    with torch.no_grad():
        for parameter in policy.trainable():
            parameter += lr * parameter.grad / (parameter.grad.norm() + 1e-6)


def state(lm):
    """What a view may not change in the policy: which adapters are active, what is trainable,
    what is trained.
    """
    return (
        lm.model.active_adapter,
        {name for name, p in lm.model.named_parameters() if p.requires_grad},
        [module.active_adapters for module in lm.model.modules() if hasattr(module, "lora_A")],
        [module.disable_adapters for module in lm.model.modules() if hasattr(module, "lora_A")],
    )


# --- the policy -----------------------------------------------------------------------------------


@pytest.mark.parametrize("quant", ["nf4", "none"])
def test_lora_is_on_every_linear_layer_and_all_else_is_frozen(make_model, quant):
    policy = load_policy(make_model(), quant, lora=Lora(4))
    found = {
        (name.split(".layers.")[1].split(".")[0], name.split(".")[-1])
        for name, m in policy.model.named_modules()
        if hasattr(m, "lora_A")
    }
    assert found == {(block, kind) for block in "01" for kind in PROJECTIONS}
    trainable = {name for name, p in policy.model.named_parameters() if p.requires_grad}
    assert len(trainable) == 2 * 2 * len(PROJECTIONS)
    assert all("lora_" in name for name in trainable)
    assert {p.dtype for p in policy.trainable()} == {torch.float32}


def test_a_fresh_adapter_changes_nothing_and_its_seed_decides_it(make_model, ragged):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, again, other = (load_policy(make_model(), "none", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(logps(first, ragged(first)), logps(reference_of(first), ragged(first)))
    assert all(torch.equal(a, b) for a, b in zip(first.trainable(), again.trainable(), strict=True))
    assert any(
        not torch.equal(a, b) for a, b in zip(first.trainable(), other.trainable(), strict=True)
    )


@pytest.mark.parametrize("quant", ["nf4", "none"])
def test_gradient_checkpointing_gives_the_same_gradients(make_model, stir, ragged, quant):
    found, saved = [], []
    for checkpointing in (False, True):
        policy = stir(load_policy(make_model(), quant, gradient_checkpointing=checkpointing))
        policy.model.train()
        count = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, count=count: count.append(x.numel()) or x, lambda x: x
        ):
            loss = policy_logps(policy, ragged(policy))[0].sum()
        loss.backward()
        found.append(
            {name: p.grad for name, p in policy.model.named_parameters() if p.requires_grad}
        )
        saved.append(sum(count))
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-5, atol=1e-6)
    # checkpointing that does not checkpoint would pass all the rest
    assert saved[1] < saved[0] / 2


def test_pitfall_02_sixteen_bit_weights_of_the_base_stay_so_and_adapters_are_float32(
    make_model, monkeypatch
):
    # prepare_model_for_kbit_training would cast embeddings and norms to float32
    monkeypatch.setattr(loading, "compute_dtype", lambda device: torch.bfloat16)
    policy = load_policy(make_model(), "nf4", gradient_checkpointing=True)
    frozen = {
        p.dtype
        for p in policy.model.parameters()
        if not p.requires_grad and p.dtype.is_floating_point
    }
    assert frozen == {torch.bfloat16}
    assert {p.dtype for p in policy.trainable()} == {torch.float32}


def test_pitfall_02_checkpointing_is_not_reentrant(make_model):
    # The reentrant kind needs inputs with a gradient; the other kind gives adapters theirs in any
    # case.
    policy = load_policy(make_model(), "none", gradient_checkpointing=True)
    kinds = {
        m._gradient_checkpointing_func.keywords["use_reentrant"]
        for m in policy.model.modules()
        if hasattr(m, "_gradient_checkpointing_func")
    }
    assert kinds == {False}


@pytest.mark.parametrize(("bf16", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_pitfall_03_a_gpu_without_bf16_computes_in_float16(monkeypatch, bf16, expected):
    # A T4 says it supports bf16 when emulation counts, so the question must leave emulation out.
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: including_emulation or bf16,
    )
    assert compute_dtype(torch.device("cuda")) == expected
    assert compute_dtype(torch.device("cpu")) == torch.float32


@pytest.mark.parametrize("asked", [None, torch.device("cuda")])
def test_every_process_loads_to_its_own_gpu_though_threads_do_it(make_model, monkeypatch, asked):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(loading, "compute_dtype", lambda device: torch.float32)
    seen = {}

    def load(folder, **settings):
        seen.update(settings)
        raise SafetensorError("far enough")

    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", load)
    with pytest.raises(ValueError, match="far enough"):
        load_policy(make_model(), "none", device=asked)
    assert seen["device_map"] == {"": torch.device("cuda", 3)}
    assert default_device() == torch.device("cuda", 3)


@pytest.mark.parametrize("quant", ["nf4", "none"])
def test_pitfall_03_adapters_are_float32_over_a_float16_base(
    make_model, monkeypatch, ragged, quant
):
    monkeypatch.setattr(loading, "compute_dtype", lambda device: torch.float16)
    policy = load_policy(make_model(initializer_range=0.02), quant)
    assert policy.head.weight.dtype == torch.float16
    assert {p.dtype for p in policy.trainable()} == {torch.float32}
    found = gradients(policy, ragged(policy))
    assert {g.dtype for g in found.values()} == {torch.float32}
    assert any(float(g.norm()) > 0 for g in found.values())


def test_pitfall_07_nothing_drops_out_while_training(make_model, stir, ragged):
    policy = stir(load_policy(make_model(), "nf4"))
    assert not any(
        isinstance(module, nn.Dropout) and module.p > 0 for module in policy.model.modules()
    )
    policy.model.train()
    training = logps(policy, ragged(policy))
    policy.model.eval()
    # the on-policy ratio is exp(0), exactly
    assert torch.equal(training, logps(policy, ragged(policy)))


def test_pitfall_07_an_adapter_made_with_dropout_goes_on_without(make_model, make_adapter, ragged):
    policy = load_policy(make_model(), "none", adapter=make_adapter(make_model(), lora_dropout=0.5))
    policy.model.train()
    training = logps(policy, ragged(policy))
    policy.model.eval()
    assert torch.equal(training, logps(policy, ragged(policy)))


def test_pitfall_07_a_base_made_with_dropout_is_used_without(make_model, ragged):
    policy = load_policy(make_model(attention_dropout=0.5), "none")
    policy.model.train()
    training = logps(policy, ragged(policy))
    policy.model.eval()
    assert torch.equal(training, logps(policy, ragged(policy)))


# --- reference and teacher ------------------------------------------------------------------------


@pytest.mark.parametrize("quant", ["nf4", "none"])
def test_the_reference_is_the_base_before_and_after_an_update(make_model, ragged, quant):
    policy = load_policy(make_model(), quant)
    reference, base = reference_of(policy), load_teacher(make_model(), quant)
    expected = logps(base, ragged(base))
    assert torch.equal(logps(reference, ragged(policy)), expected)
    update(policy, ragged(policy))
    update(policy, ragged(policy))
    assert (logps(policy, ragged(policy)) - expected).abs().max() > 0.1
    assert torch.equal(logps(reference, ragged(policy)), expected)


def test_pitfall_06_a_warm_started_policy_has_its_start_as_the_reference(
    make_model, make_adapter, ragged
):
    # Pitfall 5 (continuous batching with a 4-bit base and an adapter) has no engine here; its
    # intent, the sampler's log-probabilities against the trainer's on just that combination, is
    # test_pitfall_05_* in tests/rollouts/test_sampling.py.
    adapter = make_adapter(make_model())
    policy = load_policy(make_model(), "nf4", adapter=adapter)
    reference = reference_of(policy)
    base = logps(load_teacher(make_model(), "nf4"), ragged(policy))
    start = logps(policy, ragged(policy))
    assert (start - base).abs().max() > 0.1
    assert torch.equal(logps(reference, ragged(policy)), start)
    assert {
        name.split(".")[-2] for name, p in policy.model.named_parameters() if p.requires_grad
    } == {"default"}
    update(policy, ragged(policy))
    assert (logps(policy, ragged(policy)) - start).abs().max() > 0.1
    assert torch.equal(logps(reference, ragged(policy)), start)


def test_a_missing_start_adapter_is_an_error_in_words(make_model, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no adapter_model\.safetensors"):
        load_policy(make_model(), "none", adapter=tmp_path)


@pytest.mark.parametrize("own_adapter", [False, True])
@pytest.mark.parametrize("warm", [False, True])
def test_a_teacher_on_the_same_base_shares_it_and_leaves_the_policy_as_it_was(
    make_model, make_adapter, stir, ragged, own_adapter, warm
):
    folder = make_model()
    policy = load_policy(folder, "nf4", adapter=make_adapter(folder, seed=5) if warm else None)
    stir(policy, seed=1)
    before, expected = state(policy), gradients(policy, ragged(policy))
    adapter = make_adapter(folder, seed=2) if own_adapter else None
    teacher = load_teacher(folder, "nf4", policy=policy, adapter=adapter)
    assert state(policy) == before
    assert (
        teacher.backbone.embed_tokens.weight.data_ptr()
        == policy.backbone.embed_tokens.weight.data_ptr()
    )
    alone = load_teacher(folder, "nf4", adapter=adapter)
    torch.testing.assert_close(
        logps(teacher, ragged(policy)), logps(alone, ragged(policy)), rtol=0, atol=1e-6
    )
    assert state(policy) == before
    # between the policy's forward and its backward, as in a step with a divergence
    policy.model.zero_grad()
    loss = policy_logps(policy, ragged(policy))[0].sum()
    logps(teacher, ragged(policy)), logps(reference_of(policy), ragged(policy))
    loss.backward()
    assert state(policy) == before
    for name, gradient in expected.items():
        torch.testing.assert_close(
            policy.model.get_parameter(name).grad, gradient, rtol=1e-6, atol=1e-7
        )
    assert sum(p.grad is not None for p in policy.model.parameters()) == len(expected)


@pytest.mark.parametrize("own_adapter", [False, True])
def test_an_exception_inside_a_view_puts_the_policy_back(make_model, make_adapter, own_adapter):
    policy = load_policy(make_model(), "none")
    teacher = load_teacher(
        make_model(),
        "none",
        policy=policy,
        adapter=make_adapter(make_model()) if own_adapter else None,
    )
    before = state(policy)
    with pytest.raises(KeyError), teacher.active():
        raise KeyError
    assert state(policy) == before


def test_another_quantisation_is_another_base(make_model):
    policy = load_policy(make_model(), "nf4")
    teacher = load_teacher(make_model(), "none", policy=policy)
    assert (
        teacher.backbone.embed_tokens.weight.data_ptr()
        != policy.backbone.embed_tokens.weight.data_ptr()
    )
    assert not any(p.requires_grad for p in teacher.model.parameters())
    assert not teacher.model.training


def test_a_teacher_of_its_own_with_an_adapter_is_frozen(make_model, make_adapter):
    teacher = load_teacher(
        make_model(), "none", adapter=make_adapter(make_model(), lora_dropout=0.5)
    )
    assert not any(p.requires_grad for p in teacher.model.parameters())
    assert not any(module.training for module in teacher.model.modules())


def pickled_adapter(adapter, folder):
    """The same adapter as a pickle that leaves a file behind when it is opened carelessly."""
    from safetensors.torch import load_file

    shutil.copytree(adapter, folder)
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    return folder


@pytest.mark.parametrize("shared", [False, True])
def test_a_teachers_adapter_is_read_from_safetensors_alone(
    make_model, make_adapter, tmp_path, shared
):
    folder = pickled_adapter(make_adapter(make_model()), tmp_path / "pickled")
    policy = load_policy(make_model(), "none") if shared else None
    with pytest.raises(FileNotFoundError, match="safetensors"):
        load_teacher(make_model(), "none", policy=policy, adapter=folder)


# --- tokenizers and vocabularies ------------------------------------------------------------------


def test_pitfall_11_different_tokenizers_are_told_by_their_first_token(make_model, tmp_path):
    folder = tmp_path / "swapped"
    shutil.copytree(make_model(), folder)
    text = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = text["model"]["vocab"]
    vocabulary["7"], vocabulary["8"] = vocabulary["8"], vocabulary["7"]
    (folder / "tokenizer.json").write_text(json.dumps(text))
    pair = [load_tokenizer(name) for name in (make_model(), str(folder))]
    assert difference_of_tokenizers(*pair) == "'7' is 27 for the student and 28 for the teacher"
    assert difference_of_tokenizers(*pair[:1] * 2) is None


def test_pitfall_11_the_same_vocabulary_may_split_differently(make_model, tmp_path):
    folder = tmp_path / "lower"
    shutil.copytree(make_model(), folder)
    text = json.loads((folder / "tokenizer.json").read_text())
    text["normalizer"] = {"type": "Lowercase"}
    (folder / "tokenizer.json").write_text(json.dumps(text))
    pair = [load_tokenizer(name) for name in (make_model(), str(folder))]
    assert difference_of_tokenizers(*pair) == "the same text splits differently"


@pytest.mark.parametrize("sizes", [(128, 192), (192, 128)])
@pytest.mark.parametrize("kind", ["reverse", "forward", "jsd"])
def test_pitfall_11_vocabularies_padded_differently_are_compared_on_the_common_prefix(
    make_model, ragged, sizes, kind
):
    policy = load_policy(make_model(vocabulary=sizes[0]), "none")
    teacher = load_teacher(make_model(vocabulary=sizes[1], seed=1), "none", policy=policy)
    hidden, theirs = hidden_states(policy, ragged(policy)), hidden_states(teacher, ragged(policy))
    found = token_divergence(policy, hidden, teacher, theirs, kind, chunk=4)
    log_p, log_q = (
        torch.log_softmax(lm.head(states)[:, :128], -1)
        for lm, states in ((policy, hidden), (teacher, theirs))
    )
    middle = torch.logaddexp(log_p, log_q) - torch.tensor(2.0).log()
    kl = {"reverse": (log_p, log_q), "forward": (log_q, log_p)}
    pairs = [kl[kind]] if kind in kl else [(log_p, middle), (log_q, middle)]
    expected = sum((a.exp() * (a - b)).sum(-1) for a, b in pairs) / len(pairs)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_pitfall_13_every_end_of_sequence_counts_and_may_differ_from_the_teachers(make_model):
    policy, teacher = load_policy(make_model(), "none"), load_teacher(make_model(), "none")
    policy.causal_lm.generation_config.eos_token_id = [5, 7]
    assert policy.eos_ids == {1, 5, 7}
    assert teacher.eos_ids == {1}
    policy.causal_lm.generation_config = None
    assert policy.eos_ids == {1}


# --- what is refused at the door ------------------------------------------------------------------


@pytest.mark.parametrize("name", zoo_names())
def test_embedded_models_pass_the_head_check(name):
    assert load_policy(name, "none").context >= 128


@pytest.mark.parametrize("cap", [1.0, 5.0, 30.0])
def test_a_model_that_caps_its_logits_is_refused_whatever_its_config_calls_that(
    make_model, cap, monkeypatch
):
    monkeypatch.setattr(verification, "BEHIND_THE_HEAD", {})
    # 30 is what Gemma 2 has. The random model's logits reach about 10.
    with pytest.raises(ValueError, match=r"logits are not the output head's alone.*not supported"):
        load_policy(make_model("gemma2", final_logit_softcapping=cap), "none")


def test_the_default_dtype_of_the_process_is_left_alone(make_model, monkeypatch):
    # another run may be at work in another thread: for a moment its new tensors would have had 16
    # bit, and its rows were other ones
    changed, change = [], torch.set_default_dtype
    monkeypatch.setattr(
        torch, "set_default_dtype", lambda dtype: (changed.append(dtype), change(dtype))
    )
    policy = load_policy("student", "nf4")  # its config says bfloat16
    DenseCopy(policy)
    plan(make_config("kdrl", student=make_model(), teacher=make_model(), max_new_tokens=48), True)
    assert set(changed) <= {torch.float32}


UNSUPPORTED = {
    "gpt2": (
        GPT2Config,
        {"n_embd": 64, "n_layer": 2, "n_head": 2},
        r"of type gpt2: LoRA and 4 bit reach 0% of its weights.*not supported",
    ),
    "mixtral": (
        MixtralConfig,
        {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "num_local_experts": 4,
        },
        r"of type mixtral: LoRA and 4 bit reach \d+% of its weights.*not supported",
    ),
    "mamba": (
        MambaConfig,
        {"hidden_size": 64, "num_hidden_layers": 2},
        "of type mamba, which keeps a state",
    ),
    "gemma2": (
        Gemma2Config,
        {"hidden_size": 64, "num_hidden_layers": 2},
        r"of type gemma2, which changes its logits .*final_logit_softcapping.* 30",
    ),
    "granite": (
        GraniteConfig,
        {"hidden_size": 64, "num_hidden_layers": 2, "logits_scaling": 8.0},
        "of type granite, which changes its .*logits_scaling",
    ),
    "bloom": (
        BloomConfig,
        {"hidden_size": 64, "n_layer": 2, "n_head": 2},
        "of type bloom, which takes no position ids",
    ),
    "t5": (
        T5Config,
        {"d_model": 64, "num_layers": 1},
        "of type t5, which is no causal language model",
    ),
}


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_an_architecture_that_is_not_supported_is_refused_before_its_weights_are_read(
    make_model, tmp_path, kind
):
    config, fields, says = UNSUPPORTED[kind]
    folder = str(tmp_path / kind)
    shutil.copytree(
        make_model(), folder
    )  # tokenizer and weights of something else: nobody looks at them
    config(vocab_size=128, **fields).save_pretrained(folder)
    with pytest.raises(ValueError, match=says) as raised:
        load_policy(folder, "nf4")
    assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match=says):
        Shape.of(folder)


def test_a_hub_model_without_safetensors_is_refused_in_words(tmp_path, monkeypatch):
    (tmp_path / "pytorch_model.bin").touch()
    monkeypatch.setattr(locating, "snapshot_download", lambda name, allow_patterns: str(tmp_path))
    with pytest.raises(
        FileNotFoundError,
        match=r"'some/model' has no \*\.safetensors: weights are read from safetensors alone",
    ):
        locate("some/model")
    assert locate("some/model", weights=False) == tmp_path


def test_without_weights_config_and_tokenizer_alone_are_downloaded(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        locating,
        "snapshot_download",
        lambda name, allow_patterns: asked.append(allow_patterns) or str(tmp_path),
    )
    locate("some/model", weights=False)
    assert not any("safetensors" in pattern for pattern in asked[0])
    assert "*.json" in asked[0]


def test_an_adapter_that_trains_the_output_head_is_refused(make_model, tmp_path):
    # the log-probabilities take the head as frozen: its gradient would be lost
    model, _ = load_base(make_model(), "none")
    get_peft_model(
        model, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    ).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="the output head is trained"):
        load_policy(make_model(), "none", adapter=tmp_path / "adapter")


def test_a_cap_that_hardly_shows_is_refused_too(make_model, monkeypatch):
    monkeypatch.setattr(verification, "BEHIND_THE_HEAD", {})
    # It moves the largest logit by half a percent, and a log-probability by .013 nats already.
    folder = make_model("gemma2", final_logit_softcapping=30.0, initializer_range=0.1)
    with pytest.raises(ValueError, match="logits are not the output head's alone"):
        load_policy(folder, "none")


def test_a_gemma_without_a_cap_is_accepted(make_model):
    load_policy(make_model("gemma2"), "none")


@pytest.mark.parametrize("relative", [False, True])
def test_a_folder_with_a_pickle_alone_is_refused(make_model, tmp_path, monkeypatch, relative):
    model, tokenizer = load_base(make_model(), "none")
    model.config.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    monkeypatch.chdir(tmp_path.parent)
    with pytest.raises(FileNotFoundError, match=r"no \*\.safetensors.*a pickle can run code"):
        load_policy(tmp_path.name if relative else str(tmp_path), "none")


def test_a_folder_without_a_config_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a folder without a config\.json"):
        locate(str(tmp_path))


TRAP = (
    "import pathlib\npathlib.Path({mark!r}).touch()\nfrom transformers import {what}\n\nclass"
    " Mine({what}):\n    model_type = 'of_its_own'\n"
)


@pytest.mark.parametrize("answer", ["", "y"])
@pytest.mark.parametrize("model_type", ["qwen3", "of_its_own"])
def test_code_in_a_model_folder_is_never_run(make_model, tmp_path, monkeypatch, model_type, answer):
    # transformers asks on the terminal whether it may run code it does not know; a yes there is no
    # yes to this package
    monkeypatch.setattr("builtins.input", lambda *_: answer)
    folder, mark = tmp_path / "trap", tmp_path / "ran"
    shutil.copytree(make_model(), folder)
    config = json.loads((folder / "config.json").read_text()) | {"model_type": model_type}
    config["auto_map"] = {"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "model.Mine"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text(TRAP.format(mark=str(mark), what="Qwen3Config"))
    (folder / "model.py").write_text(TRAP.format(mark=str(mark), what="Qwen3ForCausalLM"))
    if model_type == "qwen3":
        load_base(str(folder), "none")  # the library's own class is used
    else:
        with pytest.raises((ValueError, KeyError, OSError)):
            load_base(str(folder), "none")
    assert not mark.exists()


@pytest.mark.parametrize("name", ["nobody/no-such-model", "no such model", "studnet"])
def test_an_unknown_model_offline_is_an_error_that_says_what_to_do(name):
    with pytest.raises(
        FileNotFoundError, match=rf"no model '{name}'.*student.*Check the name, or download it"
    ):
        locate(name)


def test_only_safetensors_and_text_are_asked_of_the_hub(monkeypatch, make_model):
    asked = {}
    monkeypatch.setattr(
        locating,
        "snapshot_download",
        lambda name, **settings: asked.update(settings) or make_model(),
    )
    assert locate("somebody/some-model") == Path(make_model())
    patterns = asked["allow_patterns"]
    assert not any(
        fnmatch_any(name, patterns)
        for name in (
            "pytorch_model.bin",
            "modeling.py",
            "model.pt",
            "model.pkl",
            "consolidated.pth",
        )
    )
    assert all(
        fnmatch_any(name, patterns)
        for name in (
            "config.json",
            "model.safetensors",
            "tokenizer.model",
            "merges.txt",
            "chat_template.jinja",
        )
    )


def fnmatch_any(name, patterns):
    from fnmatch import fnmatch

    return any(fnmatch(name, pattern) for pattern in patterns)


def test_loading_is_quiet(make_model, caplog, capfd):
    with caplog.at_level(logging.WARNING):
        load_policy(make_model(), "nf4")
    assert caplog.text == ""
    assert capfd.readouterr() == ("", "")


def test_a_tokenizer_without_padding_pads_with_its_end_of_sequence(make_model, tmp_path):
    folder = tmp_path / "unpadded"
    shutil.copytree(make_model(), folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("pad_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    _, tokenizer = load_base(str(folder), "none")
    assert tokenizer.pad_token_id == tokenizer.eos_token_id


def test_dequantised_of_a_dense_layer_is_its_weight():
    layer = nn.Linear(3, 2)
    assert torch.equal(dequantised(layer), layer.weight)


def test_select_drops_columns_that_are_padding_in_all_rows(make_model, ragged):
    policy = load_policy(make_model(), "none")
    whole = ragged(policy)
    part = whole.select(torch.tensor([0, 2]))
    assert isinstance(part, Sequences)
    assert part.prompt_ids.shape == (2, 5)
    torch.testing.assert_close(logps(policy, part), logps(policy, whole)[[0, 2]], rtol=0, atol=1e-5)


def damaged(folder, tmp_path, change):
    """A copy of a model whose tensors went through a function."""
    copy = tmp_path / "damaged"
    shutil.copytree(folder, copy)
    tensors = load_file(copy / "model.safetensors")
    change(tensors)
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    return str(copy)


@pytest.mark.parametrize("quant", ["nf4", "none"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize(
    "key", ["model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight", "model.norm.weight"]
)
def test_a_checkpoint_with_values_that_are_no_numbers_is_named_as_such(
    make_model, tmp_path, quant, value, key
):
    folder = damaged(
        make_model(), tmp_path, lambda tensors: tensors[key].view(-1)[3:4].fill_(value)
    )
    what = "NaN" if value != value else "infinite values"
    with pytest.raises(
        ValueError, match=rf"the checkpoint .*damaged' holds {what} .*{re.escape(key)}"
    ):
        load_teacher(folder, quant)


def test_numbers_that_do_not_fit_16_bit_are_named_as_such(make_model, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "compute_dtype", lambda device: torch.float16)
    folder = damaged(
        make_model(), tmp_path, lambda tensors: tensors["model.norm.weight"][3:4].fill_(1e5)
    )
    with pytest.raises(
        ValueError,
        match=r"holds infinite values as float16 in 1 tensors \(first: model\.norm\.weight\)",
    ):
        load_teacher(folder, "none")


@pytest.mark.parametrize("quant", ["nf4", "none"])
def test_a_checkpoint_that_lacks_layers_is_refused_and_not_filled_with_random_numbers(
    make_model, tmp_path, quant
):
    def half(tensors):
        for key in [key for key in tensors if ".layers.1." in key]:
            del tensors[key]

    with pytest.raises(
        ValueError,
        match=r"lacks 11 tensors \(first: model\.layers\.1\.input_layernorm\.weight\), which"
        r" would be random numbers",
    ):
        load_teacher(damaged(make_model(), tmp_path, half), quant)


@pytest.mark.parametrize("quant", ["nf4", "none"])
@pytest.mark.parametrize(
    ("new", "says"),
    [
        ({"model.layers.0.self_attn.o_proj.bias": (64,)}, r"1 tensors .*first: \S+o_proj\.bias"),
        ({"model.layers.2.mlp.up_proj.weight": (128, 64)}, "would be left out"),
        ({"lm_head.weight": (128, 64)}, "set tie_word_embeddings to false"),
        ({"model.layers.0.self_attn.rotary_emb.inv_freq": (8,), "model.position_ids": (1, 8)}, ""),
    ],
)
def test_weights_that_the_model_has_no_place_for_are_not_left_out(
    make_model, tmp_path, quant, new, says
):
    change = {key: torch.zeros(shape) for key, shape in new.items()}
    folder = damaged(
        make_model(tie_word_embeddings=True), tmp_path, lambda tensors: tensors.update(change)
    )
    with pytest.raises(ValueError, match=says) if says else nullcontext():
        load_teacher(folder, quant)


def test_a_head_that_is_its_embedding_may_stand_in_the_checkpoint(make_model, tmp_path):
    def tie(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    load_teacher(damaged(make_model(tie_word_embeddings=True), tmp_path, tie), "none")


def test_in_16_bit_the_rounding_of_a_deep_model_is_no_look_ahead(make_model, monkeypatch):
    """It was .053 of the largest logit on an H200, for the shape of Qwen2.5-7B."""
    monkeypatch.setattr(loading, "compute_dtype", lambda device: torch.bfloat16)
    lm = load_teacher(make_model("qwen2", num_hidden_layers=20, initializer_range=0.5), "none")

    def other_kernels(_, __, states):  # as a GPU has for other lengths
        length = torch.Generator().manual_seed(states.shape[1])
        signs = torch.randint(2, states.shape, generator=length) * 2 - 1
        return states * (1 + torch.finfo(states.dtype).eps * signs.to(states))

    lm.causal_lm.get_input_embeddings().register_forward_hook(other_kernels)
    ids = torch.arange(32)[None] * 3 + 5
    with torch.no_grad():
        whole, first = (lm.model(input_ids=ids[:, :n]).logits.float() for n in (32, 4))
    assert float((whole[:, :4] - first).abs().max() / whole.abs().max()) > 0.06
    verify_head(lm)


CONFIGS = {
    "sees ahead": ({"is_causal": False}, "its tokens see later ones"),
    "quantised already": (
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        "is a checkpoint that is quantised already",
    ),
    "layers that disagree": ({"num_hidden_layers": 5}, r"config\.json of .* cannot be used: .*"),
    "no such activation": ({"hidden_act": "mish mash"}, r"config\.json of .* cannot be used: KeyE"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_sees_ahead_is_refused_in_any_precision(
    make_model, tmp_path, monkeypatch, dtype
):
    monkeypatch.setattr(loading, "compute_dtype", lambda device: dtype)
    change, says = CONFIGS["sees ahead"]
    folder = shutil.copytree(make_model("qwen2", num_hidden_layers=12), tmp_path / "model")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=says):
        load_teacher(str(folder), "none")


@pytest.mark.parametrize("odd", CONFIGS)
def test_a_config_that_makes_another_model_of_the_weights_is_refused_in_words(
    make_model, tmp_path, odd
):
    change, says = CONFIGS[odd]
    folder = shutil.copytree(make_model("qwen2"), tmp_path / "model")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=says):
        load_teacher(str(folder), "none")
    if odd != "sees ahead":  # which shows in the numbers alone
        with pytest.raises(ValueError, match=says):
            Shape.of(str(folder))


@pytest.mark.parametrize("quant", ["nf4", "none"])
def test_a_checkpoint_of_other_shapes_is_refused_in_words(make_model, tmp_path, quant):
    folder = damaged(
        make_model(),
        tmp_path,
        lambda tensors: tensors.update({"model.norm.weight": torch.ones(32)}),
    )
    says = r"do not fit its config\.json: 1 tensors .*model\.norm\.weight, \(32,\), .*\(64,\)"
    with pytest.raises(ValueError, match=says):
        load_teacher(folder, quant)


def test_without_bitsandbytes_the_setting_is_named(make_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(
        ValueError,
        match=r"--set quant=none \(a teacher: --set teacher_quant=none; rlkd eval: --quant none\)",
    ):
        load_policy(make_model(), "nf4")
