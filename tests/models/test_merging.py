"""A merge is the function that was asked for, and says what the rounding took."""

import json
from dataclasses import replace

import pytest
import torch

from rlkd_lab.models import LanguageModel, load_policy, load_teacher
from rlkd_lab.models.lora import Lora
from rlkd_lab.models.merging import Rounding, kl_per_token, merge

NAMES = ("nf4", "full")


def logits(model, ids=tuple(range(3, 40))):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits


def largest_gap(a, b):
    return float((a - b).abs().max() / a.abs().max())


@pytest.fixture
def adapter_with(tmp_path, stir):
    """``adapter_with(std)``: an adapter for the embedded student, with B of that spread."""

    def make(std, seed=0):
        policy = stir(load_policy("student", "none", lora=Lora(4, 8)), std=std, seed=seed)
        policy.model.save_pretrained(str(tmp_path / f"{std}-{seed}"))
        return tmp_path / f"{std}-{seed}"

    return make


def test_into_nf4_is_what_was_trained_and_into_full_is_the_adapter_beside_the_base(
    adapter_with,
):
    place = adapter_with(0.05)
    trained, beside_full = (
        load_teacher("student", quant, adapter=place) for quant in ("nf4", "none")
    )
    nf4, full = (merge(trained, into, torch.float32)[0] for into in NAMES)
    assert largest_gap(logits(trained.model), logits(nf4)) < 1e-5
    assert largest_gap(logits(beside_full.model), logits(full)) < 1e-5
    # what separates them is far above these tolerances, and so is what the adapter does
    assert largest_gap(logits(nf4), logits(full)) > 1e-2
    assert largest_gap(logits(full), logits(load_teacher("student", "none").model)) > 1e-2


@pytest.mark.parametrize("family", ["qwen3", "qwen2", "gemma2"])
@pytest.mark.parametrize("into", NAMES)
def test_every_family(make_model, make_adapter, family, into):
    model = make_model(family)
    policy = load_teacher(model, "nf4", adapter=make_adapter(model))
    expected = (
        policy if into == "nf4" else load_teacher(model, "none", adapter=policy.adapter_source)
    )
    assert largest_gap(logits(expected.model), logits(merge(policy, into, torch.float32)[0])) < 1e-5


def test_an_adapter_of_another_scaling_and_with_whole_layers_is_merged_as_peft_reads_it(
    make_model, tmp_path
):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = make_model()
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        use_rslora=True,
        use_dora=True,
        target_modules=["q_proj", "down_proj"],
        modules_to_save=["norm"],
        init_lora_weights=False,
    )
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
    for name, parameter in adapted.named_parameters():
        if "modules_to_save" in name:
            parameter.data += 0.5
    adapted.save_pretrained(str(tmp_path))
    policy = load_teacher(model, "none", adapter=tmp_path)
    assert largest_gap(logits(policy.model), logits(merge(policy, "full", torch.float32)[0])) < 1e-5


def test_the_result_is_a_plain_model_with_the_config_of_its_base(adapter_with, tmp_path):
    from rlkd_lab.models import locate

    model, _ = merge(
        load_teacher("student", "nf4", adapter=adapter_with(0.05)), "nf4", torch.bfloat16
    )
    model.save_pretrained(tmp_path / "merged")
    for name in ("config.json", "generation_config.json"):
        written, original = (
            json.loads((folder / name).read_text())
            for folder in (tmp_path / "merged", locate("student"))
        )
        assert {key: value for key, value in written.items() if key != "transformers_version"} == {
            key: value for key, value in original.items() if key != "transformers_version"
        }
    assert not any("lora" in name or "base_layer" in name for name, _ in model.named_parameters())


# --- rounding -------------------------------------------------------------------------------------


