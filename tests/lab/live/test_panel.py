import sys
import threading
import time
from html import unescape

import ipywidgets as widgets
import pytest
from fake import FakeHandle, Status
from recorded import rollout

from rlkd_lab.lab.live.curve_data import curve_data
from rlkd_lab.lab.live.family import family, place_beside
from rlkd_lab.lab.live.knob_widgets import front_knob, knobs_of, slider_range
from rlkd_lab.lab.live.panel import Panel, panel
from rlkd_lab.lab.live.panel_texts import options_html
from rlkd_lab.objectives import METHODS
from rlkd_lab.training.make_config import make_config

MODULE = sys.modules[Panel.__module__]


@pytest.fixture
def make(tmp_path):
    def run(method="kdrl", **how):
        return FakeHandle(tmp_path / f"{method}-{len(list(tmp_path.iterdir()))}", method, **how)

    return run


def controls(run, name):
    watched = Panel(run)
    return watched, watched.knobs[name]


def everything(widget):
    yield widget
    for child in getattr(widget, "children", ()):
        yield from everything(child)


def press(button):
    button.click()


def text(html):
    return html.value


# --- controls are generated -----------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_every_knob_of_every_method_has_a_control(make, method):
    run = make(method)
    watched = Panel(run)
    assert set(watched.knobs) == set(run.config.schedules())
    for name, control in watched.knobs.items():
        knob = knobs_of(method)[name]
        assert control.slider.description == name
        assert not control.slider.continuous_update
        assert knob.help in unescape(control.words.value)
        ends = [10**end if knob.log else end for end in (control.slider.min, control.slider.max)]
        assert all(knob.low - 1e-9 <= end <= knob.high * (1 + 1e-6) for end in ends)
        start = run.config.schedules()[name].at(1, 60)
        if start:
            assert control.slider.value == pytest.approx(start)
            assert float(control.box.value) == pytest.approx(start, rel=1e-9)
    assert front_knob(method) in watched.knobs
    assert run.calls == []  # showing values asks for nothing


@pytest.mark.parametrize("method", METHODS)
def test_sliders_have_a_hundred_places_or_two(method):
    for name, knob in knobs_of(method).items():
        low, high, step = slider_range(knob, make_config(method).schedules()[name])
        assert 30 <= (high - low) / step <= 200, name


def test_options_are_read_only_and_said_to_be(make):
    said = options_html(make("kdrl_masked").config)
    assert "Chosen before the start" in said
    assert "kd_mask" in said
    assert "wrong" in said


# --- a knob is moved ------------------------------------------------------------------------------


def test_a_moved_slider_asks_and_then_says_since_when(make):
    run = make()
    run.advance(4)
    watched, control = controls(run, "kd_coef")
    assert "0.1, its value from the start" in text(control.words)
    control.slider.value = 0.3
    assert run.calls == [("kd_coef", 0.3)]
    assert "asked for 0.3: acts on the next step (now 0.1)" in text(control.words)
    watched.update()
    assert "asked for 0.3" in text(control.words)
    assert control.box.value == "0.3"
    run.advance()
    watched.update()
    assert "0.3 since step 5" in text(control.words)
    assert (control.slider.value, control.box.value) == (0.3, "0.3")
    assert run.calls == [("kd_coef", 0.3)]


def test_any_legal_value_can_be_typed_and_the_slider_widens(make):
    run = make()
    watched, control = controls(run, "clip_high")
    control.box.value = "7.5"
    run.advance()
    watched.update()
    assert run.folder.rows()[-1]["coef/clip_high"] == 7.5
    assert control.slider.value == 7.5
    control = watched.knobs["learning_rate"]
    control.box.value = "1e-7"
    run.advance()
    watched.update()
    assert run.folder.rows()[-1]["learning_rate"] == 1e-7
    assert control.slider.value == pytest.approx(1e-7)
    assert len(run.calls) == 2


