"""Two processes train as one does: the same completions, metrics and adapter, to rounding."""

import json
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from rlkd_lab.models import distributed
from rlkd_lab.runs import RunFolder, first_difference
from rlkd_lab.training import run

CASES = {
    # three prompts are no even share of two processes
    "kdrl": (
        "kdrl",
        {"prompts_per_step": 3, "minibatches": 2, "samples_every": 2, "eval_every": 2},
    ),
    "grpo": ("grpo", {"prompts_per_step": 4, "updates_per_rollout": 2}),
    "gkd": ("gkd", {"prompts_per_step": 2, "on_policy_frac": 1.0}),
    "sft": ("sft", {"prompts_per_step": 4}),
}
WORKER = """
import json, sys
from rlkd_lab.models import distributed
from rlkd_lab.training import RunConfig, resume, run

distributed.join()
assert distributed.count() == 2
for name, config in json.loads(open(sys.argv[1]).read()).items():
    def stop(loop, row):
        loop.stopping = name == "kdrl" and row["step"] == 2
    run(RunConfig(**config), f"{sys.argv[2]}/{name}", on_step=stop)
    if name == "kdrl":
        resume(f"{sys.argv[2]}/{name}")
"""


def test_one_process_is_alone():
    assert (distributed.count(), distributed.rank(), distributed.first()) == (1, 0, True)
    assert list(distributed.share(5)) == [0, 1, 2, 3, 4]
    assert distributed.from_all("a") == [distributed.from_first("a")] == ["a"]


@pytest.mark.parametrize("count", [2, 3, 5, 7])
def test_every_row_has_one_owner_and_shares_are_even(monkeypatch, count):
    shares = []
    for rank in range(count):
        monkeypatch.setattr(distributed, "count", lambda: count)
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(list(distributed.share(12)))
    assert [row for share in shares for row in share] == list(range(12))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_two_processes_are_one(tiny, tmp_path):
    configs = {
        name: tiny(
            method, **{"steps": 3, "group_size": 4, "checkpoint_every": 1, "plan": "off", **fields}
        )
        for name, (method, fields) in CASES.items()
    }
    (tmp_path / "configs.json").write_text(
        json.dumps({name: config.model_dump() for name, config in configs.items()})
    )
    (tmp_path / "worker.py").write_text(WORKER)
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
    ]
    done = subprocess.run(
        [
            *launch,
            "--dynamo_backend",
            "no",
            str(tmp_path / "worker.py"),
            str(tmp_path / "configs.json"),
            str(tmp_path / "two"),
        ],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name, config in configs.items():
        one, two = run(config, tmp_path / "one" / name), RunFolder.open(tmp_path / "two" / name)
        assert two.status()["state"] == "done"
        assert two.env()["processes"] == 2
        # gradients are summed in another order, and Adam makes the most of it
        assert first_difference(two.rows(), one.rows(), 5e-4)[0] is None, name
        assert first_difference(two.rows()[:1], one.rows()[:1], 2e-5)[0] is None, name
        weights = [
            load_file(folder.checkpoints()[-1] / "adapter_model.safetensors")
            for folder in (one, two)
        ]
        assert (
            max(float((weights[0][key] - weights[1][key]).abs().max()) for key in weights[0]) < 5e-4
        )
        assert two.sample_steps() == one.sample_steps()
        for step in one.sample_steps():
            assert (
                two.samples(step)["completion"].tolist() == one.samples(step)["completion"].tolist()
            )


def test_more_processes_than_prompts_are_refused(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "count", lambda: 3)
    monkeypatch.setattr(distributed, "from_first", lambda value: value)
    with pytest.raises(
        ValueError,
        match="3 processes share the prompts of a step: use --set prompts_per_step=3 or more",
    ):
        run(tiny(prompts_per_step=2), tmp_path / "run")
