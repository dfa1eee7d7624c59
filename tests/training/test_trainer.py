"""What one step computes, and that nothing outside a run can disturb it."""

import json
import threading
import zlib
from types import SimpleNamespace

import pytest
import torch

from rlkd_lab.models import Sequences, loading
from rlkd_lab.runs import RunFolder, first_difference
from rlkd_lab.tasks import ArithmeticTask, Example, Score
from rlkd_lab.training import replay, run
from rlkd_lab.training.samples import Rollout, joined
from rlkd_lab.training.scoring import teacher_weight
from rlkd_lab.training.token_stats import PASS_COST, micro_batches

ONE_UPDATE = {"steps": 1, "updates_per_rollout": 1}


@pytest.fixture
def coin(monkeypatch):
    """Rewards by a hash of the completion: every group has a spread, whatever the embedded
    student can do.
    """
    monkeypatch.setattr(
        ArithmeticTask,
        "score",
        lambda self, text, example: Score(
            {"format": zlib.crc32(text.encode()) % 7 / 6, "accuracy": 0.0}
        ),
    )


@pytest.fixture
def half(monkeypatch):
    """The same on about half of the prompts; on the others nobody is ever rewarded."""

    def score(self, text, example):
        return Score(
            {
                "format": zlib.crc32(text.encode())
                % 7
                / 6
                * (zlib.crc32(example.prompt.encode()) % 2),
                "accuracy": 0.0,
            }
        )

    monkeypatch.setattr(ArithmeticTask, "score", score)


@pytest.fixture
def gradients(monkeypatch):
    """The gradient of every optimizer step of a run, as one vector each."""
    seen = []
    clip = torch.nn.utils.clip_grad_norm_

    def record(parameters, limit):
        seen.append(torch.cat([p.grad.flatten().clone() for p in parameters]))
        return clip(parameters, limit)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", record)
    return seen


# --- the same numbers again -----------------------------------------------------------------------


def test_the_same_seed_gives_the_same_rows_whatever_the_global_stream_does(trained, tiny, tmp_path):
    expected = trained("kdrl").rows()
    before = torch.random.get_rng_state()
    torch.manual_seed(12345)
    stop = threading.Event()
    started = threading.Event()

    def another_cell():
        while not stop.is_set():
            torch.rand(1000)
            started.set()

    noise = threading.Thread(target=another_cell)
    noise.start()
    started.wait()
    try:
        again = run(tiny("kdrl"), tmp_path / "again").rows()
    finally:
        stop.set()
        noise.join()
        torch.random.set_rng_state(before)
    assert first_difference(again, expected) == (None, 0.0)


def test_a_run_leaves_the_global_stream_alone(tiny, tmp_path):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    run(tiny("kdrl", steps=1), tmp_path / "run")
    assert torch.equal(torch.rand(3), expected)


def test_another_seed_gives_another_run(trained):
    first, other = trained("kdrl").rows()[0], trained("kdrl", seed=1).rows()[0]
    # at step 1 the adapter is still silent, so a difference here is one of prompts and sampling
    assert first["entropy"] != other["entropy"]


def test_every_step_draws_anew(tiny, tmp_path):
    folder = run(tiny("kdrl", {"learning_rate": "0"}, samples_every=1), tmp_path / "run")
    assert folder.samples(1)["prompt"].tolist() != folder.samples(2)["prompt"].tolist()
    assert folder.samples(1)["completion"].tolist() != folder.samples(2)["completion"].tolist()


@pytest.mark.parametrize("settings", [{"gradient_checkpointing": True}, {"dense_copy": False}])
def test_memory_and_speed_settings_change_no_result(trained, settings):
    plain, other = (
        trained("kdrl", **ONE_UPDATE).rows()[0],
        trained("kdrl", **ONE_UPDATE, **settings).rows()[0],
    )
    for name in ("reward", "completions/mean_length", "num_tokens"):
        assert other[name] == plain[name]
    for name in ("loss/policy", "loss/kd", "grad_norm", "kl_teacher_rev", "entropy"):
        assert other[name] == pytest.approx(plain[name], rel=1e-3, abs=1e-5)


def test_the_hf_engine_trains_too(trained):
    row = trained("kdrl", engine="hf").rows()[-1]
    assert "sampling/logp_difference_mean" not in row
    assert row["grad_norm"] > 0


def test_continuous_batching_trains_too_and_replays(tiny, tmp_path):
    folder = run(tiny("kdrl", engine="continuous", steps=2), tmp_path / "run")
    row = folder.rows()[-1]
    assert row["sampling/logp_difference_max"] < 1e-3
    assert row["grad_norm"] > 0
    assert replay(folder.path, tmp_path / "again").difference is None


