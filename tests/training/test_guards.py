"""Numbers that go wrong: seen, said with a remedy, and dealt with as declared."""

import math
import threading
import time

import pytest
import torch

from rlkd_lab.runs import RunFolder, first_difference
from rlkd_lab.training import make_config, replay, resume, run, update
from rlkd_lab.training.folders import create
from rlkd_lab.training.guards import GUARDS, MANY, Guards, declared
from rlkd_lab.training.token_stats import TokenStats
from rlkd_lab.training.trainer import Trainer

NAN, INF = float("nan"), float("inf")


def events(folder, kind="guard"):
    return [event for event in folder.rows("events.jsonl") if event["event"] == kind]


@pytest.fixture
def teacher_says(monkeypatch):
    """``teacher_says(value, steps)``: in these steps the teacher gives the first token of every
    completion that log-probability.
    """

    def make(value, steps, name="teacher_logps"):
        add, now = TokenStats.add, []

        def spoilt(self, rows, mask, found):
            if name in found and now[-1] in steps:
                values = found[name].clone()
                values[0] = value
                found = {**found, name: values}
            add(self, rows, mask, found)

        step = Trainer.step

        def take_step(self, context, *rest):
            now.append(context.progress.step + 1)
            return step(self, context, *rest)

        monkeypatch.setattr(Trainer, "step", take_step)
        monkeypatch.setattr(TokenStats, "add", spoilt)

    return make


@pytest.fixture
def gradients_say(monkeypatch):
    """``gradients_say(value, steps)``: in these steps an element of the gradient is that."""

    def make(value, steps):
        gradients = update.gradients

        def spoilt(job, *rest):
            found = gradients(job, *rest)
            if job.step.number in steps:
                job.state.parameters[0].grad.view(-1)[0] = value
            return found

        monkeypatch.setattr(update, "gradients", spoilt)

    return make


# --- before an update -----------------------------------------------------------------------------


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_gradient_that_is_not_finite_stops_the_run_before_it_reaches_the_weights(
    tiny, tmp_path, gradients_say, value
):
    gradients_say(value, {2})
    kept = []
    with pytest.raises(
        FloatingPointError, match=r"the gradient is not finite in step 2: lower learning_rate"
    ):
        run(
            tiny(steps=3),
            tmp_path / "run",
            on_step=lambda loop, row: kept.append((loop, loop.trainer.state.copy())),
        )
    folder = RunFolder.open(tmp_path / "run")
    (event,) = events(folder)
    assert {key: event[key] for key in ("step", "guard", "action", "why", "remedy")} == {
        "step": 2,
        "guard": "loss",
        "action": "stop",
        "why": "the gradient is not finite in step 2",
        "remedy": GUARDS["loss"].remedy,
    }
    assert folder.status()["state"] == "failed"
    loop, after_the_first = kept[0]
    assert all(
        torch.equal(one, other)
        for one, other in zip(loop.policy.trainable(), after_the_first.weights, strict=True)
    )


def test_skip_leaves_the_update_out_and_the_run_goes_on(tiny, tmp_path, gradients_say):
    gradients_say(NAN, {2})
    weights = {}
    folder = run(
        tiny(steps=3, guards={"loss": "skip"}, updates_per_rollout=1),
        tmp_path / "run",
        on_step=lambda loop, row: weights.update({row["step"]: loop.trainer.state.copy().weights}),
    )
    assert [row.get("guard/skipped") for row in folder.rows()] == [None, 1.0, None]
    assert folder.rows()[1]["grad_norm"] is None
    assert all(torch.equal(one, other) for one, other in zip(weights[1], weights[2], strict=True))
    assert not all(
        torch.equal(one, other) for one, other in zip(weights[2], weights[3], strict=True)
    )
    assert all(weight.isfinite().all() for weight in weights[3])
    assert [(event["step"], event["action"]) for event in events(folder)] == [(2, "skip")]


def test_a_skipped_update_is_skipped_in_a_replay_and_after_a_resume(tiny, tmp_path, gradients_say):
    gradients_say(NAN, {2})
    config = tiny(steps=4, guards={"loss": "skip"}, checkpoint_every=1)
    whole = run(config, tmp_path / "whole")
    assert replay(tmp_path / "whole", tmp_path / "again").difference is None
    cut = run(
        config,
        tmp_path / "cut",
        on_step=lambda loop, row: setattr(loop, "stopping", row["step"] == 2),
    )
    assert first_difference(resume(cut.path).rows(), whole.rows()) == (None, 0.0)
    assert len(events(cut)) == len(events(whole)) == config.updates_per_rollout


