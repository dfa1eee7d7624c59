"""The forward of a Llama-shaped model (Llama, Mistral, Qwen2, Qwen3) without gradient and without
the framework around it.

A tiny model's decoding step in transformers is nearly all overhead: masks, hooks, caches that grow
by copying. Here the cache has its full length from the start, the projections of a layer that share
their input are one matrix product, rotations are looked up, and a prompt is run once for all its
completions. :meth:`Decoder.suits` decides by the model's configuration, and :meth:`Decoder.check`
compares with the model's own forward before anything is sampled. Left
out: sliding windows, soft caps, experts, rotations that change with the length; such models are run
through their own forward.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, log_softmax, rms_norm, scaled_dot_product_attention, silu

from rlkd_lab.models.cache import Cache
from rlkd_lab.models.logprobs import logits_of
from rlkd_lab.models.sequences import Sequences
from rlkd_lab.models.verification import NOISES_16, gap_and_noise, rounded
from rlkd_lab.models.wide import in_float32

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
ROTATIONS = ("default", "linear", "llama3", "yarn")


class Decoder:
    """The weights of a dense model, laid out for decoding; they stay the model's own, so a
    change of the model is a change of the decoder.
    """

    def __init__(self, model: Any) -> None:
        config = model.config
        self.model = model
        self.head_dim: int = (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        self.queries, self.keys = int(config.num_attention_heads), int(config.num_key_value_heads)
        self.eps: float = config.rms_norm_eps
        head = model.get_output_embeddings().weight
        device = head.device
        positions = torch.arange(config.max_position_embeddings, device=device)[None]
        with torch.no_grad():
            cos, sin = model.model.rotary_emb(
                torch.zeros(1, device=device, dtype=head.dtype), positions
            )
        half = self.head_dim // 2
        signed = torch.cat([-sin[0, :, :half], sin[0, :, half:]], dim=-1)
        self.rotations = torch.stack([cos[0], signed], dim=1)
        """(positions, 2, D)."""
        self.layers = []
        self.head_norms: list[Tensor | None] = []
        """Of the heads of queries and keys, (heads, D), by layer."""
        for layer in model.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            self.layers.append(
                (
                    layer,
                    Fused(attention.q_proj, attention.k_proj, attention.v_proj),
                    Fused(mlp.gate_proj, mlp.up_proj),
                )
            )
            self.head_norms.append(self._head_norm(attention))
        self.check()

    def _head_norm(self, attention: Any) -> Tensor | None:
        if not hasattr(attention, "q_norm"):
            return None
        parts = (attention.q_norm, self.queries), (attention.k_norm, self.keys)
        return torch.cat([norm.weight.data.expand(heads, -1) for norm, heads in parts])

    @staticmethod
    def suits(model: Any) -> bool:
        """Whether the model is one of :data:`FAMILIES`, dense, with plain causal attention."""
        config = model.config
        if config.model_type not in FAMILIES:
            return False
        layers = model.get_submodule("model").layers
        return (
            config.hidden_act == "silu"
            and set(getattr(config, "layer_types", None) or ["full_attention"])
            == {"full_attention"}
            and getattr(config, "sliding_window", None) is None
            and (config.rope_parameters or {}).get("rope_type", "default") in ROTATIONS
            and all(
                type(module) is nn.Linear or isinstance(module, nn.Linear)
                for layer in layers
                for module in _projections(layer)
            )
        )

    @torch.no_grad()
    def check(self) -> None:
        """Decode a few tokens with padding on the left, once in the model's own way and once here.

        Raises:
            ValueError: the log-probabilities differ by more than rounding explains.
        """
        size, device = self.model.config.vocab_size, self.rotations.device
        ids = (torch.arange(24, device=device).view(2, 12) * 7 + 3) % size
        mask = torch.ones_like(ids)
        mask[0, :5] = 0
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        inputs = {
            "input_ids": ids,
            "attention_mask": mask,
            "position_ids": positions,
            "use_cache": False,
        }
        exact = self.rotations.dtype == torch.float32
        # the second step reads what the first has written; a mean in 16 bit is of more
        start = 10 if exact else 8
        columns = range(start, 12)

        def said() -> Tensor:
            return log_softmax(self.model(**inputs).logits[:, start:].float(), dim=-1)

        own = said()

        def noise() -> Tensor:
            with rounded(self.model) if exact else in_float32(self.model):
                return (said() - own).abs()

        cache, _ = self.prefill(ids[:, :start], mask[:, :start], 1, len(columns))
        steps = [
            self.step(ids[:, column], positions[:, column], cache).clone() for column in columns
        ]
        lean = log_softmax(torch.stack(steps, dim=1).float(), dim=-1)
        gap, limit = gap_and_noise((lean - own).abs(), noise, exact, NOISES_16)
        if not gap < limit:
            raise ValueError(
                f"the lean decoder does not compute what {self.model.config.model_type}"
                f" computes: log-probabilities differ by {gap:.2g} nats, and rounding explains"
                f" {limit:.2g}"
            )

    @torch.no_grad()
    def prefill(
        self, prompt_ids: Tensor, prompt_mask: Tensor, group_size: int, room: int
    ) -> tuple[Cache, Tensor]:
        """Run the prompts, (B, P), through the model itself: a cache of B·group_size rows with
        ``room`` more columns, and the logits, (B·group_size, V).
        """
        positions = (prompt_mask.cumsum(1) - 1).clamp(min=0)
        out = self.model.model(
            input_ids=prompt_ids,
            attention_mask=prompt_mask,
            position_ids=positions,
            use_cache=True,
        )
        head = self.model.lm_head
        logits = logits_of(out.last_hidden_state[:, -1], (head.weight, head.bias))
        cache = Cache(
            out.past_key_values, prompt_mask.repeat_interleave(group_size, 0), group_size, room
        )
        return cache, logits.repeat_interleave(group_size, 0)

    @torch.no_grad()
    def step(self, token: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        """Logits, (B, V), after one more token a row, (B,), at ``positions``, (B,), which are
        written into the cache. On a GPU they are overwritten by the next step.
        """

        def decode(token: Tensor, positions: Tensor, width: int) -> Tensor:
            return self._decode(token, positions, cache, width)

        return cache.step(decode, token, positions)

    def _decode(self, token: Tensor, positions: Tensor, cache: Cache, width: int) -> Tensor:
        """Compute a step that reads ``width`` columns. Every other number is in a tensor."""
        groups, column = self.queries // self.keys, cache.column
        cache.blocked.index_fill_(1, column, 0)
        blocked = cache.blocked[:, None, None, :width].expand(-1, self.keys, groups, -1)

        def attend(layer: int, heads: Tensor) -> Tensor:
            known = cache.layers[layer]
            known.index_copy_(2, column, heads[:, self.queries :, None])
            keys, values = known[:, :, :width].chunk(2, dim=1)
            # the query heads that share a key head take the place of query positions
            grouped = heads[:, : self.queries].unflatten(1, (self.keys, groups))
            out = scaled_dot_product_attention(grouped, keys, values, attn_mask=blocked)
            return out.reshape(len(heads), -1)

        states = self._run(self.model.model.embed_tokens(token), positions, attend)
        column.add_(1)
        return logits_of(states, (self.model.lm_head.weight, self.model.lm_head.bias))

    @torch.no_grad()
    def read(self, sequences: Sequences) -> Prompts:
        """Run every prompt once, however many completions it has."""
        unique, index = torch.cat([sequences.prompt_ids, sequences.prompt_mask], dim=1).unique(
            dim=0, return_inverse=True
        )
        ids, mask = unique.chunk(2, dim=1)
        out = self.model.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            use_cache=True,
        )
        return Prompts(
            index,
            mask,
            out.last_hidden_state[:, -1],
            [(layer.keys, layer.values) for layer in out.past_key_values.layers],
        )

    @torch.no_grad()
    def hidden_states(
        self, completion_ids: Tensor, completion_mask: Tensor, prompts: Prompts, rows: Tensor
    ) -> Tensor:
        """Return hidden states that predict the completion tokens that count, as
        :func:`rlkd_lab.models.logprobs.hidden_states` gives them, without gradient.

        Args:
            completion_ids: (B, T).
            completion_mask: (B, T).
            prompts: of :meth:`read`.
            rows: (B,), which rows these are of the sequences that were read.

        Returns:
            (N, H) with N = completion_mask.sum().
        """
        width = int(completion_mask.sum(1).max()) if completion_mask.any() else 0
        index = prompts.index[rows]
        last, seen = prompts.last[index][:, None], prompts.mask[index]
        if width <= 1:
            return last[:, :width][completion_mask[:, :width].bool()]
        length, lowest = (
            width - 1,
            torch.finfo(last.dtype).min,
        )  # the last token of a row predicts nothing that counts
        future = (
            torch.full((length, length), lowest, device=last.device, dtype=last.dtype)
            .triu(1)
            .expand(len(index), 1, -1, -1)
        )
        padding = torch.zeros(seen.shape, device=last.device, dtype=last.dtype).masked_fill(
            seen == 0, lowest
        )
        blocked = torch.cat([padding[:, None, None].expand(-1, -1, length, -1), future], dim=-1)

        def attend(layer: int, heads: Tensor) -> Tensor:
            q, k, v = heads.split([self.queries, self.keys, self.keys], dim=-2)
            keys, values = (
                torch.cat([before[index], now.transpose(1, 2)], dim=2)
                for before, now in zip(prompts.layers[layer], (k, v), strict=True)
            )
            out = scaled_dot_product_attention(
                q.transpose(1, 2),
                keys,
                values,
                attn_mask=blocked,
                enable_gqa=self.queries != self.keys,
            )
            return out.transpose(1, 2).flatten(2)

        positions = seen.sum(1, keepdim=True) + torch.arange(length, device=last.device)
        states = self._run(
            self.model.model.embed_tokens(completion_ids[:, :length]), positions, attend
        )
        return torch.cat([last, states], dim=1)[completion_mask[:, :width].bool()]

    def _run(self, x: Tensor, positions: Tensor, attend: Callable[[int, Tensor], Tensor]) -> Tensor:
        """Return all layers and the last norm on embeddings (…, H) at ``positions`` (…).

        ``attend`` is given the layer and its heads (…, heads, D): queries and keys, rotated, and
        values.
        """
        cos, sin = self.rotations[positions][..., None, :].unbind(-3)
        for number, (layer, to_heads, gate_up) in enumerate(self.layers):
            states = rms_norm(x, x.shape[-1:], layer.input_layernorm.weight, self.eps)
            heads = to_heads(states).unflatten(-1, (-1, self.head_dim))
            qk, norm = heads[..., : self.queries + self.keys, :], self.head_norms[number]
            if norm is not None:
                torch.mul(rms_norm(qk, (self.head_dim,), None, self.eps), norm, out=qk)
            rolled = qk.roll(self.head_dim // 2, -1)
            qk.mul_(cos).addcmul_(rolled, sin)
            x = _plus(x, layer.self_attn.o_proj, attend(number, heads))
            states = rms_norm(x, x.shape[-1:], layer.post_attention_layernorm.weight, self.eps)
            gate, up = gate_up(states).chunk(2, dim=-1)
            x = _plus(x, layer.mlp.down_proj, silu(gate) * up)
        return rms_norm(x, x.shape[-1:], self.model.model.norm.weight, self.eps)


def _plus(x: Tensor, module: Any, states: Tensor) -> Tensor:
    """Return x + module(states); in 16 bit in place, with sums that are rounded once."""
    if x.dtype == torch.float32 or module.bias is not None or x.dim() != 2:
        return x + module(states)
    x.addmm_(states, module.weight.T)
    return x.addmm_(linear(states, module.a), module.b.T) if hasattr(module, "a") else x


@dataclass(frozen=True)
class Prompts:
    """Different prompts of a rollout, each run once."""

    index: Tensor
    """(rows,): which of them each row of the rollout has."""
    mask: Tensor
    """(prompts, P)."""
    last: Tensor
    """(prompts, H): hidden states that predict the first token of a completion."""
    layers: list[tuple[Tensor, Tensor]]
    """Keys and values, (prompts, heads, P, D) each."""


def _projections(layer: Any) -> list[nn.Module]:
    attention, mlp = layer.self_attn, layer.mlp
    return [
        attention.q_proj,
        attention.k_proj,
        attention.v_proj,
        attention.o_proj,
        mlp.gate_proj,
        mlp.up_proj,
        mlp.down_proj,
    ]


class Fused:
    """One matrix of which the weights of several linear layers are views from now on.

    The rows of their adapters' A are below them. So a product gives both, and B takes what A gave.
    """

    def __init__(self, *modules: Any) -> None:
        self.widths = [len(module.weight) for module in modules]
        adapted = [module for module in modules if hasattr(module, "a")]
        weights = [module.weight.data for module in modules]
        self.weight = torch.cat([*weights, *(module.a for module in adapted)])
        parts = self.weight.split(self.widths + [len(module.a) for module in adapted])
        for module, part in zip(modules, parts, strict=False):
            module.weight.data = part
        for module, part in zip(adapted, parts[len(modules) :], strict=True):
            module.a = part
        self.bias: Tensor | None = None
        self.b = self._blocks(modules) if adapted else None
        if modules[0].bias is not None:
            nothing = self.weight.new_zeros(len(self.weight) - sum(self.widths))
            self.bias = torch.cat([*(module.bias.data for module in modules), nothing])

    def _blocks(self, modules: Any) -> Tensor:
        """Return B of all, where one without an adapter has a block of no columns."""
        ranks = [module.b.shape[1] if hasattr(module, "b") else 0 for module in modules]
        blocks = torch.block_diag(
            *(
                module.b if rank else self.weight.new_zeros(width, 0)
                for module, width, rank in zip(modules, self.widths, ranks, strict=True)
            )
        )
        row = column = 0
        for module, width, rank in zip(modules, self.widths, ranks, strict=True):
            if rank:
                module.b = blocks[row : row + width, column : column + rank]
            row, column = row + width, column + rank
        return blocks

    def __call__(self, x: Tensor) -> Tensor:
        out = linear(x, self.weight, self.bias)
        if self.b is None:
            return out
        out, low = out.split([len(self.b), self.b.shape[1]], dim=-1)
        if x.dim() != 2:
            return out + linear(low, self.b)
        return out.addmm_(low, self.b.T)
