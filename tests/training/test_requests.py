"""Requests from outside: what is asked of a loop through requests.jsonl, and when it acts."""

import json
import os
import shutil
import threading
import time

import psutil
import pytest

from rlkd_lab.runs import RunFolder, first_difference
from rlkd_lab.runs.lock import alone
from rlkd_lab.runs.tail import Tail
from rlkd_lab.training import replay, requests, resume, run, session
from rlkd_lab.training.environment import alive
from rlkd_lab.training.folders import create
from rlkd_lab.training.trainer import Trainer


@pytest.fixture
def watched(tiny, tmp_path):
    """``watched(ask, **fields)``: a run of some steps;

    ``ask(folder, row)`` is called after each.
    """

    def make(ask, name="run", method="kdrl", **fields):
        return run(
            tiny(method, **{"steps": 4, "group_size": 4, **fields}),
            tmp_path / name,
            on_step=lambda loop, row: ask(loop.folder, row),
        )

    return make


def events(folder, kind):
    return [event for event in folder.rows("events.jsonl") if event["event"] == kind]


def test_a_moved_knob_acts_on_the_next_step_and_stands_in_its_row_and_its_event(watched):
    ids = {}

    def ask(folder, row):
        if row["step"] < 4:
            ids[row["step"]] = folder.ask(
                "knob", knob="kd_coef", value=row["step"] / 10, source="panel"
            )

    folder = watched(ask)
    assert [row["coef/kd_coef"] for row in folder.rows()] == [0.1, 0.1, 0.2, 0.3]
    found = [
        (event["step"], event["value"], event["id"], event["source"])
        for event in events(folder, "knob")
    ]
    assert found == [(step + 1, step / 10, ids[step], "panel") for step in (1, 2, 3)]
    assert folder.touched


def test_a_knob_can_be_asked_for_from_a_later_step(watched):
    folder = watched(
        lambda folder, row: row["step"] == 1 and folder.ask("knob", knob="kd_coef", value=0.7, at=4)
    )
    assert [row["coef/kd_coef"] for row in folder.rows()] == [0.1, 0.1, 0.1, 0.7]


@pytest.mark.parametrize("planned", [3, 4])
def test_a_knob_moved_by_hand_is_not_moved_again_by_what_was_planned_before(watched, planned):
    """Also at the very step of the plan, and also after the loop has read its requests anew."""
    ids = []

    def ask(folder, row):
        if row["step"] == 1:
            ids.append(folder.ask("knob", knob="kd_coef", value=0.7, at=planned))
            folder.ask("knob", knob="kl_coef", value=0.02, at=4)
            folder.ask("knob", knob="kd_coef", value=0.9, at="never")
        if row["step"] == 2:
            folder.ask("knob", knob="kd_coef", value=11)  # refused: it replaces nothing
            folder.ask("knob", knob="kd_coef", value=0.3)
            folder.ask("stop")

    folder = watched(ask)
    resume(folder.path)
    assert [row["coef/kd_coef"] for row in folder.rows()] == [0.1, 0.1, 0.3, 0.3]
    assert [row["coef/kl_coef"] for row in folder.rows()] == [0, 0, 0, 0.02]
    assert [(event["knob"], event["id"]) for event in events(folder, "replaced")] == [
        ("kd_coef", *ids)
    ]


def test_what_is_planned_after_a_knob_was_moved_by_hand_holds(watched):
    def ask(folder, row):
        if row["step"] == 1:
            folder.ask("knob", knob="kd_coef", value=0.3)
            folder.ask("knob", knob="kd_coef", value=0.7, at=4)

    assert [row["coef/kd_coef"] for row in watched(ask).rows()] == [0.1, 0.3, 0.3, 0.7]


