"""What this machine can do, found by doing it: versions, device, memory, a 4-bit layer that
decodes and learns; with ``--deep`` whole models.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import psutil
import torch

from rlkd_lab.models.language_model import Quant
from rlkd_lab.models.loading import compute_dtype, default_device
from rlkd_lab.models.locating import zoo_names
from rlkd_lab.training import make_config
from rlkd_lab.training.environment import APPLE, PACKAGES, cpu_name, version_of
from rlkd_lab.training.selfcheck import examine_models
from rlkd_lab.training.session import within_memory


def examine() -> Iterator[tuple[bool, str]]:
    """(good or not, a sentence) for each thing examined."""
    version = ".".join(map(str, sys.version_info[:3]))
    yield True, f"Python {version}"
    found = {name: version_of(name) for name in PACKAGES}
    optional = {"bitsandbytes"}
    missing = [name for name, value in found.items() if value is None and name not in optional]
    yield (
        not missing,
        ", ".join(f"{name} {value}" for name, value in found.items() if value)
        + (f"; missing: {', '.join(missing)}" if missing else ""),
    )
    device = default_device()
    dtype = str(compute_dtype(device)).removeprefix("torch.")
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        yield (
            True,
            f"GPU: {torch.cuda.get_device_name(device)}, {free / 2**30:.1f} of"
            f" {total / 2**30:.1f} GiB free; models compute in {dtype}",
        )
    elif device.type == "mps":
        yield (
            True,
            f"{APPLE}: chosen by itself, and not run by us; models compute in {dtype}."
            " RLKD_DEVICE=cpu takes the CPU",
        )
    else:
        yield (
            True,
            f"no GPU is used: {cpu_name()}, {torch.get_num_threads()} threads; models compute"
            f" in {dtype}, which is fast enough for the embedded pair",
        )
    memory = psutil.virtual_memory()
    enough = memory.available > 2 * 2**30
    yield (
        enough,
        f"memory: {memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free"
        + ("" if enough else "; the demo needs about 2 GiB"),
    )
    yield _four_bit(device)
    names = zoo_names()
    yield (
        bool(names),
        "embedded models:"
        f" {', '.join(names) or 'none; rebuild them with python -m rlkd_lab.zoo.build'}",
    )


def examine_deep(student: str | None = None, quant: Quant = "nf4") -> Iterator[tuple[bool, str]]:
    """(good or not, a sentence with what was measured) for each self-check of the embedded pair, or
    of a model of one's own.

    Raises:
        FileNotFoundError, ValueError: the model cannot be loaded, or does not fit.
    """
    for name in ["student", "teacher"] if student is None else [student]:
        config = within_memory(
            make_config("grpo", settings={"student": name, "quant": quant, "teacher": "off"})
        )
        for one in examine_models(config):
            yield one.ok, f"{name} ({quant}): {one.text}"


def _four_bit(device: torch.device) -> tuple[bool, str]:
    if version_of("bitsandbytes") is None:
        return (
            True,
            "bitsandbytes is not installed (it has no build for every system): use --set"
            " quant=none --set teacher_quant=none",
        )
    try:
        from bitsandbytes.nn import Linear4bit

        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(64, 64, generator=generator)
        with torch.random.fork_rng(
            devices=[]
        ):  # a new layer draws its weights from the global stream
            layer = Linear4bit(
                64, 64, bias=False, quant_type="nf4", compute_dtype=compute_dtype(device)
            )
        layer.load_state_dict({"weight": weight})
        layer = layer.to(device)
        layer.support_avx512bf16_for_cpu = False
        x = torch.randn(8, 64, generator=generator).to(device).requires_grad_()
        out = layer(x).float()
        out.square().sum().backward()
        exact = x.detach() @ weight.to(device).T
        error = float((out.detach() - exact).norm() / exact.norm())
        learns = x.grad is not None and bool(x.grad.abs().sum() > 0)
    except Exception as error_:
        return (
            False,
            f"bitsandbytes fails here ({type(error_).__name__}: {error_}): use --set"
            " quant=none --set teacher_quant=none",
        )
    if error < 0.2 and learns:
        return (
            True,
            f"4-bit NF4 layers work: a product is off by {error:.1%}, gradients pass through",
        )
    return (
        False,
        f"4-bit NF4 layers do not work here (a product is off by {error:.0%}): use --set"
        " quant=none --set teacher_quant=none",
    )
