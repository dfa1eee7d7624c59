"""What is handed over is the policy that was trained, loads without this package, and its card
is true.
"""

import contextlib
import io
import json
import re
import shlex
import shutil
import warnings
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, pipeline
from typer.testing import CliRunner

from rlkd_lab.commands import app
from rlkd_lab.models import LanguageModel, load_policy, locate
from rlkd_lab.models.merging import kl_per_token
from rlkd_lab.objectives import METHODS
from rlkd_lab.rollouts.traces import sequences_of
from rlkd_lab.runs import RunFolder
from rlkd_lab.study import (
    Settings,
    evaluate_target,
    find_target,
    read_table,
    task_of,
    write_table,
)
from rlkd_lab.study.eval_table import about
from rlkd_lab.study.export import export_run
from rlkd_lab.tasks.verifier import guarded
from rlkd_lab.training import config_of, make_config, run
from rlkd_lab.training.context import Context
from rlkd_lab.training.trainer import Trainer

PROMPTS = ["49-7+4?", "5+1-2+3+4?", "8?"]
COMPLETIONS = ["49-7=42;42+4=46;#46", "#11", "8=8;#8;;#"]


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """The adapter, and the model merged in two ways."""
    folder = tmp_path_factory.mktemp("exported")
    export_run(trained.path, folder / "adapter")
    found = {
        into: export_run(trained.path, folder / into, merged=True, into=into)
        for into in ("nf4", "full")
    }
    return folder, found


@pytest.fixture
def copied(trained, tmp_path):
    """A copy of the run, to be written into."""
    shutil.copytree(trained.path, tmp_path / "runs" / "copy")
    return RunFolder.open(tmp_path / "runs" / "copy")


@pytest.fixture(scope="module")
def chatting(make_model, tmp_path_factory):
    """A run of one step on a folder whose tokenizer has a chat template and whose card states a
    licence.
    """
    folder = tmp_path_factory.mktemp("chatting")
    shutil.copytree(make_model(), folder / "base")
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }}\n{%"
        " endfor %}{% if add_generation_prompt %}a:{% endif %}"
    )
    tokenizer.save_pretrained(folder / "base")
    (folder / "base" / "README.md").write_text(
        "---\nlicense: other\nlicense_name: ours\ntags:\n- more\n---\n\n# Base\n"
    )
    config = make_config(
        "dr_grpo",
        steps=1,
        student=str(folder / "base"),
        quant="none",
        teacher=None,
        system_prompt='Be "brief".',
        prompts_per_step=2,
        group_size=2,
        max_new_tokens=16,
        difficulty=(2, 2),
        eval_every=0,
        samples_every=0,
        knobs={"learning_rate": 0.01, "clip_high": "linear:0.2:0.4"},
    )
    return run(config, folder / "runs" / "chat")


def logps(model, tokenizer):
    """Of the completions, by transformers alone, one sequence at a time."""
    found = []
    for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True):
        asked, said = (
            tokenizer(prompt)["input_ids"],
            [*tokenizer(completion)["input_ids"], tokenizer.eos_token_id],
        )
        ids = torch.tensor([asked + said])
        with torch.no_grad():
            scores = model(input_ids=ids).logits.float().log_softmax(-1)
        found.append(
            scores[0, len(asked) - 1 : -1].gather(-1, torch.tensor(said)[:, None]).squeeze(-1)
        )
    return torch.cat(found)


@pytest.fixture
def exact_kernel(monkeypatch):
    """Models that are loaded without this package compute 4-bit layers in float32, as ours do. On a
    CPU with AVX512-BF16, bitsandbytes would do it in bfloat16: log-probabilities then differ by up
    to .01 nats, which says nothing about what was exported.
    """
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)


def policy_of(trained, step=-1):
    """As the training loop has it."""
    config = config_of(trained)
    trainer = Trainer(config)
    trainer.load(Context(config, trained), trained.checkpoints()[step])
    trainer.policy.model.eval()
    return trainer.policy


def front_matter(folder):
    return ModelCard.load(folder / "README.md").data.to_dict()


def section(folder, title):
    """The text below a heading of the card."""
    return (folder / "README.md").read_text().partition(f"## {title}\n")[2].partition("\n## ")[0]


# --- the adapter ----------------------------------------------------------------------------------


