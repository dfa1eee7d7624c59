"""Conflicts of trained weight differences, from adapters whose products are known."""

import json

import pytest
import torch
from safetensors.torch import save_file

from rlkd_lab.runs import RunFolder
from rlkd_lab.study.results import OVER
from rlkd_lab.study.signs import added_signs, conflict, sign_conflicts
from rlkd_lab.study.sweep import Sweep

A = torch.tensor([[1.0, -1.0, 2.0]])
B = torch.tensor([[1.0], [-3.0]])
SIGNS = [1, -1, 1, -1, 1, -1]  # of B·A, row by row


def adapter(folder, b, kind="LORA"):
    folder.mkdir(parents=True)
    weights = {"model.q.lora_A.weight": A, "model.q.lora_B.weight": b}
    save_file(weights, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": kind}))
    (folder / "state.json").write_text("{}")
    return folder


def test_the_signs_are_those_of_the_product(tmp_path):
    assert added_signs(adapter(tmp_path / "a", B)).tolist() == SIGNS
    with pytest.raises(ValueError, match="no LoRA adapter"):
        added_signs(adapter(tmp_path / "b", B, "OTHER"))


def test_a_conflict_is_the_share_of_opposite_signs_among_weights_that_both_moved():
    one = torch.tensor([1, 1, -1, -1, 0, 1], dtype=torch.int8)
    other = torch.tensor([1, -1, -1, 1, 1, 0], dtype=torch.int8)
    assert conflict(one, other) == 0.5 and conflict(one, one) == 0 and conflict(one, -one) == 1


def test_each_run_is_held_against_opd_of_the_next_seed(tmp_path):
    """OPD of seed 1 moved the second row the other way; GRPO is as OPD of seed 0."""
    arms = [{"name": name, "method": name} for name in ("grpo", "opd")]
    sweep = Sweep(arms=arms, seeds=2, steps=2)
    for job in sweep.jobs():
        run = RunFolder.create(job.folder(tmp_path), job.config.model_dump(mode="json"), {})
        turned = torch.tensor([[1.0], [3.0]]) if (job.arm, job.seed) == ("opd", 1) else B
        adapter(run.path / "checkpoints" / "step_000001", -turned)  # the last one counts
        adapter(run.path / "checkpoints" / "step_000002", turned)
        run.write_json(OVER, {"diverged": None, "worker_gib": 1.0})
    table = sign_conflicts(sweep, tmp_path)
    rows = {(row.arm, row.seed): (row.other, row.conflict) for row in table.itertuples()}
    assert rows == {
        ("grpo", 0): (1, 0.5), ("opd", 0): (1, 0.5), ("grpo", 1): (0, 0.0), ("opd", 1): (0, 0.5),
    }  # fmt: skip
    assert sign_conflicts(Sweep(arms=arms[:1], seeds=2, steps=2), tmp_path).empty  # without OPD
