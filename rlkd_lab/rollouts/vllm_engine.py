"""The engine ``vllm``: completions by vLLM, in its own process on the same GPU.

vLLM gets the student's weights once, as the 16-bit numbers that its 4-bit ones stand for, and the
adapter as a LoRA before each rollout: some megabytes, where merged weights would be all of them.
It sleeps while the run updates. Its memory pool refuses segments that grow, so its process starts
without this package's setting of PyTorch's pool. A setting of the user's own is kept, and vLLM
stays awake then. Written for vLLM 0.20, and not run by us on a GPU.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlkd_lab.models import LanguageModel, distributed
from rlkd_lab.models.adapters import save_adapter
from rlkd_lab.models.dense_copy import DenseCopy
from rlkd_lab.rollouts.request import Request, Stopped

SHARE = 0.4
"""Of the GPU's memory, for vLLM's weights and cache."""
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Of adapters, for which vLLM has memory laid out."""


SEGMENTS = "expandable_segments:True"
"""What this package gives to PyTorch's memory pool as it is imported."""
NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""The variable that PyTorch's memory pool reads, and its older name."""


@contextmanager
def _plain_pool() -> Iterator[None]:
    """Take this package's own setting out of the environment of a process that starts inside."""
    own = os.environ.get(NAMES[0]) == SEGMENTS
    if own:
        del os.environ[NAMES[0]]
    try:
        yield
    finally:
        if own:
            os.environ[NAMES[0]] = SEGMENTS


class Vllm:
    """Keeps one vLLM for one student, and begins anew with another student."""

    def __init__(self) -> None:
        self.llm: Any = None
        self.turn = 0
        self._student: object = None

    def __call__(self, request: Request) -> tuple[Tensor, Tensor]:
        """Draw completions, as an :class:`~rlkd_lab.rollouts.request.Engine`.

        Raises:
            ValueError: vLLM is not installed, or there is no dense copy, or several processes.
        """
        lm, limit = request.lm, request.sampling.max_new_tokens
        if request.stop():
            raise Stopped("stopped before a rollout")
        if self._student is not lm.model:
            self._start(request)
        elif self._sleeps():
            self.llm.wake_up()
        self.turn += 1
        with tempfile.TemporaryDirectory() as folder:
            answers = self.llm.generate(
                [{"prompt_token_ids": ids} for ids in request.unpadded()],
                self._drawing(request),
                use_tqdm=False,
                lora_request=self._adapter(lm, Path(folder)),
            )
        if self._sleeps():
            self.llm.sleep(level=1)
        ids = torch.full((request.rows, limit), lm.tokenizer.pad_token_id)
        logps = torch.zeros(request.rows, limit)
        for row, one in enumerate(found for answer in answers for found in answer.outputs):
            drawn = list(one.token_ids)
            said = [step[token].logprob for step, token in zip(one.logprobs, drawn, strict=True)]
            ids[row, : len(drawn)] = torch.tensor(drawn)
            logps[row, : len(drawn)] = torch.tensor(said)
        return ids.to(lm.device), logps.to(lm.device)

    def _start(self, request: Request) -> None:
        try:
            import vllm
        except ImportError:
            raise ValueError(
                "the engine vllm needs vLLM, which needs a GPU: pip install 'rlkd_lab[vllm]', or"
                " use --set engine=fast"
            ) from None
        if request.dense is None or distributed.count() > 1:
            raise ValueError(
                "the engine vllm serves the dense copy of one process's student: use --set"
                " dense_copy=true and one process, or --set engine=fast"
            )
        lm = request.lm
        with tempfile.TemporaryDirectory() as folder, _plain_pool():
            save_base(request.dense, Path(folder))
            lm.tokenizer.save_pretrained(folder)
            self.llm = vllm.LLM(
                model=folder,
                dtype=str(lm.head.weight.dtype).removeprefix("torch."),
                max_model_len=lm.context,
                enable_lora=True,
                max_loras=1,
                max_lora_rank=next(one for one in RANKS if one >= _rank(lm)),
                enable_sleep_mode=self._sleeps(),
                gpu_memory_utilization=SHARE,
                logprobs_mode="processed_logprobs",  # as they were drawn, after temperature
                generation_config="vllm",  # not the model's defaults, such as a penalty
            )
        self._student = lm.model

    @staticmethod
    def _sleeps() -> bool:
        with _plain_pool():
            return not any(SEGMENTS in os.environ.get(name, "") for name in NAMES)

    def _adapter(self, lm: LanguageModel, folder: Path) -> Any:
        from vllm.lora.request import LoRARequest

        save_adapter(lm, folder)
        return LoRARequest(f"step {self.turn}", self.turn, str(folder))

    def _drawing(self, request: Request) -> list[Any]:
        """Return how each prompt is continued. With one seed prompts would share their draws."""
        from vllm import SamplingParams

        sampling = request.sampling
        return [
            SamplingParams(
                n=request.group_size,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                max_tokens=sampling.max_new_tokens,
                stop_token_ids=sorted(request.lm.eos_ids),
                logprobs=0,  # of the drawn token alone
                seed=(request.seed + number * request.group_size) % 2**31,
                detokenize=False,
            )
            for number in range(len(request.prompt_ids))
        ]


def save_base(dense: DenseCopy, folder: Path) -> None:
    """Write the weights of a dense copy without its adapter, as transformers reads them."""
    weights = dict(dense.model.state_dict())
    names = {module: name for name, module in dense.model.named_modules()}
    for module, base in dense.pairs:
        weights[f"{names[module]}.weight"] = base
    dense.model.save_pretrained(folder, state_dict=weights)


def _rank(lm: LanguageModel) -> int:
    config: Any = lm.model.peft_config[lm.adapter]  # type: ignore[index]
    return max([config.r, *config.rank_pattern.values()])
