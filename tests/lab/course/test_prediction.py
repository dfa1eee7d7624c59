"""The widget that asks first, driven by setting values; what it displays survives without a
kernel.
"""

import base64
import sys

import pytest

from rlkd_lab.lab import play


class Display:
    """Stands in for IPython's display: keeps the bundles in order; a handle's updates replace
    its own.
    """

    def __init__(self):
        self.bundles = []

    def __call__(self, *things, raw=False, display_id=None):
        for thing in things:
            self.bundles.append(self.bundle(thing, raw))
        return Handle(self, len(self.bundles) - 1) if display_id else None

    @staticmethod
    def bundle(thing, raw):
        if raw:
            return dict(thing)
        return (
            {"text/markdown": thing.data}
            if type(thing).__name__ == "Markdown"
            else {"image/png": base64.b64encode(thing.data).decode()}
        )

    def words(self):
        return "\n".join(bundle.get("text/markdown", "") for bundle in self.bundles)


class Handle:
    def __init__(self, display, place):
        self.display, self.place, self.updates = display, place, 0

    def update(self, thing, raw=False):
        self.updates += 1
        self.display.bundles[self.place] = self.display.bundle(thing, raw)


@pytest.fixture
def shown(monkeypatch):
    import IPython.display

    monkeypatch.delenv("RLKD_SHORT", raising=False)
    display = Display()
    monkeypatch.setattr(IPython.display, "display", display)
    return display


def press(game, choice):
    game.radio.index = choice
    game.button.click()


def test_nothing_is_open_before_a_choice(shown):
    game = play("clip_surrogate")
    game.show()
    game.button.click()
    assert game.button.disabled
    assert game.radio.index is None
    assert not game.shown
    assert game.picture.why not in shown.words()
    assert game._panel.layout.display == "none"
    closed = shown.bundles[-1]
    assert closed["text/html"].startswith(
        "<details><summary>"
    )  # folded away, but there: the saved notebook has the picture
    assert base64.b64decode(closed["image/png"]).startswith(b"\x89PNG")
    assert game.picture.why not in repr(game)


@pytest.mark.parametrize("choice", [0, 2])
def test_the_choice_opens_picture_sliders_and_verdict(shown, choice):
    game = play("mask_grid")
    game.show()
    game.radio.index = choice
    assert not game.button.disabled
    assert not game.shown
    game.button.click()
    assert game.shown
    assert game.radio.disabled
    assert game._panel.layout.display is None
    assert set(shown.bundles[-1]) == {"image/png", "text/plain"}
    assert game.picture.why in shown.words()
    assert ("Your prediction held" in shown.words()) == (choice == game.picture.answer)
    assert ("You predicted" in shown.words()) == (choice != game.picture.answer)


def test_the_first_choice_stands(shown):
    game = play("clip_surrogate")
    press(game, 0)
    press(game, 1)
    assert game.choice == 0


def test_a_slider_redraws_the_picture_and_only_after_the_choice(shown):
    game = play("mask_grid")
    game.show()
    slider = game.controls["success"]
    slider.value = 0.1
    assert game._picture_handle.updates == 0
    press(game, 1)
    before = shown.bundles[-1]["image/png"]
    slider.value = 0.9
    assert shown.bundles[-1]["image/png"] != before


def test_an_explorable_picture_opens_in_the_browser_and_its_still_stays_folded(shown):
    game = play("clip_surrogate")
    game.show()
    press(game, 1)
    assert game.view in game._panel.children
    assert game._panel.layout.display is None
    assert shown.bundles[-1]["text/html"].startswith("<details>")
    assert game.picture.why in shown.words()
    game.view.values = {"rho": 2.0, "sign": -1}  # the browser sends what the reader has set
    assert "A = -1, ρ = 2.00" in game.figure().axes[0].get_title()


def test_every_control_arrives_at_the_drawing(shown):
    for name in (
        "mask_grid",
        "group_advantage",
    ):
        game = play(name)
        assert set(game.controls) == set(game.picture.controls)
        assert all(
            widget.value == game.picture.controls[key].value
            for key, widget in game.controls.items()
        )
        game.figure()


def test_a_text_that_cannot_be_read_gets_a_sentence_and_keeps_the_picture(shown):
    game = play("group_advantage")
    game.show()
    press(game, 2)
    before = shown.bundles[-1]["image/png"]
    game.controls["text"].value = "1, one"
    assert "cannot be read" in shown.words()
    assert shown.bundles[-1]["image/png"] == before
    game.controls["text"].value = "3, 1"
    assert "cannot be read" not in shown.words()
    assert shown.bundles[-1]["image/png"] != before


def test_no_output_is_a_tree_of_widgets(shown):
    game = play("clip_surrogate")
    game.show()
    press(game, 1)
    assert not any("Box(" in bundle.get("text/plain", "") for bundle in shown.bundles)
    assert "Box(" not in repr(game)
    assert "**" not in repr(game)
    assert any("application/vnd.jupyter.widget-view+json" in bundle for bundle in shown.bundles)


@pytest.mark.parametrize("why", ["short", "missing"])
def test_without_widgets_question_picture_and_answer_stand_at_once(shown, monkeypatch, why):
    if why == "short":
        monkeypatch.setenv("RLKD_SHORT", "1")
    else:
        monkeypatch.setitem(sys.modules, "ipywidgets", None)
    game = play("two_humps")
    assert game.box is None
    game.show()
    assert [*shown.bundles[1]] == ["image/png"]
    for words in (game.picture.question, *game.picture.choices, game.picture.why):
        assert words in shown.words()


def test_an_executed_notebook_keeps_picture_and_sentences(monkeypatch):
    import nbclient
    import nbformat

    monkeypatch.delenv("RLKD_SHORT", raising=False)
    cells = [
        "from rlkd_lab.lab import play\ngame = play('mask_grid')\ngame",
        "game.radio.index = 2\ngame.button.click()",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook, timeout=240, store_widget_state=False).execute()
    outputs = notebook.cells[0].outputs
    assert not [output for output in outputs if output.output_type == "error"]
    assert all("Box(" not in output["data"].get("text/plain", "") for output in outputs)
    assert "Your prediction held" in "".join(
        output["data"].get("text/markdown", "") for output in outputs
    )
    assert base64.b64decode(outputs[-1]["data"]["image/png"]).startswith(b"\x89PNG")
    assert "text/html" not in outputs[-1]["data"]