def test_a_refused_value_says_why_and_goes_back(make):
    run = make()
    run.advance(3)
    watched, control = controls(run, "kd_coef")
    control.box.value = "99"
    assert "lies in 0–10" in text(control.words)
    assert "Nothing was changed" in text(control.words)
    assert (control.box.value, control.slider.value) == ("0.1", 0.1)
    assert control.undo.disabled
    watched.update()
    assert "lies in 0–10" not in watched.banner.value  # said once, where it was asked
    control.box.value = "0.2"
    assert "Nothing was changed" not in text(control.words)
    assert run.calls == [("kd_coef", 0.2)]


def test_a_refusal_by_the_loop_says_why_and_goes_back(make):
    run = make()
    run.advance(3)
    watched, control = controls(run, "kd_coef")
    control.slider.value = 0.5
    run.refuse("kd_coef", 0.5, "the teacher is off; nothing was changed")
    watched.update()
    assert "the teacher is off. Nothing was changed" in text(control.words)
    assert (control.box.value, control.slider.value, control.pending) == ("0.1", 0.1, None)
    assert control.undo.disabled


def test_a_done_run_refuses_in_words(make):
    run = make(state="done")
    _, control = controls(run, "kd_coef")
    control.slider.value = 0.5
    assert "the run is done: nothing was changed" in text(control.words)
    assert control.slider.value == 0.1


def test_after_the_end_nothing_looks_alive_that_is_not(make):
    run = make()
    run.advance(60)
    watched = Panel(run)
    alive = [
        widget
        for widget in everything(watched.top)
        if getattr(widget, "disabled", None) is False and not isinstance(widget, widgets.HTML)
    ]
    again = watched.again
    assert set(alive) == {
        *(again.again, again.new_seed, again.start, again.shown, watched.more),
        *(again.method, again.preset, again.seed, again.words),
    }
    assert "Run again" in watched.buttons["Start"].tooltip


def test_zero_is_exact_and_the_way_back_remembers(make):
    run = make()
    watched, control = controls(run, "kd_coef")
    assert control.off.description == "off (0)"
    control.slider.value = 0.4
    control.off.value = True
    run.advance()
    watched.update()
    assert run.folder.rows()[-1]["coef/kd_coef"] == 0.0
    assert (control.box.value, control.off.value, control.slider.readout) == ("0", True, False)
    assert "0 since step 1" in text(control.words)
    control.off.value = False
    run.advance()
    watched.update()
    assert run.folder.rows()[-1]["coef/kd_coef"] == 0.4
    assert (control.slider.value, control.slider.readout) == (0.4, True)
    assert run.calls == [("kd_coef", 0.4), ("kd_coef", 0.0), ("kd_coef", 0.4)]
    control.box.value = "0"
    run.advance()
    assert run.folder.rows()[-1]["coef/kd_coef"] == 0.0


def test_an_optional_knob_is_off_or_has_a_value(make):
    run = make("trrd")
    watched, control = controls(run, "ratio_cap")
    assert (control.off.value, control.slider.value) == (False, 3.0)
    control.off.value = True
    run.advance()
    watched.update()
    assert run.folder.rows()[-1]["coef/ratio_cap"] is None
    assert "off since step 1" in text(control.words)
    control.slider.value = 5.0
    run.advance()
    watched.update()
    assert not control.off.value
    assert run.folder.rows()[-1]["coef/ratio_cap"] == 5.0
    assert watched.knobs["importance_cap"].off.value  # off from the start
    assert watched.knobs["clip_low"].off.layout.display == "none"


def test_undo_goes_back_value_by_value_to_the_schedule(make):
    run = make()
    watched, control = controls(run, "kd_coef")
    assert control.undo.disabled
    for value in (0.3, 0.5):
        control.box.value = str(value)
        run.advance()
        watched.update()
    press(control.undo)
    run.advance()
    watched.update()
    assert "0.3 since step 3" in text(control.words)
    assert not control.undo.disabled
    press(control.undo)
    run.advance()
    watched.update()
    assert "0.1, its value from the start, given back at step 4" in text(control.words)
    assert control.undo.disabled
    assert run.calls == [
        ("kd_coef", 0.3),
        ("kd_coef", 0.5),
        ("kd_coef", 0.3),
        ("kd_coef", "release"),
    ]


