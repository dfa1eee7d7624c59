"""Log-probabilities and reverse KL from hidden states at a vocabulary of 151,936: ours, TRL's
kernels and the dense way, a forward and a backward pass.

    python benchmarks/logprobs.py   # writes results/logprobs.json, on a GPU logprobs-gpu.json

Each measurement is a process of its own (so that peak memory is its own), the ways alternate, and
the median of neighbours' ratios counts. On a GPU: bfloat16, a hidden size of 2048, up to 32k tokens
(dense only as far as it fits). On a CPU: float32, 256 and 1,024 tokens. TRL's kernels are Triton on
a GPU and plain PyTorch on a CPU.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

VOCABULARY, REPEATS = 151_936, 5
GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
HIDDEN, TOKENS = (2048, (2048, 8192, 32768)) if GPU else (256, (1024,))
WAYS, QUANTITIES = ("ours", "trl", "dense"), ("logps", "reverse_kl")


def run_once(
    way: str,
    quantity: str,
    lms: list,
    hidden: torch.Tensor,
    theirs: torch.Tensor,
    ids: torch.Tensor,
) -> torch.Tensor:
    """One value a token, (N,), differentiated with respect to ``hidden``."""
    from rlkd_lab.models import token_logps
    from rlkd_lab.models.logprobs import chunk_of, token_divergence

    ours, teacher = lms
    if way == "ours":
        chunk = (
            chunk_of(256, VOCABULARY) if GPU else None
        )  # the presets' logits_mib; on a CPU the default
        return (
            token_logps(ours, hidden, ids, chunk=chunk)[0]
            if quantity == "logps"
            else token_divergence(ours, hidden, teacher, theirs, chunk=chunk)
        )
    if way == "trl":
        from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
        from trl.kernels.chunked_logprob import ChunkedLogProbFunction

        if quantity == "logps":
            return ChunkedLogProbFunction.apply(
                hidden, ours.head.weight, None, ids, 1.0, 8192, None, 1.0, ("entropy",)
            )[0]
        return ChunkedDivergenceFunction.apply(
            hidden, ours.head.weight, None, theirs, teacher.head.weight, None, 1.0
        )[0]
    log_p = torch.log_softmax(ours.head(hidden).float(), dim=-1)
    if quantity == "logps":
        with torch.no_grad():
            _ = -(log_p.exp() * log_p).sum(-1)  # the entropy, as the others have it
        return log_p.gather(-1, ids[:, None])[:, 0]
    log_q = torch.log_softmax(teacher.head(theirs).float(), dim=-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def measure(way: str, quantity: str, tokens: int) -> dict[str, float]:
    """Seconds, and GiB above the memory before it."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from rlkd_lab.models import LanguageModel
    from rlkd_lab.training.environment import peak_memory_gib

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=256,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=64,
    )
    dtype = torch.bfloat16 if GPU else torch.float32
    models = [Qwen3ForCausalLM(config).to(DEVICE, dtype).requires_grad_(False) for _ in range(2)]
    lms = [LanguageModel(model, None, "random", "none") for model in models]  # type: ignore[arg-type]
    hidden = torch.randn(tokens, HIDDEN, device=DEVICE, dtype=dtype, requires_grad=True)
    theirs, ids = (
        torch.randn(tokens, HIDDEN, device=DEVICE, dtype=dtype),
        torch.randint(VOCABULARY, (tokens,), device=DEVICE),
    )

    def once(count: int) -> tuple[float, float]:
        began = time.perf_counter()
        values = run_once(way, quantity, lms, hidden[:count], theirs[:count], ids[:count])
        values.sum().backward()
        if GPU:
            torch.cuda.synchronize()
        return time.perf_counter() - began, float(values.detach().double().sum())

    once(8)  # warm up
    if GPU:
        once(tokens)  # kernels that are compiled for the shape
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() / 2**30 if GPU else peak_memory_gib(DEVICE)
    seconds, check = once(tokens)
    return {"seconds": seconds, "peak_gib": peak_memory_gib(DEVICE) - before, "check": check}


def main() -> None:
    from rlkd_lab.training.environment import describe_environment

    target = Path(__file__).parent / "results" / ("logprobs-gpu.json" if GPU else "logprobs.json")
    result: dict[str, Any] = {
        "command": "python benchmarks/logprobs.py",
        "setting": {
            "vocabulary": VOCABULARY,
            "hidden": HIDDEN,
            "dtype": "bfloat16" if GPU else "float32",
            "repeats": REPEATS,
        },
        "results": [],
        "environment": describe_environment(DEVICE),
    }
    for quantity in QUANTITIES:
        for tokens in TOKENS:
            rows: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
            for _ in range(REPEATS):
                for way, found in rows.items():
                    out = subprocess.run(
                        [sys.executable, __file__, way, quantity, str(tokens)],
                        capture_output=True,
                        text=True,
                        encoding="utf-8",
                    )
                    if out.returncode and "OutOfMemory" in out.stderr:
                        continue
                    if out.returncode:
                        raise SystemExit(
                            f"{way}, {quantity}, {tokens} tokens: {out.stderr[-1500:]}"
                        )
                    found.append(json.loads(out.stdout.splitlines()[-1]))
            assert all(
                abs(row["check"] - rows["ours"][0]["check"]) < 1e-2 * abs(row["check"])
                for found in rows.values()
                for row in found
            )
            entry: dict = {"quantity": quantity, "tokens": tokens}
            for way, found in rows.items():
                entry[way] = (
                    {key: median(row[key] for row in found) for key in ("seconds", "peak_gib")}
                    if len(found) == REPEATS
                    else "does not fit"
                )
            for other in ("trl", "dense"):
                if len(rows[other]) == REPEATS:
                    ratios = {
                        key: [
                            a[key] / b[key] for a, b in zip(rows["ours"], rows[other], strict=True)
                        ]
                        for key in ("seconds", "peak_gib")
                    }
                    entry[f"ours_over_{other}"] = {
                        key: {"median": median(found), "min": min(found), "max": max(found)}
                        for key, found in ratios.items()
                    }
            result["results"].append(entry)
            print(json.dumps(entry, indent=2), flush=True)
            target.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
    else:
        main()
