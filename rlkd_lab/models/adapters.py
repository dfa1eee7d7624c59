"""Adapters: read a LoRA adapter from a folder, and make sure that all of it, and nothing else,
arrives in the model.

peft loads what it finds and warns at most: keys of another prefix, half of the layers or a missing
``lora_B`` leave the bare base under the adapter's name. Here the tensors of the file are compared
with those that the model has a place for, before they are loaded and after.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from rlkd_lab.models.adapter_fields import check_fields, warn_of_another_base

if TYPE_CHECKING:
    from rlkd_lab.models.loading import LanguageModel

KNOWN = frozenset(
    {
        "task_type",
        "peft_type",
        "auto_mapping",
        "peft_version",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "r",
        "target_modules",
        "exclude_modules",
        "lora_alpha",
        "lora_dropout",
        "fan_in_fan_out",
        "bias",
        "use_rslora",
        "modules_to_save",
        "init_lora_weights",
        "layers_to_transform",
        "layers_pattern",
        "rank_pattern",
        "alpha_pattern",
        "megatron_core",
        "loftq_config",
        "eva_config",
        "corda_config",
        "lora_ga_config",
        "use_dora",
        "runtime_config",
        "lora_bias",
        "qalora_group_size",
        "ensure_weight_tying",
    }
)
"""Fields of an adapter's config that may hold anything.

Any other field changes what the adapter computes, or may, and must be empty.
"""
STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of ``init_lora_weights`` that leave the base as it is.

PiSSA, OLoRA, CorDA, LoRA-GA and LoftQ take a part of the base's weights away.
"""
PREFIX = "base_model.model."
# of LoRA biases, whose one dimension peft takes for a part of a matrix
warnings.filterwarnings("ignore", message=r"Adapter '\w+': .*have invalid shape: \S+lora_B\.bias")


def adapter_folder(path: str | Path) -> str:
    """Return ``path``, if it holds a LoRA adapter in safetensors that names no code.

    Raises:
        FileNotFoundError: it holds none; of an ``adapter_model.bin`` peft would open the pickle.
        ValueError: its config cannot be read, or asks for what is not supported.
    """
    adapter_settings(path)
    return str(path)


def adapter_settings(path: str | Path) -> dict[str, Any]:
    """Read the config of an adapter; errors as in :func:`adapter_folder`."""
    folder = Path(path)
    if not (folder / "adapter_model.safetensors").exists():
        pickled = (
            "; its adapter_model.bin is a pickle, which can run code when it is opened"
            if (folder / "adapter_model.bin").exists()
            else ""
        )
        raise FileNotFoundError(
            f"{str(path)!r} holds no adapter_model.safetensors{pickled}: save the adapter"
            " again with save_pretrained"
        )
    try:
        stored = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        kind = stored.get("peft_type")
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(
            f"the adapter {str(path)!r} has no adapter_config.json that can be read: {error}"
        ) from None
    if stored.get("megatron_config") is not None:
        raise ValueError(
            f"the adapter {str(path)!r} is one for Megatron, whose config names code to be"
            " run: such adapters are not supported"
        )
    if kind != "LORA":
        raise ValueError(
            f"the adapter {str(path)!r} is of peft's type {kind}, and only LORA is supported"
        )
    defaults = {
        field.name: field.default for field in fields(LoraConfig) if field.default is not MISSING
    }
    odd = [
        name
        for name in sorted(set(stored) - KNOWN)
        if stored[name] and stored[name] != defaults.get(name)
    ]
    if odd:
        raise ValueError(
            f"the adapter {str(path)!r} was made with {odd[0]}, which is not supported: train"
            " one without it"
        )
    if stored.get("init_lora_weights", True) not in STARTS:
        raise ValueError(
            f"the adapter {str(path)!r} was started with"
            f" init_lora_weights={stored['init_lora_weights']}, which changes the base's"
            " weights too:"
            " convert it to plain LoRA (path_initial_model_for_weight_conversion of peft's"
            " save_pretrained)"
        )
    check_fields(path, stored)
    return dict(stored)