def test_undo_and_since_follow_what_acted_not_what_was_asked(make):
    run = make()
    watched, control = controls(run, "kd_coef")

    def acts():
        run.advance()
        watched.update()

    control.box.value = "0.2"
    acts()
    control.box.value = "0.3"
    control.box.value = "0.5"  # within one step: .3 never acts
    acts()
    press(control.undo)
    acts()
    assert run.calls[-1] == ("kd_coef", 0.2)
    assert "0.2 since step 3" in text(control.words)
    control.box.value = "0.4"
    press(control.undo)  # before it has acted: it is taken back
    acts()
    assert run.calls[-1] == ("kd_coef", 0.2)
    assert "0.2 since step 3" in text(control.words)  # as before: nothing else has acted since
    press(control.undo)
    press(control.undo)
    acts()
    assert run.calls[-1] == ("kd_coef", "release")
    assert control.undo.disabled


@pytest.mark.parametrize(
    ("words", "value"), [("0,3", 0.3), (" .25 ", 0.25), ("1,500", None), ("3 0", None), ("", None)]
)
def test_what_is_typed_is_read_or_refused_and_never_another_number(make, words, value):
    run = make()
    run.advance(2)
    _, control = controls(run, "kd_coef")
    control.box.value = words
    assert run.calls == ([] if value is None else [("kd_coef", value)])
    if value is None:
        assert f"{words!r} is no number" in unescape(text(control.words))
        assert control.box.value == "0.1"


def test_a_schedule_is_taken_over_and_given_back(make):
    run = make("kdrl_annealed")
    run.advance(30)
    watched, control = controls(run, "kd_coef")
    now = run.config.schedules()["kd_coef"].at(30, 60)
    assert f"from its schedule linear:0.2:0.002:1.0, now {now:.4g}" in text(control.words)
    assert control.back.disabled
    for _ in range(3):  # following the schedule asks for nothing
        run.advance()
        watched.update()
    assert float(control.box.value) == pytest.approx(run.folder.rows()[-1]["coef/kd_coef"])
    assert run.calls == []
    control.box.value = "0.7"
    run.advance()
    watched.update()
    assert not control.back.disabled
    press(control.back)
    assert "asked for its schedule" in text(control.words)
    run.advance()
    watched.update()
    assert "given back at step 35" in text(control.words)
    assert float(control.box.value) == pytest.approx(run.config.schedules()["kd_coef"].at(35, 60))
    assert run.calls == [("kd_coef", 0.7), ("kd_coef", "release")]


def test_what_is_being_typed_is_not_overwritten_by_the_schedule(make):
    run = make("kdrl_annealed")
    run.advance()
    watched, control = controls(run, "kd_coef")
    watched.guard.focused = "kd_coef"
    before = control.box.value
    run.advance(20)
    watched.update()
    assert control.box.value == before
    assert f"now {run.folder.rows()[-1]['coef/kd_coef']:.4g}" in text(control.words)
    watched.guard.focused = ""
    watched.update()
    assert float(control.box.value) == pytest.approx(run.folder.rows()[-1]["coef/kd_coef"])


def test_moves_of_others_and_of_before_are_shown_and_can_be_undone(make):
    run = make()
    run.request("kd_coef", 0.3)
    run.advance(2)
    watched, control = controls(run, "kd_coef")
    assert "0.3 since step 1" in text(control.words)
    run.request("kd_coef", 0.6)  # from elsewhere
    run.advance()
    watched.update()
    assert control.slider.value == 0.6
    press(control.undo)
    assert run.calls[-1] == ("kd_coef", 0.3)


# --- state, buttons, banner -----------------------------------------------------------------------

ENABLED = {
    "idle": {"Start"},
    "running": {"Pause", "Step", "Stop", "Checkpoint"},
    "paused": {"Pause", "Step", "Stop", "Checkpoint"},
    "stopping": set(),
    "done": set(),
    "failed": {"Start"},
    "lost": {"Start"},
}


