"""Export: the student of a run as a folder for peft or transformers, with a model card."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlkd_lab.models import LanguageModel, locate
from rlkd_lab.models.adapter_config import adapter_folder
from rlkd_lab.models.adapters import attach
from rlkd_lab.models.locating import zoo_names
from rlkd_lab.models.merging import DTYPES, INTO, Merged, kl_per_token, merge
from rlkd_lab.models.tokenizers import load_tokenizer
from rlkd_lab.objectives.settings import nearest
from rlkd_lab.rollouts import Sampling, sample
from rlkd_lab.runs import RunFolder
from rlkd_lab.study.evaluation import keep_to_models, settings_of
from rlkd_lab.study.model_card import model_card
from rlkd_lab.study.targets import Target, find_target, task_of
from rlkd_lab.training.before_loading import reader_of
from rlkd_lab.training.evaluation import SEED

BASE = "base"
"""Folder of an embedded base within that of its adapter."""
PROMPTS = 32
"""Validation prompts on which a merge is measured, with one completion each."""
LONGEST = 128
"""Most tokens of such a completion."""


def export_run(
    run: str | Path,
    out: str | Path,
    *,
    checkpoint: str | int | None = None,
    merged: bool = False,
    into: str | None = None,
    dtype: str | None = None,
) -> Merged | None:
    """Write a run's student to ``out``: the adapter or one dense model, with tokenizer and card.

    Args:
        run: a run folder.
        out: the folder to make; it is renamed into place when it is whole.
        checkpoint: ``best`` by validation accuracy, ``last`` or a step; the last by default.
        merged: merge the adapter into the base.
        into: with ``merged``: ``nf4`` or ``full``, see :func:`~rlkd_lab.models.merging.merge`; by
            default the weights that the adapter was trained beside.
        dtype: with ``merged``: a name of :data:`~rlkd_lab.models.merging.DTYPES`; bfloat16 by
            default.

    Returns:
        What the merge changed; ``None`` for an adapter.

    Raises:
        FileNotFoundError: there is no run, no such checkpoint, no adapter in it, or no base.
        FileExistsError: ``out`` is in use.
        ValueError: the run or the adapter is damaged, an option does not apply, or the weights
            are too large for ``dtype``.
    """
    target, out = _student_of(Path(run), checkpoint), Path(os.path.abspath(out))
    if not merged and (into is not None or dtype is not None):
        raise ValueError(
            "--into and --dtype are for --merge: an adapter is handed over as it was trained"
        )
    into = nearest(into or ("nf4" if target.quant == "nf4" else "full"), INTO, "base to merge into")
    dtype = nearest(dtype or "bfloat16", DTYPES, "dtype")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists and is not empty: choose another --out, or delete it")
    prompts = _validation_prompts(target)
    beside = out.with_name(f".{out.name}.new-{os.getpid()}")
    beside.mkdir(parents=True)
    try:
        found = None
        if merged:
            found = _write_merged(target, beside, prompts, into, dtype)
        else:
            _write_adapter(target, beside)
        _write_card(target, beside, out.name, prompts[0], found)
        if out.exists():
            out.rmdir()
        beside.rename(out)
        if not merged:
            _warn_of_a_local_base(target.base)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    return found


def _warn_of_a_local_base(base: str) -> None:
    if base not in zoo_names() and Path(base).is_dir():
        warnings.warn(
            f"the adapter names its base as it was given, {base}, a folder of this machine: from"
            " another place give it with rlkd eval --base FOLDER",
            stacklevel=3,
        )


def _validation_prompts(target: Target) -> list[str]:
    """Return the prompts on which a merge is measured; the first is the card's example."""
    assert target.config is not None
    task = task_of(target.config)
    settings = settings_of(target.config, split="validation", ood=False)
    keep_to_models(task, settings, [reader_of(target.base, settings.chat, settings.system_prompt)])
    examples = task.examples(PROMPTS, SEED, "validation", target.config.difficulty)
    if not examples:
        raise ValueError(f"the task {target.config.task} has no validation prompts")
    return list(dict.fromkeys(example.prompt for example in examples))