def test_pitfall_04_a_small_update_is_rounded_away_in_16_bit_and_a_large_one_is_not(adapter_with):
    kept = {}
    for std in (1e-6, 0.05):
        policy = load_teacher("student", "none", adapter=adapter_with(std))
        for dtype in (torch.bfloat16, torch.float32):
            model, rounding = merge(policy, "full", dtype)
            kept[std, dtype] = rounding.kept
            if (std, dtype) == (1e-6, torch.bfloat16):  # not in the number alone
                bare = load_teacher("student", "none").model
                ours, theirs = (
                    dict(each.named_parameters())["model.layers.0.mlp.up_proj.weight"].float()
                    for each in (model, bare)
                )
                assert float((ours == theirs).float().mean()) > 0.8
                assert rounding.error > 0.8
    assert kept[1e-6, torch.bfloat16] < 0.5
    assert kept[0.05, torch.bfloat16] > 0.99
    assert kept[1e-6, torch.float32] > 0.99


def test_what_is_kept_and_the_error_by_hand(make_model, make_adapter):
    model = make_model()
    policy = load_teacher(model, "none", adapter=make_adapter(model))
    merged, rounding = merge(policy, "full", torch.float16)
    weights = dict(merged.named_parameters())
    along = error = size = 0.0
    for name, layer in policy.causal_lm.named_modules():
        if hasattr(layer, "lora_A"):
            before = layer.base_layer.weight.double()
            update = (
                layer.scaling["default"]
                * layer.lora_B["default"].weight.double()
                @ layer.lora_A["default"].weight.double()
            )
            saved = weights[f"{name}.weight"].double()
            along += float(((saved - before.half().double()) * update).sum())
            error += float((saved - before - update).square().sum())
            size += float(update.square().sum())
    assert rounding.kept == pytest.approx(along / size, rel=1e-3)
    assert rounding.error == pytest.approx((error / size) ** 0.5, rel=1e-3)


def test_an_adapter_of_zeros_loses_nothing(adapter_with):
    assert merge(
        load_teacher("student", "none", adapter=adapter_with(0.0)), "full", torch.bfloat16
    )[1] == Rounding(1.0, 0.0)


def test_weights_that_do_not_fit_are_refused_by_name(adapter_with):
    policy = replace(load_teacher("student", "none"), adapter_source=str(adapter_with(1e6)))
    with pytest.raises(
        ValueError, match=r"model\.layers\.0.*do not fit float16: use bfloat16 or float32"
    ):
        merge(policy, "full", torch.float16)
    with pytest.raises(ValueError, match="NaN"):
        merge(
            replace(policy, adapter_source=str(adapter_with(float("nan")))), "full", torch.float32
        )


def test_nf4_weights_that_there_are_not(adapter_with):
    with pytest.raises(ValueError, match=r"was not quantised \(quant=none\).*use --into full"):
        merge(load_teacher("student", "none", adapter=adapter_with(0.05)), "nf4", torch.bfloat16)


# --- the measure ----------------------------------------------------------------------------------


def test_kl_per_token_is_the_kl_of_the_two_distributions_at_each_completion_token(
    adapter_with, ragged
):
    policy = load_teacher("student", "none", adapter=adapter_with(0.05))
    bare = LanguageModel(policy.model, policy.tokenizer, policy.source, policy.quant, None)
    sequences = ragged(policy)
    found = kl_per_token(policy, bare, sequences)
    assert len(found) == int(sequences.completion_mask.sum())
    torch.testing.assert_close(
        kl_per_token(policy, policy, sequences), torch.zeros(len(found)), rtol=0, atol=1e-6
    )
    ids = torch.cat(
        [
            sequences.prompt_ids[0][sequences.prompt_mask[0].bool()],
            sequences.completion_ids[0][sequences.completion_mask[0].bool()],
        ]
    )
    first = int(sequences.prompt_mask[0].sum())
    with torch.no_grad():
        ours = policy.model(input_ids=ids[None]).logits[0, first - 1 : -1].log_softmax(-1)
        with policy.model.disable_adapter():
            theirs = policy.model(input_ids=ids[None]).logits[0, first - 1 : -1].log_softmax(-1)
    expected = (ours.exp() * (ours - theirs)).sum(-1)
    torch.testing.assert_close(found[: len(expected)], expected, rtol=1e-4, atol=1e-6)
    assert float(expected.max()) > 1e-3
