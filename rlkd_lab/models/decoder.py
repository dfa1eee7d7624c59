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

from rlkd_lab.models.logprobs import Sequences, logits_of
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
        self.cos, self.sin = cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], dim=-1)
        self.layers = []
        for layer in model.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            self.layers.append(
                (
                    layer,
                    Fused(attention.q_proj, attention.k_proj, attention.v_proj),
                    Fused(mlp.gate_proj, mlp.up_proj),
                )
            )
        self.check()

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
        size, device = self.model.config.vocab_size, self.cos.device
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
        columns = range(8, 12)

        def said() -> Tensor:
            return log_softmax(self.model(**inputs).logits[:, 8:].float(), dim=-1)

        own, exact = said(), self.cos.dtype == torch.float32
        with rounded(self.model) if exact else in_float32(self.model):
            noise = (said() - own).abs()
        cache, _ = self.prefill(ids[:, :8], mask[:, :8], 1, len(columns))
        steps = [self.step(ids[:, column], positions[:, column], cache) for column in columns]
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
        written into the cache.
        """
        column = cache.length
        cache.length += 1
        blocked = cache.blocked[:, None, None, : column + 1]

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = cache.layers[layer]
            keys[:, :, column], values[:, :, column] = k, v
            # the query heads that share a key head take the place of query positions
            grouped = q.reshape(len(q), self.keys, -1, self.head_dim)
            return scaled_dot_product_attention(
                grouped, keys[:, :, : column + 1], values[:, :, : column + 1], attn_mask=blocked
            ).reshape(len(q), -1)

        states = self._run(self.model.model.embed_tokens(token), positions, attend)
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

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
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

    def _run(
        self, x: Tensor, positions: Tensor, attend: Callable[[int, Tensor, Tensor, Tensor], Tensor]
    ) -> Tensor:
        """Return all layers and the last norm on embeddings (…, H) at ``positions`` (…);

        ``attend`` is given the layer and its rotated heads, (…, heads, D).
        """
        cos, sin = self.cos[positions][..., None, :], self.sin[positions][..., None, :]
        for number, (layer, to_heads, gate_up) in enumerate(self.layers):
            attention = layer.self_attn
            heads = to_heads(
                rms_norm(x, x.shape[-1:], layer.input_layernorm.weight, self.eps)
            ).unflatten(-1, (-1, self.head_dim))
            q, k, v = heads.split([self.queries, self.keys, self.keys], dim=-2)
            if hasattr(attention, "q_norm"):
                q = rms_norm(q, (self.head_dim,), attention.q_norm.weight, self.eps)
                k = rms_norm(k, (self.head_dim,), attention.k_norm.weight, self.eps)
            qk = torch.cat([q, k], dim=-2)
            qk = torch.addcmul(qk * cos, qk.roll(self.head_dim // 2, -1), sin)
            q, k = qk.split([self.queries, self.keys], dim=-2)
            x = x + attention.o_proj(attend(number, q, k, v))
            gate, up = gate_up(
                rms_norm(x, x.shape[-1:], layer.post_attention_layernorm.weight, self.eps)
            ).chunk(2, dim=-1)
            x = x + layer.mlp.down_proj(silu(gate) * up)
        return rms_norm(x, x.shape[-1:], self.model.model.norm.weight, self.eps)


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


class Cache:
    """Keys and values of every layer, (B, heads, columns, D) each, with room for all columns
    from the start.
    """

    def __init__(self, prefilled: Any, prompt_mask: Tensor, group_size: int, room: int) -> None:
        rows, self.length = prompt_mask.shape
        self.layers = []
        for layer in prefilled.layers:
            pair = []
            for part in (layer.keys, layer.values):
                whole = part.new_zeros(rows, part.shape[1], self.length + room, part.shape[3])
                whole[:, :, : self.length] = part.repeat_interleave(group_size, 0)
                pair.append(whole)
            self.layers.append(pair)
        dtype = self.layers[0][0].dtype
        self.blocked = torch.zeros(rows, self.length + room, device=prompt_mask.device, dtype=dtype)
        self.blocked[:, : self.length].masked_fill_(prompt_mask == 0, torch.finfo(dtype).min)

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these."""
        for pair in self.layers:  # one at a time: the whole cache twice might not fit
            pair[:] = [part[rows] for part in pair]
        self.blocked = self.blocked[rows]


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
    """One matrix of which the weights of several linear layers are views from now on; the same
    for their biases, and for adapters that lie beside them.
    """

    def __init__(self, *modules: Any) -> None:
        self.weight = torch.cat([module.weight.data for module in modules])
        for module, part in zip(
            modules, self.weight.split([module.weight.shape[0] for module in modules]), strict=True
        ):
            module.weight.data = part
        self.bias = (
            None if modules[0].bias is None else torch.cat([module.bias.data for module in modules])
        )
        self.a: Tensor | None = None
        if any(hasattr(module, "a") for module in modules):
            # one without an adapter has a block of no columns
            self.a = torch.cat([module.a for module in modules if hasattr(module, "a")])
            self.b = torch.block_diag(
                *(
                    module.b
                    if hasattr(module, "b")
                    else self.weight.new_zeros(len(module.weight), 0)
                    for module in modules
                )
            )
            row = column = 0
            for module in modules:
                width, rank = module.b.shape if hasattr(module, "b") else (len(module.weight), 0)
                if rank:
                    module.a, module.b = (
                        self.a[column : column + rank],
                        self.b[row : row + width, column : column + rank],
                    )
                row, column = row + width, column + rank

    def __call__(self, x: Tensor) -> Tensor:
        out = linear(x, self.weight, self.bias)
        return out if self.a is None else out + linear(linear(x, self.a), self.b)
