"""New adapters: on which layers they lie, how they are scaled, and what is refused."""

import pytest
import torch

from rlkd_lab.models import Lora, load_policy, make_dense_copy, policy_logps
from rlkd_lab.training import make_config

ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
MLP = {"gate_proj", "up_proj", "down_proj"}


def layers(policy):
    return {path for path, module in policy.causal_lm.named_modules() if hasattr(module, "lora_A")}


def ends(policy):
    return {path.rsplit(".", 1)[-1] for path in layers(policy)}


@pytest.mark.parametrize(
    ("targets", "found"),
    [
        ("all-linear", ATTENTION | MLP),
        ("attention", ATTENTION),
        ("mlp", MLP),
        (r".*\.(q|v)_proj", {"q_proj", "v_proj"}),
    ],
)
def test_the_targets_are_the_layers_that_are_named(make_model, targets, found):
    policy = load_policy(make_model(), lora=Lora(targets=targets))
    assert ends(policy) == found
    assert len(layers(policy)) == 2 * len(found)


def test_an_expression_may_choose_one_layer_of_one_block(make_model):
    policy = load_policy(make_model(), lora=Lora(targets=r"model\.layers\.1\.mlp\.up_proj"))
    assert layers(policy) == {"model.layers.1.mlp.up_proj"}


@pytest.mark.parametrize(
    ("lora", "words"),
    [
        (Lora(targets="q_proj"), "matches no linear layer: write all-linear, attention, mlp"),
        (Lora(targets="lm_head"), "matches no linear layer"),
        (Lora(targets="model.embed_tokens"), "matches no linear layer"),
        (Lora(ranks={"query": 4}), "lora_ranks.query: no layer of the adapter has that name"),
        (Lora(targets="mlp", alphas={"q_proj": 4}), "lora_alphas.q_proj: no layer"),
    ],
)
def test_what_names_no_layer_is_refused_in_words(make_model, lora, words):
    with pytest.raises(ValueError, match=words):
        load_policy(make_model(), lora=lora)


def test_a_new_adapter_and_one_to_start_from_exclude_each_other(make_model, make_adapter):
    adapter = make_adapter(make_model())
    with pytest.raises(ValueError, match="give one of them"):
        load_policy(make_model(), lora=Lora(4), adapter=adapter)


@pytest.mark.parametrize(
    ("name", "value"), [("lora_targets", "("), ("lora_ranks.(", "4"), ("lora_alphas.*", "4")]
)
def test_what_is_no_regular_expression_is_refused_before_anything_is_loaded(name, value):
    with pytest.raises(ValueError, match=f"{name.split('.')[0]}: .*is no regular expression"):
        make_config("grpo", settings={name: value})


@pytest.mark.parametrize(
    "lora",
    [
        Lora(8, 16, "attention"),
        Lora(8, 16, kind="rslora"),
        Lora(8, 16, kind="dora"),
        Lora(8, 16, ranks={"q_proj": 2, r"layers\.1\.mlp\.up_proj": 4}, alphas={"v_proj": 64}),
    ],
    ids=["attention", "rslora", "dora", "patterns"],
)
@pytest.mark.parametrize("quant", ["nf4", "none"])
def test_the_copy_that_samples_computes_what_the_policy_computes(
    make_model, stir, ragged, lora, quant
):
    policy = stir(load_policy(make_model(), quant, lora=lora))
    for path in layers(policy):
        module = policy.causal_lm.get_submodule(path)
        rank = 8
        if lora.ranks:
            rank = 2 if path.endswith("q_proj") else 4 if "1.mlp.up_proj" in path else 8
        alpha = 64 if lora.alphas and path.endswith("v_proj") else 16
        assert module.r["default"] == rank
        root = rank**0.5 if lora.kind == "rslora" else rank
        assert module.scaling["default"] == pytest.approx(alpha / root)
    if lora.kind == "dora":
        with pytest.warns(UserWarning, match="DoRA magnitudes"):
            assert make_dense_copy(policy) is None
        return
    copy = make_dense_copy(policy)
    some = ragged(policy)
    with torch.no_grad():
        torch.testing.assert_close(
            policy_logps(copy.lm, some)[0], policy_logps(policy, some)[0], atol=2e-5, rtol=0
        )
