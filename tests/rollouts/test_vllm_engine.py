"""The engine ``vllm`` against a stub of vLLM 0.20 that computes with what it is given."""

import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import rlkd_lab
from rlkd_lab.models import load_policy, make_dense_copy, policy_logps
from rlkd_lab.models.lora import Lora
from rlkd_lab.rollouts import Sampling, sample
from rlkd_lab.rollouts.vllm_engine import SEGMENTS, Vllm
from rlkd_lab.training import make_config

PROMPTS = ["49-7?", "5+1-2?"]


@dataclass(frozen=True)
class SamplingParams:
    """The fields of vLLM's that are used; another name is a TypeError."""

    n: int
    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    stop_token_ids: list
    logprobs: int
    seed: int
    detokenize: bool


@dataclass(frozen=True)
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str


class LLM:
    """Loads the folder that it is given, and draws with transformers."""

    made: ClassVar[list] = []

    def __init__(
        self,
        *,
        model,
        dtype,
        max_model_len,
        enable_lora,
        max_loras,
        max_lora_rank,
        enable_sleep_mode,
        gpu_memory_utilization,
        logprobs_mode,
        generation_config,
    ):
        assert logprobs_mode == "processed_logprobs" and generation_config == "vllm"
        assert enable_lora and max_lora_rank in (8, 16, 32, 64, 128, 256, 320, 512)
        self.base = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
        assert AutoTokenizer.from_pretrained(model).eos_token_id is not None
        self.environment = dict(os.environ)
        self.can_sleep, self.asleep, self.calls = enable_sleep_mode, False, []
        LLM.made.append(self)

    def sleep(self, level):
        assert self.can_sleep and level == 1 and not self.asleep
        self.asleep = True

    def wake_up(self):
        assert self.asleep
        self.asleep = False

    def generate(self, prompts, sampling_params, *, use_tqdm, lora_request):
        assert not self.asleep and len(prompts) == len(sampling_params)
        self.calls.append((sampling_params, lora_request))
        lm = PeftModel.from_pretrained(self.base, lora_request.lora_path, adapter_name="default")
        found = []
        for prompt, params in zip(prompts, sampling_params, strict=True):
            draws = [
                self.draw(lm, prompt["prompt_token_ids"], params, params.seed + number)
                for number in range(params.n)
            ]
            found.append(SimpleNamespace(outputs=draws))
        lm.unload()
        return found

    @staticmethod
    def draw(lm, ids, params, seed):
        generator, drawn, said = torch.Generator().manual_seed(seed), [], []
        while len(drawn) < params.max_tokens:
            with torch.no_grad():
                logits = lm(torch.tensor([[*ids, *drawn]])).logits[0, -1]
            logps = (logits / params.temperature).log_softmax(-1)
            token = int(torch.multinomial(logps.exp(), 1, generator=generator))
            drawn.append(token)
            said.append({token: SimpleNamespace(logprob=float(logps[token]))})
            if token in params.stop_token_ids:
                break
        return SimpleNamespace(token_ids=tuple(drawn), logprobs=said)


@pytest.fixture
def stub(monkeypatch):
    vllm, lora, request = (ModuleType(name) for name in ("vllm", "vllm.lora", "vllm.lora.request"))
    vllm.LLM, vllm.SamplingParams, request.LoRARequest = LLM, SamplingParams, LoRARequest
    for module in (vllm, lora, request):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(LLM, "made", [])
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    return LLM


def draw(lm, engine, dense, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return sample(lm, PROMPTS, 3, Sampling(0.7, 6), generator, engine=engine, dense=dense)


@pytest.mark.parametrize("quant", ["nf4", "none"])
def test_it_draws_from_the_policy_and_says_with_which_probabilities(make_model, stir, stub, quant):
    policy, engine = stir(load_policy(make_model(), quant, lora=Lora(4))), Vllm()
    dense = make_dense_copy(policy)
    for turn in (1, 2):  # the adapter is the one of now, and the base is given once
        drawn = draw(policy, engine, dense, turn)
        own = policy_logps(policy, drawn.sequences, 0.7)[0]
        torch.testing.assert_close(drawn.sampler_logps, own, atol=2e-4, rtol=1e-4)
        stir(policy, seed=turn)
        dense.sync()
    (llm,) = stub.made
    assert llm.asleep and [request.lora_int_id for _, request in llm.calls] == [1, 2]
    seeds = [params.seed for params in llm.calls[0][0]]
    assert seeds[1] - seeds[0] == 3  # three completions each, and no seed twice
    assert draw(policy, engine, dense, 5).texts == draw(policy, engine, dense, 5).texts


@pytest.mark.parametrize(
    ("name", "value", "sleeps"),
    [
        ("PYTORCH_ALLOC_CONF", SEGMENTS, True),  # as this package sets it
        ("PYTORCH_ALLOC_CONF", f"{SEGMENTS},max_split_size_mb:64", False),
        ("PYTORCH_CUDA_ALLOC_CONF", SEGMENTS, False),
    ],
)
def test_it_stays_awake_beside_segments_that_a_user_asks_for(
    make_model, stub, monkeypatch, name, value, sleeps
):
    assert f'"PYTORCH_ALLOC_CONF", "{SEGMENTS}"' in Path(rlkd_lab.__file__).read_text()
    monkeypatch.setenv(name, value)
    policy, engine = load_policy(make_model(), "none"), Vllm()
    for _ in range(2):
        draw(policy, engine, make_dense_copy(policy))
    (llm,) = stub.made
    assert (llm.can_sleep, llm.asleep) == (sleeps, sleeps) and os.environ[name] == value
    assert (name in llm.environment) != sleeps  # what vLLM's own process starts with


def test_what_it_cannot_serve_is_refused(make_model, stub, monkeypatch):
    policy = load_policy(make_model(), "none")
    with pytest.raises(ValueError, match="dense_copy=true and one process"):
        draw(policy, Vllm(), None)
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ValueError, match=r"pip install 'rlkd_lab\[vllm\]'"):
        draw(policy, Vllm(), make_dense_copy(policy))


def test_its_mismatch_is_corrected_unless_you_say_otherwise():
    assert make_config("grpo", engine="vllm").knobs["importance_cap"] == 2.0
    assert "importance_cap" not in make_config("grpo").knobs
    own = make_config("grpo", settings={"engine": "vllm", "importance_cap": "off"})
    assert own.knobs["importance_cap"] is None
    assert math.isclose(make_config("opd", engine="vllm").knobs["importance_cap"], 2.0)
