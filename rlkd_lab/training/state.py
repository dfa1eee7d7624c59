"""What training changes: the adapter, the optimizer's moments and the progress counters.

A run and its forks share one set of live tensors (:class:`TrainState`). What belongs to a run or
fork while it is not its turn is a :class:`Snapshot`.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from rlkd_lab.models import LanguageModel
from rlkd_lab.models.adapters import save_adapter
from rlkd_lab.runs import RunFolder, checkpoints
from rlkd_lab.runs.checkpoints import Damaged
from rlkd_lab.training.config import RunConfig
from rlkd_lab.training.fingerprint import fingerprint

AVERAGE_FILE = "teacher_average.safetensors"
SMALL = 4096
"""bitsandbytes keeps the moments of smaller tensors in 32 bits."""


AVERAGED = "average"
"""Name of the adapter that is an average of the student's, with ``teacher=self:ema``."""


@dataclass(frozen=True)
class Progress:
    """How far a run has come."""

    step: int = 0
    """Last step that is whole."""
    tokens: int = 0
    """Tokens sampled up to that step."""
    accuracy: float | None = None
    """Validation accuracy after that step, where it was evaluated."""


@dataclass(frozen=True)
class Snapshot:
    """Copies of the adapter's weights, its average, and the optimizer's moments."""

    weights: list[Tensor]
    averaged: list[Tensor]
    moments: dict[int, dict[str, Tensor]]