def test_guards_that_are_declared_otherwise_before_a_run_goes_on_hold_from_there_in_a_replay_too(
    tiny, tmp_path
):
    cut = run(
        tiny(steps=4, checkpoint_every=1),
        tmp_path / "cut",
        on_step=lambda loop, row: setattr(loop, "stopping", row["step"] == 2),
    )
    cut.write_json("config.json", cut.config() | {"guards": {"ratio": "skip:0"}})
    resume(cut.path)
    assert [row.get("guard/skipped") for row in cut.rows()] == [None, None, 2.0, 2.0]
    assert [
        (event["step"], event["settings"])
        for event in cut.rows("events.jsonl")
        if event["event"] == "guards"
    ] == [(2, {"ratio": "skip:0"})]
    assert replay(cut.path, tmp_path / "again").difference is None
    assert replay(tmp_path / "again", tmp_path / "and again").difference is None


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"step": "x"},
        {"settings": 3, "step": 0},
        {"settings": {"kl": 3}, "step": 0},
        {"settings": {"kl": "jump"}, "step": 0},
    ],
)
def test_an_event_of_the_guards_that_declares_nothing_is_a_sentence(event):
    with pytest.raises(ValueError, match="an event of the guards is damaged"):
        Guards({}, print, [event])


def test_skipping_does_not_go_on_for_ever(tiny, tmp_path, gradients_say):
    gradients_say(NAN, set(range(1, 99)))
    with pytest.raises(FloatingPointError, match=f"{MANY} updates in a row were left out"):
        run(tiny(steps=20, guards={"loss": "skip"}), tmp_path / "run")
    assert len(RunFolder.open(tmp_path / "run").rows()) == MANY // 2 - 1  # two updates a step


@pytest.mark.parametrize("value", [-INF, NAN])
def test_a_teacher_that_rules_a_token_out_is_named(tiny, tmp_path, teacher_says, value):
    teacher_says(value, {1})
    with pytest.raises(
        FloatingPointError,
        match=r"the teacher's log-probability of \d tokens? is −∞ or not a number in step 1:"
        r" .*teacher_quant=none",
    ):
        run(tiny(), tmp_path / "run")


def test_where_the_method_does_not_listen_to_the_teacher_it_may_say_what_it_likes(
    tiny, tmp_path, teacher_says
):
    teacher_says(-INF, {1})
    folder = run(tiny("grpo", guards={"loss": "stop"}), tmp_path / "run")
    assert not events(folder)
    assert len(folder.rows()) == 2


def test_a_log_probability_of_the_policy_that_is_not_finite_is_the_cause_that_is_named(
    tiny, tmp_path, teacher_says
):
    teacher_says(NAN, {1}, "old_logps")
    with pytest.raises(FloatingPointError, match="the policy's log-probability of"):
        run(tiny(updates_per_rollout=2), tmp_path / "run")


def test_a_ratio_that_explodes_is_said_and_can_be_skipped(tiny, tmp_path):
    """The first update of a rollout has ratio 1; a limit below that speaks at once, one below
    what the second reaches in the second.
    """
    folder = run(tiny("grpo", {"learning_rate": "0.02"}, group_size=4), tmp_path / "free")
    reached = folder.metrics()["ratio/max"].max()
    assert reached > 1.01
    folder = run(
        tiny(
            "grpo",
            {"learning_rate": "0.02"},
            group_size=4,
            guards={"ratio": f"skip:{(1 + reached) / 2}"},
        ),
        tmp_path / "bound",
    )
    assert events(folder)[0]["why"].startswith("the largest probability ratio is ")
    assert folder.metrics()["guard/skipped"].max() == 1


def test_pause_keeps_the_run_in_memory_and_it_goes_on_when_told(tiny, tmp_path, gradients_say):
    gradients_say(INF, {1})
    folder = create(
        tiny(steps=2, guards={"loss": "pause"}, updates_per_rollout=1), tmp_path / "run"
    )
    seen = []

    def press():
        while folder.status()["state"] != "paused":
            time.sleep(0.02)
        seen.append(folder.status())
        folder.ask("go_on")

    hand = threading.Thread(target=press)
    hand.start()
    with pytest.warns(UserWarning, match="paused: the gradient is not finite in step 1"):
        resume(folder.path)
    hand.join()
    assert seen[0]["step"] == 1
    assert "lower learning_rate" in seen[0]["why"]
    assert [row.get("guard/skipped") for row in folder.rows()] == [1.0, None]
    assert [
        event["event"]
        for event in folder.rows("events.jsonl")
        if event["event"] in ("guard", "paused", "went on")
    ] == ["guard", "paused", "went on"]


def test_a_fork_has_guards_of_its_own(tiny, tmp_path, monkeypatch):
    """What the twin is stopped for ends the twin; the run, whose knob was moved, goes on."""

    def spoil(loop, row):
        if row["step"] == 1:
            loop.folder.ask("twin", kind="untouched")
            loop.folder.ask("knob", knob="kd_coef", value=0.5)

    gradients = update.gradients

    def spoilt(job, *rest):
        found = gradients(job, *rest)
        if "twins" in str(job.context.folder.path) and job.step.number == 3:
            job.state.parameters[0].grad.view(-1)[0] = NAN
        return found

    monkeypatch.setattr(update, "gradients", spoilt)
    folder = run(tiny(steps=4), tmp_path / "run", on_step=spoil)
    twin = RunFolder.open(next((tmp_path / "run" / "twins").iterdir()))
    assert len(folder.rows()) == 4
    assert not events(folder)
    assert [event["guard"] for event in events(twin)] == ["loss"]


