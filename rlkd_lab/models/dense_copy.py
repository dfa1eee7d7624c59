"""A dense copy of a 4-bit model: the same function, without unpacking 4-bit weights for every
product.

It is sampled from and trained through: the gradients arrive at the policy's own parameters. In
float32 the adapter is merged into it (:class:`MergedLinear`). In 16 bit a merge would round a small
update away: there the adapter stays beside the weights (:class:`BesideLinear`).

A copy holds W + s·B·A on linear layers and nothing else.
:func:`make_dense_copy` makes one where that is the whole model, and compares the two once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from rlkd_lab.models.adapters import beyond_matrices
from rlkd_lab.models.decoder import Decoder
from rlkd_lab.models.language_model import LanguageModel, empty_model
from rlkd_lab.models.verification import dequantised, gap_and_noise, probe_logps, rounded

Adapter = tuple[Tensor, Tensor, float]
"""A, B and the scaling of a LoRA layer; A and B are the policy's parameters."""


class _Merged(torch.autograd.Function):
    """x·(W + s·B·A)ᵀ with gradients for x, A and B.

    With y = x·Wᵀ + s·(x·Aᵀ)·Bᵀ: ∂A = s·(g·B)ᵀ·x and ∂B = s·gᵀ·(x·Aᵀ).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        merged: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scaling: float,
    ) -> Tensor:
        ctx.save_for_backward(x, merged, a, b)
        ctx.scaling = scaling
        return linear(x, merged, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, merged, a, b = ctx.saved_tensors
        flat, states = gradient.reshape(-1, gradient.shape[-1]), x.reshape(-1, x.shape[-1])
        to_x = (flat @ merged).view_as(x) if ctx.needs_input_grad[0] else None
        to_a = ((flat @ b).T @ states).mul_(ctx.scaling)
        to_b = (flat.T @ (states @ a.T)).mul_(ctx.scaling)
        return to_x, None, None, to_a, to_b, None


class MergedLinear(nn.Linear):
    """A linear layer W + scaling·B·A, kept merged;

    A and B are the parameters of the policy's LoRA layer.
    """

    adapter: Adapter

    def forward(self, x: Tensor) -> Tensor:
        a, b, scaling = self.adapter
        if torch.is_grad_enabled() and a.requires_grad:
            return _Merged.apply(x, self.weight, self.bias, a, b, scaling)
        return linear(x, self.weight, self.bias)


class _Beside(torch.autograd.Function):
    """x·Wᵀ + (x·aᵀ)·bᵀ with gradients for x, A and B, where a = A and b = s·B in 16 bit.

    ∂A = (g·b)ᵀ·x and ∂B = s·gᵀ·(x·aᵀ). They are rounded to bfloat16 once, as autocast rounds them;
    float16 has no room for such sums over tokens, so there they are taken in float32.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        layer: BesideLinear,
        a: Tensor,
        b: Tensor,
        scaling: float,
    ) -> Tensor:
        low = linear(x, layer.a)
        ctx.save_for_backward(x, low, layer.weight, layer.a, layer.b)
        ctx.scaling, ctx.dtype = scaling, a.dtype
        return _added(linear(x, layer.weight, layer.bias), low, layer.b)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, low, weight, a, b = ctx.saved_tensors
        flat, states = gradient.reshape(-1, gradient.shape[-1]), x.reshape(-1, x.shape[-1])
        narrow = flat @ b
        to_x = (flat @ weight).addmm_(narrow, a).view_as(x) if ctx.needs_input_grad[0] else None
        wide = torch.float32 if x.dtype == torch.float16 else x.dtype
        flat, narrow, states, low = (part.to(wide) for part in (flat, narrow, states, low))
        to_a = (narrow.T @ states).to(ctx.dtype)
        to_b = (flat.T @ low.reshape(-1, low.shape[-1])).to(ctx.dtype).mul_(ctx.scaling)
        return to_x, None, to_a, to_b, None


def _added(out: Tensor, low: Tensor, b: Tensor) -> Tensor:
    """Add low·bᵀ to ``out`` in place, and return it."""
    flat = out.view(-1, out.shape[-1])
    flat.addmm_(low.reshape(-1, low.shape[-1]), b.T)
    return out