def test_plain_peft_loads_the_policy(trained, exported, exact_kernel):
    folder, _ = exported
    assert sorted(path.name for path in (folder / "adapter").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "base",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    tokenizer = AutoTokenizer.from_pretrained(folder / "adapter")
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    base = AutoModelForCausalLM.from_pretrained(
        folder / "adapter" / "base", dtype=torch.float32, quantization_config=nf4
    )
    policy = policy_of(trained)
    before = logps(base, tokenizer)
    expected = logps(policy.causal_lm, policy.tokenizer)
    torch.testing.assert_close(
        logps(PeftModel.from_pretrained(base, folder / "adapter"), tokenizer),
        expected,
        rtol=0,
        atol=1e-4,
    )
    assert float((before - expected).abs().max()) > 1e-2  # two steps have changed something


def test_the_adapter_names_its_base_as_the_config_did(exported):
    folder, _ = exported
    settings = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "student"
    target = find_target(str(folder / "adapter"))
    assert (target.base, target.quant) == ("student", "nf4")
    target.load()


def test_no_text_that_is_handed_over_names_a_place_on_this_machine(trained, exported):
    folder, _ = exported
    texts = [path for path in folder.rglob("*") if path.suffix in (".md", ".json", ".jinja")]
    assert len(texts) == 8 + 2 * 5
    for path in texts:
        assert not any(
            str(place) in path.read_text()
            for place in (locate("student"), folder.parent, trained.path.parent)
        ), path


def test_an_earlier_checkpoint(trained, tmp_path):
    export_run(trained.path, tmp_path / "first", checkpoint=1)
    first, last = (load_file(path / "adapter_model.safetensors") for path in trained.checkpoints())
    written = load_file(tmp_path / "first" / "adapter_model.safetensors")
    assert all(torch.equal(written[name], first[name]) for name in first)
    assert not all(torch.equal(written[name], last[name]) for name in last)
    assert "| step | 1 of 2 |" in section(tmp_path / "first", "Run")


def test_an_empty_folder_is_taken(trained, tmp_path):
    (tmp_path / "empty").mkdir()
    export_run(trained.path, tmp_path / "empty")
    assert (tmp_path / "empty" / "README.md").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_who_may_read_any_file_may_read_these(exported, tmp_path):
    (tmp_path / "file").touch()
    files = [path for path in exported[0].rglob("*") if path.is_file()]
    assert {path.stat().st_mode for path in files} == {(tmp_path / "file").stat().st_mode}


# --- the merged model -----------------------------------------------------------------------------


def test_transformers_serves_the_merged_model(trained, exported):
    folder, _ = exported
    tokenizer = AutoTokenizer.from_pretrained(folder / "nf4")
    model = AutoModelForCausalLM.from_pretrained(folder / "nf4")
    assert (model.dtype, model.config.use_cache) == (torch.bfloat16, True)
    policy = policy_of(trained)
    # bfloat16 has 8 bits: weights and every activation are rounded by up to 1 in 256
    torch.testing.assert_close(
        logps(model, tokenizer), logps(policy.causal_lm, policy.tokenizer), rtol=0.02, atol=0.2
    )
    asked = tokenizer(PROMPTS[0], return_tensors="pt")
    said = model.generate(**asked, max_new_tokens=24)
    assert said.shape[1] > asked["input_ids"].shape[1]
    (written,) = pipeline("text-generation", model=str(folder / "nf4"))(
        [PROMPTS[0]], max_new_tokens=24, do_sample=False
    )
    assert written[0]["generated_text"] == tokenizer.decode(said[0], skip_special_tokens=True)


@pytest.mark.parametrize(("into", "quant"), [("nf4", "nf4"), ("full", "none")])
def test_in_float32_each_merge_is_its_function_to_rounding(trained, tmp_path, into, quant):
    export_run(trained.path, tmp_path / "merged", merged=True, into=into, dtype="float32")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert model.dtype == torch.float32
    policy = find_target(str(trained.path), quant=quant).load()
    torch.testing.assert_close(
        logps(model, policy.tokenizer), logps(policy.model, policy.tokenizer), rtol=0, atol=1e-4
    )
    other = find_target(str(trained.path), quant="none" if quant == "nf4" else "nf4").load()
    assert (
        float((logps(model, policy.tokenizer) - logps(other.model, policy.tokenizer)).abs().max())
        > 1e-2
    )


def test_the_shift_that_is_told_is_that_of_the_folder(trained, exported):
    folder, found = exported
    policy = find_target(str(trained.path)).load()
    sequences = sequences_of(
        policy, PROMPTS, [policy.tokenizer(text)["input_ids"] + [1] for text in COMPLETIONS]
    )
    for into, merged in found.items():
        assert (merged.into, merged.dtype) == (into, "bfloat16")
        assert 0 < merged.shift < merged.largest
        assert merged.rounding.kept == pytest.approx(1, abs=0.05)
        again = LanguageModel(
            AutoModelForCausalLM.from_pretrained(folder / into), policy.tokenizer, into, "none"
        )
        ours = float(kl_per_token(policy, again, sequences).mean())
        assert ours / 10 < merged.shift < ours * 10  # other completions
        card = section(folder / into, "Merge")
        for words in (
            f"{merged.shift:.2g} nats a token",
            f"{merged.largest:.2g} at most",
            f"{merged.trained:.2g} there",
            f"{merged.tokens} tokens",
            "bfloat16",
        ):
            assert words in card
    assert found["nf4"].shift < found["full"].shift / 2
    assert found["nf4"].trained == found["full"].trained > 1e-3


def test_the_weights_that_it_was_trained_beside_are_the_default(
    trained, exported, chatting, tmp_path
):
    folder, found = exported
    assert export_run(trained.path, tmp_path / "default", merged=True) == found["nf4"]
    default, nf4 = (
        load_file(path / "model.safetensors") for path in (tmp_path / "default", folder / "nf4")
    )
    assert all(torch.equal(default[name], nf4[name]) for name in nf4)
    assert export_run(chatting.path, tmp_path / "chat", merged=True).into == "full"


def test_an_update_that_is_rounded_away_is_warned_of(copied, tmp_path):
    path = copied.checkpoints()[-1] / "adapter_model.safetensors"
    save_file(
        {
            name: value * (1e-5 if "lora_B" in name else 1)
            for name, value in load_file(path).items()
        },
        path,
    )
    state = json.loads((path.parent / "state.json").read_text())
    (path.parent / "state.json").write_text(
        json.dumps({name: value for name, value in state.items() if not name.startswith("sha256")})
    )
    with pytest.warns(
        UserWarning,
        match=r"rounding to bfloat16 takes \d+% of the update away: use --dtype float32, or merge"
        r" --into nf4, or hand over the adapter",
    ):
        merged = export_run(copied.path, tmp_path / "merged", merged=True, into="full")
    assert merged.rounding.kept < 0.5
    with pytest.warns(
        UserWarning,
        match=r"nats a token from the policy, and training moved that by no more than .*: merge"
        r" --into nf4, or hand over the adapter",
    ):
        export_run(copied.path, tmp_path / "second", merged=True, into="full", dtype="float32")


# --- the card -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adapter", "nf4", "chat-adapter", "chat-merged"])
def test_the_code_of_the_card_runs_as_it_stands_and_loads_the_policy(
    trained, exported, chatting, tmp_path, monkeypatch, exact_kernel, name
):
    folder, policy = (
        exported[0],
        find_target(str(chatting.path if name.startswith("chat") else trained.path)).load(),
    )
    if name.startswith("chat"):
        folder = tmp_path
        export_run(chatting.path, folder / name, merged=name == "chat-merged")
    code = re.search(r"```python\n(.*?)```", section(folder / name, "Use"), re.DOTALL).group(1)
    monkeypatch.chdir(folder)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        names = {}
        exec(compile(code, "card", "exec"), names)
    prompt = re.search(r"(\d+(?:[+-]\d+)+\?)", code).group(1)
    assert (
        prompt in task_of(config_of(chatting)).examples(1, 20_000, "validation", (2, 2))[0].prompt
    )
    assert said.getvalue().startswith(
        f's:Be "brief".\nu:{prompt}\na:' if name.startswith("chat") else prompt
    )
    assert "rlkd_lab" not in code  # a colleague may lack this package
    assert names["said"].shape[1] > names["asked"]["input_ids"].shape[1]
    exact = "adapter" in name  # merged models are in bfloat16
    tolerance = {"rtol": 0, "atol": 1e-4} if exact else {"rtol": 0.02, "atol": 0.2}
    torch.testing.assert_close(
        logps(names["model"], names["tokenizer"]),
        logps(policy.model, policy.tokenizer),
        **tolerance,
    )


def test_the_front_matter(exported, chatting, tmp_path):
    folder, _ = exported
    assert front_matter(folder / "adapter") == {
        "base_model": "student",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["rlkd_lab", "grpo", "lora", "reinforcement-learning"],
    }
    assert front_matter(folder / "nf4")["library_name"] == "transformers"
    export_run(chatting.path, tmp_path / "chat")
    stated = front_matter(tmp_path / "chat")
    assert (stated["license"], stated["license_name"], stated["base_model"]) == (
        "other",
        "ours",
        config_of(chatting).student,
    )
    assert "more" not in stated["tags"]


@pytest.mark.parametrize(
    "card", [None, "---\nlicense: [mit\n---\n", "# No front matter\n", "---\ntags:\n- more\n---\n"]
)
def test_no_licence_where_the_base_states_none(chatting, tmp_path, monkeypatch, card):
    base = tmp_path / "base"
    if card is None:  # the hub may have a model of the folder's name
        theirs = SimpleNamespace(load=lambda path: ModelCard("---\nlicense: mit\n---\n"))
        monkeypatch.setattr("rlkd_lab.study.model_card.ModelCard", theirs)
    shutil.copytree(config_of(chatting).student, base)
    (base / "README.md").unlink()
    if card is not None:
        (base / "README.md").write_text(card)
    shutil.copytree(chatting.path, tmp_path / "run")
    copy = RunFolder.open(tmp_path / "run")
    copy.write_json("config.json", {**copy.config(), "student": str(base)})
    export_run(copy.path, tmp_path / "out")
    assert not {"license", "license_name", "license_link"} & set(front_matter(tmp_path / "out"))


def test_method_knobs_and_run(trained, exported, chatting, tmp_path):
    folder, _ = exported
    from rlkd_lab.training.fingerprint import fingerprint

    method = section(folder / "adapter", "Method")
    rows = (
        "| learning_rate | 0.01 |",
        "| clip_low | 0.2 |",
        "| group_size | 2 |",
        "| aggregation | ",
        "| difficulty | (2, 2) |",
    )
    for words in (
        METHODS["grpo"].formula,
        METHODS["grpo"].source,
        *rows,
        "No knob was moved by hand",
    ):
        assert words in method, words
    assert "checkpoint_every" not in method
    env = trained.env()
    for words in (
        f"| run | grpo, config {fingerprint(config_of(trained))} |",
        "| step | 2 of 2 |",
        "| seed | 0 |",
        env["device"],
        f"torch {env['versions']['torch']}",
    ):
        assert words in section(folder / "nf4", "Run"), words
    export_run(chatting.path, tmp_path / "chat")
    assert "| clip_high | linear:0.2:0.4:1.0 |" in section(tmp_path / "chat", "Method")


def test_moves_by_hand_up_to_the_step(copied, tmp_path):
    for step, value in ((1, 0.02), (2, None)):
        copied.append(
            "events.jsonl",
            {"event": "knob", "step": step, "knob": "ratio_cap", "value": value, "source": "panel"},
        )
    export_run(copied.path, tmp_path / "last")
    assert (
        "| step | knob | value |\n| --- | --- | --- |\n| 1 | ratio_cap | 0.02 |\n| 2 |"
        " ratio_cap | off |\n\n" in section(tmp_path / "last", "Method")
    )
    export_run(copied.path, tmp_path / "first", checkpoint=1)
    assert "| 2 | ratio_cap" not in section(tmp_path / "first", "Method")


def test_the_command_of_the_card_asks_the_task_that_was_asked_last(copied, tmp_path):
    """It may be another one than the run's: `rlkd eval RUN --task knights`."""
    target, task = find_target(str(copied.path)), guarded("knights", {"held_out": "renamed"})
    asked = Settings(prompts=2, samples=1, max_new_tokens=8, greedy=False, ood=False)
    frame = evaluate_target(target.load(), task, asked)
    write_table(target.table, frame, about(target.describe(), task, asked))
    export_run(copied.path, tmp_path / "adapter")
    told = section(tmp_path / "adapter", "Evaluation")
    assert "`rlkd eval adapter --quant nf4 --task knights " in told
    assert "--set task.held_out=renamed" in told
    target.table.unlink()


def test_the_evaluation_is_the_one_of_that_step_and_is_said_to_be_before_the_merge(
    copied, tmp_path, monkeypatch
):
    target = find_target(str(copied.path))
    asked, task = (
        Settings(prompts=6, samples=4, max_new_tokens=24, temperature=0.9, greedy=False),
        task_of(target.config),
    )
    frame = evaluate_target(target.load(), task, asked)
    write_table(target.table, frame, about(target.describe(), task, asked))
    export_run(copied.path, tmp_path / "adapter")
    told = section(tmp_path / "adapter", "Evaluation")
    sampled = frame[frame["set"] == "id"]
    rows = (
        f"| avg@4 | {100 * sampled['correct'].mean():.1f} | ",
        "| out of distribution | value |",
    )
    settings = (
        f"split test: {sampled['prompt_id'].nunique()} prompts in distribution, ",
        "4 samples each at T = 0.9; at most 24 tokens",
        "base in NF4",
        "bootstrap over prompts",
    )
    for words in (*rows, *settings, "`rlkd eval adapter --quant nf4 --task arithmetic "):
        assert words in told, words
    command = shlex.split(re.search("`rlkd (eval .*?)`", told)[1])
    monkeypatch.chdir(tmp_path)
    again = CliRunner().invoke(app, [*command, "--out", "again.parquet"])
    assert again.exit_code == 0, again.output
    asked_again, _ = read_table(tmp_path / "again.parquet")
    assert asked_again["completion"].tolist() == frame["completion"].tolist()
    assert "before the merge" not in told
    export_run(copied.path, tmp_path / "merged", merged=True)
    told = section(tmp_path / "merged", "Evaluation")
    assert "policy as it was trained, before the merge" in told
    assert "`rlkd eval merged --quant none --task arithmetic " in told
    export_run(copied.path, tmp_path / "first", checkpoint=1)  # the table is of step 2
    assert section(tmp_path / "first", "Evaluation").strip().startswith("Not evaluated.")


def test_without_a_table_the_last_evaluation_during_training_is_told_as_such(copied, tmp_path):
    rows = copied.rows()
    (copied.path / "metrics.jsonl").write_text(
        "".join(
            json.dumps({**row, "eval/accuracy": 0.25 * row["step"], "eval/mean_length": 9.5}) + "\n"
            for row in rows
        )
    )
    for step in (1, 2):
        export_run(copied.path, tmp_path / str(step), checkpoint=step)
        told = section(tmp_path / str(step), "Evaluation")
        for words in (
            "`rlkd eval` was not run",
            f"during training, at step {step}",
            f"| eval/accuracy | {0.25 * step} |",
            "| eval/mean_length | 9.5 |",
            "no intervals",
        ):
            assert words in told, words


# --- what cannot be handed over -------------------------------------------------------------------


def damage(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("spoil", "given", "error", "says"),
    [
        (lambda run: shutil.rmtree(run), {}, FileNotFoundError, "does not exist"),
        (lambda run: (run / "config.json").unlink(), {}, FileNotFoundError, "no run folder"),
        (
            lambda run: shutil.rmtree(run / "checkpoints"),
            {},
            FileNotFoundError,
            "no whole checkpoint",
        ),
        (
            lambda run: None,
            {"checkpoint": 7},
            FileNotFoundError,
            "no checkpoint of step 7; it has 1, 2",
        ),
        (
            lambda run: (run / "checkpoints/step_000002/adapter_model.safetensors").unlink(),
            {},
            ValueError,
            "is not what was written",
        ),
        (
            lambda run: damage(run / "checkpoints/step_000002/adapter_model.safetensors"),
            {},
            ValueError,
            "is damaged",
        ),
        (lambda run: None, {"into": "full"}, ValueError, "are for --merge"),
        (lambda run: None, {"dtype": "float32"}, ValueError, "are for --merge"),
        (
            lambda run: None,
            {"merged": True, "dtype": "bf16"},
            ValueError,
            "did you mean 'bfloat16'",
        ),
        (lambda run: None, {"merged": True, "into": "nf8"}, ValueError, "did you mean 'nf4'"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(copied, tmp_path, spoil, given, error, says):
    spoil(copied.path)
    with pytest.raises(error, match=says):
        export_run(copied.path, tmp_path / "out", **given)
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_a_base_in_full_precision_has_no_nf4_weights(chatting, tmp_path):
    with pytest.raises(ValueError, match="was not quantised"):
        export_run(chatting.path, tmp_path / "out", merged=True, into="nf4")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_refused_before_anything_is_loaded(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("rlkd_lab.study.export.load_tokenizer", None)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine").write_text("mine")
    for place in (tmp_path / "used", tmp_path / "used" / "mine"):
        with pytest.raises(FileExistsError, match="exists and is not empty: choose another --out"):
            export_run(trained.path, place)
    assert (tmp_path / "used" / "mine").read_text() == "mine"


def test_an_adapter_that_goes_on_from_another_holds_both(trained, tmp_path):
    """Its base is the bare model, not the adapter that the run started from; and no checkpoint
    asks the hub for a model of the embedded one's name.
    """
    start = tmp_path / "start"
    export_run(trained.path, start)
    config = config_of(trained).model_copy(update={"adapter": str(start), "steps": 1})
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        second = run(config, tmp_path / "second")
    export_run(second.path, tmp_path / "out")
    expected = policy_of(second)
    again = load_policy("student", "nf4", adapter=tmp_path / "out")
    again.model.eval()
    torch.testing.assert_close(
        logps(again.causal_lm, again.tokenizer),
        logps(expected.causal_lm, expected.tokenizer),
        rtol=0,
        atol=1e-5,
    )
