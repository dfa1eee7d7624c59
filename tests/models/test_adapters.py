"""People's own adapters: each kind gives what plain transformers and peft give, on every path,
or is refused in a sentence.
"""

import functools
import json
import shutil
import warnings
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from rlkd_lab.models import load_policy, load_teacher, make_dense_copy, policy_logps, reference_of
from rlkd_lab.models.adapter_config import warn_of_another_base
from rlkd_lab.models.adapters import attach
from rlkd_lab.models.dense_copy import DenseCopy
from rlkd_lab.models.locating import ZOO
from rlkd_lab.models.merging import merge
from rlkd_lab.rollouts.traces import sequences_of
from rlkd_lab.study.targets import find_target
from rlkd_lab.training import make_config
from rlkd_lab.training.before_loading import check_pair

LINEAR = ["q_proj", "v_proj", "o_proj", "down_proj"]
KINDS = {
    "plain": {"target_modules": "all-linear"},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"down_proj": 2}, "alpha_pattern": {"q_proj": 32}},
    "one layer": {"layers_to_transform": [1]},
    "gaussian": {"init_lora_weights": "gaussian"},
    "dora": {"use_dora": True},
    "lora bias": {"target_modules": ["q_proj", "v_proj"], "lora_bias": True},
    "embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
    "dora on embeddings": {"target_modules": ["q_proj", "embed_tokens"], "use_dora": True},
    "saved norm": {"modules_to_save": ["norm"]},
    "saved linear": {"target_modules": ["q_proj"], "modules_to_save": ["up_proj"]},
    "saved embeddings": {"modules_to_save": ["embed_tokens"]},
    "saved head": {"modules_to_save": ["lm_head"]},
    "base biases": {"bias": "all"},
}
HELD = {"plain", "rslora", "patterns", "one layer", "gaussian", "base biases"}
"""Kinds that a dense copy holds."""
REFUSED = {"saved head": "output head", "base biases": "trains biases of its base"}
"""Kinds that cannot be trained on."""
PROMPTS, COMPLETIONS = ["49-7?", "5+1-2+3+4?"], ["49-7=42;#42", "#11"]


@pytest.fixture(scope="module")
def base(make_model):
    """Biases on the attention's projections, head and embeddings apart."""
    return make_model("qwen2", tie_word_embeddings=False)


@pytest.fixture(scope="module")
def tied(make_model):
    return make_model("qwen2")


@pytest.fixture(scope="module")
def adapter_of(tmp_path_factory):
    """``adapter_of(model, kind, seed)``: the folder of an adapter in which every weight has
    moved, written by peft alone.
    """
    made = {}

    def make(model, kind, seed=0):
        if (model, kind, seed) not in made:
            folder = tmp_path_factory.mktemp("adapter")
            torch.manual_seed(seed)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                base = AutoModelForCausalLM.from_pretrained(model)
                adapted = get_peft_model(
                    base,
                    LoraConfig(
                        **{
                            "r": 4,
                            "lora_alpha": 8,
                            "target_modules": LINEAR,
                            "task_type": "CAUSAL_LM",
                        }
                        | KINDS[kind]
                    ),
                )
                for parameter in adapted.parameters():
                    if parameter.requires_grad:
                        parameter.data += torch.randn_like(parameter) * 0.1
                adapted.save_pretrained(folder)
            made[model, kind, seed] = str(folder)
        return made[model, kind, seed]

    return make


