"""4-bit layers: what they decode to, what their gradients are, and when they are refused."""

import shutil
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import has_avx512bf16
from bitsandbytes.nn import Linear4bit

from rlkd_lab.models import load_policy, locate, policy_logps
from rlkd_lab.models.loading import load_base
from rlkd_lab.models.locating import zoo_names
from rlkd_lab.models.verification import MAX_QUANT_ERROR, dequantised, verify_quantised
from rlkd_lab.rollouts import Sampling, sample

on_cpu = {"device": torch.device("cpu")}


def lora_gradients(policy, sequences):
    policy.model.zero_grad()
    policy_logps(policy, sequences)[0].sum().backward()
    return {
        name: parameter.grad.clone()
        for name, parameter in policy.model.named_parameters()
        if parameter.requires_grad
    }


def evaluate_once(policy):
    """A generation in eval mode without grad, then back to training, as the loop does."""
    sample(policy, ["49-7?"], 2, Sampling(max_new_tokens=4), torch.Generator().manual_seed(0))
    policy.model.eval()
    with torch.no_grad():
        policy.causal_lm(input_ids=torch.tensor([[20, 21, 22]]))
    policy.model.train()


def test_pitfall_01_gradients_are_equal_before_and_after_a_generation(make_model, stir, ragged):
    policy = stir(load_policy(make_model(), "nf4", **on_cpu))
    policy.model.train()
    before = lora_gradients(policy, ragged(policy))
    evaluate_once(policy)
    after = lora_gradients(policy, ragged(policy))
    assert all(float(gradient.norm()) > 0 for gradient in before.values())
    for name, gradient in before.items():
        torch.testing.assert_close(after[name], gradient, rtol=0, atol=0)


@pytest.mark.skipif(
    not has_avx512bf16(), reason="this CPU has no AVX512-BF16, so bitsandbytes does not repack"
)
def test_pitfall_01_without_the_guard_gradients_are_lost(make_model, stir, ragged):
    # If this fails, bitsandbytes has mended the fault and the guard in load_base can go.
    policy = stir(load_policy(make_model(), "nf4", **on_cpu))
    for module in policy.model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = True
    policy.model.train()
    before = lora_gradients(policy, ragged(policy))
    evaluate_once(policy)
    after = lora_gradients(policy, ragged(policy))
    ratio = {
        name: float(after[name].norm() / before[name].norm())
        for name in before
        if ".layers.0." in name
    }
    assert min(ratio.values()) < 0.7


@pytest.mark.skipif(
    not has_avx512bf16(),
    reason="this CPU has no AVX512-BF16: there NF4 was seen to decode every width rightly, and"
    " nothing is refused",
)
def test_pitfall_01_a_width_that_nf4_decodes_wrongly_is_refused_by_name(make_model):
    with pytest.raises(
        ValueError,
        match=r"model\.layers\.0\.self_attn\.q_proj does not decode.*160.*multiple of 64.*--set"
        r" quant=none",
    ):
        load_base(make_model(hidden=160), "nf4", **on_cpu)


def test_the_same_width_loads_in_full_precision(make_model):
    model, _ = load_base(make_model(hidden=160), "none", **on_cpu)
    assert not any(isinstance(module, Linear4bit) for module in model.modules())


def test_a_corrupted_layer_is_refused(make_model):
    folder = make_model()
    model, _ = load_base(folder, "nf4", **on_cpu)
    assert 0.03 < verify_quantised(model, Path(folder)) < MAX_QUANT_ERROR
    layer = model.model.layers[1].mlp.down_proj
    layer.weight.data[: len(layer.weight.data) // 8] ^= 0x44
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.down_proj does not decode"):
        verify_quantised(model, Path(folder))


@pytest.mark.parametrize("name", zoo_names())
def test_embedded_models_verify(name):
    model, _ = load_base(name, "nf4", **on_cpu)
    assert verify_quantised(model, locate(name)) < MAX_QUANT_ERROR
    assert all(
        not m.support_avx512bf16_for_cpu for m in model.modules() if isinstance(m, Linear4bit)
    )


def test_every_linear_layer_but_the_head_is_quantised(make_model):
    model, _ = load_base(make_model(), "nf4", **on_cpu)
    dense = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and not isinstance(module, Linear4bit)
    ]
    assert dense == ["lm_head"]


def test_a_sharded_checkpoint_verifies(make_model, tmp_path):
    model, tokenizer = load_base(make_model(), "none", **on_cpu)
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    tokenizer.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    load_base(str(tmp_path), "nf4", **on_cpu)
    # the index decides which file is read: a layer whose shard is exchanged must be noticed
    quantised, _ = load_base(str(tmp_path), "nf4", **on_cpu)
    other, _ = load_base(make_model(seed=1), "none", **on_cpu)
    other.save_pretrained(tmp_path, max_shard_size="50KB")
    with pytest.raises(ValueError, match="does not decode"):
        verify_quantised(quantised, tmp_path)


def test_a_checkpoint_saved_from_the_backbone_verifies(make_model, tmp_path):
    model, tokenizer = load_base(make_model(), "none", **on_cpu)
    model.model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    load_base(str(tmp_path), "nf4", **on_cpu)


def test_a_layer_without_a_source_is_refused(make_model, tmp_path):
    folder = make_model()
    model, _ = load_base(folder, "nf4", **on_cpu)
    shutil.copytree(folder, tmp_path / "other")
    model.extra = model.model.layers[0].mlp.up_proj
    del model.model.layers[0].mlp.up_proj
    with pytest.raises(ValueError, match=r"4-bit layer extra cannot be verified.*--set quant=none"):
        verify_quantised(model, tmp_path / "other")


def test_dequantised_is_the_weight_the_layer_computes_with(make_model):
    model, _ = load_base(make_model(), "nf4", **on_cpu)
    layer = model.model.layers[0].mlp.up_proj
    x = torch.randn(5, layer.in_features, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(x @ dequantised(layer).T, layer(x), rtol=1e-5, atol=1e-5)


def test_an_unknown_quantisation_is_refused():
    with pytest.raises(ValueError, match="'nf4' or 'none'; got 'int8'"):
        load_base("student", "int8")