# --- after a step ---------------------------------------------------------------------------------


def watch(settings, rows):
    said = []
    guards = Guards(settings, said.append)
    for number, row in enumerate(rows, 1):
        guards.after({"step": number, **row})
    return said, guards


@pytest.mark.parametrize(
    ("guard", "bad", "good"),
    [
        ("rewards", {"frac_reward_zero_std": 1.0}, {"frac_reward_zero_std": 0.5}),
        ("entropy", {"entropy": 0.004}, {"entropy": 0.2}),
        ("kl", {"kl_ref": 3.5, "kl_teacher_rev": 0.1}, {"kl_ref": 0.1, "kl_teacher_rev": 0.1}),
        ("kl", {"kl_teacher_rev": 3.5}, {"kl_teacher_rev": 0.1}),
    ],
)
def test_a_trend_is_said_once_it_has_lasted_and_again_only_after_it_has_ceased(guard, bad, good):
    lasts = GUARDS[guard].steps
    assert watch({}, [bad] * (lasts - 1) + [good] + [bad] * (lasts - 1))[0] == []
    said, _ = watch({}, [bad] * (2 * lasts) + [good] + [bad] * lasts)
    assert [(event["guard"], event["step"]) for event in said] == [
        (guard, lasts),
        (guard, 3 * lasts + 1),
    ]
    assert said[0]["remedy"] == GUARDS[guard].remedy
    assert watch({guard: "off"}, [bad] * 50)[0] == []
    with pytest.raises(FloatingPointError, match=f"as of step {lasts}: "):
        watch({guard: "stop"}, [bad] * 50)
    assert watch({guard: "pause"}, [bad] * lasts)[1].pause is not None


def test_limits_and_steps_are_the_configs():
    assert len(watch({"kl": "warn:0.5:1"}, [{"kl_ref": 0.6}])[0]) == 1
    assert len(watch({"rewards": "warn::2"}, [{"frac_reward_zero_std": 1.0}] * 2)[0]) == 1


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_kl_that_is_no_number_is_above_every_limit(value):
    assert len(watch({"kl": "warn::1"}, [{"kl_ref": value}])[0]) == 1


def test_rows_of_an_earlier_life_count_and_are_not_said_again():
    said, guards = watch({}, [])
    guards.remember([{"step": n, "frac_reward_zero_std": 1.0} for n in range(1, 8)])
    for n in range(8, 11):
        guards.after({"step": n, "frac_reward_zero_std": 1.0})
    assert [event["step"] for event in said] == [10]
    said, guards = watch({}, [])
    guards.remember([{"step": n, "frac_reward_zero_std": 1.0} for n in range(1, 20)])
    guards.after({"step": 20, "frac_reward_zero_std": 1.0})
    assert said == []


def test_a_kl_that_runs_away_stops_the_run_after_its_row(tiny, tmp_path):
    with pytest.raises(
        FloatingPointError,
        match=r"the KL to the reference or the teacher is .* as of step 1: lower learning_rate",
    ):
        run(tiny(steps=3, guards={"kl": "stop:1e-9:1"}), tmp_path / "run")
    folder = RunFolder.open(tmp_path / "run")
    assert len(folder.rows()) == 1
    assert folder.status()["state"] == "failed"


# --- the declaration ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("lossy", "warn", "unknown guard 'lossy': the guards are loss, teacher"),
        ("kl", "halt", "'halt' is none of off, warn, pause, stop"),
        ("kl", "skip", "there is no update to skip"),
        ("kl", "warn:many", "write ACTION, ACTION:LIMIT"),
        ("kl", "warn:nan", "a finite limit"),
        ("kl", "stop:-1", "of 0 or more"),
        ("kl", "warn:1:0", "1 step or more"),
        ("kl", "warn:1:2:3", "1 step or more"),
        ("loss", "stop:3", "loss has no limit"),
    ],
)
def test_a_declaration_that_means_nothing_is_refused(name, text, says):
    with pytest.raises(ValueError, match="guard") as error:
        declared({name: text})
    assert says in str(error.value)
    with pytest.raises(ValueError, match="guard"):
        make_config("grpo", settings={f"guard.{name}": text})


def test_guards_are_settings_and_change_no_checkpoint():
    from rlkd_lab.training.fingerprint import fingerprint

    config = make_config("grpo", settings={"guard.kl": "stop:2:5", "guard.loss": "skip"})
    assert config.guards == {"kl": "stop:2:5", "loss": "skip"}
    assert fingerprint(config) == fingerprint(make_config("grpo"))
    assert declared(config.guards)["kl"] == GUARDS["kl"].__class__(
        **{**vars(GUARDS["kl"]), "action": "stop", "limit": 2.0, "steps": 5}
    )
    assert math.isfinite(declared({})["kl"].limit)
