"""The forward of a Llama-shaped model without gradient and without the framework around it.

A tiny model's decoding step in transformers is nearly all overhead: masks, hooks, caches that grow
by copying. Here the cache has its full length from the start, the projections of a layer that share
their input are one matrix product, rotations are looked up, and a prompt is run once for all its
completions. :mod:`rlkd_lab.models.families` says which models that are, and where they differ.
:meth:`Decoder.check` compares with the model's own forward before anything is sampled. Left out:
soft caps, experts, rotations that change with the length; such models are run through their own
forward.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, log_softmax, rms_norm, scaled_dot_product_attention
from transformers import DynamicCache

from rlkd_lab.models import families
from rlkd_lab.models.blocks import Block, norm_weight
from rlkd_lab.models.cache import Cache, windowed
from rlkd_lab.models.logprobs import logits_of
from rlkd_lab.models.sequences import Sequences
from rlkd_lab.models.verification import NOISES_16, gap_and_noise, rounded
from rlkd_lab.models.wide import in_float32


class Decoder:
    """The weights of a dense model, laid out for decoding; they stay the model's own, so a
    change of the model is a change of the decoder.
    """

    def __init__(self, model: Any) -> None:
        config = model.config
        self.model = model
        self.family = families.FAMILIES[config.model_type]
        self.head_dim: int = (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        self.queries, self.keys = int(config.num_attention_heads), int(config.num_key_value_heads)
        self.eps: float = config.rms_norm_eps
        self.activation = families.ACTIVATIONS[families.activation_name(config)]
        layers, turns = model.model.layers, families.rotations(config)
        self.scale: float = layers[0].self_attn.scaling
        self.rotations = {kind: self._rotation(kind) for kind in {*turns} if kind is not None}
        """(positions, 2, R) of each kind, where R ≤ D."""
        self.blocks = [
            Block.of(layer, self.family, self.head_dim, rotation, window)
            for layer, rotation, window in zip(layers, turns, families.windows(config), strict=True)
        ]
        self.windows = {block.window for block in self.blocks}
        self.norm = norm_weight(model.model.norm, self.family)
        self.check()

    @torch.no_grad()
    def _rotation(self, kind: str) -> Tensor:
        head = self.model.get_output_embeddings().weight
        positions = torch.arange(self.model.config.max_position_embeddings, device=head.device)
        which = [kind] if self.family.rotation == "by layer type" else []
        turn = self.model.model.rotary_emb
        cos, sin = turn(head.new_zeros(1), positions[None], *which)
        half = sin.shape[-1] // 2
        signed = torch.cat([-sin[0, :, :half], sin[0, :, half:]], dim=-1)
        return torch.stack([cos[0], signed], dim=1).to(head.dtype)

    suits = staticmethod(families.suits)

    @torch.no_grad()
    def check(self) -> None:
        """Decode a few tokens with padding on the left, once in the model's own way and once here.

        Raises:
            ValueError: the log-probabilities differ by more than rounding explains.
        """
        head = self.model.get_output_embeddings().weight
        size, device = self.model.config.vocab_size, head.device
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
        exact = head.dtype == torch.float32
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
            past_key_values=DynamicCache(),  # of full length, whatever a layer sees of it
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
        reads = {window: slice(cache.first(width, window), width) for window in self.windows}
        blocked = {
            window: mask[:, None, None, reads[window]].expand(-1, self.keys, groups, -1)
            for window, mask in windowed(cache.blocked, column, self.windows).items()
        }

        def attend(layer: int, heads: Tensor) -> Tensor:
            known, window = cache.layers[layer], self.blocks[layer].window
            known.index_copy_(2, column, heads[:, self.queries :, None])
            keys, values = known[:, :, reads[window]].chunk(2, dim=1)
            # the query heads that share a key head take the place of query positions
            grouped = heads[:, : self.queries].unflatten(1, (self.keys, groups))
            out = scaled_dot_product_attention(
                grouped, keys, values, attn_mask=blocked[window], scale=self.scale
            )
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
            past_key_values=DynamicCache(),
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
        blocked = windowed(
            torch.cat([padding[:, None, None].expand(-1, -1, length, -1), future], dim=-1),
            torch.arange(seen.shape[1], seen.shape[1] + length, device=last.device)[:, None],
            self.windows,
        )

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
                attn_mask=blocked[self.blocks[layer].window],
                scale=self.scale,
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
        turns = {
            kind: table[positions][..., None, :].unbind(-3)
            for kind, table in self.rotations.items()
        }
        for number, block in enumerate(self.blocks):
            before, after, before_mlp, after_mlp = block.norms
            heads = block.to_heads(self._normed(x, before)).unflatten(-1, (-1, self.head_dim))
            for part, weight in block.head_norms:
                own = heads[..., part, :]
                over = own.shape[-2:] if self.family.one_norm_for_all_heads else own.shape[-1:]
                torch.mul(rms_norm(own, over, None, self.eps), weight, out=own)
            if block.rotation is not None:
                cos, sin = turns[block.rotation]
                qk = heads[..., : self.queries + self.keys, : cos.shape[-1]]
                rolled = qk.roll(cos.shape[-1] // 2, -1)
                qk.mul_(cos).addcmul_(rolled, sin)
            x = self._plus(x, block.to_states, attend(number, heads), after)
            gate, up = block.gate_up(self._normed(x, before_mlp)).chunk(2, dim=-1)
            x = self._plus(x, block.down, self.activation(gate) * up, after_mlp)
        return self._normed(x, self.norm)

    def _normed(self, x: Tensor, weight: Tensor | None) -> Tensor:
        """Return x normed by a weight, in the precision of the weight; without one, x."""
        if weight is None:
            return x
        return rms_norm(x.to(weight.dtype), x.shape[-1:], weight, self.eps).to(x.dtype)

    def _plus(self, x: Tensor, module: Any, states: Tensor, norm: Tensor | None) -> Tensor:
        """Return x + module(states), where the second may be normed."""
        if norm is None:
            return _plus(x, module, states)
        return x + self._normed(module(states), norm)


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
