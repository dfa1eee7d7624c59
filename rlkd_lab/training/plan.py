"""What a run will need of memory, part by part, before anything is loaded: ``rlkd plan``.

Weights, adapters, optimizer and cache are counted from the models' configs. What a forward and
backward pass holds is not a formula: the models' own code, shortened to one and two layers, runs on
PyTorch's meta device, where tensors have shapes and no data, while the bytes that live are counted;
layers are alike, so the rest is linear in their number. Completions are taken to be as long as the
limit allows. A model whose code does not run without data is taken for a Llama of the same sizes,
with a warning.

Left out: the CUDA context and the allocator's fragmentation (:data:`MARGIN` stands for them), and
the workspace of attention kernels.
"""

from __future__ import annotations

import copy
import functools
import itertools
import warnings
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedConfig,
)

from rlkd_lab.models import LanguageModel, chunk_of, locate, measured_divergences, token_logps
from rlkd_lab.models.adapters import attach, can_share_base, check_policy_adapter
from rlkd_lab.models.checks import check_architecture, check_head
from rlkd_lab.models.loading import checkpoint_activations, load_tokenizer, same_tokenizer
from rlkd_lab.objectives import METHODS
from rlkd_lab.rollouts import traces
from rlkd_lab.runs import checkpoints
from rlkd_lab.tasks import GuardedTask, find_task
from rlkd_lab.training import evaluation
from rlkd_lab.training.config import RunConfig, of_teacher
from rlkd_lab.training.prompts import Asked, fit_prompts

