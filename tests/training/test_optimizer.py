"""The optimizer's settings, early stopping, and adapters of other kinds, in whole short runs."""

import re

import pytest
import torch

from rlkd_lab.models import Lora, load_policy
from rlkd_lab.objectives.settings import KNOBS
from rlkd_lab.runs import first_difference
from rlkd_lab.training import RunConfig, make_config, replay, resume, run
from rlkd_lab.training.loop_knobs import LOOP_KNOBS
from rlkd_lab.training.make_config import NAMES_ELSEWHERE
from rlkd_lab.training.model_shape import Shape
from rlkd_lab.training.patience import Patience
from rlkd_lab.training.state import TrainState


def test_adamw_takes_its_betas_and_8_bit_is_near_it(make_model):
    """Against AdamW's formula (arXiv 1711.05101, Algorithm 2) after two steps."""
    found = {}
    for optimizer in ("adamw", "adamw_8bit"):
        config = make_config("grpo", optimizer=optimizer, adam_beta1=0.5, adam_beta2=0.7)
        state = TrainState(load_policy(make_model(hidden=128), "none"), config)
        weight = max(state.parameters, key=torch.Tensor.numel)
        start, mean, square = weight.detach().clone(), 0.0, 0.0
        expected = start.clone()
        for group in state.optimizer.param_groups:
            group["lr"] = 0.01
        generator = torch.Generator().manual_seed(0)
        for step in (1, 2):
            gradient = torch.randn(weight.shape, generator=generator)
            weight.grad = gradient.clone()
            state.optimizer.step()
            mean, square = 0.5 * mean + 0.5 * gradient, 0.7 * square + 0.3 * gradient**2
            scale = (square / (1 - 0.7**step)).sqrt() + 1e-8
            expected -= 0.01 * (mean / (1 - 0.5**step)) / scale
        found[optimizer] = (weight.detach() - start, expected - start)
    moved, expected = found["adamw"]
    torch.testing.assert_close(moved, expected, atol=1e-6, rtol=1e-4)
    moved, expected = found["adamw_8bit"]
    assert not torch.equal(moved, found["adamw"][0])
    assert torch.cosine_similarity(moved.flatten(), expected.flatten(), dim=0) > 0.99


def test_patience_counts_evaluations_without_a_better_one():
    config = make_config("grpo", patience=2)
    accuracies = {2: 0.25, 4: 0.5, 6: 0.5, 8: 0.25}
    rows = [
        {"step": step, **({"eval/accuracy": accuracies[step]} if step in accuracies else {})}
        for step in range(1, 9)
    ]
    patience = Patience(config)
    over = []
    for row in rows:
        patience.see(row)
        over.append(patience.over is not None)
    assert over == [False] * 7 + [True]
    assert patience.over == (
        "early: 2 evaluations on arithmetic without a better accuracy than 50.0% at step 4"
        " (patience=2)"
    )
    assert Patience(config, rows).over == patience.over
    assert Patience(make_config("grpo"), rows).over is None


def test_a_run_ends_early_and_is_done(tiny, tmp_path):
    still = {"learning_rate": "0"}
    config = tiny("grpo", still, steps=6, eval_every=1, patience=1, checkpoint_every=0)
    folder = run(config, tmp_path / "run")
    status = folder.status()
    assert (status["state"], status["step"]) == ("done", 2)  # nothing is learned at rate 0
    assert status["why"].startswith("early: 1 evaluations")
    assert [path.name for path in folder.checkpoints()] == ["step_000002"]
    before = (folder.path / "status.json").read_bytes()
    assert resume(folder.path).last_step() == 2
    assert (folder.path / "status.json").read_bytes() == before
    assert replay(folder.path, tmp_path / "again").difference is None


@pytest.mark.parametrize(
    "settings",
    [
        {"lora_kind": "dora", "lora_targets": "attention"},
        {"lora_ranks.q_proj": "4", "lora_kind": "rslora", "optimizer": "adamw_8bit"},
    ],
)
def test_runs_with_other_adapters_resume_to_the_bit(tiny, tmp_path, settings):
    config = tiny("kdrl", settings, steps=3, checkpoint_every=1)

    def stop(session, row):
        session.stopping = row["step"] == 2

    straight = run(config, tmp_path / "straight")
    folder = run(config, tmp_path / "run", on_step=stop)
    assert first_difference(resume(folder.path).rows(), straight.rows())[0] is None


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("gradient_accumulation_steps", "micro_batch"),
        ("warmup_ratio", "learning_rate=warmup:0.1:0.001"),
        ("lora_dropout", "not the sampled one"),
    ],
)
def test_names_of_other_libraries_lead_to_ours(name, ours):
    with pytest.raises(ValueError, match=f"another library's name; here it is .*{ours}"):
        make_config("kdrl", settings={name: "1"})


def test_every_name_elsewhere_leads_to_a_setting():
    known = {*RunConfig.model_fields, *LOOP_KNOBS, *KNOBS, "the", "nothing"}
    for name, ours in NAMES_ELSEWHERE.items():
        assert re.split(r"[ ,=:.]", ours)[0] in known, name


def test_an_adapter_that_is_gone_on_from_has_its_own_layers(tmp_path):
    with pytest.raises(ValueError, match="lora_targets is for a new adapter"):
        make_config("grpo", adapter=str(tmp_path), lora_targets="mlp")


@pytest.mark.parametrize("targets", ["attention", r"model\.layers\.5\.mlp\..*"])
def test_a_plan_counts_the_layers_that_have_an_adapter(make_model, targets):
    whole, some = (
        Shape.of(make_model(num_hidden_layers=3)).adapter(make_config("grpo", lora_targets=one))
        for one in ("all-linear", targets)
    )
    policy = load_policy(make_model(num_hidden_layers=3), "none", lora=Lora(targets="attention"))
    assert some == (sum(p.numel() for p in policy.trainable()) if targets == "attention" else whole)