class BesideLinear(nn.Linear):
    """A linear layer W·x + b·(a·x) with a copy of the adapter, a = A and b = scaling·B, in the
    precision of W; A and B are the parameters of the policy's LoRA layer.
    """

    a: Tensor
    b: Tensor
    adapter: Adapter

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and self.adapter[0].requires_grad:
            return _Beside.apply(x, self, *self.adapter)
        return _added(linear(x, self.weight, self.bias), linear(x, self.a), self.b)


def merged_linear(module: Any, adapter: Adapter) -> MergedLinear:
    """Return a merged layer for a linear one, with weights that nobody has set."""
    made = MergedLinear(module.in_features, module.out_features, False, device="meta")
    made.weight = nn.Parameter(torch.empty_like(module.weight), requires_grad=False)
    made.bias, made.adapter = module.bias, adapter
    return made


def beside_linear(module: Any, adapter: Adapter, dtype: torch.dtype) -> BesideLinear:
    """Return a linear layer with room for a copy of its adapter."""
    made = BesideLinear(module.in_features, module.out_features, False, device="meta")
    made.weight, made.bias, made.adapter = module.weight, module.bias, adapter
    made.a, made.b = (torch.empty_like(part, dtype=dtype) for part in adapter[:2])
    return made


def fuse_norms(model: Any, kind: Callable[..., nn.Module] = nn.RMSNorm) -> None:
    """Let each norm of a model that the lean decoder knows be one kernel.

    transformers' own has six, and keeps its input twice in float32 for the backward pass. Norms
    that multiply by 1 + their weight stay: Gemma's, which name their eps otherwise.

    Args:
        model: changed in place.
        kind: of the norms; made from their shape and eps.
    """
    if not Decoder.suits(model):
        return
    for path, norm in list(model.named_modules()):
        if hasattr(norm, "variance_epsilon"):
            made: Any = kind(norm.weight.shape, norm.variance_epsilon, device="meta")
            made.weight = norm.weight
            model.set_submodule(path, made)


class DenseCopy:
    """``dense.lm`` computes what the policy computes, to rounding, after :meth:`sync`.

    In float32 it costs a merged copy of the linear layers, and of 4-bit ones a dequantised copy; in
    16 bit the latter alone. All other weights are shared with the policy.

    Args:
        policy: any model, with an adapter or without.
        base: a copy in 16 bit of another view of the same weights: they are shared with it, and the
            new copy costs nothing. It is for scoring: it has no lean decoder.

    Raises:
        ValueError: the policy computes something else than W + s·B·A on its linear layers; see
            :func:`make_dense_copy`.
    """

    def __init__(self, policy: LanguageModel, base: DenseCopy | None = None) -> None:
        if lost := beyond_matrices(policy):
            raise ValueError(
                f"a dense copy of {policy.source} cannot hold {lost}: use"
                " rlkd_lab.models.make_dense_copy, or no copy"
            )
        self.merges = self.suits(policy)
        self.model = empty_model(policy.causal_lm)
        dtype: Any = policy.head.weight.dtype
        self.pairs: list[tuple[MergedLinear, Tensor]] = []
        self.beside: list[BesideLinear] = []
        for path, module in list(self.model.named_modules()):
            lora: Any = policy.causal_lm.get_submodule(path)
            original = getattr(lora, "base_layer", lora)
            _take_over(module, base.model.get_submodule(path) if base else original, dtype)
            if hasattr(lora, "base_layer") and policy.adapter in lora.lora_A:
                adapter = (
                    lora.lora_A[policy.adapter].weight,
                    lora.lora_B[policy.adapter].weight,
                    float(lora.scaling[policy.adapter]),
                )
                self.model.set_submodule(path, self._adapted(module, adapter, dtype))
        self.lm = LanguageModel(
            self.model,
            policy.tokenizer,
            policy.source,
            "none",
            chat=policy.chat,
            system_prompt=policy.system_prompt,
        )
        if not self.merges:
            fuse_norms(self.model)
        self.model.eval()
        self.sync()
        self.decoder = None if base else self._lean()

    def _lean(self) -> Decoder | None:
        """Return the lean decoder, where the model has a shape that it knows."""
        if not Decoder.suits(self.model):
            return None
        try:
            return Decoder(self.model)
        except ValueError as error:
            warnings.warn(
                f"{self.lm.source} is sampled through its own forward, more slowly: {error}",
                stacklevel=3,
            )
            return None

    def _adapted(self, module: Any, adapter: Adapter, dtype: torch.dtype) -> nn.Linear:
        """Return a layer that computes ``module`` with an adapter, after :meth:`sync`."""
        if self.merges:
            merged = merged_linear(module, adapter)
            self.pairs.append((merged, module.weight))
            return merged
        self.beside.append(beside_linear(module, adapter, dtype))
        return self.beside[-1]

    @staticmethod
    def suits(policy: LanguageModel) -> bool:
        """Whether the policy computes in float32, so that an adapter can be merged."""
        return policy.head.weight.dtype == torch.float32

    def equals(self, other: DenseCopy) -> bool:
        """Whether two copies have the same weights, and adapters beside them, to the last bit."""
        mine, theirs = self._held(), other._held()
        return mine.keys() == theirs.keys() and all(
            one.data_ptr() == theirs[name].data_ptr() or torch.equal(one, theirs[name])
            for name, one in mine.items()
        )

    def _held(self) -> dict[str, Tensor]:
        """Return the weights, and the adapters beside them whose B is not all zeros."""
        found: dict[str, Tensor] = dict(self.model.named_parameters())
        for path, layer in self.model.named_modules():
            if isinstance(layer, BesideLinear) and layer.b.any():
                found |= {f"{path}.a": layer.a, f"{path}.b": layer.b}
        return found

    @torch.no_grad()
    def sync(self) -> None:
        """Take the adapter as it is now: merge it, or copy it."""
        for own in self.beside:
            a, b, scaling = own.adapter
            own.a.copy_(a)
            own.b.copy_(b * scaling)
        for module, base in self.pairs:
            a, b, scaling = module.adapter
            torch.addmm(base, b, a, alpha=scaling, out=module.weight)


