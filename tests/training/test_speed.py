"""What a step is said to compute, against PyTorch's own count."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rlkd_lab.models import Sequences, load_policy
from rlkd_lab.models.logprobs import hidden_states
from rlkd_lab.training.speed import Size, matmul_flops, tokens


@pytest.mark.parametrize("quant", ["none", "nf4"])
def test_a_forward_pass_is_what_torch_counts_without_attention_and_adapters(make_model, quant):
    lm = load_policy(make_model(), quant)
    ids = torch.arange(2, 14).view(2, 6)
    part = Sequences(ids, torch.ones_like(ids), ids + 20, torch.ones_like(ids))
    plain = load_policy(make_model(), "none")
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        plain.head(hidden_states(plain, part))
    per_operator = counted.get_flop_counts()["Global"]
    products = sum(
        flops
        for name, flops in per_operator.items()
        if "attention" not in str(name) and "bmm" not in str(name)
    )
    adapters = (
        sum(p.numel() for p in plain.trainable()) * 2 * ids.numel() * 2
    )  # two a weight and token, over prompts and completions
    assert Size.of(lm).forward(*tokens(part)) == pytest.approx(products - adapters, rel=0.01)
    assert Size.of(lm) == Size.of(plain)


def test_the_device_is_measured_once(monkeypatch):
    cpu = torch.device("cpu")
    peak = matmul_flops(cpu, torch.float32)
    assert peak > 1e8
    assert matmul_flops(cpu, torch.float32) == peak


def test_the_utilisation_of_a_run_is_a_share(trained):
    for row in trained("kdrl").rows():
        assert 0 < row["speed/utilisation"] < 1
        assert row["speed/tflops"] > 0
        assert row["speed/sampled_tokens_per_second"] > 0