def test_release_gives_back_to_the_schedule(watched):
    def ask(folder, row):
        if row["step"] == 1:
            folder.ask("knob", knob="kd_coef", value=0.7)
        if row["step"] == 2:
            folder.ask("release", knob="kd_coef")

    folder = watched(ask, knobs={"kd_coef": "linear:0.4:0.1"})
    assert [row["coef/kd_coef"] for row in folder.rows()] == pytest.approx([0.4, 0.7, 0.2, 0.1])


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        ({"knob": "kd_coef", "value": 11}, "lies in 0–10"),
        ({"knob": "kd_coef", "value": "0.5"}, "no value of a knob"),
        ({"knob": "kd_coef", "value": True}, "no value of a knob"),
        ({"knob": "kd_coeff", "value": 1}, "did you mean"),
        ({"knob": "kd_coef"}, "value"),
    ],
)
def test_a_refused_request_says_why_and_changes_nothing(watched, request_, why):
    folder = watched(
        lambda folder, row: row["step"] == 1 and folder.ask("knob", **request_), steps=2
    )
    (refused,) = events(folder, "refused")
    assert why in refused["why"]
    assert refused["why"].endswith("nothing was changed")
    assert [row["coef/kd_coef"] for row in folder.rows()] == [0.1, 0.1]
    assert not folder.touched


def test_an_unknown_request_and_a_torn_line_stop_nothing(watched):
    def ask(folder, row):
        if row["step"] == 1:
            folder.ask("dance")
            with (folder.path / "requests.jsonl").open("a") as file:
                file.write('["no object"]\n{"id": 1, "request": "kno\n{"id": 2, "request"')

    folder = watched(ask, steps=3)
    assert len(folder.rows()) == 3
    assert [event["why"] for event in events(folder, "refused")] == [
        "unknown request 'dance'; nothing was changed"
    ]


def test_pause_step_go_on_and_checkpoint(watched):
    seen = []

    def wait_for(folder, state, step):
        until = time.monotonic() + 60
        while (now := folder.status())["state"] != state or now["step"] != step:
            assert time.monotonic() < until, now
            time.sleep(0.01)
        seen.append((state, step))

    def watcher(folder):
        wait_for(folder, "paused", 1)
        folder.ask("knob", knob="kd_coef", value=0.5)
        folder.ask("step")
        wait_for(folder, "paused", 2)
        folder.ask("checkpoint")
        until = time.monotonic() + 60
        while not folder.checkpoints():
            assert time.monotonic() < until
            time.sleep(0.01)
        folder.ask("go_on")

    def ask(folder, row):
        if row["step"] == 1:
            folder.ask("pause")
            threading.Thread(target=watcher, args=(folder,), daemon=True).start()

    folder = watched(ask)
    assert seen == [("paused", 1), ("paused", 2)]
    assert [row["coef/kd_coef"] for row in folder.rows()] == [0.1, 0.5, 0.5, 0.5]
    assert [path.name for path in folder.checkpoints()] == ["step_000002", "step_000004"]
    assert [
        (event["event"], event["step"])
        for event in folder.rows("events.jsonl")
        if event["event"] in ("paused", "one step", "went on")
    ] == [
        ("paused", 1),
        ("one step", 1),
        ("paused", 2),
        ("went on", 2),
    ]
    assert folder.status()["state"] == "done"


def test_step_pressed_twice_takes_two_steps(watched):
    def watcher(folder):
        until = time.monotonic() + 60
        while folder.status()["state"] != "paused" and time.monotonic() < until:
            time.sleep(0.01)
        folder.ask("stop")

    def ask(folder, row):
        if row["step"] == 1:
            folder.ask("step")
            folder.ask("step")
            threading.Thread(target=watcher, args=(folder,), daemon=True).start()

    folder = watched(ask)
    assert len(folder.rows()) == 3
    assert [event["step"] for event in events(folder, "paused")] == [3]


def test_a_process_that_only_has_the_number_of_one_that_is_gone_is_not_alive():
    assert alive({"pid": os.getpid(), "updated": time.time()})
    assert not alive({"pid": os.getpid(), "updated": psutil.Process().create_time() - 1})


def test_of_a_process_on_another_host_only_its_silence_is_known():
    there = {"pid": os.getpid(), "host": "another"}
    assert alive({**there, "updated": time.time() - 60})
    assert not alive({**there, "updated": time.time() - 3600})


def test_stop_keeps_what_is_finished_and_resume_takes_the_same_steps(watched):
    whole = watched(lambda folder, row: None, "whole")
    cut = watched(lambda folder, row: row["step"] == 2 and folder.ask("stop"), "cut")
    assert cut.status()["state"] == "idle"
    assert len(cut.rows()) == 2
    assert first_difference(resume(cut.path).rows(), whole.rows()) == (None, 0.0)