def can_share_base(*adapters: str | Path | None) -> bool:
    """Whether adapters can lie on one base: none replaces whole layers of it
    (``modules_to_save``) or its biases (``bias``). ``None`` is no adapter.
    """
    found = [adapter_settings(path) for path in adapters if path is not None]
    return all(
        not stored.get("modules_to_save") and stored.get("bias", "none") == "none"
        for stored in found
    )


def rank_and_alpha(path: str | Path) -> dict[str, int]:
    """``lora_rank`` and ``lora_alpha`` of an adapter."""
    stored = adapter_settings(path)
    try:
        return {"lora_rank": int(stored["r"]), "lora_alpha": int(stored["lora_alpha"])}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"the adapter_config.json of {str(path)!r} has no rank and alpha (r, lora_alpha):"
            f" {error}"
        ) from None


def check_policy_adapter(path: str | Path, asked: Mapping[str, int | None]) -> None:
    """Refuse an adapter that cannot be trained on, or that has another ``lora_rank`` or
    ``lora_alpha`` than asked for (``None`` asks for none).

    Raises:
        ValueError: in one sentence; FileNotFoundError: see :func:`adapter_folder`.
    """
    if (bias := adapter_settings(path).get("bias", "none")) != "none":
        raise ValueError(
            f"the adapter {str(path)!r} trains biases of its base (bias={bias}), which the"
            " reference shares: it can be a teacher_adapter, but not trained on"
        )
    own = rank_and_alpha(path)
    for setting, value in asked.items():
        if value not in (None, own[setting]):
            raise ValueError(
                f"the adapter {str(path)!r} has {setting}={own[setting]}, not {value}: leave"
                f" {setting} out, or use --set {setting}={own[setting]}"
            )


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
    try:
        config = LoraConfig.from_pretrained(str(path))
        for field in sorted(set(stored) - KNOWN):
            if stored[field] in ([], {}):
                setattr(config, field, None)  # to peft a list of nothing is something
        config.init_lora_weights = True  # every value comes from the file
        config.inference_mode, config.task_type = not trainable, "CAUSAL_LM"
        config.base_model_name_or_path = (
            model.name_or_path
        )  # whenever it saves, peft looks for the base's config there, on the hub if need be
        with torch.random.fork_rng(devices=[]):
            if isinstance(model, PeftModel):
                model.add_adapter(name, config)
            else:
                model = get_peft_model(model, config, name, low_cpu_mem_usage=empty)
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
    assert isinstance(model, PeftModel)
    places = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    below: Any = model.get_base_model()
    own = dict(below.named_parameters(remove_duplicate=False))
    check_tensors(tensors, places, own, unfit)
    _check_depth(stored, places, int(below.config.num_hidden_layers), unfit)
    if name != "reference":  # of which the policy has told
        warn_of_another_base(path, stored.get("base_model_name_or_path"), base)
    if empty:
        return model
    model.load_adapter(adapter_folder(path), name, is_trainable=trainable)
    arrived = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
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
    return model


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
    """Raise ValueError unless the tensors of a file are those that the model has a place for, by
    name and shape.

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
    """Refuse an adapter of a base with fewer layers. peft writes ``all-linear`` as a list of
    paths, which holds the first layers of a deeper base alone.
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
    """What a tensor holds beside numbers, in words; ``None`` where all are finite."""
    if not values.is_floating_point() or bool(torch.isfinite(values).all()):
        return None
    return "NaN" if bool(values.isnan().any()) else "infinite values"


def beyond_matrices(lm: LanguageModel) -> str | None:
    """Return what this view of a model computes beside W + s·B·A on linear layers, in words, by
    the structure of its modules; ``None`` if nothing.
    """
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
    """Write the policy's adapter in PEFT's format. It names its base as the policy was asked for
    it, not the place where that lies on this machine, and has no blank model card.
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