class TrainState:
    """The live adapter of a policy and its optimizer. The learning rate is set in each step.

    Args:
        policy: a model with a trainable adapter.
        config: of the run. Its optimizer is torch's AdamW, or bitsandbytes' with moments in 8 bits.
    """

    def __init__(self, policy: LanguageModel, config: RunConfig) -> None:
        self.policy = policy
        self.parameters = policy.trainable()
        self.averaged = _averaged(policy)
        """Of the parameters, with ``teacher=self:ema``; otherwise nothing."""
        self.rate = config.teacher_ema
        self.bits = 8 if config.optimizer == "adamw_8bit" else 32
        kind: Any = torch.optim.AdamW
        if self.bits == 8:
            from bitsandbytes.optim import AdamW8bit as kind
        self.optimizer: torch.optim.Optimizer = kind(
            self.parameters,
            lr=1.0,
            betas=(config.adam_beta1, config.adam_beta2),
            weight_decay=config.weight_decay,
        )

    def copy(self) -> Snapshot:
        """Copy weights and moments."""
        weights, averaged = (
            [value.detach().clone() for value in values]
            for values in (self.parameters, self.averaged)
        )
        return Snapshot(weights, averaged, _cloned(self._moments()))

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot. What is computed from there is the same to the last bit."""
        with torch.no_grad():
            for parameter, value in zip(self.parameters, snapshot.weights, strict=True):
                parameter.copy_(value)
            for average, value in zip(self.averaged, snapshot.averaged, strict=True):
                average.copy_(value)
        self._set_moments(_cloned(snapshot.moments))  # the optimizer writes in place

    @torch.no_grad()
    def follow(self) -> None:
        """Let the average take its share of the weights, after the updates of a step."""
        for average, parameter in zip(self.averaged, self.parameters, strict=bool(self.averaged)):
            average.lerp_(parameter, self.rate)

    def _moments(self) -> dict[int, dict[str, Tensor]]:
        """Return what the optimizer holds of each parameter; nothing before the first update."""
        state = self.optimizer.state
        return {
            index: {key: torch.as_tensor(value) for key, value in state[parameter].items()}
            for index, parameter in enumerate(self.parameters)
            if state.get(parameter)
        }

    def _set_moments(self, moments: Mapping[int, Mapping[str, Tensor]]) -> None:
        self.optimizer.state.clear()
        for index, entry in moments.items():
            parameter = self.parameters[index]
            held: dict[str, Any] = {key: value.to(parameter.device) for key, value in entry.items()}
            # torch keeps the number of steps on the CPU, bitsandbytes as an int
            held["step"] = entry["step"].cpu() if self.bits == 32 else int(entry["step"])
            self.optimizer.state[parameter] = held

    def _names(self) -> set[str]:
        """Return the names of all moments in a file."""
        names = set()
        for index, parameter in enumerate(self.parameters):
            keys = ["exp_avg", "exp_avg_sq"] if self.bits == 32 else ["state1", "state2"]
            if self.bits == 8 and parameter.numel() >= SMALL:
                keys += ["qmap1", "qmap2", "absmax1", "absmax2"]
            names |= {f"{index}.{key}" for key in ["step", *keys]}
        return names

    # --- on disk ----------------------------------------------------------------------------------

    def save(
        self, folder: RunFolder, config: RunConfig, progress: Progress, held: Mapping[str, Any]
    ) -> Path:
        """Write a checkpoint and remove older ones, as ``keep_checkpoints`` says.

        Args:
            folder: of the run or fork.
            config: of the run.
            progress: after the step.
            held: knob values that were moved by hand.
        """
        state = {
            **asdict(progress),
            "held": held,
            "seed": config.seed,
            "config": fingerprint(config),
        }
        path = checkpoints.save(folder, progress.step, self._write, state)
        checkpoints.prune(folder, config.keep_checkpoints)
        return path

    def _write(self, beside: Path) -> None:
        flat = {
            f"{index}.{key}": value.clone().contiguous()  # some share a table
            for index, entry in self._moments().items()
            for key, value in entry.items()
        }
        try:
            save_adapter(self.policy, beside)
            save_file(flat, beside / "optimizer.safetensors")
            if self.averaged:
                averaged = {str(i): value.contiguous() for i, value in enumerate(self.averaged)}
                save_file(averaged, beside / AVERAGE_FILE)
        except SafetensorError as error:  # its text is all that is left of the system's error
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(int(number[1]) if number else errno.EIO, str(error)) from error

    def load(self, path: Path, config: RunConfig) -> tuple[Progress, dict[str, Any]]:
        """Read a checkpoint into the live tensors.

        Returns:
            How far it had come, and the knob values that were moved by hand.

        Raises:
            Damaged: a file is missing or is not what was written.
            ValueError: the checkpoint belongs to another config.
        """
        stored = checkpoints.read(path)
        try:
            made_with, held = stored["config"], dict(stored["held"])
            progress = Progress(int(stored["step"]), int(stored["tokens"]), stored.get("accuracy"))
            if path.name != f"step_{progress.step:06d}":
                raise ValueError(f"its state is that of step {progress.step}")
            # Read whole. load_file would map the files, and a file that is cut later would then end
            # the process with a bus error.
            adapter = load((path / "adapter_model.safetensors").read_bytes())
            flat = load((path / "optimizer.safetensors").read_bytes())
            averaged = load((path / AVERAGE_FILE).read_bytes()) if self.averaged else {}
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise Damaged(
                f"the checkpoint {path} is damaged: {type(error).__name__}: {error}"
            ) from error
        if made_with != fingerprint(config):
            raise ValueError(
                f"the checkpoint {path} does not match the run's config.json: it was made with"
                " other settings"
            )
        self._check_tensors(path, adapter, flat)
        shapes = {str(i): value.shape for i, value in enumerate(self.averaged)}
        if {name: value.shape for name, value in averaged.items()} != shapes:
            raise Damaged(f"the checkpoint {path} is damaged: {AVERAGE_FILE} has other tensors")
        for name, value in averaged.items():
            self.averaged[int(name)].copy_(value)
        set_peft_model_state_dict(self.policy.model, adapter, adapter_name="default")
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in flat.items():
            index, _, key = name.partition(".")
            moments.setdefault(int(index), {})[key] = value
        self._set_moments(moments)
        return progress, held

    def _check_tensors(
        self, path: Path, adapter: Mapping[str, Tensor], flat: Mapping[str, Tensor]
    ) -> None:
        weights = get_peft_model_state_dict(
            self.policy.model, adapter_name="default", save_embedding_layers=False
        )
        shapes = {name: value.shape for name, value in weights.items()}
        moments = self._names() if flat else set()  # before the first update there are none
        if shapes != {name: value.shape for name, value in adapter.items()} or moments != set(flat):
            odd = sorted(set(shapes) ^ set(adapter) | moments ^ set(flat))
            what = (
                f"missing or surplus tensors, such as {odd[0]}"
                if odd
                else "tensors of other shapes"
            )
            raise Damaged(f"the checkpoint {path} is damaged: {what}")


def _averaged(policy: LanguageModel) -> list[Tensor]:
    """Return the parameters of the average, each at the place of the one that it follows."""
    named = dict(policy.model.named_parameters())
    names = [name for name, parameter in named.items() if parameter.requires_grad]
    theirs = [re.sub(r"\.default(?=\.|$)", f".{AVERAGED}", name) for name in names]
    return [named[name].data for name in theirs if name in named and name not in names]


def _cloned(moments: Mapping[int, Mapping[str, Tensor]]) -> dict[int, dict[str, Tensor]]:
    return {i: {key: value.clone() for key, value in e.items()} for i, e in moments.items()}
