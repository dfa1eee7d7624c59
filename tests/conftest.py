"""Tiny random models on disk, and what several test files do with them."""

import gc
import json
import os
import subprocess
import sys
from contextlib import contextmanager

os.environ["HF_HUB_OFFLINE"] = (
    "1"  # before transformers is imported: no test may reach for a network
)
# Ordinary tests compute in float32, on the CPU; not those of ``-m gpu`` or a path in tests/gpu.
os.environ.update(
    {}
    if "PYTEST_XDIST_WORKER" in os.environ
    or any(
        (word in ("gpu", "-mgpu") and before != "-k") or "tests/gpu" in word.replace(os.sep, "/")
        for before, word in zip(sys.argv, sys.argv[1:], strict=False)
        if not before.startswith("--ignore") and not word.startswith("--ignore")
    )
    else {"CUDA_VISIBLE_DEVICES": ""}
)
os.environ.pop("COLUMNS", None)  # rich reads it when the command line is imported

import pytest
import torch

from rlkd_lab.models import LanguageModel, Sequences, load_policy
from rlkd_lab.models.lora import Lora
from rlkd_lab.rollouts.traces import sequences_of
from tests import slow
from tests.pool import pool, shared_models  # noqa: F401

# pytest looks for doctests in them, under one module name for all
collect_ignore_glob = ["conftest.py", "*/conftest.py"]
FAMILIES = ("qwen3", "qwen2", "gemma2")
"""No biases but norms on queries and keys; biases on the attention projections; soft caps, a
sliding window and four norms a block.
"""


def pytest_configure(config):
    """With ``-m gpu`` alone, look into ``tests/gpu``: other files may need missing packages."""
    if config.option.markexpr == "gpu" and config.args_source is config.ArgsSource.TESTPATHS:
        config.args = [os.path.join(os.path.dirname(__file__), "gpu")]


def pytest_collection_modifyitems(items):
    """Mark as ``slow`` what tests/slow.txt lists."""
    functions = slow.listed()
    for item in items:
        if slow.is_slow(item.nodeid, functions):
            item.add_marker("slow")


def freeze():
    """Keep the garbage collector from searching what stays: modules, cases, shared models.

    Each search of a worker's million objects takes half a second, and engines ask for one.
    """
    gc.collect()
    gc.freeze()


def pytest_collection_finish():
    freeze()


@pytest.fixture(scope="module", autouse=True)
def frozen():
    """Freeze after a file what its imports and the fixtures of the session have added."""
    yield
    freeze()


@pytest.fixture(scope="session")
def another():
    """``with another(folder) as pid``: another process holds the lock of a folder."""

    @contextmanager
    def hold(folder):
        code = (
            "import sys; from rlkd_lab.runs.lock import alone\nwith alone(sys.argv[1], 'held'):"
            " print(flush=True); sys.stdin.read()"
        )
        with subprocess.Popen(
            [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            process.stdout.readline()
            yield process.pid
            process.stdin.close()

    return hold


@pytest.fixture(scope="session")
def make_model(tmp_path_factory):
    """``make_model(family, hidden, vocabulary, **config)``: folder of a random float32 model
    with the character tokenizer, made once.
    """
    import transformers

    from rlkd_lab.zoo.tokenizer import character_tokenizer

    made: dict[str, str] = {}

    def make(
        family: str = "qwen3",
        hidden: int = 64,
        vocabulary: int = 128,
        seed: int = 0,
        **config: object,
    ) -> str:
        key = json.dumps([family, hidden, vocabulary, seed, config])
        if key in made:
            return made[key]
        names = {
            "qwen3": "Qwen3",
            "qwen2": "Qwen2",
            "gemma2": "Gemma2",
            "phi3": "Phi3",
            "olmo2": "Olmo2",
            "smollm3": "SmolLM3",
            "gemma3": "Gemma3",
        }
        configs = {**names, "gemma3": "Gemma3Text"}
        settings = {
            "vocab_size": vocabulary,
            "hidden_size": hidden,
            "intermediate_size": 2 * hidden,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 32,
            "max_position_embeddings": 128,
            "bos_token_id": None,
            "eos_token_id": 1,
            "pad_token_id": 0,
            "tie_word_embeddings": True,
            # Ten times the usual spread: at .02 all tokens are about equally likely, and a wrong
            # mask or position would hardly show.
            "initializer_range": 0.2,
        }
        if family == "gemma2":
            settings |= {
                "final_logit_softcapping": None,
                "sliding_window": 8,
                "query_pre_attn_scalar": 32,
                "attn_implementation": "eager",
            }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = getattr(transformers, f"{names[family]}ForCausalLM")(
                getattr(transformers, f"{configs[family]}Config")(**(settings | config))
            )
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    torch.nn.init.normal_(parameter, std=0.5)
        folder = tmp_path_factory.mktemp(family)
        model.save_pretrained(folder)
        character_tokenizer().save_pretrained(folder)
        made[key] = str(folder)
        return made[key]

    return make


@pytest.fixture(scope="session")
def stir():
    """``stir(lm)``: give the active adapter a B that is not zero, as if it had been trained;
    another ``seed`` is another training.
    """

    def fill(lm: LanguageModel, std: float = 0.05, seed: int = 0) -> LanguageModel:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in lm.model.named_parameters():
                if f"lora_B.{lm.adapter}." in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
        return lm

    return fill


@pytest.fixture(scope="session")
def make_adapter(tmp_path_factory, stir):
    """``make_adapter(model, seed, **settings)``: folder of an adapter for that model with a B
    that is not zero.
    """

    def make(model: str, seed: int = 0, quant: str = "none", **settings: object) -> str:
        folder = tmp_path_factory.mktemp("adapter")
        policy = stir(load_policy(model, quant, lora=Lora(4, 8), seed=seed), seed=seed)
        policy.model.save_pretrained(str(folder))
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))
        return str(folder)

    return make


PROMPTS = ["49-7?", "5+1-2+3+4?", "8?"]
COMPLETIONS = ["49-7=42;#42", "#11", "8=8;#8;;#"]


@pytest.fixture(scope="session")
def ragged():
    """``ragged(lm)``: three prompts and completions of three lengths each, so that both sides
    are padded.
    """

    def make(lm: LanguageModel, rows: slice = slice(None)) -> Sequences:
        return sequences_of(
            lm, PROMPTS[rows], [lm.tokenizer(text)["input_ids"] + [1] for text in COMPLETIONS[rows]]
        )

    return make
