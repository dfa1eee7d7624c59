"""Adapters: a LoRA adapter of a folder arrives in the model as a whole, or is refused.

peft loads what it finds and warns at most. Keys of another prefix, half of the layers or a missing
``lora_B`` leave the bare base under the adapter's name. Here the tensors of the file are compared
with those that the model has a place for, before they are loaded and after.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from rlkd_lab.models.adapter_config import (
    KNOWN,
    adapter_folder,
    adapter_settings,
    warn_of_another_base,
)
from rlkd_lab.models.language_model import LanguageModel

PREFIX = "base_model.model."
# of LoRA biases, whose one dimension peft takes for a part of a matrix
warnings.filterwarnings("ignore", message=r"Adapter '\w+': .*have invalid shape: \S+lora_B\.bias")


def attach(
    model: PreTrainedModel | PeftModel,
    path: str | Path,
    name: str,
    base: str,
    trainable: bool = False,
) -> PeftModel:
    """Put the adapter of a folder on a model, under a name, and check that all of it arrives.

    Args:
        model: a base, or one that has adapters already. In one without data (device meta) the
            adapter is checked and not loaded.
        path: the adapter's folder.
        name: of the adapter in the model.
        base: what the user calls the model, for messages.
        trainable: as the policy's; otherwise it is frozen.

    Raises:
        FileNotFoundError: see :func:`adapter_folder`.
        ValueError: the adapter is damaged, holds values that are not finite, or does not fit this
            base: tensors are missing, left over or of other shapes.
    """
    stored, tensors = adapter_settings(path), _read(path)
    unfit = f"the adapter {str(path)!r} does not fit the base {base!r}"
    empty = model.device.type == "meta"
    adapted = _with_places(model, path, name, stored, trainable, unfit)
    places = get_peft_model_state_dict(adapted, adapter_name=name, save_embedding_layers=False)
    below: Any = adapted.get_base_model()
    own = dict(below.named_parameters(remove_duplicate=False))
    check_tensors(tensors, places, own, unfit)
    _check_depth(stored, places, int(below.config.num_hidden_layers), unfit)
    if name != "reference":  # the policy's own adapter has warned before
        warn_of_another_base(path, stored.get("base_model_name_or_path"), base)
    if empty:
        return adapted
    here = str(model.device)  # peft would take the first GPU
    adapted.load_adapter(adapter_folder(path), name, is_trainable=trainable, torch_device=here)
    arrived = get_peft_model_state_dict(adapted, adapter_name=name, save_embedding_layers=False)
    lost = [
        key
        for key, value in arrived.items()
        if not torch.equal(value.cpu(), tensors[key].to(value.dtype))
    ]
    if lost:
        raise ValueError(
            f"peft has not loaded {_some(lost, len(arrived))} of the adapter {str(path)!r}:"
            " install the versions of constraints.txt"
        )
    return adapted


def _with_places(
    model: PreTrainedModel | PeftModel,
    path: str | Path,
    name: str,
    stored: Mapping[str, Any],
    trainable: bool,
    unfit: str,
) -> PeftModel:
    """Put an adapter on a model as its config says, before its tensors are loaded."""
    try:
        config = LoraConfig.from_pretrained(str(path))
        for field in sorted(set(stored) - KNOWN):
            if stored[field] in ([], {}):
                setattr(config, field, None)  # to peft a list of nothing is something
        config.init_lora_weights = True  # every value comes from the file
        config.inference_mode, config.task_type = not trainable, "CAUSAL_LM"
        # When peft saves, it looks for the base's config there, also on the hub.
        config.base_model_name_or_path = model.name_or_path
        with torch.random.fork_rng(devices=[]):
            if not isinstance(model, PeftModel):
                empty = model.device.type == "meta"
                return get_peft_model(model, config, name, low_cpu_mem_usage=empty)
            model.add_adapter(name, config)
            return model
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        RuntimeError,
        NotImplementedError,
    ) as error:
        text = " ".join(str(error).split())
        raise ValueError(f"{unfit}, it was trained on another one: {text:.300}") from error


def _read(path: str | Path) -> dict[str, Tensor]:
    try:
        tensors = load_file(Path(path) / "adapter_model.safetensors")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"the adapter {str(path)!r} is damaged: {error}") from error
    if odd := {key: what for key, value in tensors.items() if (what := not_finite(value))}:
        raise ValueError(
            f"the adapter {str(path)!r} holds {next(iter(odd.values()))} in"
            f" {_some(odd, len(tensors))}: its training has diverged; take an earlier one"
        )
    return tensors


def check_tensors(
    tensors: Mapping[str, Tensor],
    places: Mapping[str, Tensor],
    base: Mapping[str, Tensor],
    unfit: str,
) -> None:
    """Raise ValueError unless a file's tensors are those that the model has a place for.

    Args:
        tensors: of the file, by name.
        places: the adapter's tensors in the model, by the names of a file.
        base: the base's own parameters. A file may repeat them: peft writes the embeddings beside
            LoRA on them.
        unfit: the start of the sentence.
    """
    own = {key.replace(".base_layer", ""): value for key, value in base.items()}
    extra = {
        key: own.get(key.removeprefix(PREFIX).replace(".base_layer", ""))
        for key in tensors
        if key not in places
    }
    surplus = [key for key, value in extra.items() if value is None]
    missing = [key for key in places if key not in tensors]
    if missing or surplus:
        lacks = (
            f"it lacks {_some(missing, len(places))} that its config promises" if missing else ""
        )
        more = (
            f"it has {_some(surplus, len(tensors))} that the base has no place for"
            if surplus
            else ""
        )
        raise ValueError(
            f"{unfit}: {', and '.join(filter(None, (lacks, more)))}. It was trained on"
            " another one, or not saved whole"
        )
    there = {**places, **{key: value for key, value in extra.items() if value is not None}}
    shapes = [key for key in tensors if tensors[key].shape != there[key].shape]
    if shapes:
        key = shapes[0]
        raise ValueError(
            f"{unfit}: {_some(shapes, len(tensors))} has the shape"
            f" {tuple(tensors[key].shape)}, where the base has {tuple(there[key].shape)};"
            " it was trained on another one; give its own base"
        )
    changed = [
        key
        for key in extra
        if not there[key].is_meta and not torch.equal(tensors[key].to(there[key]), there[key])
    ]
    if changed:
        raise ValueError(
            f"{unfit}: it brings weights of its own for {_some(changed, len(tensors))}, which"
            " are not the base's; merge it into its base first"
        )


def _check_depth(stored: Mapping[str, Any], places: Iterable[str], layers: int, unfit: str) -> None:
    """Refuse an adapter of a base with fewer layers.

    peft writes ``all-linear`` as a list of paths. On a deeper base they name its first layers.
    """
    by_path = isinstance(stored.get("target_modules"), list) and any(
        re.search(r"\.\d+\.", name) for name in stored["target_modules"]
    )
    found = {int(number[1]) for key in places if (number := re.search(r"\.(\d+)\.", key))}
    if (
        by_path
        and stored.get("layers_to_transform") is None
        and len(found) < layers
        and found == set(range(len(found)))
    ):
        raise ValueError(
            f"{unfit}: it is for the first {len(found)} of {layers} layers, so it was trained"
            " on another one; if these are what you mean, name them as"
            " layers_to_transform in its adapter_config.json"
        )


def _some(names: Iterable[str], whole: int) -> str:
    found = list(names)
    return f"{len(found)} of {whole} tensors (first: {found[0]})"


def not_finite(values: Tensor) -> str | None:
    """Return what a tensor holds beside numbers, in words, or ``None``."""
    if not values.is_floating_point():
        return None
    values = values.float() if values.element_size() == 1 else values  # torch cannot ask 8 bit
    if bool(torch.isfinite(values).all()):
        return None
    return "NaN" if bool(values.isnan().any()) else "infinite values"


def beyond_matrices(lm: LanguageModel) -> str | None:
    """Return what this view computes beside W + s·B·A on linear layers, in words, or ``None``."""
    for path, module in lm.causal_lm.named_modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            return f"layers that an adapter replaces ({path})"
        if (
            not isinstance(module, BaseTunerLayer)
            or lm.adapter is None
            or lm.adapter not in module._get_available_adapters()
        ):
            continue
        if not isinstance(module, LoraLayer):
            return f"an adapter of type {type(module).__name__} ({path})"
        if lm.adapter not in module.lora_A:
            return f"LoRA on embeddings ({path})"
        if lm.adapter in module.lora_magnitude_vector:
            return f"DoRA magnitudes ({path})"
        if lm.adapter in module.lora_variant:
            return f"a variant of LoRA, {type(module.lora_variant[lm.adapter]).__name__} ({path})"
        if module.lora_B[lm.adapter].bias is not None:
            return f"LoRA biases ({path})"
        if module.merged:
            return f"an adapter that is merged into its layer ({path})"
    return None


def save_adapter(policy: LanguageModel, folder: Path) -> None:
    """Write the policy's adapter in PEFT's format.

    It names its base as the user did, not by a path of this machine. It has no blank model card.
    """
    assert isinstance(policy.model, PeftModel)
    policy.model.save_pretrained(
        str(folder), selected_adapters=["default"], save_embedding_layers=False
    )
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) | {
        "base_model_name_or_path": policy.source
    }
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