def _write_card(
    target: Target, folder: Path, name: str, prompt: str, merged: Merged | None
) -> None:
    """Write tokenizer and card beside the weights."""
    assert target.config is not None
    tokenizer = load_tokenizer(target.base)
    tokenizer.save_pretrained(folder)
    chat = target.config.chat == "auto" and tokenizer.chat_template is not None
    card = folder / "README.md"
    card.write_text(model_card(target, name, prompt, chat=chat, merged=merged), encoding="utf-8")
    for file in filter(Path.is_file, folder.rglob("*")):
        file.chmod(card.stat().st_mode)  # safetensors lets only the owner read its files


def _student_of(run: Path, checkpoint: str | int | None) -> Target:
    """Return the run's target, whose adapter can be read and is whole."""
    RunFolder.open(run)  # an adapter or a model, which an evaluation takes too, is no run
    target = find_target(str(run), checkpoint=checkpoint)
    assert target.adapter is not None
    adapter_folder(target.adapter)
    config = AutoConfig.from_pretrained(locate(target.base), trust_remote_code=False)
    with torch.device("meta"):  # sizes are enough to see whether the adapter is whole
        empty = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    attach(empty, target.adapter, "default", target.base)
    return target


def _write_adapter(target: Target, folder: Path) -> None:
    """Copy the checkpoint's adapter; its config names the base as the run's config does.

    An embedded base, which no hub has, lies beside it.
    """
    assert target.adapter is not None
    weights, config = "adapter_model.safetensors", "adapter_config.json"
    shutil.copyfile(target.adapter / weights, folder / weights)
    settings = json.loads((target.adapter / config).read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = target.base
    (folder / config).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    if target.base in zoo_names():
        shutil.copytree(locate(target.base), folder / BASE)


def _write_merged(
    target: Target, folder: Path, prompts: list[str], into: str, dtype: str
) -> Merged:
    """Write the merged model, load it again and measure what the merge changed."""
    assert target.config is not None
    policy = target.load()
    policy.use_chat(target.config.chat, target.config.system_prompt)
    model, rounding = merge(policy, into, DTYPES[dtype])
    model.save_pretrained(folder)
    del model  # what was saved is measured
    again = AutoModelForCausalLM.from_pretrained(
        folder,
        use_safetensors=True,
        trust_remote_code=False,
        dtype="auto",
        device_map={"": policy.device},
    )
    generator = torch.Generator(device=policy.device).manual_seed(SEED)
    sampling = Sampling(1.0, min(LONGEST, target.config.max_new_tokens))
    completions = sample(policy, prompts, 1, sampling, generator).sequences
    saved = LanguageModel(again, policy.tokenizer, str(folder), "none")
    bare = LanguageModel(policy.model, policy.tokenizer, policy.source, policy.quant, None)
    shift = kl_per_token(policy, saved, completions)
    trained = kl_per_token(policy, bare, completions).mean().item()
    mean, largest = shift.mean().item(), shift.max().item()
    found = Merged(into, dtype, rounding, mean, largest, trained, len(prompts), len(shift))
    _warn_of_a_loss(found, target.quant)
    return found


def _warn_of_a_loss(found: Merged, quant: str) -> None:
    """Warn where the merge takes much of what training changed."""
    if found.rounding.kept < 0.5:
        lost = f"rounding to {found.dtype} takes {1 - found.rounding.kept:.0%} of the update away"
    elif found.shift > 0.5 * found.trained:
        lost = (
            f"the merged model is {found.shift:.2g} nats a token from the policy, and training"
            f" moved that by no more than {found.trained:.2g}"
        )
    else:
        return
    better = ["use --dtype float32"] if found.dtype != "float32" else []
    better += ["merge --into nf4"] if found.into == "full" and quant == "nf4" else []
    better += ["hand over the adapter without --merge"]
    warnings.warn(f"{lost}: {', or '.join(better)}", stacklevel=3)
