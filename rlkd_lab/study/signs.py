"""Signs of what training added to the weights, beside those of OPD.

*Sequential Beats Joint* (arXiv 2609.04108) compares methods by the share of weights that they move
against OPD. A run adds scaling·B·A to each layer. Each run is held against the OPD run of the next
seed, so that no two share their initial A or their prompts. Independent signs conflict in half of
the weights.
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file

from rlkd_lab.runs import RunFolder
from rlkd_lab.study.parts import SIGNS
from rlkd_lab.study.results import outcome_of, over
from rlkd_lab.study.sweep import Sweep


def added_signs(adapter: Path) -> torch.Tensor:
    """Return the sign of each weight of B·A, over all layers of an adapter, in one row."""
    kind = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["peft_type"]
    if kind != "LORA":
        raise ValueError(f"{adapter} is no LoRA adapter: its weights are not compared")
    weights = load_file(adapter / "adapter_model.safetensors")
    names = sorted(name for name in weights if name.endswith("lora_A.weight"))
    products = [weights[name.replace("lora_A", "lora_B")] @ weights[name] for name in names]
    return torch.cat([one.flatten().sign().to(torch.int8) for one in products])


def conflict(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the share of opposite signs among weights that both moved."""
    moved = (one != 0) & (other != 0)
    return float((one != other)[moved].float().mean())


def sign_conflicts(sweep: Sweep, out: str | Path) -> pd.DataFrame:
    """Return for each run that is over its conflict with the OPD run of the next seed.

    The columns are ``arm``, ``seed``, ``other`` (the seed of that OPD run) and ``conflict``.
    After the last seed comes the first.
    """
    places = {
        (job.arm, job.seed): RunFolder.open(folder).checkpoints()
        for job in sweep.jobs()
        if over(folder := job.folder(Path(out))) and outcome_of(folder)["diverged"] is None
    }
    signs = {run: added_signs(found[-1]) for run, found in places.items() if found}
    seeds = sorted(seed for arm, seed in signs if arm == "opd")
    following = dict(zip(seeds, seeds[1:] + seeds[:1], strict=True)) if len(seeds) > 1 else {}
    rows = [
        {
            "arm": arm,
            "seed": seed,
            "other": following[seed],
            "conflict": conflict(own, signs["opd", following[seed]]),
        }
        for (arm, seed), own in signs.items()
        if seed in following
    ]
    return pd.DataFrame(rows, columns=["arm", "seed", "other", "conflict"])


def write_signs(sweep: Sweep, out: Path) -> None:
    """Write the table of the conflicts into the part's folder."""
    sign_conflicts(sweep, out).to_csv(out / SIGNS, index=False)