def test_in_float16_a_mean_over_a_million_tokens_loses_no_gradient(
    tiny, tmp_path, coin, gradients, monkeypatch
):
    monkeypatch.setattr(loading, "compute_dtype", lambda device: torch.float16)
    for length in (10**3, 10**6):
        run(
            tiny(
                "dr_grpo",
                {"constant_length": str(length)},
                samples_every=0,
                dense_copy=False,
                **ONE_UPDATE,
            ),
            tmp_path / str(length),
        )
    short, long = gradients
    assert float(short.norm()) > 0
    assert float((1000 * long - short).norm() / short.norm()) < 0.01


LYING = """
import torch
from rlkd_lab.rollouts import ENGINES

def lying(request):
    ids, logps = ENGINES["fast"](request)
    return ids, logps - 0.5

def silent(request):
    return ENGINES["fast"](request)[0], None
"""


def test_an_engine_that_does_not_sample_the_policy_is_refused_unless_it_is_corrected_for(
    tiny, tmp_path, coin
):
    path = tmp_path / "engines.py"
    path.write_text(LYING)
    engine = f"{path}:lying"
    with pytest.raises(
        ValueError,
        match=r"engines.py:lying does not sample the policy.* differ by 0\.5 nats; correct for it"
        r" with --set importance_cap=2",
    ):
        run(tiny("grpo", engine=engine, **ONE_UPDATE), tmp_path / "refused")
    with pytest.raises(
        ValueError, match=r"importance_cap cannot act: the engine .*silent does not say"
    ):
        run(
            tiny("grpo", {"importance_cap": "2"}, engine=f"{path}:silent", **ONE_UPDATE),
            tmp_path / "silent",
        )
    rows = [
        run(
            tiny("grpo", {"importance_cap": cap}, engine=engine, samples_every=0, **ONE_UPDATE),
            tmp_path / cap,
        ).rows()[0]
        for cap in ("1.25", "2")
    ]
    plain = run(tiny("grpo", samples_every=0, **ONE_UPDATE), tmp_path / "plain").rows()[0]
    assert rows[0]["sampling/logp_difference_mean"] == pytest.approx(0.5, abs=1e-3)
    # every token's weight is min(e^0.5, cap): 1.25 and 1.6487
    assert [row["grad_norm"] / plain["grad_norm"] for row in rows] == pytest.approx(
        [1.25, 1.6487], rel=1e-3
    )


@pytest.mark.parametrize("method", ["kdrl", "rlsd", "gkd"])
def test_looking_at_the_whole_rollout_first_changes_no_result(tiny, tmp_path, method):
    # with recorded samples the old policy, teacher and reference have a pass of their own; without,
    # the first update's forward is that pass
    fields = {"on_policy_frac": 1.0} if method == "gkd" else {}
    merged = run(tiny(method, **fields), tmp_path / "merged").rows()
    apart = run(tiny(method, samples_every=1, **fields), tmp_path / "apart").rows()
    # the same products in micro-batches cut elsewhere (rows without gradient are apart), or through
    # another forward of the teacher, round differently
    tolerance = 0.0 if method == "kdrl" else 1e-5
    difference, largest = first_difference(apart, merged, tolerance)
    assert difference is None
    assert largest <= tolerance
    assert all("time/old" in row for row in apart)


def test_rows_without_gradient_are_left_out_of_the_backward_pass_and_nothing_else(
    tiny, tmp_path, half, gradients, monkeypatch
):
    fields = {"group_size": 4, "prompts_per_step": 6, "difficulty": (1, 3), "student": "student"}
    skipped = run(tiny("grpo", **fields), tmp_path / "skipped").rows()
    monkeypatch.setattr(
        "rlkd_lab.training.update.idle_rows",
        lambda name, batch, *_: torch.zeros(len(batch.logps), dtype=torch.bool),
    )
    whole = run(tiny("grpo", **fields), tmp_path / "whole").rows()
    assert 0 < skipped[0]["frac_reward_zero_std"] < 1
    assert first_difference(skipped, whole, tolerance=1e-5)[0] is None
    for mine, theirs in zip(gradients[:4], gradients[4:], strict=True):
        assert float((mine - theirs).norm()) < 1e-4 * float(theirs.norm())