GIB = 2**30
MARGIN = 1.1
"""What is predicted times this must fit.

How far off predictions were where that was measured, on a CPU: benchmarks/results/memory.json.
"""
CONTEXT = GIB
"""Taken on a GPU by the CUDA context and loaded kernels: an assumption, not measured."""
COUNTED = "rlkd_counted"
"""Name of :func:`_counted_attention` in transformers."""
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""A weight in NF4 with double quantisation: 4 bits, an 8-bit scale for each 64, a float32 scale
for each 256 of those.
"""


@dataclass(frozen=True)
class Plan:
    """Bytes by part.

    What is held all the time, and what sampling and updating take beside it; they do not happen at
    once.
    """

    held: dict[str, int]
    sampling: dict[str, int]
    updating: dict[str, int]

    @property
    def peak(self) -> int:
        """Of all parts that are there at the same time."""
        return sum(self.held.values()) + max(
            sum(self.sampling.values()), sum(self.updating.values())
        )

    def fits(self, memory: float, gpu: bool = True) -> bool:
        """Whether ``memory`` bytes are enough, with :data:`MARGIN` and, on a GPU,
        :data:`CONTEXT`.
        """
        return self.peak * MARGIN + (CONTEXT if gpu else 0) <= memory


def plan(config: RunConfig, gpu: bool, prompt_tokens: int | None = None) -> Plan:
    """Predict the memory of a run.

    Args:
        config: of the run.
        gpu: whether it computes in 16 bit (on a GPU) or in float32 (on a CPU).
        prompt_tokens: of the longest prompt; by default see :func:`longest_prompt`.

    Raises:
        FileNotFoundError, ValueError: a model or task that is not there, a context that is too
            short.
    """
    size = 2 if gpu else 4
    student = Shape.of(config.student)
    teacher = None if config.teacher is None else Shape.of(config.teacher)
    prompt = longest_prompt(config) if prompt_tokens is None else prompt_tokens
    width = prompt + config.max_new_tokens
    for name, model in ((config.student, student), (config.teacher, teacher)):
        if model is not None and width > model.context:
            problem = (
                f"prompts of {prompt} tokens and completions of {config.max_new_tokens} do"
                f" not fit the context of {model.context} tokens of {name}"
            )
            raise ValueError(problem if model is student else of_teacher(config, problem))
    shares = config.teacher_adapter is None or can_share_base(
        config.teacher_adapter, config.adapter
    )
    own_base = teacher is not None and not (
        shares and config.teacher == config.student and config.teacher_quant == config.quant
    )
    dense = config.dense_copy and not gpu
    adapter = student.adapter(config)
    held = {
        "student": student.weights(config.quant, size),
        "teacher": teacher.weights(config.teacher_quant, size)
        if teacher is not None and own_base
        else 0,
        "adapter": 4 * adapter * (2 if config.adapter is not None else 1),
        "gradients and optimizer": 12 * adapter,
    }
    if config.teacher_home == "host":
        held["teacher"] = 0
    if dense:
        # once merged; a quantised base dequantised, and again for the reference; the teacher's once
        copies = 4 * student.linear * (3 if config.quant == "nf4" else 1)
        held["dense copies"] = copies + (
            4 * teacher.linear if teacher is not None and config.teacher_quant == "nf4" else 0
        )
    elif config.dense_copy and config.quant == "nf4":
        held["dense copies"] = size * student.linear
    rows = config.prompts_per_step * config.group_size
    models = [student] + ([teacher] if teacher is not None else [])
    prompts = (
        config.prompts_per_step * prompt * sum(model.cache_of_a_token(size) for model in models)
        if dense
        else 0
    )
    updating = {
        "values of all tokens": rows * (14 * 4 * config.max_new_tokens + 32 * width),
        "prompts": prompts,
    }
    if not dense and "nf4" in (config.quant, config.teacher_quant):
        updating["a layer unpacked"] = size * max(model.largest for model in models)
    if config.teacher_home == "host" and teacher is not None and own_base:
        # it is here while nothing is held for a backward pass
        looking = teacher.weights(config.teacher_quant, size) + _passes(
            config, models, size, prompt, gradient=False
        )
        updating = {
            "activations, or the teacher and fewer": max(
                _passes(config, models[:1], size, prompt), looking
            )
        } | updating
    else:
        updating = {"activations": _passes(config, models, size, prompt)} | updating
    return Plan(held, plan_sampling(config, gpu, prompt), updating)


def plan_sampling(config: RunConfig, gpu: bool, prompt: int) -> dict[str, int]:
    """Bytes that sampling takes beside what is held, by part: of a rollout, an evaluation or
    teacher traces, whichever needs more.
    """
    size, student = 2 if gpu else 4, Shape.of(config.student)
    needs = [(student, config.prompts_per_step * config.group_size, config.max_new_tokens)]
    if config.eval_every:
        needs.append(
            (student, min(config.eval_prompts, evaluation.BATCH), 2 * config.max_new_tokens)
        )  # out of distribution the limit is doubled
    if config.teacher is not None and "traces" in METHODS[config.method].needs:
        needs.append(
            (Shape.of(config.teacher), min(config.traces, traces.BATCH), config.max_new_tokens)
        )
    most = (
        max(config.sample_at_once, config.group_size)
        if config.sample_at_once
        else max(rows for _, rows, _ in needs)
    )
    # a layer of the cache is copied when rows leave it; of the logits, log-probabilities,
    # probabilities and their sums are held
    caches = [
        min(rows, most)
        * (prompt + tokens)
        * shape.cache_of_a_token(size)
        * (shape.layers + 1)
        // shape.layers
        for shape, rows, tokens in needs
    ]
    logits = [min(rows, most) * shape.vocabulary * (16 + size) for shape, rows, _ in needs]
    return {"cache": max(caches), "logits of a token": max(logits)}


def fitted(
    config: RunConfig, memory: float, gpu: bool, prompt_tokens: int | None = None
) -> tuple[RunConfig, Plan]:
    """The config with the most completions sampled at a time, the largest micro-batch, then chunk
    of logits, that fit into ``memory`` bytes, with checkpointing where they must; none of them
    changes the result beyond rounding. As a last resort it samples from the 4-bit weights, slowly.

    Raises:
        ValueError: nothing of this fits; it says what would.
    """
    prompt = longest_prompt(config) if prompt_tokens is None else prompt_tokens
    for start in [config] + (
        [config.model_copy(update={"dense_copy": False})] if config.dense_copy else []
    ):
        trial, found = start, plan(start, gpu, prompt)
        while (
            not replace(found, updating={}).fits(memory, gpu)
            and (fewer := _fewer_at_once(trial)) is not None
        ):
            trial = fewer
            found = replace(found, sampling=plan_sampling(trial, gpu, prompt))
        if not replace(found, updating={}).fits(memory, gpu):
            continue  # no smaller micro-batch helps where sampling does not fit
        for smaller in _smaller(trial):
            found = plan(smaller, gpu, prompt)
            if found.fits(memory, gpu):
                return smaller, found
    trial = trial.model_copy(
        update={
            "micro_batch": 1,
            "logits_mib": min(trial.logits_mib, 64),
            "gradient_checkpointing": True,
        }
    )
    found = plan(trial, gpu, prompt)
    need = (found.peak * MARGIN + (CONTEXT if gpu else 0)) / GIB
    raise ValueError(
        f"{config.student} with {config.teacher or 'no teacher'} needs {need:.1f} GiB even"
        f" with micro_batch=1, and {memory / GIB:.1f} are there."
        f" {_would_fit(trial, memory, gpu, prompt)}"
    )


def _fewer_at_once(config: RunConfig) -> RunConfig | None:
    """Half of the completions sampled at a time, in whole groups;

    None where it is one group already.
    """
    groups = (
        max(config.sample_at_once // config.group_size, 1)
        if config.sample_at_once
        else max(config.prompts_per_step, evaluation.BATCH // config.group_size)
    )
    return (
        None
        if groups == 1
        else config.model_copy(update={"sample_at_once": groups // 2 * config.group_size})
    )


def _smaller(config: RunConfig) -> Iterator[RunConfig]:
    """Micro-batches down to one row, then smaller chunks of logits; then all of them again with
    checkpointing.
    """
    for checkpointing in sorted({config.gradient_checkpointing, True}):
        micro, mib = config.micro_batch, config.logits_mib
        while True:
            yield config.model_copy(
                update={
                    "micro_batch": micro,
                    "logits_mib": mib,
                    "gradient_checkpointing": checkpointing,
                }
            )
            if micro == 1 and mib <= 64:
                break
            micro, mib = (micro // 2, mib) if micro > 1 else (micro, max(64, mib // 2))


def _would_fit(config: RunConfig, memory: float, gpu: bool, prompt: int) -> str:
    """What else could be given up on top of all that was: each alone, or else the first two or
    three of them together.
    """
    ways: list[str] = []
    tries: dict[str, dict[str, Any]] = {
        f"max_new_tokens={n}": {"max_new_tokens": n} for n in _halves(config.max_new_tokens, 64)
    }
    tries |= {
        f"prompts_per_step={n}": {"prompts_per_step": n}
        for n in _halves(config.prompts_per_step, 1)
    }
    if config.teacher is not None:
        tries["teacher_home=host"] = {"teacher_home": "host"}
    for name, change in tries.items():
        kind = name.partition("=")[0]
        if not any(way.startswith(kind) for way in ways) and plan(
            config.model_copy(update=change), gpu, prompt
        ).fits(memory, gpu):
            ways.append(name)
    least = {setting: value for change in tries.values() for setting, value in change.items()}
    if not ways and plan(config.model_copy(update=least), gpu, prompt).fits(memory, gpu):
        for names in itertools.chain(
            itertools.combinations(tries, 2), itertools.combinations(tries, 3)
        ):
            together = {setting: value for name in names for setting, value in tries[name].items()}
            if len(together) == len(names) and plan(
                config.model_copy(update=together), gpu, prompt
            ).fits(memory, gpu):
                return f"What would fit: {' '.join(f'--set {name}' for name in names)} together"
    return (
        f"What would fit: {' or '.join(f'--set {way}' for way in ways)}"
        if ways
        else "A smaller model would be needed, or a larger card"
    )


def check_pair(config: RunConfig) -> None:
    """Refuse, before anything is loaded, what their configs and tokenizers say of student and
    teacher: an architecture that is not supported, weights that are no safetensors, tokenizers that
    differ.

    Raises:
        FileNotFoundError, ValueError: in one sentence.
    """
    for name in dict.fromkeys((config.student, config.teacher or config.student)):
        locate(name, weights=Path(name).is_dir())
        Shape.of(name)
    if config.teacher is not None and config.teacher != config.student:
        try:
            same_tokenizer(
                *(
                    (name, load_tokenizer(name, weights=False))
                    for name in (config.student, config.teacher)
                )
            )
        except ValueError as error:
            raise ValueError(of_teacher(config, error)) from None
    _check_adapters(config)


def _check_adapters(config: RunConfig) -> None:
    """Refuse adapters that do not fit their base, which is made without data."""
    if config.adapter is not None:
        checkpoints.check(Path(config.adapter))
        check_policy_adapter(config.adapter, {})
        _check_adapter(config.student, config.adapter, trained=True)
    if config.teacher is not None and config.teacher_adapter is not None:
        try:
            checkpoints.check(Path(config.teacher_adapter))
            _check_adapter(config.teacher, config.teacher_adapter, trained=False)
        except ValueError as error:
            raise ValueError(of_teacher(config, error)) from None


def _check_adapter(name: str, adapter: str, trained: bool) -> None:
    shape = Shape.of(name)
    check_head(name, attach(_made(shape.config, shape.layers), adapter, "default", name), trained)


def _halves(value: int, lowest: int) -> list[int]:
    found = []
    while value // 2 >= lowest:
        value //= 2
        found.append(value)
    return found


def longest_prompt(config: RunConfig) -> int:
    """Tokens of the longest prompt that the run may ask, measured as
    :func:`~rlkd_lab.training.prompts.fit_prompts` does before a start.
    """
    return asked_prompts(config).longest


def asked_prompts(config: RunConfig) -> Asked:
    """What the run may ask, found with tokenizers and configs alone."""
    task = GuardedTask(find_task(config.task, config.task_settings, config.prompt_template))
    student, context = reader_of(config.student, config.chat, config.system_prompt)
    if config.teacher is None:
        return fit_prompts(task, config, student, None, (context, None))
    try:
        teacher, theirs = reader_of(config.teacher, config.chat, config.system_prompt)
    except ValueError as error:
        raise ValueError(of_teacher(config, error)) from None
    return fit_prompts(task, config, student, teacher, (context, theirs))


def reader_of(
    name: str, chat: Literal["auto", "off"], system_prompt: str | None
) -> tuple[LanguageModel, int]:
    """A model without its weights, which can read prompts, and its context in tokens.

    Raises:
        FileNotFoundError, ValueError: no such model, or the system prompt would not be asked.
    """
    lm = LanguageModel(None, load_tokenizer(name, weights=False), name, "none")  # type: ignore[arg-type]
    lm.use_chat(chat, system_prompt)
    return lm, Shape.of(name).context


# --- a model by its config ------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """Sizes of a model."""

    config: PreTrainedConfig
    layers: int
    linear: int
    """Weights of the layers that are quantised."""
    other: int
    """All the rest: embeddings, norms, biases, an output head of its own."""
    largest: int
    """Weights of the largest linear layer."""
    context: int
    counted: PreTrainedConfig
    """What stands for the model where a pass is counted: its config, or a Llama's of the same
    sizes.
    """

    @staticmethod
    @functools.lru_cache
    def of(name: str) -> Shape:
        """Read from the config alone."""
        config = AutoConfig.from_pretrained(locate(name, weights=False), trust_remote_code=False)
        check_architecture(name, config)
        counts = [_count(_made(config, layers)) for layers in (1, 2)]
        layers = int(config.num_hidden_layers)
        linear, other = (
            one + (layers - 1) * (two - one)
            for one, two in zip(*(count[:2] for count in counts), strict=True)
        )
        context = int(getattr(config, "max_position_embeddings", 2**31))
        shape = Shape(config, layers, linear, other, counts[0][2], context, config)
        if _made(config, 1).config._attn_implementation != COUNTED:
            _tell(
                name,
                config,
                "its attention cannot be counted as a fused kernel, so all its probabilities are",
            )
        try:
            for checkpointing in (False, True):
                _one_pass(
                    RunConfig(
                        micro_batch=1, max_new_tokens=8, gradient_checkpointing=checkpointing
                    ),
                    [shape],
                    [2],
                    torch.float32,
                    8,
                    True,
                )
        except Exception as error:
            # whatever the model's code does with shapes alone, training does it with data
            text = " ".join(f"{type(error).__name__}: {error}".split())
            _tell(
                name,
                config,
                f"its code does not run without data ({text:.120}), so it is taken for a"
                " Llama of the same sizes",
            )
            return replace(shape, counted=_stand_in(config))
        return shape

    @property
    def vocabulary(self) -> int:
        return int(self.config.vocab_size)

    def weights(self, quant: str, size: int) -> int:
        """Bytes of all weights, the linear layers in 4 bits with ``quant="nf4"``."""
        return int(self.linear * (NF4_BYTES if quant == "nf4" else size)) + size * self.other

    def cache_of_a_token(self, size: int) -> int:
        """Bytes of the keys and values of a token in all layers."""
        config = self.config
        heads = int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
        head_dim = int(
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        return 2 * self.layers * heads * head_dim * size

    def adapter(self, config: RunConfig) -> int:
        """Weights of the LoRA adapter."""
        one, two = (
            sum(
                p.numel()
                for p in _adapted(_made(self.config, n), config).parameters()
                if p.requires_grad
            )
            for n in (1, 2)
        )
        return one + (self.layers - 1) * (two - one)


def _tell(name: str, config: PreTrainedConfig, why: str) -> None:
    warnings.warn(
        f"the memory of {name} (type {config.model_type}) is an estimate: {why}", stacklevel=3
    )


def _stand_in(config: PreTrainedConfig) -> LlamaConfig:
    """A Llama's config of the same sizes."""
    inner = next(
        (
            getattr(config, name)
            for name in ("intermediate_size", "ffn_hidden_size", "ffn_dim", "n_inner")
            if getattr(config, name, None)
        ),
        None,
    )
    heads = int(config.num_attention_heads)
    return LlamaConfig(
        hidden_size=config.hidden_size,
        intermediate_size=inner or 4 * config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=heads,
        num_key_value_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None),
        vocab_size=config.vocab_size,
    )