def _take_over(module: nn.Module, original: Any, dtype: torch.dtype) -> None:
    """Give a module the parameters and buffers of the original, a 4-bit weight dequantised."""
    for name, _ in module.named_parameters(recurse=False):
        setattr(module, name, getattr(original, name))
    for name, _ in module.named_buffers(recurse=False):
        module.register_buffer(name, getattr(original, name), persistent=False)
    if getattr(getattr(original, "weight", None), "quant_state", None) is not None:
        module.weight = nn.Parameter(dequantised(original).to(dtype), requires_grad=False)


def make_dense_copy(
    lm: LanguageModel, said: Tensor | None = None, base: DenseCopy | None = None
) -> DenseCopy | None:
    """Make a dense copy of a model, and compare the two once.

    Args:
        lm: the model.
        said: what it says of the probe's tokens; by default it is asked.
        base: as :class:`DenseCopy` has it.

    Returns:
        ``None`` where a copy cannot hold what the model computes: the model is then run itself,
        which is slower.

    Warns:
        UserWarning: there is no copy, and why.
    """
    lost = beyond_matrices(lm)
    if lost is None:
        try:
            dense = DenseCopy(lm, base)
            gap, limit = gap_between(lm, dense.lm, said)
        # modules that transformers' own code does not make
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            lost = f"something else ({type(error).__name__}: {error})"
        else:
            if gap <= limit:  # a NaN is not
                return dense
            lost = (
                f"something else: log-probabilities differ by {gap:.2g} nats, and rounding"
                f" explains {limit:.2g}"
            )
    adapter = "" if lm.adapter_source is None else f" with the adapter {lm.adapter_source}"
    warnings.warn(
        f"{lm.source}{adapter} is run without a dense copy, more slowly: a copy would lose {lost}",
        stacklevel=2,
    )
    return None


def gap_between(
    lm: LanguageModel, other: LanguageModel, said: Tensor | None = None
) -> tuple[float, float]:
    """Return how far two ways to run one model are apart, and how far they may be, in nats.

    Log-probabilities of the probe tokens are compared: at the worst token in float32, in the mean
    in 16 bit. The yardstick is what a rounding of its embeddings does to the model.
    """
    own = probe_logps(lm) if said is None else said

    def noise() -> Tensor:
        with rounded(lm.causal_lm):
            return (probe_logps(lm) - own).abs()

    return gap_and_noise((probe_logps(other) - own).abs(), noise, DenseCopy.suits(lm))
