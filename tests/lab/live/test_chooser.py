import os

from fake import FakeHandle

from rlkd_lab.lab.live import chooser


def test_the_newest_run_is_shown_and_torn_ones_are_named(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(chooser, "display", lambda *what: shown.extend(what))
    assert chooser.choose_run(tmp_path / "none") is None
    assert "There is no run in" in shown.pop().data
    for name, written in (("old", 100), ("new", 300), ("torn", 200)):
        run = FakeHandle(tmp_path / name)
        os.utime(run.path / "status.json", (written, written))
    (tmp_path / "torn" / "config.json").write_text("<b>")
    panel = chooser.choose_run(tmp_path)
    words, menu = shown
    assert "Left out: torn: " in words.data
    assert panel.run.path.name == "new"
    assert panel.run.drive == "process"
    menu.value = dict(menu.options)["old"]
    assert panel.run.path.name == "old"
    panel.close()