def _made(config: PreTrainedConfig, layers: int, dtype: torch.dtype = torch.float32) -> Any:
    """A model of so many layers without data, with :func:`_counted_attention` where its code
    takes one from outside.
    """
    try:
        return _empty(config, layers, dtype, COUNTED)
    except (KeyError, ValueError):  # a table of its own (GPT-J, Falcon)
        return _empty(config, layers, dtype, "eager")


def _empty(config: PreTrainedConfig, layers: int, dtype: torch.dtype, attention: str) -> Any:
    short = copy.deepcopy(config)
    short.num_hidden_layers = layers
    if getattr(short, "layer_types", None):
        short.layer_types = short.layer_types[:layers]
    if hasattr(short, "quantization_config"):
        del short.quantization_config
    short._attn_implementation = attention
    short.use_cache = False
    with torch.device("meta"):
        # the dtype afterwards: transformers would change the default of the whole process for a
        # moment, in which other runs may go on
        return (
            AutoModelForCausalLM.from_config(short, dtype=torch.float32)
            .to(dtype)
            .requires_grad_(False)
        )


def _adapted(model: Any, config: RunConfig) -> Any:
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, lora, low_cpu_mem_usage=True)


def _count(model: Any) -> tuple[int, int, int]:
    """Weights of linear layers but the head, all other weights, the largest linear layer."""
    head = model.get_output_embeddings()
    linear = [
        module.weight.numel()
        for module in model.modules()
        if isinstance(module, nn.Linear) and module is not head
    ]
    return sum(linear), sum(p.numel() for p in model.parameters()) - sum(linear), max(linear)