@pytest.mark.parametrize("state", ENABLED)
def test_every_state_has_its_words_and_buttons(make, state):
    run = make()
    run.advance(3)
    run.state = state
    run.why = {
        "failed": "FloatingPointError: lower learning_rate",
        "paused": "the disk is <full>",
    }.get(state)
    watched = Panel(run)
    assert "step 3 of 60" in watched.state.value
    assert {"idle": "Start continues"}.get(state, state) in watched.state.value
    assert {name for name, button in watched.buttons.items() if not button.disabled} == ENABLED[
        state
    ]
    assert all(button.tooltip for button in watched.buttons.values())
    assert watched.buttons["Pause"].description == ("Continue" if state == "paused" else "Pause")
    if state == "failed":
        assert "lower learning_rate" in watched.banner.value
        assert "Start continues from the last checkpoint" in watched.banner.value
    if state == "paused":
        assert "<b>The run waits:</b> the disk is &lt;full&gt;." in watched.banner.value
    if state == "lost":
        assert "the process that drove it is gone" in watched.banner.value
    assert ("in a thread of this kernel" in watched.state.value) == (
        state in ("running", "paused", "stopping")
    )


def test_the_buttons_do_what_they_say(make):
    run = make()
    watched = Panel(run)
    press(watched.buttons["Start"])
    assert run.state == "running"
    run.advance(2)
    press(watched.buttons["Pause"])
    assert run.state == "paused"
    press(watched.buttons["Step"])
    assert run.at == 3
    press(watched.buttons["Checkpoint"])
    assert run.folder.rows("events.jsonl")[-1]["event"] == "checkpoint"
    press(watched.buttons["Pause"])
    assert run.state == "running"
    press(watched.buttons["Stop"])
    assert run.state == "idle"
    watched.update()
    assert "Start continues" in watched.state.value


def test_an_impossible_button_says_why(make):
    run = make()
    watched = Panel(run)
    run.state = "running"
    watched.update()
    run.state = "done"  # between two looks
    press(watched.buttons["Checkpoint"])
    assert "Checkpoint: cannot write a checkpoint: the run is done" in watched.banner.value


def test_a_button_whose_effect_is_awaited_says_so(make):
    run = make(state="running")
    watched = Panel(run)
    run.pause = lambda: None  # a real run pauses after its step
    press(watched.buttons["Pause"])
    assert "pause was asked for" in watched.state.value
    run.state = "paused"
    watched.update()
    assert "asked for" not in watched.state.value


def test_rate_and_time_left(make):
    run = make(state="running")
    now = [0.0]
    watched = Panel(run, clock=lambda: now[0])
    for _ in range(5):
        run.advance()
        now[0] += 2.0
        watched.refresh()
    assert "2.0 s a step" in watched.state.value
    assert "about 2 min left" in watched.state.value


def test_the_fork_is_chosen_and_explained(make):
    run = make()
    run.fork("untouched")
    watched = Panel(run)
    assert watched.fork.value == "untouched"
    assert "the same weights" in watched.fork_help.value
    watched.fork.value = "noise"
    assert run.calls == [("fork", "untouched"), ("fork", "noise")]
    assert "chance" in watched.fork_help.value


def test_warnings_of_the_run_and_damaged_lines_stand_in_the_banner(make):
    run = make()
    run.folder.append(
        "events.jsonl", {"event": "warning", "step": 0, "text": "clip_high <cannot> act"}
    )
    with (run.folder.path / "metrics.jsonl").open("a") as file:
        file.write("{torn\n")
    banner = Panel(run).banner.value
    assert "clip_high &lt;cannot&gt; act" in banner
    assert "1 damaged lines" in banner


# --- what is displayed ----------------------------------------------------------------------------