@functools.cache
def independent(model, adapter):
    """Log-probabilities of the completions by plain transformers and peft, a sequence at a time."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = AutoModelForCausalLM.from_pretrained(model)
        plain = plain if adapter is None else PeftModel.from_pretrained(plain, adapter)
    found = []
    for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True):
        start, ids = (tokenizer(text)["input_ids"] for text in (prompt, completion))
        with torch.no_grad():
            logps = plain.eval()(torch.tensor([start + ids])).logits[0].log_softmax(-1)
        found += [logps[len(start) + i - 1, token] for i, token in enumerate(ids)]
    return torch.stack(found)


def ours(lm):
    sequences = sequences_of(lm, PROMPTS, lm.tokenizer(COMPLETIONS)["input_ids"])
    with torch.no_grad():
        return policy_logps(lm, sequences)[0][sequences.completion_mask.bool()]


def assert_is(lm, model, adapter, held):
    """A view and what stands for it say what transformers and peft say."""
    expected = independent(model, adapter)
    torch.testing.assert_close(ours(lm), expected, rtol=0, atol=1e-4)
    with (
        nullcontext() if held else pytest.warns(UserWarning, match="run without a dense copy"),
        warnings.catch_warnings(),
    ):
        if held:
            warnings.simplefilter("error")
        copy = make_dense_copy(lm)
    assert (copy is not None) == held
    if copy is not None:
        torch.testing.assert_close(ours(copy.lm), expected, rtol=0, atol=1e-4)
    if adapter is not None:  # which would be the same without a word
        assert (ours(lm) - independent(model, None)).abs().max() > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_adapter_fits_a_base_without_data(base, adapter_of, kind):
    without_data(base, adapter_of(base, kind))


@pytest.mark.parametrize("kind", KINDS)
def test_a_target_of_an_evaluation_and_a_teacher_of_its_own(base, adapter_of, kind):
    adapter = adapter_of(base, kind)
    assert_is(find_target(adapter, base=base, quant="none").load(), base, adapter, kind in HELD)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("warm", [False, True], ids=["fresh", "warm"])
def test_a_teachers_adapter_on_the_students_base(base, adapter_of, kind, warm):
    start = adapter_of(base, "plain", 1) if warm else None
    policy = load_policy(base, "none", adapter=start)
    before, trained = (
        ours(policy),
        [name for name, p in policy.model.named_parameters() if p.requires_grad],
    )
    teacher = load_teacher(base, "none", policy=policy, adapter=adapter_of(base, kind))
    assert_is(teacher, base, adapter_of(base, kind), kind in HELD)
    assert_is(reference_of(policy), base, start, held=True)
    assert_is(load_teacher(base, "none", policy=policy), base, None, held=True)
    torch.testing.assert_close(ours(policy), before, rtol=0, atol=0)
    assert trained == [name for name, p in policy.model.named_parameters() if p.requires_grad]


@pytest.mark.parametrize("kind", KINDS)
def test_a_policy_that_starts_from_it(base, adapter_of, kind):
    adapter = adapter_of(base, kind)
    told = pytest.raises(ValueError, match=REFUSED[kind]) if kind in REFUSED else nullcontext()
    with told:
        check_pair(make_config("grpo", student=base, teacher=None, adapter=adapter))
    if kind in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[kind]):
            load_policy(base, "none", adapter=adapter)
        return
    policy = load_policy(base, "none", adapter=adapter)
    policy.model.train()
    trained = {name for name, p in policy.model.named_parameters() if p.requires_grad}
    assert_is(policy, base, adapter, kind in HELD)
    assert_is(
        load_teacher(base, "none", policy=policy, adapter=adapter_of(base, "plain", 1)),
        base,
        adapter_of(base, "plain", 1),
        held=True,
    )
    assert_is(load_teacher(base, "none", policy=policy), base, None, "saved" not in kind)
    with torch.no_grad():
        for parameter in policy.trainable():
            parameter += 0.05
    assert (ours(policy) - independent(base, adapter)).abs().max() > 1e-2
    torch.testing.assert_close(
        ours(reference_of(policy)), independent(base, adapter), rtol=0, atol=1e-4
    )
    assert trained == {name for name, p in policy.model.named_parameters() if p.requires_grad}
    assert trained and all(".default" in name for name in trained)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in REFUSED])
def test_its_gradients_are_those_of_peft(base, adapter_of, ragged, kind):
    """Of the adapter as it lies in the file, through transformers and peft with padding and
    without our own code.
    """
    policy = load_policy(base, "none", adapter=adapter_of(base, kind))
    sequences = ragged(policy)
    policy_logps(policy, sequences)[0].sum().backward()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(base), adapter_of(base, kind), is_trainable=True
        ).eval()
    for prompt, mask, ids, counts in zip(
        sequences.prompt_ids,
        sequences.prompt_mask,
        sequences.completion_ids,
        sequences.completion_mask,
        strict=True,
    ):
        row = torch.cat([prompt[mask.bool()], ids[counts.bool()]])[None]
        logps = plain(row).logits[0].log_softmax(-1)[int(mask.sum()) - 1 : -1]
        logps.gather(-1, ids[counts.bool()][:, None]).sum().backward()
    expected = {name: p.grad for name, p in plain.named_parameters() if p.requires_grad}
    found = {name: p.grad for name, p in policy.model.named_parameters() if p.requires_grad}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("separate", [True, False], ids=["separate head", "tied head"])
def test_merged_and_saved_and_loaded(base, tied, adapter_of, tmp_path, kind, separate):
    model = base if separate else tied
    adapter = adapter_of(model, kind)
    policy = load_teacher(model, "none", adapter=adapter)
    merge(policy, "full", torch.float32)[0].save_pretrained(tmp_path / "merged")
    policy.tokenizer.save_pretrained(tmp_path / "merged")
    merged = load_teacher(str(tmp_path / "merged"), "none")
    torch.testing.assert_close(ours(merged), independent(model, adapter), rtol=0, atol=1e-4)


def test_lora_biases_without_a_bias_to_add_them_to_cannot_be_merged(make_model, adapter_of):
    policy = load_teacher(
        make_model("qwen3"), "none", adapter=adapter_of(make_model("qwen3"), "lora bias")
    )
    with pytest.raises(
        ValueError,
        match=r"LoRA biases for layers without a bias, which cannot be merged.*without --merge",
    ):
        merge(policy, "full", torch.float32)


# --- adapters that do not fit ---------------------------------------------------------------------


def changed(folder, tmp_path, tensors=None, **settings):
    """A copy of an adapter with other tensors (a function of a name and a tensor: a dict) or
    other settings.
    """
    copy = tmp_path / "changed"
    shutil.copytree(folder, copy)
    stored = load_file(copy / "adapter_model.safetensors")
    if tensors is not None:
        stored = {
            new: value
            for name, tensor in stored.items()
            for new, value in tensors(name, tensor).items()
        }
    save_file(
        {name: value.contiguous() for name, value in stored.items()},
        copy / "adapter_model.safetensors",
    )
    path = copy / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return str(copy)


def without(part):
    return lambda name, tensor: {} if part in name else {name: tensor}


def with_nan(name, tensor):
    return (
        {name: tensor.index_fill(0, torch.tensor([0]), float("nan"))}
        if "layers.1.self_attn.q_proj.lora_B" in name
        else {name: tensor}
    )


WRONG = {
    "another prefix": (
        lambda n, t: {n.replace("base_model.model.", "base_model."): t},
        {},
        r"it lacks 28 of 28 tensors \(first:"
        r" base_model\.model\.model\.",
    ),
    "no prefix": (
        lambda n, t: {n.removeprefix("base_model.model."): t},
        {},
        r"lacks 28 of 28 .* and it has 28 of 28"
        r" tensors \(first: model\.layers\.0",
    ),
    "half of the layers": (
        without("layers.1."),
        {},
        r"it lacks 14 of 28 tensors \(first:"
        r" base_model\.model\.model\.layers\.1\.",
    ),
    "no lora_B": (without("lora_B"), {}, r"it lacks 14 of 28 tensors \(first: \S+lora_B\.weight\)"),
    "one missing": (
        without("layers.1.mlp.up_proj.lora_A"),
        {},
        r"lacks 1 of 28 tensors \(first:"
        r" base_model\.model\.model\.layers\.1\.mlp\.up_proj\.lora_A",
    ),
    "more layers": (
        lambda n, t: {n: t, n.replace("layers.1.", "layers.2."): t.clone()},
        {},
        r"it has 14 of 42 tensors \(first:"
        r" \S+layers\.2\.",
    ),
    "surplus magnitudes": (
        lambda n, t: (
            {n: t}
            | (
                {n.replace("lora_B.weight", "lora_magnitude_vector"): t[:, 0].clone()}
                if "lora_B" in n
                else {}
            )
        ),
        {},
        r"it has 14 of 42 tensors",
    ),
    "its config says less": (
        None,
        {"target_modules": ["q_proj"]},
        r"it has 24 of 28 tensors \(first:"
        r" \S+\) that the base has no place for",
    ),
    "its config says more": (
        None,
        {"use_dora": True},
        r"it lacks 14 of 42 tensors \(first:"
        r" \S+lora_magnitude_vector",
    ),
    "random where missing": (
        without("lora_B"),
        {"init_lora_weights": False},
        r"it lacks 14 of 28 tensors",
    ),
    "another rank": (
        None,
        {"r": 8},
        r"28 of 28 tensors \(first: \S+\) has the shape \(4, \d+\),"
        r" where the base has \(8, \d+\)",
    ),
    "not a number": (
        with_nan,
        {},
        r"holds NaN in 1 of 28 tensors \(first:"
        r" base_model\.model\.model\.layers\.1\.self_attn\.q_proj\.lora_B\.weight\)",
    ),
    "infinite": (lambda n, t: {n: t / 0}, {}, r"holds (NaN|infinite values) in 28 of 28"),
    "no such layer": (None, {"target_modules": ["c_attn"]}, r"does not fit the base .*c_attn"),
    "its own base": (
        lambda n, t: {n: t, "base_model.model.model.embed_tokens.weight": torch.zeros(128, 64)},
        {},
        r"weights of its own for 1 of 29 tensors \(first: \S+embed_tokens",
    ),
    "a larger vocabulary": (
        lambda n, t: {n: t, "base_model.model.model.embed_tokens.weight": torch.zeros(160, 64)},
        {},
        r"embed_tokens\.weight\) has the shape \(160, 64\), where the base has \(128, 64\)",
    ),
    "pissa": (
        None,
        {"init_lora_weights": "pissa_niter_4"},
        r"init_lora_weights=pissa_niter_4,"
        r" which changes the base's weights too",
    ),
    "tokens": (
        None,
        {"trainable_token_indices": [1, 2]},
        r"was made with"
        r" trainable_token_indices, which is"
        r" not supported",
    ),
    "layers doubled": (
        None,
        {"layer_replication": [[0, 2], [1, 2]]},
        r"was made with layer_replication,"
        r" which is not supported",
    ),
    "activated": (
        None,
        {"alora_invocation_tokens": [5]},
        r"was made with"
        r" alora_invocation_tokens, which is"
        r" not supported",
    ),
    "of a later peft": (
        None,
        {"use_something_new": True},
        r"was made with use_something_new,"
        r" which is not supported",
    ),
    "another type": (
        None,
        {"peft_type": "IA3"},
        r"is of peft's type IA3, and only LORA is"
        r" supported",
    ),
    "no type": (None, {"peft_type": None}, r"is of peft's type None, and only LORA is supported"),
}

WRONG |= {
    f"{name} {value}": (None, {name: value}, rf"has {name}=.*, where .* must stand")
    for name, value in [
        ("lora_alpha", "8"),
        ("lora_alpha", float("nan")),
        ("lora_dropout", 2.0),
        ("lora_dropout", None),
        ("bias", None),
        ("target_modules", []),
        ("target_modules", None),
        ("target_modules", ".*(q_proj"),
        ("rank_pattern", None),
        ("alpha_pattern", {"q_proj": "8"}),
        ("use_dora", "yes"),
        ("modules_to_save", "norm"),
        ("r", 4.0),
    ]
}
EVERYWHERE = ("another prefix", "half of the layers", "more layers", "not a number", "tokens")
"""Of them, those that are tried on every path."""


def without_data(base, adapter):
    """As an export looks at an adapter that it copies."""
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base))
    return attach(empty, adapter, "default", base)


def shared_teacher(base, adapter):
    return load_teacher(base, "none", policy=load_policy(base, "none"), adapter=adapter)


def merged(base, adapter):
    lm = load_teacher(base, "none")
    lm.adapter_source = adapter
    return merge(lm, "full", torch.float32)


def planned(base, adapter):
    check_pair(make_config("opd", student=base, teacher=base, teacher_adapter=adapter))
    check_pair(make_config("grpo", student=base, teacher=None, adapter=adapter))


PATHS = {
    "rlkd plan": planned,
    "adapter=": lambda base, adapter: load_policy(base, "none", adapter=adapter),
    "teacher_adapter=, shared": shared_teacher,
    "teacher_adapter=, apart": lambda base, adapter: load_teacher(base, "none", adapter=adapter),
    "rlkd eval": lambda base, adapter: find_target(adapter, base=base, quant="none").load(),
    "merge": merged,
    "export": without_data,
}


@pytest.mark.parametrize(
    ("wrong", "path"),
    [(wrong, "rlkd eval") for wrong in WRONG]
    + [(wrong, path) for wrong in EVERYWHERE for path in PATHS],
)
def test_an_adapter_that_does_not_fit_is_refused_with_its_first_odd_tensor(
    base, adapter_of, tmp_path, wrong, path
):
    tensors, settings, says = WRONG[wrong]
    folder = changed(adapter_of(base, "plain"), tmp_path, tensors, **settings)
    with pytest.raises(ValueError, match=says) as refused:
        PATHS[path](base, folder)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "other",
    [
        {"hidden": 128},
        {"num_hidden_layers": 3},
        {"num_hidden_layers": 1},
        {"family": "qwen3", "num_attention_heads": 4},
    ],
    ids=str,
)
def test_an_adapter_of_another_base_is_refused_in_words(make_model, base, adapter_of, other):
    adapter = adapter_of(make_model(**{"family": "qwen2"} | other), "plain")
    with pytest.raises(ValueError, match=r"does not fit the base '.*'.*trained on another one"):
        load_teacher(base, "none", adapter=adapter)


@pytest.mark.parametrize("path", ["adapter=", "teacher_adapter=, shared"])
def test_another_vocabulary_shows_where_the_adapter_has_embeddings(
    make_model, base, adapter_of, path
):
    for kind in ("embeddings", "saved embeddings"):
        adapter = adapter_of(make_model("qwen2", vocabulary=192, tie_word_embeddings=False), kind)
        with pytest.raises(
            ValueError, match=r"does not fit the base '.*'.*192.*trained on another one"
        ):
            PATHS[path](base, adapter)


def test_the_start_in_a_config_leaves_no_random_weights(base, adapter_of, tmp_path):
    adapter = changed(adapter_of(base, "plain"), tmp_path, init_lora_weights=False)
    torch.testing.assert_close(
        ours(load_teacher(base, "none", adapter=adapter)),
        independent(base, adapter),
        rtol=0,
        atol=1e-4,
    )


def test_what_peft_loads_otherwise_than_it_lies_there_is_found(base, adapter_of, monkeypatch):
    load = PeftModel.load_adapter

    def half(self, *args, **settings):
        found = load(self, *args, **settings)
        next(p for name, p in self.named_parameters() if "lora_B" in name).data.zero_()
        return found

    monkeypatch.setattr(PeftModel, "load_adapter", half)
    with pytest.raises(ValueError, match=r"peft has not loaded 1 of 28 tensors \(first: \S+lora_B"):
        load_teacher(base, "none", adapter=adapter_of(base, "plain"))


def test_an_adapter_in_8_bit_is_read_as_peft_reads_it(base, adapter_of, tmp_path):
    adapter = shutil.copytree(adapter_of(base, "plain"), tmp_path / "small")
    file = adapter / "adapter_model.safetensors"
    small = {key: value.to(torch.float8_e4m3fn) for key, value in load_file(file).items()}
    save_file(small, file)
    assert_is(load_teacher(base, "none", adapter=adapter), base, adapter, held=True)
    save_file(
        small | {key: torch.full_like(value, torch.nan) for key, value in small.items()}, file
    )
    with pytest.raises(ValueError, match="holds NaN in"):
        load_teacher(base, "none", adapter=adapter)


def test_an_empty_list_is_nothing(base, adapter_of, tmp_path):
    nothing = {"trainable_token_indices": [], "arrow_config": {}, "target_parameters": []}
    adapter = changed(adapter_of(base, "plain"), tmp_path, **nothing)
    for path in PATHS.values():
        path(base, adapter)


def test_lora_on_a_tied_head_is_named_as_such(tied, tmp_path):
    lora = LoraConfig(r=4, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(tied), lora).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="the output head is trained, or is no plain linear layer"):
        load_teacher(tied, "none", adapter=tmp_path)
    with pytest.raises(ValueError, match="its adapter is on the output head"):
        planned(tied, str(tmp_path))


def test_another_base_of_the_same_shape_is_told(base, make_model, adapter_of, tmp_path):
    other = make_model("qwen2", tie_word_embeddings=False, seed=1)
    for path in ("adapter=", "teacher_adapter=, shared", "export"):
        with pytest.warns(UserWarning, match="names '.*' as its base and is put on '.*'") as told:
            PATHS[path](other, adapter_of(base, "plain"))
        assert len([one for one in told if "as its base" in str(one.message)]) == 1
    same = [base, f"{base}/", f"/of/another/machine/{Path(base).name}", None]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".* as its base")
        for number, name in enumerate(same):
            (tmp_path / str(number)).mkdir()
            adapter = changed(
                adapter_of(base, "plain"), tmp_path / str(number), base_model_name_or_path=name
            )
            load_teacher(base, "none", adapter=adapter)
        for named, given in [
            ("/x/models--Qwen--Qwen3-4B/snapshots/0a1b", "Qwen/Qwen3-4B"),
            (str(ZOO / "student"), "student"),
            ("student", str(ZOO / "student")),
            ("Qwen/Qwen3-4B", "models/qwen3-4b"),
        ]:
            warn_of_another_base("own", named, given)
    with pytest.warns(UserWarning, match="as its base"):
        warn_of_another_base("own", "student", "student-weak")


def test_the_first_layers_alone_can_be_meant(base, make_model, adapter_of, tmp_path):
    adapter = changed(
        adapter_of(make_model("qwen2", num_hidden_layers=1), "plain"),
        tmp_path,
        layers_to_transform=[0],
    )
    torch.testing.assert_close(
        ours(load_teacher(base, "none", adapter=adapter)),
        independent(base, adapter),
        rtol=0,
        atol=1e-4,
    )


def test_prompts_that_were_tuned_are_no_adapter(base, tmp_path):
    settings = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), settings).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match="is of peft's type PROMPT_TUNING, and only LORA is supported"
    ):
        load_policy(base, "none", adapter=tmp_path)


def test_a_folder_without_a_config_or_with_a_pickle_alone(base, adapter_of, tmp_path):
    folder = Path(changed(adapter_of(base, "plain"), tmp_path))
    (folder / "adapter_config.json").unlink()
    with pytest.raises(ValueError, match=r"has no adapter_config\.json that can be read"):
        load_teacher(base, "none", adapter=folder)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(
        FileNotFoundError, match=r"its adapter_model\.bin is a pickle.*save the adapter again"
    ):
        load_teacher(base, "none", adapter=folder)


# --- copies of models -----------------------------------------------------------------------------


def test_a_copy_that_nobody_knew_to_be_wrong_is_found_by_its_numbers(base, adapter_of, monkeypatch):
    """Of a layer that does more than its weights say: a hook, a subclass, a kernel."""
    lm = load_teacher(base, "none", adapter=adapter_of(base, "plain"))
    assert make_dense_copy(lm) is not None
    lm.causal_lm.model.layers[0].mlp.register_forward_hook(
        lambda module, inputs, output: output * 1.01
    )
    with pytest.warns(
        UserWarning,
        match=r"a copy would lose something else: log-probabilities differ by \S+ nats, and"
        r" rounding explains 0\.001",
    ):
        assert make_dense_copy(lm) is None


def test_a_model_of_which_no_copy_can_be_made_runs_itself(base, monkeypatch):
    monkeypatch.setattr(DenseCopy, "__init__", lambda self, policy, base: policy.no_such_module)
    with pytest.warns(
        UserWarning, match="a copy would lose something else .AttributeError: .*no_such_module"
    ):
        assert make_dense_copy(load_teacher(base, "none")) is None
