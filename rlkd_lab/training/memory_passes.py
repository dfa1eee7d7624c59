"""What a forward and backward pass holds, counted without data.

The models' own code runs on PyTorch's meta device, where tensors have shapes and no data, while the
bytes that live are counted.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, AutoModelForCausalLM, PreTrainedConfig

from rlkd_lab.models.dense_copy import beside_linear, fuse_norms, merged_linear
from rlkd_lab.models.language_model import LanguageModel
from rlkd_lab.models.loading import checkpoint_activations
from rlkd_lab.models.logprobs import chunk_of, measured_divergences, token_logps
from rlkd_lab.models.lora import GROUPS
from rlkd_lab.training.config import RunConfig

COUNTED = "rlkd_counted"
"""Name of :func:`_counted_attention` in transformers."""
SETTINGS = (
    "micro_batch",
    "max_new_tokens",
    "lora_rank",
    "lora_targets",
    "lora_kind",
    "lora_ranks",
    "lora_alpha",
    "lora_alphas",
    "gradient_checkpointing",
    "dense_copy",
    "logits_mib",
    "kl_every",
)
"""Settings that decide what a pass holds."""
_counted: dict[tuple[Any, ...], tuple[int, int]] = {}


class Live(TorchDispatchMode):
    """Counts the bytes of the storages that operations make, while they live."""

    def __init__(self, known: Sequence[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for value in (result,) if isinstance(result, Tensor) else tree_leaves(result):
            if isinstance(value, Tensor) and value.untyped_storage()._cdata not in self._known:
                storage = value.untyped_storage()
                self._known.add(storage._cdata)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return result

    def _gone(self, key: int, size: int) -> None:
        self.now -= size
        self._known.discard(key)


class _Attention(torch.autograd.Function):
    """Keeps for the backward pass what fused kernels keep.

    That is queries, keys, values, output, and one number a row.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:3], dtype=torch.float32))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(saved) for saved in ctx.saved_tensors[:3])


def _counted_attention(
    module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **_: Any
) -> tuple[Tensor, None]:
    groups = q.shape[1] // k.shape[1]
    if groups > 1:  # with a mask, transformers repeats the heads
        k, v = (
            part[:, :, None].expand(-1, -1, groups, -1, -1).reshape(*q.shape[:2], *part.shape[2:])
            for part in (k, v)
        )
    return _Attention.apply(q, k, v).transpose(1, 2).contiguous(), None


AttentionInterface.register(COUNTED, _counted_attention)