@pytest.fixture
def outputs(monkeypatch):
    """What was displayed, in order: [data, data of the updates …] each."""
    found = []

    class Shown:
        def __init__(self, versions):
            self.versions = versions

        def update(self, data, **_):
            self.versions.append(data)

    def display(what, **how):
        found.append([what])
        return Shown(found[-1])

    monkeypatch.setattr(MODULE, "display", display)
    monkeypatch.setattr("rlkd_lab.lab.live.curve_view.display", display)
    return found


def test_pictures_table_and_sentence_are_outputs_of_their_own(make, outputs, monkeypatch):
    monkeypatch.setattr(Panel, "_watch", lambda self: None)
    run = make()
    run.advance(12)
    watched = Panel(run)
    watched._ipython_display_()
    top, curves, more, values = (versions[0] for versions in outputs)
    assert top is watched.top
    for sentence in (repr(top), repr(watched), curves["text/plain"], values["text/plain"]):
        assert "VBox" not in sentence
        assert sentence.endswith(".")
    assert len(repr(top)) <= 110  # ipywidgets cuts there
    assert "step 12 of 60" in curves["text/plain"]
    assert curves["image/png"]
    assert more["text/html"] == ""
    assert "<table>" in values["text/html"]
    assert watched.more_view.data == {}
    watched.more.value = "entropy"
    watched.more_curves.live.next = watched.more_curves.still.next = 0
    assert watched.picture()
    assert watched.more_view.data["group"] == "entropy"
    assert outputs[2][-1]["image/png"]


def test_views_and_stills_are_drawn_a_bounded_number_of_times(make, outputs, monkeypatch):
    monkeypatch.setattr(Panel, "_watch", lambda self: None)
    now = [0.0]
    run = make(state="running", steps=10_000)
    watched = Panel(run, clock=lambda: now[0])
    monkeypatch.setattr(watched.curves, "_picture", lambda: ({"image/png": ""}, {}))
    watched._ipython_display_()
    assert "image/png" not in outputs[1][0]  # words; nothing was drawn before the first step
    state, sent = ["running"], []
    watched.view.observe(lambda change: sent.append(change.new["step"]), "data")
    monkeypatch.setattr(
        "fake.FakeHandle.status",
        lambda self: Status(state[0], self.at, 10_000, None, "thread"),
    )

    def look(at):
        now[0] = at
        run.folder.append("metrics.jsonl", {"step": int(at * 40) + 1, "reward": 0.5})
        watched.update()

    for each in range(1600):  # forty seconds, 40 looks a second
        look(each / 40)
    assert 38 <= len(sent) <= 41
    assert len(outputs[1]) == 3  # the words, then a still every twenty seconds
    state[0] = "paused"
    look(40.01)
    assert len(outputs[1]) == 4  # a pause draws it at once
    state[0] = "done"
    before = len(sent)
    for _ in range(5):
        look(40.02)
    assert len(sent) == before + 1  # the end, once, at once
    assert sent[-1] == watched.history.step


def test_the_thread_survives_errors_shows_them_and_ends_with_the_panel(make, outputs, monkeypatch):
    monkeypatch.setattr(MODULE, "POLL_EVERY", 0.01)
    run = make()
    run.advance(2)
    watched = panel(run)
    real = watched.refresh
    watched.refresh = lambda: 1 / 0
    watched._ipython_display_()
    wait(lambda: "ZeroDivisionError" in watched.banner.value)
    assert "The run itself is not affected" in watched.banner.value
    watched.refresh = real
    wait(lambda: "ZeroDivisionError" not in watched.banner.value)
    thread = watched.follower.thread
    assert thread.daemon
    panel(run)  # the cell is run again
    assert not thread.is_alive()
    assert "This panel is closed" in watched.banner.value
    assert watched.state.value == ""  # nothing that would grow old
    assert watched.knobs["kd_coef"].slider.disabled
    assert all(button.disabled for button in watched.buttons.values())


