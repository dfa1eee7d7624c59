"""What a run ran on: versions, device, memory, commit. No environment variables, no paths."""

from __future__ import annotations

import importlib.metadata
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import torch

from rlkd_lab.training.fingerprint import RESULTS

APPLE = "Apple's GPU, mps"
SILENT = 900
PACKAGES = ("rlkd_lab", "torch", "transformers", "peft", "bitsandbytes", "accelerate", "numpy")


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Versions, device and commit, as they stand in env.json and in benchmark results."""
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: version_of(name) for name in PACKAGES},
        },
        "system": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{APPLE if device.type == 'mps' else 'CPU'} ({cpu_name()})",
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "commit": commit(),
        "results_version": RESULTS,
    }


def version_of(package: str) -> str | None:
    """Return the installed version, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_name() -> str:
    """Return the model name where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """Return the commit of the source tree, with ``+`` if it has changes; None where it is no
    checkout.
    """
    try:
        dirty = _git("status", "--porcelain", "-uno")
        return _git("rev-parse", "--short=12", "HEAD") + ("+" if dirty else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*words: str) -> str:
    return subprocess.run(
        ["git", *words],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
        encoding="utf-8",
    ).stdout.strip()


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free on the GPU, or in the host's memory."""
    return (
        int(torch.cuda.mem_get_info(device)[0])
        if device.type == "cuda"
        else int(psutil.virtual_memory().available)
    )


def peak_memory_gib(device: torch.device) -> float:
    """Return the highest memory so far: of the GPU's allocator, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 2**30
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def alive(status: Mapping[str, Any]) -> bool:
    """Whether the process that a run's status names is there: one with its ``pid`` that is older
    than ``updated`` (seconds since the epoch), for a later one only has the number. Of another
    ``host`` nothing is known but when it last wrote: it counts as alive for :data:`SILENT` seconds.
    """
    if status.get("host", socket.gethostname()) != socket.gethostname():
        return time.time() - status["updated"] < SILENT
    try:
        process = psutil.Process(status["pid"])
        return (
            process.create_time() <= status["updated"] and process.status() != psutil.STATUS_ZOMBIE
        )
    except psutil.Error:
        return False