def test_a_rollout_without_any_spread_still_steps(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(
        ArithmeticTask, "score", lambda self, text, example: Score({"format": 0.0, "accuracy": 0.0})
    )
    rows = run(tiny("grpo"), tmp_path / "run").rows()
    assert [row["grad_norm"] for row in rows] == [0.0, 0.0]
    assert rows[0]["frac_reward_zero_std"] == 1.0


@pytest.mark.parametrize("micro_batch", [1, 3, 16])
def test_micro_batches_hold_all_rows_once_within_their_limit(micro_batch):
    lengths = torch.randint(1, 90, (40,), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(90) < lengths[:, None]).long()
    sequences = Sequences(
        torch.ones(40, 7).long(), torch.ones(40, 7).long(), torch.ones_like(mask), mask
    )
    rows = torch.arange(40)[5:]
    cut = micro_batches(sequences, rows, micro_batch)
    assert sorted(torch.cat(cut).tolist()) == rows.tolist()
    computed = [len(part) * (7 + int(lengths[part].max())) for part in cut]
    assert max(computed) <= micro_batch * (7 + int(lengths.max()))
    padding = sum(computed) - int((lengths[rows] + 7).sum())
    assert padding <= PASS_COST * len(cut)
    assert micro_batches(sequences, torch.tensor([], dtype=torch.long), micro_batch) == []


# --- dynamic sampling -----------------------------------------------------------------------------


def test_dynamic_sampling_draws_until_the_batch_is_full_of_groups_with_a_spread(
    tiny, tmp_path, half
):
    fields = {
        "group_size": 4,
        "prompts_per_step": 3,
        "difficulty": (1, 3),
        "samples_every": 1,
        "steps": 1,
    }
    folder = run(tiny("dapo", resample_rounds=20, **fields), tmp_path / "full")
    (row,) = folder.rows()
    samples = folder.samples(1)
    assert len(samples) == 12
    assert (samples.groupby("group")["reward"].std() > 0).all()
    assert 1 < row["sampling/rounds"] <= 20
    assert 0 < row["sampling/groups_with_spread"] < 1
    # what was thrown away was sampled too
    assert row["num_tokens"] > sum(len(ids) for ids in samples["ids"])
    # reward and lengths are those of the first rollout, before anything was selected: GRPO's on the
    # same prompts
    plain = run(tiny("grpo", **fields), tmp_path / "plain").rows()[0]
    for name in (
        "reward",
        "frac_reward_zero_std",
        "completions/mean_length",
        "completions/clipped_ratio",
    ):
        assert row[name] == plain[name], name
    # a limit of one round is no resampling
    (single,) = run(tiny("dapo", resample_rounds=1, **fields), tmp_path / "single").rows()
    assert single["sampling/rounds"] == 1.0
    assert single["num_tokens"] == plain["num_tokens"]


def test_dynamic_sampling_gives_up_after_its_rounds(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(
        ArithmeticTask, "score", lambda self, text, example: Score({"format": 0.0, "accuracy": 0.0})
    )
    (row,) = run(tiny("dapo", resample_rounds=3, steps=1), tmp_path / "run").rows()
    assert row["sampling/rounds"] == 3.0
    assert row["sampling/groups_with_spread"] == 0.0
    assert row["grad_norm"] == 0.0


def test_rejection_sampling_trains_on_right_traces_alone(trained):
    import pyarrow.parquet as pq

    kept = pq.read_table(trained("rft").path / "traces.parquet").to_pylist()
    assert 0 < len(kept) < 24
    assert all(row["correct"] for row in kept)


def test_rollouts_of_different_widths_are_joined_row_by_row():
    def rollout(texts, prompt_width, width):
        rows = len(texts)
        prompts, mask = (
            torch.zeros(rows, prompt_width, dtype=torch.long),
            torch.zeros(rows, prompt_width, dtype=torch.long),
        )
        ids, kept, logps = (
            torch.zeros(rows, width, dtype=torch.long),
            torch.zeros(rows, width, dtype=torch.long),
            torch.zeros(rows, width),
        )
        for row, text in enumerate(
            texts
        ):  # text "ab": a is the length of the prompt, b that of the completion, and what they hold
            prompts[row, prompt_width - int(text[0]) :] = 10 + int(text[0])
            mask[row, prompt_width - int(text[0]) :] = 1
            ids[row, : int(text[1])], kept[row, : int(text[1])], logps[row, : int(text[1])] = (
                10 + int(text[1]),
                1,
                -float(text[1]),
            )
        examples = [Example(text, text, 0, text) for text in texts]
        return Rollout(
            examples,
            texts,
            Sequences(prompts, mask, ids, kept),
            logps,
            torch.tensor([text[1] == "2" for text in texts]),
            on_policy=True,
        )

    whole = joined(
        [rollout(["21", "32"], 3, 2), rollout(["51", "14"], 5, 4)], torch.tensor([3, 0, 1]), pad=7
    )
    assert whole.texts == [example.prompt for example in whole.examples] == ["14", "21", "32"]
    for row, (prompt, completion) in enumerate([(1, 4), (2, 1), (3, 2)]):
        part = whole.sequences.select(torch.tensor([row]))
        assert part.prompt_ids.tolist() == [
            [10 + prompt] * prompt
        ]  # nothing but the prompt is left, so the padding was on its left
        kept = part.completion_mask[0].bool()
        assert part.completion_ids[0][kept].tolist() == [10 + completion] * completion
        assert kept.tolist() == [True] * completion + [False] * (4 - completion)
        assert whole.sampler_logps[row][kept].tolist() == [-float(completion)] * completion
    assert whole.finished.tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("every", "measured"), [(0, [True, False, False, False]), (2, [True, True, False, True])]
)
def test_kls_that_the_method_does_not_need_are_measured_every_so_often(
    tiny, tmp_path, every, measured
):
    rows = run(tiny("grpo", steps=4, kl_every=every), tmp_path / "run").rows()
    if every == 0:
        measured = [False] * 4
    for name in ("kl_ref", "kl_teacher_rev", "kl_teacher_fwd_t1", "time/teacher"):
        assert [name in row for row in rows] == measured
    # and whether one looks does not change what is trained
    looked = run(tiny("grpo", steps=4), tmp_path / "looked").rows()
    assert [row["grad_norm"] for row in rows] == [row["grad_norm"] for row in looked]


# --- how a rollout is cut into pieces -------------------------------------------------------------


# TRRD has shares that are not 0 at the first update already, and completions of different lengths
# weigh differently in them
@pytest.mark.parametrize("method", ["trrd", "kdrl", "gkd"])
def test_micro_batches_change_nothing_but_memory(tiny, tmp_path, coin, gradients, method):
    rows = []
    for micro_batch in (8, 3, 1):
        folder = run(
            tiny(method, group_size=4, micro_batch=micro_batch, on_policy_frac=1.0, **ONE_UPDATE),
            tmp_path / str(micro_batch),
        )
        rows.append(folder.rows()[0])
    whole, *parts = rows
    assert whole.get("trrd/bound_frac", 1) > 0
    assert len(gradients) == 3
    assert gradients[0].norm() > 0
    for part, gradient in zip(parts, gradients[1:], strict=True):
        torch.testing.assert_close(
            gradient, gradients[0], rtol=1e-3, atol=1e-5 * float(gradients[0].norm())
        )
        assert part["reward"] == whole["reward"]
        for name, value in whole.items():
            if name.startswith(("loss/", "kl_", "grad_norm", "entropy", "clip_ratio", "trrd/")):
                assert part[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name


@pytest.mark.parametrize("minibatches", [2, 16])
def test_minibatches_have_the_gradient_of_the_whole_on_average(
    tiny, tmp_path, coin, gradients, minibatches
):
    still = {"learning_rate": "0"}  # so that every minibatch sees the same policy
    whole = run(tiny("kdrl", still, group_size=4, **ONE_UPDATE), tmp_path / "whole").rows()[0]
    cut = run(
        tiny("kdrl", still, group_size=4, minibatches=minibatches, **ONE_UPDATE), tmp_path / "cut"
    ).rows()[0]
    expected, *pieces = gradients
    assert len(pieces) == min(minibatches, 8)  # at most one a completion
    torch.testing.assert_close(
        sum(pieces) / len(pieces), expected, rtol=1e-3, atol=1e-5 * float(expected.norm())
    )
    assert cut["loss/policy"] == pytest.approx(whole["loss/policy"], abs=1e-5)
    assert cut["loss/kd"] == pytest.approx(whole["loss/kd"], rel=1e-4)
    assert cut["kl_ref"] == pytest.approx(whole["kl_ref"], abs=1e-6)


def test_minibatches_are_drawn_anew_in_every_pass(tiny, tmp_path, gradients):
    run(
        tiny(
            "kdrl",
            {"learning_rate": "0"},
            group_size=4,
            minibatches=2,
            updates_per_rollout=2,
            steps=1,
        ),
        tmp_path / "run",
    )
    assert len(gradients) == 4
    assert not torch.allclose(gradients[0], gradients[2])
    torch.testing.assert_close(
        gradients[0] + gradients[1],
        gradients[2] + gradients[3],
        rtol=1e-3,
        atol=1e-5 * float(gradients[0].norm()),
    )


# --- on-policy, temperature, reference ------------------------------------------------------------


def test_the_first_update_is_on_policy(tiny, tmp_path, coin):
    row = run(
        tiny("grpo", {"clip_low": "0.0001", "clip_high": "0.0001"}, group_size=4, **ONE_UPDATE),
        tmp_path / "run",
    ).rows()[0]
    assert row["clip_ratio/low"] == row["clip_ratio/high"] == 0  # the ratio is 1 to 1e-4
    assert abs(row["loss/policy"]) < 1e-5  # the advantages of a group sum to 0
    assert row["grad_norm"] > 0.01
    assert row["reward_std"] > 0


def test_the_second_update_is_not(tiny, tmp_path, coin):
    settings = {"clip_low": "0.0001", "clip_high": "0.0001", "learning_rate": "0.01"}
    row = run(
        tiny("grpo", settings, group_size=4, steps=1, updates_per_rollout=2), tmp_path / "run"
    ).rows()[0]
    assert row["clip_ratio/low"] + row["clip_ratio/high"] > 0.1


def test_statistics_of_updates_are_means_over_the_updates(tiny, tmp_path, coin):
    """With a step size of 0 both passes are the same, so two passes give the numbers of one."""
    still = {"learning_rate": "0"}
    one = run(tiny("kdrl", still, **ONE_UPDATE), tmp_path / "one").rows()[0]
    two = run(tiny("kdrl", still, steps=1, updates_per_rollout=2), tmp_path / "two").rows()[0]
    for name in ("loss/policy", "loss/kd", "grad_norm", "kl_ref", "clip_ratio/low"):
        assert two[name] == pytest.approx(one[name], rel=1e-4, abs=1e-6), name


def test_kl_is_reported_at_the_sampling_temperature_and_at_one(trained):
    for row in trained("kdrl").rows():
        assert row["kl_teacher_rev"] == row["kl_teacher_rev_t1"]
        assert row["kl_teacher_fwd"] == row["kl_teacher_fwd_t1"]
    row = trained("kdrl", {"temperature": "0.6"}, steps=1).rows()[0]
    assert abs(row["kl_teacher_rev"] - row["kl_teacher_rev_t1"]) > 1e-4
    assert abs(row["kl_teacher_fwd"] - row["kl_teacher_fwd_t1"]) > 1e-4
    assert (
        row["sampling/logp_difference_max"] < 1e-3
    )  # sampler and training forward divide by the same temperature
    assert row["coef/temperature"] == 0.6


def test_the_reference_pulls_back_once_the_policy_has_moved(tiny, tmp_path, coin, gradients):
    fields = {"group_size": 4, "steps": 1, "updates_per_rollout": 2}
    run(tiny("grpo", **fields), tmp_path / "free")
    run(tiny("grpo", {"kl_coef": "1"}, **fields), tmp_path / "held")
    free_first, free_second, held_first, held_second = gradients
    torch.testing.assert_close(
        held_first, free_first
    )  # at the start policy and reference are one, so the gradient between them is 0
    assert float((held_second - free_second).norm()) > 0.01 * float(free_second.norm())


# --- the teacher's forms --------------------------------------------------------------------------


def test_the_exact_divergence_in_place_of_the_estimate(trained):
    row = trained("kdrl", {"estimator": "exact", "learning_rate": "0"}, **ONE_UPDATE).rows()[0]
    assert row["loss/kd"] == pytest.approx(0.1 * row["kl_teacher_rev"], rel=1e-3)


def test_gkd_with_topk_is_below_the_whole_and_above_zero(trained):
    settings = {"divergence": "reverse", "learning_rate": "0"}
    whole, coarse = (
        trained("gkd", {**settings, **more}, on_policy_frac=1.0, **ONE_UPDATE).rows()[0]
        for more in ({}, {"topk": "2"})
    )
    assert whole["loss/kd"] == pytest.approx(whole["kl_teacher_rev"], rel=1e-2)
    assert 0 < coarse["loss/kd"] < whole["loss/kd"] * 1.001
    assert coarse["kl_teacher_rev"] == whole["kl_teacher_rev"]  # the metric is always the exact one


def test_without_a_teacher(trained):
    rows = trained("grpo", {"teacher": "off"}).rows()
    assert not any(name.startswith(("kl_teacher", "time/teacher")) for row in rows for name in row)
    assert all("reward" in row for row in rows)


def test_the_teacher_is_not_heard_at_an_end_it_would_write_otherwise():
    ids = torch.tensor([[5, 1, 0], [5, 9, 1]])
    sequences = Sequences(ids, ids, ids, torch.tensor([[1, 1, 0], [1, 1, 1]]))

    def weight(ours, theirs):
        eos = SimpleNamespace(eos_ids=frozenset(theirs or ()))
        teacher = SimpleNamespace(own=eos, reader=None)
        models = SimpleNamespace(
            policy=SimpleNamespace(eos_ids=frozenset(ours)),
            teachers=() if theirs is None else (teacher,),
        )
        return teacher_weight(SimpleNamespace(models=models), sequences)

    assert weight({1}, {1}) is None
    assert weight({1}, {1, 9}) is None
    assert weight({1}, None) is None
    assert weight({1}, {9}).tolist() == [[1, 0, 1], [1, 1, 0]]
    assert weight({1, 9}, {1}).tolist() == [[1, 1, 1], [1, 0, 1]]


def test_the_weight_reaches_the_loss(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "rlkd_lab.training.scoring.teacher_weight",
        lambda setup, sequences: torch.zeros(sequences.completion_ids.shape),
    )
    row = run(tiny("kdrl", **ONE_UPDATE), tmp_path / "run").rows()[0]
    assert row["loss/kd"] == 0
    assert row["kl_teacher_rev"] > 0


# --- completions that the limit cut ---------------------------------------------------------------


@pytest.mark.parametrize("method", ["kdrl", "grpo", "trrd"])
def test_nothing_is_learned_where_every_completion_is_masked(trained, method):
    rows = trained(method, max_new_tokens=2, mask_truncated=True).rows()
    for row in rows:
        if row["completions/clipped_ratio"] < 1:
            pytest.skip("this student answers in one token")
        assert row["loss/policy"] == 0
        assert row.get("loss/kd", 0) == 0
        assert row["grad_norm"] == 0
        assert row["reward"] == 0
        assert row["kl_ref"] == pytest.approx(0, abs=1e-9)


def test_truncated_completions_are_in_the_loss_unless_asked(trained):
    assert trained("kdrl", max_new_tokens=2).rows()[0]["loss/kd"] > 0


# --- data -----------------------------------------------------------------------------------------


def operations(prompt):
    return prompt.count("+") + prompt.count("-")


@pytest.mark.parametrize("method", ["kdrl", "sft"])
def test_prompts_are_of_the_difficulty_asked_for(tiny, tmp_path, method):
    folder = run(tiny(method, steps=1, samples_every=1, difficulty=(3, 3)), tmp_path / "run")
    assert {operations(prompt) for prompt in folder.samples()["prompt"]} == {3}


def test_samples_hold_what_each_model_thought_of_each_token(tiny, tmp_path):
    folder = run(tiny("kdrl", samples_every=2, group_size=3, steps=3), tmp_path / "run")
    assert folder.sample_steps() == folder.sample_steps("probe") == [1, 2]
    table = folder.samples(1)
    metrics = folder.rows()[0]
    for name in (
        "entropy",
        "kl_teacher_rev",
        "kl_teacher_fwd",
    ):  # the row's mean is over the same tokens
        values = [value for row in table[name] for value in row]
        assert sum(values) / len(values) == pytest.approx(metrics[name], abs=1e-5)
    parts = [json.loads(text) for text in table["parts"]]
    assert sum(part["accuracy"] for part in parts) / len(parts) == pytest.approx(
        metrics["accuracy"]
    )
    assert table["group"].tolist() == [0, 0, 0, 1, 1, 1]
    for row in table.itertuples():
        assert (
            len(row.ids)
            == len(row.tokens)
            == len(row.logps)
            == len(row.teacher_logps)
            == len(row.ref_logps)
        )
        assert (row.logps == row.ref_logps).all() or abs(
            row.logps - row.ref_logps
        ).max() < 1e-4  # step 1: no update yet
        assert row.finished == (row.ids[-1] == 1)
    assert table["reward"].mean() == pytest.approx(folder.rows()[0]["reward"])
    detailed = table["top_ids"].notna()
    assert detailed.tolist() == [True, False, False, True, False, False]
    for row in (table.iloc[0], table.iloc[3]):
        assert len(row["top_ids"]) == len(row["teacher_top_logps"]) == len(row["ids"])
        for mine, taken, values, likeliest in (
            ("", row["ids"], row["logps"], row["top_ids"]),
            ("teacher_", row["ids"], row["teacher_logps"], row["teacher_top_ids"]),
        ):
            for column, token in enumerate(taken):
                if token in likeliest[column]:
                    place = list(likeliest[column]).index(token)
                    assert row[f"{mine}top_logps"][column][place] == pytest.approx(
                        values[column], abs=1e-4
                    )


def test_the_probe_changes_with_the_policy_alone(tiny, tmp_path):
    still = run(tiny("kdrl", {"learning_rate": "0"}, samples_every=1), tmp_path / "still")
    first, second = (still.samples(step, "probe") for step in (1, 2))
    assert len(first) == 4
    assert first["completion"].tolist() == second["completion"].tolist()
    assert first["top_ids"].notna().all()
    moved = run(tiny("kdrl", {"learning_rate": "0.01"}, samples_every=1), tmp_path / "moved")
    assert moved.samples(2, "probe")["prompt"].tolist() == first["prompt"].tolist()
    assert moved.samples(2, "probe")["logps"].iloc[0].tolist() != first["logps"].iloc[0].tolist()
    # and it disturbs nothing
    assert (
        first_difference(
            moved.rows(),
            run(tiny("kdrl", {"learning_rate": "0.01"}), tmp_path / "silent").rows(),
            1e-4,
        )[0]
        is None
    )


def test_lengths_are_split_into_working_checking_and_truncated(tiny, tmp_path):
    row = run(
        tiny(
            "grpo",
            prompts_per_step=8,
            max_new_tokens=40,
            difficulty=(1, 3),
            steps=1,
            samples_every=1,
            student="teacher",
        ),
        tmp_path / "run",
    )
    table, metrics = row.samples(1), row.rows()[0]
    assert 0 < table["finished"].mean() < 1
    cut = [len(r.ids) * (not r.finished) for r in table.itertuples()]
    check = [
        len(r.completion.split("!")[1].split("#")[0]) + 1
        if r.finished and "!" in r.completion
        else 0
        for r in table.itertuples()
    ]
    assert metrics["completions/length_truncated"] == pytest.approx(sum(cut) / len(cut))
    assert metrics["completions/length_checking"] == pytest.approx(sum(check) / len(check))
    assert sum(check) > 0
    parts = sum(
        metrics[f"completions/length_{name}"] for name in ("working", "checking", "truncated")
    )
    assert parts == pytest.approx(metrics["completions/mean_length"])


def test_the_sample_estimates_stand_beside_the_exact_divergence(trained):
    folder = trained("kdrl", steps=1, group_size=8, max_new_tokens=40, samples_every=1)
    row, table = folder.rows()[0], folder.samples(1)
    ours, theirs = (
        torch.tensor([value for values in table[name] for value in values])
        for name in ("logps", "teacher_logps")
    )
    gap = theirs - ours
    assert row["kl_teacher_k1"] == pytest.approx(float(-gap.mean()), abs=1e-4)
    assert row["kl_teacher_k2"] == pytest.approx(float(gap.square().mean() / 2), rel=1e-4)
    assert row["kl_teacher_k3"] == pytest.approx(float((gap.exp() - gap - 1).mean()), abs=1e-4)


def test_evaluation_comes_every_few_steps_and_at_the_end(trained):
    rows = trained("kdrl", steps=3, eval_every=2, eval_prompts=8).rows()
    assert [("eval/accuracy" in row, "eval/accuracy_ood" in row) for row in rows] == [
        (False, False),
        (True, True),
        (True, True),
    ]
    for row in rows[1:]:
        for suffix in ("", "_ood"):
            assert 0 <= row[f"eval/accuracy{suffix}"] <= 1
            assert 0 <= row[f"eval/truncated{suffix}"] <= 1 - row[f"eval/accuracy{suffix}"]
        assert row["eval/mean_length"] <= 24
    # neither how often a run is evaluated changes it, nor on what
    silent = trained("kdrl", steps=3).rows()
    assert first_difference(
        [{k: v for k, v in row.items() if not k.startswith("eval/")} for row in rows], silent
    ) == (None, 0.0)
    easy = trained("kdrl", steps=3, eval_every=2, eval_prompts=8, eval_ood=False).rows()
    assert first_difference(
        [{k: v for k, v in row.items() if not k.endswith("_ood")} for row in rows], easy
    ) == (None, 0.0)


def test_every_evaluation_has_the_same_prompts_and_stream(trained):
    """Nothing is learned at a step size of 0, so nothing moves but the noise there must not be."""
    first, second = trained("kdrl", {"learning_rate": "0"}, eval_every=1).rows()
    names = [name for name in first if name.startswith("eval/")]
    assert len(names) == 6
    assert [first[name] for name in names] == [second[name] for name in names]


def test_evaluation_sees_the_policy_as_it_is_after_the_step(tiny, tmp_path):
    from rlkd_lab.training import evaluate

    seen = {}

    def watch(loop, row):
        seen["row"] = row["eval/mean_length"]
        seen["direct"] = evaluate(
            loop.policy,
            loop.trainer.setup.models.task,
            8,
            difficulty=(2, 2),
            max_new_tokens=24,
        ).length

    run(
        tiny("opd", {"learning_rate": "0.05"}, steps=1, eval_every=1),
        tmp_path / "run",
        on_step=watch,
    )
    assert seen["row"] == pytest.approx(seen["direct"])


# --- failures -------------------------------------------------------------------------------------


def poison(loop, row):
    with torch.no_grad():
        loop.policy.trainable()[0].fill_(float("nan"))


@pytest.mark.parametrize("method", ["kdrl", "sft"])
def test_a_run_that_diverged_says_so(tiny, tmp_path, method):
    with pytest.raises(FloatingPointError, match="learning_rate"):
        run(tiny(method, steps=3), tmp_path / "run", on_step=poison)

    folder = RunFolder.open(tmp_path / "run")
    assert folder.status()["state"] == "failed"
    assert "FloatingPointError" in folder.status()["why"]
    assert [row["step"] for row in folder.rows()] == [1]


@pytest.mark.parametrize("method", ["kdrl", "sft"])
def test_an_absurd_step_size_ends_in_words_or_in_finite_numbers(tiny, tmp_path, method):
    try:
        run(tiny(method, {"learning_rate": "1"}, steps=4), tmp_path / "run")
    except FloatingPointError as error:
        assert "learning_rate" in str(error)  # noqa: PT017


def test_an_exception_in_a_callback_is_in_the_status_and_raised(tiny, tmp_path):

    def fail(loop, row):
        raise RuntimeError("the cat sat on the keyboard")

    with pytest.raises(RuntimeError, match="the cat"):
        run(tiny("kdrl"), tmp_path / "run", on_step=fail)
    status = RunFolder.open(tmp_path / "run").status()
    assert (status["state"], status["step"]) == ("failed", 1)
    assert status["why"] == "RuntimeError: the cat sat on the keyboard"


def test_stopping_from_a_callback_ends_after_the_step(tiny, tmp_path):
    def stop(loop, row):
        loop.stopping = True

    folder = run(tiny("kdrl"), tmp_path / "run", on_step=stop)
    assert (folder.status()["state"], len(folder.rows())) == ("idle", 1)


def test_likely_mistakes_are_events_and_warnings(tiny, tmp_path):
    with pytest.warns(UserWarning, match="top_p"):
        folder = run(tiny("kdrl", steps=1, top_p=0.9), tmp_path / "run")
    assert [(row["event"], row["step"]) for row in folder.rows("events.jsonl")] == [
        ("warning", 0),
        ("selfcheck", 0),
    ]
    assert not folder.touched


@pytest.mark.parametrize(
    ("fields", "error", "says"),
    [
        ({"student": "studnet"}, FileNotFoundError, "no model 'studnet'"),
        ({"teacher": "theacher"}, FileNotFoundError, "no model 'theacher'"),
        ({"max_new_tokens": 100_000}, ValueError, "do not fit the context"),
        ({"difficulty": (5, 2)}, ValueError, "difficulty"),
        ({"adapter": "nowhere"}, FileNotFoundError, "adapter"),
    ],
)
def test_what_only_loading_can_find_leaves_nothing(tiny, tmp_path, fields, error, says):
    with pytest.raises(error, match=says):
        run(tiny("kdrl", **fields), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_that_the_first_step_finds_leaves_nothing(tiny, tmp_path):
    with pytest.raises(ValueError, match="top-k"):
        run(tiny("kdrl", {"estimator": "exact", "topk": "1000"}), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_refused_before_any_model_is_loaded(tiny, tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").touch()
    monkeypatch.setattr(
        "rlkd_lab.training.models.load_policy", lambda *a, **k: pytest.fail("loaded")
    )
    with pytest.raises(FileExistsError):
        run(tiny("kdrl"), tmp_path / "run")


# --- going on from an adapter ---------------------------------------------------------------------


def test_a_warm_start_has_the_adapter_it_started_from_as_its_reference(trained, tiny, tmp_path):
    (start,) = trained("kdrl", {"learning_rate": "0.01"}).checkpoints()
    row = run(tiny("kdrl", adapter=str(start), **ONE_UPDATE), tmp_path / "run").rows()[0]
    cold = trained("kdrl", **ONE_UPDATE).rows()[0]
    assert row["kl_ref"] == pytest.approx(0, abs=1e-5)
    assert row["kl_teacher_rev"] != pytest.approx(
        cold["kl_teacher_rev"], rel=1e-3
    )  # and it did start there