def test_a_stop_in_the_middle_of_a_rollout_leaves_a_checkpoint_of_the_step_before(
    watched, monkeypatch
):
    from rlkd_lab.training import collect

    monkeypatch.setattr(requests, "LISTEN_EVERY", 0.0)
    whole = watched(lambda folder, row: None, "whole")
    sample = collect.sample
    calls = []

    def stopped_at_the_third(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            RunFolder(folder_path).ask("stop")
        return sample(*args, **kwargs)

    folder_path = whole.path.parent / "cut"
    monkeypatch.setattr(collect, "sample", stopped_at_the_third)
    cut = watched(
        lambda folder, row: row["step"] == 2 and folder.ask("knob", knob="kd_coef", value=0.5),
        "cut",
    )
    assert cut.status()["state"] == "idle"
    assert [path.name for path in cut.checkpoints()] == ["step_000002"]
    assert events(cut, "knob") == []  # the step that it was for never was
    assert json.loads((cut.checkpoints()[-1] / "state.json").read_text())["held"] == {}
    resumed = resume(cut.path)
    assert [row["coef/kd_coef"] for row in resumed.rows()] == [0.1, 0.1, 0.5, 0.5]
    assert first_difference(resumed.rows()[:2], whole.rows()[:2]) == (None, 0.0)
    assert len(events(resumed, "knob")) == 1


def test_a_knob_moved_while_nothing_runs_acts_when_the_run_goes_on_and_an_old_button_does_not(
    tiny, tmp_path
):
    folder = create(tiny(steps=2), tmp_path / "run")
    folder.ask("knob", knob="kd_coef", value=0.5)
    folder.ask("stop")
    folder.ask("begin")
    resume(folder.path)
    assert [row["coef/kd_coef"] for row in folder.rows()] == [0.5, 0.5]
    resume(folder.path)
    assert len(events(folder, "knob")) == 1


def test_a_button_pressed_while_the_models_load_acts(tiny, tmp_path):
    folder = create(tiny(steps=2), tmp_path / "run")
    folder.ask("begin")
    folder.set_status("running", 0, "loading the models")  # as whoever pressed Start does
    folder.ask("stop")
    resume(folder.path)
    assert (folder.status()["state"], folder.rows()) == ("idle", [])
    resume(folder.path)  # and only once
    assert folder.status()["state"] == "done"


def test_replay_reproduces_a_run_that_was_touched_through_the_folder(watched, tmp_path):
    folder = watched(
        lambda folder, row: row["step"] == 2 and folder.ask("knob", knob="temperature", value=0.7)
    )
    again = replay(folder.path, tmp_path / "again")
    assert (again.difference, again.largest) == (None, 0.0)
    assert not (tmp_path / "again" / "twins").exists()


# --- the file -------------------------------------------------------------------------------------


def test_tail_returns_whole_lines_once(tmp_path):
    path = tmp_path / "rows.jsonl"
    tail = Tail(path)
    assert tail.read() == []
    path.write_text('{"a": 1}\n{"a": 2}\n{"a"')
    assert tail.read() == [{"a": 1}, {"a": 2}]
    assert tail.read() == []
    with path.open("a") as file:
        file.write(': 3}\nno json\n[4]\n{"a": 5}\n')
    assert tail.read() == [{"a": 3}, {"a": 5}]


def test_requests_from_many_threads_are_all_there(tmp_path, tiny):
    folder = create(tiny(), tmp_path / "run")
    threads = [
        threading.Thread(target=lambda: [folder.ask("step") for _ in range(50)]) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ids = [row["id"] for row in Tail(folder.path / "requests.jsonl").read()]
    assert len(set(ids)) == len(ids) == 400


def test_a_run_that_another_process_trains_is_not_resumed(tiny, tmp_path, another):
    folder = create(tiny(steps=1), tmp_path / "run")
    before = folder.status()
    with (
        another(folder.path) as pid,
        pytest.raises(ValueError, match=f"is being trained by process {pid}: two at once"),
    ):
        resume(folder.path)
    assert folder.status() == before
    folder.set_status("running", 0, pid=2**22 + 1)  # one that is gone
    assert resume(folder.path).status()["state"] == "done"


def test_a_run_that_its_holder_has_finished_meanwhile_is_left_alone(tiny, tmp_path, monkeypatch):
    folder = run(tiny(steps=1), tmp_path / "run")
    folder.set_status("running", 1)
    held = threading.Event()

    def finish():
        with alone(folder.path, "trained"):
            held.set()
            time.sleep(0.3)
            folder.set_status("done", 1)

    thread = threading.Thread(target=finish)
    thread.start()
    assert held.wait(5)
    monkeypatch.setattr(session, "Trainer", lambda config: pytest.fail("it is trained again"))
    assert resume(folder.path).status()["state"] == "done"
    thread.join()


def test_a_damaged_status_does_not_keep_a_run_from_going_on(tiny, tmp_path):
    folder = create(tiny(steps=1), tmp_path / "run")
    (folder.path / "status.json").write_text('{"state": "runn')
    assert resume(folder.path).status()["state"] == "done"


# --- what fresh eyes found ------------------------------------------------------------------------


def test_a_knob_moved_in_the_twins_turn_goes_to_the_run_and_not_to_the_twin(
    tiny, tmp_path, monkeypatch
):
    from rlkd_lab.training import collect

    monkeypatch.setattr(requests, "LISTEN_EVERY", 0.0)
    folder = create(tiny("kdrl", steps=6, group_size=4), tmp_path / "run")
    folder.ask("twin", kind="untouched")
    folder.ask("knob", knob="kd_coef", value=0.3, at=2)
    sample, asked = collect.sample, []

    def during_the_twin(*args, **kwargs):
        if (
            not asked
            and (folder.path / "twins" / "step_000001" / "metrics.jsonl").exists()
            and len(RunFolder(folder.path).rows()) == 3
        ):
            asked.append(folder.ask("knob", knob="kd_coef", value=0.7))
        return sample(*args, **kwargs)

    monkeypatch.setattr(collect, "sample", during_the_twin)
    resume(folder.path)
    assert [row["coef/kd_coef"] for row in folder.rows()] == [0.1, 0.3, 0.3, 0.7, 0.7, 0.7]
    twin = RunFolder(folder.path / "twins" / "step_000001")
    assert {row["coef/kd_coef"] for row in twin.rows()} == {0.1}


@pytest.mark.parametrize(
    "line",
    [
        '{"id": 1, "request": "twin", "kind": "noise", "chances": "x"}',
        '{"id": [], "request": "knob", "knob": "kd_coef", "value": 0.3, "at": "x"}',
        '{"id": {}, "request": "dance", "at": -5}',
        '{"id": 2, "request": "knob", "knob": "kd_coef", "value": 1' + "0" * 400 + "}",
        '{"id": 3, "request": "knob", "knob": "\\ud800", "value": 1}',
        '{"id": 4, "request": "knob", "knob": 5, "value": 1}',
        "[" * 200_000,
        '{"id": 5, "request": "knob", "knob": "kd_coef", "value": 0.3, "at": -5}',
        '{"id": 6, "request": []}',
    ],
)
def test_no_request_whatever_it_is_ends_a_run(watched, line):
    def ask(folder, row):
        if row["step"] == 1:
            with (folder.path / "requests.jsonl").open("a") as file:
                file.write(line + "\n")

    folder = watched(ask, steps=2)
    assert folder.status()["state"] == "done"
    assert [row["coef/kd_coef"] for row in folder.rows()] == [0.1, 0.1]
    assert resume(folder.path).status()["state"] == "done"


def test_a_torn_line_swallows_nobody_elses_request_and_a_file_written_anew_is_read_again(watched):
    def ask(folder, row):
        if row["step"] == 1:
            with (folder.path / "requests.jsonl").open("a") as file:
                file.write('{"id": 7, "request": "kno')
            folder.ask("knob", knob="kd_coef", value=0.3)
        if row["step"] == 2:
            (folder.path / "requests.jsonl").unlink()
            folder.ask("knob", knob="kd_coef", value=0.4)

    assert [row["coef/kd_coef"] for row in watched(ask).rows()] == [0.1, 0.3, 0.4, 0.4]


def test_two_loops_of_one_process_do_not_share_a_folder(watched):
    refused = []

    def ask(folder, row):
        if row["step"] == 1:
            with pytest.raises(ValueError, match="by this process already") as error:
                resume(folder.path)
            refused.append(error)

    folder = watched(ask)
    assert refused
    assert [row["step"] for row in folder.rows()] == [1, 2, 3, 4]


def test_a_stop_during_an_evaluation_loses_that_step_alone(watched, monkeypatch):
    from rlkd_lab.training import trainer

    whole = watched(lambda folder, row: None, "whole", eval_every=3, eval_prompts=8)
    monkeypatch.setattr(requests, "LISTEN_EVERY", 0.0)
    evaluate = trainer.evaluation_row

    def stopped(setup, context, stop):
        if context.progress.step == 2 and context.folder.path.name == "cut":
            context.folder.ask("stop")
        return evaluate(setup, context, stop)

    monkeypatch.setattr(trainer, "evaluation_row", stopped)
    cut = watched(lambda folder, row: None, "cut", eval_every=3, eval_prompts=8, checkpoint_every=0)
    assert (cut.status()["state"], cut.status()["step"]) == ("idle", 2)
    assert [path.name for path in cut.checkpoints()] == ["step_000002"]
    monkeypatch.setattr(trainer, "evaluation_row", evaluate)
    assert first_difference(resume(cut.path).rows(), whole.rows()) == (None, 0.0)


def test_what_was_asked_last_holds_after_a_crash(watched, tmp_path):
    class Killed(Exception):
        pass

    def ask(folder, row):
        if row["step"] == 2:
            folder.ask("knob", knob="kd_coef", value=0.3)
        if row["step"] == 4:
            raise Killed

    with pytest.raises(Killed):
        watched(ask, "cut", steps=6, checkpoint_every=1_000)
    folder = RunFolder(tmp_path / "cut")
    folder.ask("knob", knob="kd_coef", value=0.05)
    resume(folder.path)
    assert [row["coef/kd_coef"] for row in folder.rows()] == [0.05] * 6
    assert [(event["step"], event["value"]) for event in events(folder, "knob")] == [(1, 0.05)]


@pytest.fixture
def killed(tiny, tmp_path):
    """``killed(ask)``: a run of 6 steps with a checkpoint at step 2 that is killed in step 5;

    ``ask(folder, row)`` after each step.
    """

    def make(ask):
        folder = create(tiny("kdrl", steps=6, group_size=4, checkpoint_every=2), tmp_path / "run")

        def kill(loop, row):
            ask(loop.folder, row)
            if row["step"] == 4:
                shutil.copytree(loop.folder.path, tmp_path / "killed")
                loop.stopping = True

        resume(folder.path, on_step=kill)
        copy = RunFolder(tmp_path / "killed")
        shutil.rmtree(copy.path / "checkpoints" / "step_000004", ignore_errors=True)
        copy.write_json("status.json", {"state": "running", "step": 4, "pid": 0, "updated": 0.0})
        return copy

    return make


def test_a_plan_for_later_leaves_moves_before_it_alone_after_a_kill(killed):
    def ask(folder, row):
        if row["step"] == 2:
            folder.ask("knob", knob="kd_coef", value=0.3)
        if row["step"] == 3:
            folder.ask("knob", knob="kd_coef", value=0.9, at=6)

    copy = killed(ask)
    assert [row["coef/kd_coef"] for row in copy.rows()] == [0.1, 0.1, 0.3, 0.3]
    assert [row["coef/kd_coef"] for row in resume(copy.path).rows()] == [
        0.1,
        0.1,
        0.3,
        0.3,
        0.3,
        0.9,
    ]


def test_a_refused_request_stays_refused_after_a_kill(killed):
    def ask(folder, row):
        if row["step"] == 2:
            folder.ask("knob", knob="kd_coef", value=0.3)
        if row["step"] == 3:
            folder.ask("knob", knob="kd_coef", value=-99)

    folder = resume(killed(ask).path)
    assert [row["coef/kd_coef"] for row in folder.rows()] == [0.1, 0.1, 0.3, 0.3, 0.3, 0.3]
    assert len(events(folder, "refused")) == 1


def test_a_replaced_plan_stays_replaced_after_a_kill(killed):
    def ask(folder, row):
        if row["step"] == 2:
            folder.ask("knob", knob="kd_coef", value=0.9, at=6)
        if row["step"] == 3:
            folder.ask("knob", knob="kd_coef", value=0.3)

    folder = resume(killed(ask).path)
    assert [row["coef/kd_coef"] for row in folder.rows()] == [0.1, 0.1, 0.1, 0.3, 0.3, 0.3]
    assert len(events(folder, "replaced")) == 1


def test_a_knob_moved_while_steps_are_computed_again_is_not_moved_back_by_the_record(killed):
    def ask(folder, row):
        if row["step"] == 3:
            folder.ask("knob", knob="kd_coef", value=0.3)

    copy = killed(ask)
    resume(
        copy.path,
        on_step=lambda loop, row: (
            row["step"] == 3 and loop.folder.ask("knob", knob="kd_coef", value=0.7)
        ),
    )
    assert [row["coef/kd_coef"] for row in copy.rows()] == [0.1, 0.1, 0.1, 0.7, 0.7, 0.7]


def test_a_recorded_move_that_acts_in_the_step_that_is_computed_stays_recorded(killed, monkeypatch):
    def ask(folder, row):
        if row["step"] == 3:
            folder.ask("knob", knob="kd_coef", value=0.3)

    copy, take_step = killed(ask), Trainer.step

    def take(self, context, *rest):
        if (
            context.progress.step == 3
        ):  # step 4 begins, with the recorded move; what is asked now is read while it samples
            context.folder.ask("knob", knob="kd_coef", value=0.7)
        return take_step(self, context, *rest)

    monkeypatch.setattr(Trainer, "step", take)
    monkeypatch.setattr(requests, "LISTEN_EVERY", 0.0)
    resume(copy.path)
    assert [row["coef/kd_coef"] for row in copy.rows()] == [0.1, 0.1, 0.1, 0.3, 0.7, 0.7]
    assert [(event["step"], event["value"]) for event in events(copy, "knob")] == [
        (4, 0.3),
        (5, 0.7),
    ]


def test_a_move_for_a_named_step_is_a_plan_and_replaces_none(tiny, tmp_path):
    folder = create(tiny("kdrl", steps=3, group_size=4), tmp_path / "run")
    folder.ask("knob", knob="kd_coef", value=0.5, at=3)
    folder.ask("knob", knob="kd_coef", value=0.2, at=1)
    assert [row["coef/kd_coef"] for row in resume(folder.path).rows()] == [0.2, 0.2, 0.5]


def test_what_is_asked_in_the_last_step_is_refused_in_words(watched):
    def ask(folder, row):
        if row["step"] == 3:
            folder.ask("knob", knob="kl_coef", value=0.7, at=9)
        if row["step"] == 4:
            folder.ask("knob", knob="kd_coef", value=0.7)

    folder = watched(ask)
    assert {(event["knob"], event["why"]) for event in events(folder, "refused")} == {
        (knob, "the run is done; nothing was changed") for knob in ("kd_coef", "kl_coef")
    }


def test_resuming_what_is_done_changes_nothing(watched):
    folder = watched(lambda folder, row: None, checkpoint_every=0)
    shutil.rmtree(folder.path / "checkpoints")
    before = {path.name: path.read_bytes() for path in folder.path.glob("*.json*")}
    resume(folder.path)
    assert {path.name: path.read_bytes() for path in folder.path.glob("*.json*")} == before


def test_a_damaged_status_is_said_in_words(watched):
    folder = watched(lambda folder, row: None, steps=1)
    for text in (
        '{"state": "run',
        "",
        "[]",
        "{}",
        '{"state": "foo", "step": 1}',
        '{"state": "running", "step": 1}',
    ):
        (folder.path / "status.json").write_text(text)
        with pytest.raises(ValueError, match=r"status\.json is damaged: `rlkd resume .*` goes on"):
            folder.status()