def test_callbacks_may_come_while_the_panel_reads(make, outputs, monkeypatch):
    monkeypatch.setattr(MODULE, "POLL_EVERY", 0.001)
    run = make(state="running")
    watched = Panel(run)
    watched._ipython_display_()
    control = watched.knobs["kd_coef"]
    for n in range(2, 30):
        mover = threading.Thread(target=lambda n=n: setattr(control.box, "value", str(n / 10)))
        mover.start()
        run.advance()
        mover.join()
    run.advance()
    wait(lambda: watched.history.step == run.at and control.pending is None)
    watched.close()
    watched.update()
    assert run.calls == [("kd_coef", n / 10) for n in range(2, 30)]
    assert float(control.box.value) == pytest.approx(run.folder.rows()[-1]["coef/kd_coef"]) == 2.9
    assert watched.problem == ""


def wait(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_widgets_all_sit_in_the_guarded_box(make):
    watched = Panel(make())
    assert "rlkd-panel" in watched.top._dom_classes
    assert watched.guard in watched.top.children
    inside, queue = set(), [watched.top]
    while queue:
        one = queue.pop()
        inside.add(one)
        queue += getattr(one, "children", ())
    for control in watched.knobs.values():
        assert {control.slider, control.box, control.off, control.undo, control.back} <= inside
    assert all(isinstance(one, widgets.Widget) for one in inside)


def test_a_notice_passes(make):
    run = make(state="running")
    watched = Panel(run)
    for after in (lambda: watched._press("Pause"), lambda: run.advance(3)):
        run.state = "running"
        watched._press("Step")
        watched.update()
        assert "pause it first" in watched.banner.value
        after()
        watched.update()
        assert "pause it first" not in watched.banner.value


def test_a_checkpoint_is_confirmed_also_while_the_run_is_paused(make):
    run = make()
    run.advance(4)
    run.state = "paused"
    watched = Panel(run)
    write, run.checkpoint = run.checkpoint, lambda: None  # a real run writes a moment later
    press(watched.buttons["Checkpoint"])
    assert "checkpoint was asked for" in watched.state.value
    write()
    (run.folder.path / "checkpoints" / "step_000004").mkdir(parents=True)
    (run.folder.path / "checkpoints" / "step_000004" / "state.json").write_text("{}")
    watched.update()
    assert "asked for" not in watched.state.value
    assert "checkpoint at step 4" in watched.records.value


def test_a_planned_move_is_shown_until_it_is_answered(make):
    run = make(state="running")
    watched = Panel(run)
    name = run.folder.ask("knob", knob="kd_coef", value=0.5, at=6)
    watched.update()
    assert (
        "planned: 0.5 from step 6 on (moving it now replaces that)"
        in watched.knobs["kd_coef"].words.value
    )
    assert "planned" not in watched.knobs["clip_high"].words.value
    run.folder.append(
        "events.jsonl",
        {"event": "replaced", "step": 2, "knob": "kd_coef", "id": name, "why": "moved by hand"},
    )
    watched.update()
    assert "planned" not in watched.knobs["kd_coef"].words.value


def test_a_move_that_another_kernel_asked_for_is_shown_until_it_is_answered(make):
    run = make(state="paused")
    run.folder.ask("knob", knob="kd_coef", value="much")  # the run refuses it
    first = run.folder.ask("knob", knob="kd_coef", value=0.5)
    watched = Panel(run)
    words = watched.knobs["kd_coef"].words
    assert "asked for 0.5: acts on the next step (now 0.1)" in words.value
    assert watched.knobs["kd_coef"].box.value == "0.5"
    assert "asked for" not in watched.knobs["clip_high"].words.value
    last = run.folder.ask("release", knob="kd_coef")
    watched.update()
    assert "asked for its schedule: acts on the next step (now 0.1)" in words.value
    for step, name in ((1, first), (2, last)):
        event = {"event": "refused", "step": step, "knob": "kd_coef", "id": name, "why": "no"}
        run.folder.append("events.jsonl", event)
        watched.update()
        assert ("asked for" in words.value) == (name == first)


def test_the_first_curve_is_sent_with_the_first_step_and_the_table_with_the_curves(
    make, outputs, monkeypatch
):
    monkeypatch.setattr(Panel, "_watch", lambda self: None)
    now = [0.0]
    run = make(state="running")
    watched = Panel(run, clock=lambda: now[0])
    watched._ipython_display_()
    assert watched.view.data["panels"][0]["note"] == "waits for the first step"
    now[0] = 5.0
    assert not watched.picture()  # an empty one more would put the first curve off
    run.advance()
    watched.update()
    assert watched.view.data["step"] == 1
    assert "step 1 of 60" in watched.table.value
    run.advance()
    now[0] += 0.1
    watched.update()  # too early for curves: the table waits with them
    assert watched.view.data["step"] == 1
    assert "step 1 of 60" in watched.table.value


def test_tokens_are_read_when_their_tab_opens_and_again_when_it_opens_again(make, monkeypatch):
    read, real = [], MODULE.inspect_tokens
    monkeypatch.setattr(MODULE, "inspect_tokens", lambda run: read.append(run) or real(run))
    run = make()
    watched = Panel(run)
    watched.tabs.selected_index = 1
    assert "No completions are recorded yet" in watched.tokens.children[0].value
    for step in (1, 2):
        run.advance()
        rollout(seed=step).to_parquet(run.folder.path / "samples" / f"step_{step:06d}.parquet")
        watched.update()
        assert read == [run.folder] * (step - 1)  # the panel itself reads no tokens
        for tab in (0, 1):
            watched.tabs.selected_index = tab
        assert watched.tokens.children == (watched.inspector.widget,)
        assert [value for _, value in watched.inspector.step.options] == list(range(1, step + 1))
    assert read == [run.folder]
    run.advance(58)
    watched.update()
    press(watched.again.again)
    assert watched.inspector is None
    assert watched.tokens.children == ()
    Panel(run)
    assert read == [run.folder]


# --- another run ----------------------------------------------------------------------------------


def test_run_again_makes_a_run_beside_the_old_one_and_shows_it(make):
    run = make()
    run.advance(60)
    watched = Panel(run)
    press(watched.again.again)
    assert watched.run.path == run.path.with_name(run.path.name + "-2")
    assert watched.run.config == run.config
    assert "running" in watched.state.value
    assert watched.again.again.disabled
    watched.run.state = "done"
    watched.update()
    press(watched.again.new_seed)
    assert watched.run.path.name == run.path.name + "-3"
    assert watched.run.config.seed == run.config.seed + 1
    reward = next(p for p in curve_data(watched.history, "kdrl")["panels"] if p["name"] == "reward")
    faint = {line["label"]: len(line["x"]) for line in reward["lines"] if line["alpha"] == 0.45}
    assert faint == {run.path.name: 60}  # the second run has no step yet
    assert curve_data(watched.history, "kdrl")["right"] == 60.5
    assert [name for name, _ in watched.again.shown.options] == [
        run.path.name + end for end in ("", "-2", "-3")
    ]


def test_another_method_preset_and_settings_are_chosen_before_the_start(make):
    run = make(settings={"kd_coef": "0.4", "group_size": "6"})
    watched = Panel(run)
    again = watched.again
    again.words.value = "kd_cof=1"
    press(again.start)
    assert "kd_coef" in watched.banner.value
    assert watched.run is run
    again.method.value, again.words.value = "trrd", "steps=7 system_prompt='Be brief.'"
    press(again.start)
    config = watched.run.config
    assert (config.method, config.steps, config.group_size) == ("trrd", 7, 6)
    assert config.system_prompt == "Be brief."
    assert "kd_coef" not in config.knobs
    assert set(watched.knobs) == set(config.schedules())


def test_runs_beside_each_other_are_those_with_a_number(tmp_path):
    for name in ("a", "a-2", "a-10", "a-b", "a-b-3", "c-2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"seed": 1}')
    names = {each: [path.name for path in family(tmp_path / each)] for each in ("a-10", "c-2")}
    assert names == {"a-10": ["a", "a-2", "a-10"], "c-2": ["c-2"]}
    assert place_beside(tmp_path / "a-2").name == "a-3"
    assert place_beside(tmp_path / "c-2").name == "c-2-2"