class _OneNorm(torch.autograd.Function):
    """Keeps for the backward pass what a fused kernel keeps: its input, and a number a row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x, x.new_empty(x.shape[:-1], dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return torch.empty_like(gradient)


class _CountedNorm(torch.nn.RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return _OneNorm.apply(x)


def made(config: PreTrainedConfig, layers: int, dtype: torch.dtype = torch.float32) -> Any:
    """Make a model of so many layers without data.

    Its attention is :func:`_counted_attention` where its code takes one from outside.
    """
    try:
        return _empty(config, layers, dtype, COUNTED)
    except (KeyError, ValueError):  # a table of its own (GPT-J, Falcon)
        return _empty(config, layers, dtype, "eager")


def _empty(config: PreTrainedConfig, layers: int, dtype: torch.dtype, attention: str) -> Any:
    short = copy.deepcopy(config)
    short.num_hidden_layers = layers
    if kinds := getattr(short, "layer_types", None):
        short.layer_types = [kinds[i % len(kinds)] for i in range(layers)]
    if hasattr(short, "quantization_config"):
        del short.quantization_config
    short._attn_implementation = attention
    short.use_cache = False
    with torch.device("meta"):
        # With another dtype, transformers would change the process's default for a moment.
        model = AutoModelForCausalLM.from_config(short, dtype=torch.float32)
        return model.to(dtype).requires_grad_(False)


def adapted(model: Any, config: RunConfig) -> Any:
    """Put a LoRA adapter without data on a model without data."""
    lora = config.lora()
    if lora.targets not in GROUPS:
        # an expression may name layers that this short model lacks; all are more, never less
        lora = replace(lora, targets="all-linear")
    return lora.put_on(model, empty=True)


def _through_copy(config: RunConfig, dtype: torch.dtype) -> bool:
    """Whether a run trains through the dense copy of its student, as far as its config shows."""
    merged_out = dtype == torch.float32 and config.gradient_checkpointing
    return config.dense_copy and not merged_out and config.lora_kind != "dora"


def _copied(policy: Any, dtype: torch.dtype) -> list[Tensor]:
    """Put the layers of a dense copy into a model; return what they hold beside parameters."""
    held: list[Tensor] = []
    for path, lora in list(policy.named_modules()):
        if not hasattr(lora, "lora_A"):
            continue
        (a,), (b,) = ([one.weight for one in part.values()] for part in (lora.lora_A, lora.lora_B))
        if dtype == torch.float32:
            policy.set_submodule(path, merged_linear(lora.base_layer, (a, b, 1.0)))
        else:
            beside = beside_linear(lora.base_layer, (a, b, 1.0), dtype)
            policy.set_submodule(path, beside)
            held += [beside.a, beside.b]
    if dtype != torch.float32:
        fuse_norms(policy.get_base_model(), _CountedNorm)
    return held


def one_pass(
    config: RunConfig,
    configs: Sequence[PreTrainedConfig],
    layers: Sequence[int],
    dtype: torch.dtype,
    prompt: int,
    gradient: bool,
) -> tuple[int, int]:
    """Return the peaks of the forward and of the backward part, each case counted once.

    Args:
        config: of the run.
        configs: of the student and of the other models.
        layers: that each of them has.
        dtype: of their weights.
        prompt: tokens of a prompt.
        gradient: whether there is a backward pass.
    """
    settings = {name: getattr(config, name) for name in SETTINGS}
    models = tuple(one.to_json_string(use_diff=False) for one in configs)
    key = (*map(str, settings.values()), models, *layers, dtype, prompt, gradient)
    if key not in _counted:
        # with all other settings at their defaults: what is not in the key has no effect
        alone = RunConfig(**settings)
        _counted[key] = _one_pass(alone, configs, layers, dtype, prompt, gradient)
    return _counted[key]


def _one_pass(
    config: RunConfig,
    configs: Sequence[PreTrainedConfig],
    layers: Sequence[int],
    dtype: torch.dtype,
    prompt: int,
    gradient: bool,
) -> tuple[int, int]:
    rows, width = config.micro_batch, prompt + config.max_new_tokens
    student, *others = (made(one, count, dtype) for one, count in zip(configs, layers, strict=True))
    policy = adapted(student, config).train()
    if config.gradient_checkpointing:
        checkpoint_activations(policy.get_base_model())
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.empty_like(parameter)
    known = [parameter.grad for parameter in trained] + trained
    if _through_copy(config, dtype):
        known += _copied(policy, dtype)
    for model in (policy, *others):
        known += [*model.parameters(), *model.buffers()]
    with torch.device("meta"):
        count = Live(known)
        forward = _counted_pass(count, config, policy, others, prompt, gradient)
    # the mask over pairs of tokens, which the attention gets beside its inputs as numbers
    masks = rows * width * width * (1 + dtype.itemsize)
    return forward + masks, count.peak + masks


def _counted_pass(
    count: Live, config: RunConfig, policy: Any, others: Sequence[Any], prompt: int, gradient: bool
) -> int:
    """Run the passes of a micro-batch while ``count`` counts. Return the peak of the forwards.

    Afterwards the counter's peak is that of the backward pass.
    """
    rows, width = config.micro_batch, prompt + config.max_new_tokens
    student, *teachers = (LanguageModel(model, None, "", "none") for model in (policy, *others))  # type: ignore[arg-type]
    chunk = chunk_of(config.logits_mib, int(student.causal_lm.config.vocab_size))
    ids = torch.zeros(rows, width, dtype=torch.long)
    mask = torch.ones(rows, 1, width, width, dtype=torch.bool)

    def states(lm: LanguageModel) -> Tensor:
        found = lm.backbone(
            input_ids=ids, attention_mask=mask, position_ids=ids, use_cache=False
        ).last_hidden_state
        # as a selection of the tokens that count does, this copies
        return found[:, prompt - 1 : -1].reshape(-1, found.shape[-1]).clone()

    with count:
        targets = ids[:, prompt:].flatten()
        with torch.set_grad_enabled(gradient):
            hidden = states(student)
            logps, _ = token_logps(student, hidden, targets, 1.0, chunk)
        with torch.no_grad():
            for teacher in teachers:
                theirs = states(teacher)
                token_logps(teacher, theirs, targets, 1.0, chunk)
                if config.kl_every:
                    own, betas = hidden.detach(), (1.0,)
                    measured_divergences(
                        student, own, teacher, theirs, ("reverse", "forward"), betas, chunk
                    )
                del theirs
        forward, count.peak = count.peak, count.now
        if gradient:
            logps.sum().backward()
    return forward
