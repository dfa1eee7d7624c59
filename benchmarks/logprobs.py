"""Chunked log-probabilities against the dense way at a vocabulary of 151,936: peak memory and time of a forward and backward pass.

    python benchmarks/logprobs.py        # writes benchmarks/results/logprobs.json

Each measurement is a process of its own (so that peak memory is its own), the two ways alternate, and the median of the ratios counts.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

VOCABULARY, HIDDEN, TOKENS, REPEATS = 151_936, 256, 1024, 5


def measure(way: str) -> dict[str, float]:
    """One forward and backward pass; seconds and GiB above the memory before it."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from rlkd_lab.models import LanguageModel, token_logps
    from rlkd_lab.training.environment import peak_memory_gib

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=256, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=4, head_dim=64
    )
    model = Qwen3ForCausalLM(config).requires_grad_(False)
    lm = LanguageModel(model, None, "random", "none")  # type: ignore[arg-type]
    hidden = torch.randn(TOKENS, HIDDEN, requires_grad=True)
    ids = torch.randint(VOCABULARY, (TOKENS,))
    token_logps(lm, hidden[:8], ids[:8])[0].sum().backward()  # warm up
    device = torch.device("cpu")
    before, began = peak_memory_gib(device), time.perf_counter()
    if way == "chunked":
        logps, entropy = token_logps(lm, hidden, ids)
    else:
        log_probs = torch.log_softmax(model.lm_head(hidden), dim=-1)
        logps, entropy = log_probs.gather(-1, ids[:, None]).squeeze(-1), -(log_probs.detach().exp() * log_probs.detach()).sum(-1)
    (logps.sum() + 0 * entropy.sum()).backward()
    return {"seconds": time.perf_counter() - began, "peak_gib": peak_memory_gib(device) - before, "check": float(logps.sum())}


def main() -> None:
    from rlkd_lab.training import describe_environment

    rows: dict[str, list[dict[str, float]]] = {"chunked": [], "dense": []}
    for _ in range(REPEATS):
        for way, found in rows.items():
            out = subprocess.run([sys.executable, __file__, way], capture_output=True, text=True, check=True).stdout
            found.append(json.loads(out.splitlines()[-1]))
    assert all(abs(a["check"] - b["check"]) < 1e-4 * abs(b["check"]) for a, b in zip(rows["chunked"], rows["dense"], strict=True))
    import torch

    ratios = {key: [a[key] / b[key] for a, b in zip(rows["chunked"], rows["dense"], strict=True)] for key in ("seconds", "peak_gib")}
    result = {
        "command": "python benchmarks/logprobs.py",
        "setting": {"vocabulary": VOCABULARY, "hidden": HIDDEN, "tokens": TOKENS, "dtype": "float32", "repeats": REPEATS},
        **{way: {key: median(row[key] for row in found) for key in ("seconds", "peak_gib")} for way, found in rows.items()},
        "chunked_over_dense": {key: {"median": median(values), "min": min(values), "max": max(values)} for key, values in ratios.items()},
        "environment": describe_environment(torch.device("cpu")),
    }
    target = Path(__file__).parent / "results" / "logprobs.json"
    target.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["chunked_over_dense"], indent=2))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])))
    else:
        main()