# --- what a pass holds ----------------------------------------------------------------------------


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
        for value in tree_leaves(result):
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
    """As fused kernels do: keeps queries, keys, values, output and one number a row for the
    backward pass.
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


def _passes(
    config: RunConfig, models: Sequence[Shape], size: int, prompt: int, gradient: bool = True
) -> int:
    """Most bytes that a micro-batch holds: the student's graph, teacher and reference beside
    it, then the backward pass; or the passes without gradient.
    """
    dtype = torch.bfloat16 if size == 2 else torch.float32
    first = _one_pass(config, models, [1] * len(models), dtype, prompt, gradient)
    peaks = list(first)
    for which, model in enumerate(models):
        more = _one_pass(
            config,
            models,
            [2 if i == which else 1 for i in range(len(models))],
            dtype,
            prompt,
            gradient,
        )
        peaks = [
            peak + (model.layers - 1) * (two - one)
            for peak, one, two in zip(peaks, first, more, strict=True)
        ]
    return max(peaks)


def _one_pass(
    config: RunConfig,
    shapes: Sequence[Shape],
    layers: Sequence[int],
    dtype: torch.dtype,
    prompt: int,
    gradient: bool,
) -> tuple[int, int]:
    """Peaks of the forward and of the backward part, for models of so many layers."""
    rows, width = config.micro_batch, prompt + config.max_new_tokens
    policy, *others = (
        _made(shape.counted, count, dtype) for shape, count in zip(shapes, layers, strict=True)
    )
    policy = _adapted(policy, config).train()
    if config.gradient_checkpointing:
        checkpoint_activations(policy.get_base_model())
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.empty_like(parameter)
    known = [
        tensor
        for model in (policy, *others)
        for part in (model.parameters(), model.buffers())
        for tensor in part
    ]
    student, *teachers = (LanguageModel(model, None, "", "none") for model in (policy, *others))  # type: ignore[arg-type]
    chunk = chunk_of(config.logits_mib, shapes[0].vocabulary)
    with torch.device("meta"):
        ids = torch.zeros(rows, width, dtype=torch.long)
        mask = torch.ones(rows, 1, width, width, dtype=torch.bool)
        count = Live([*known, *(p.grad for p in policy.parameters() if p.grad is not None)])

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
                        measured_divergences(
                            student,
                            hidden.detach(),
                            teacher,
                            theirs,
                            ("reverse", "forward"),
                            (1.0,),
                            chunk,
                        )
                    del theirs
            forward, count.peak = count.peak, count.now
            if gradient:
                logps.sum().backward()
    # the mask over pairs of tokens, which the attention gets beside its inputs as numbers
    masks = rows * width * width * (1 + dtype.itemsize)
    return forward + masks, count.peak + masks
