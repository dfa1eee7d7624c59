import re
from html.parser import HTMLParser

import numpy as np
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from recorded import rollout, run_folder

from rlkd_lab.lab import inspect_tokens, token_arrays
from rlkd_lab.lab.live.inspector import ACROSS
from rlkd_lab.lab.live.inspector_words import range_sentence
from rlkd_lab.lab.live.token_colours import colour_limit, colours
from rlkd_lab.lab.live.tokens import ARRAYS
from rlkd_lab.runs import RunFolder

HOSTILE = ("<script>alert(1)</script>", "&amp;", "\"'><b onclick='x'>", "\u202eabc", "א", "</span>")


@pytest.fixture
def folder(tmp_path):
    probes = {step: rollout(step, groups=4, size=1, probe=True, detailed=4) for step in (1, 2, 5)}
    return run_folder(
        tmp_path / "run", frames={1: rollout(), 2: rollout(1), 5: rollout(2)}, probes=probes
    )


class Reader(HTMLParser):
    """Tags, attributes and text as a browser would see them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data):
        self.texts.append(data)


def text_of(widget):
    return " ".join(" ".join(Reader(widget.value).texts).split())


def contrast(a, b):
    def luminance(colour):
        parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ [
            0.2126,
            0.7152,
            0.0722,
        ]

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


# --- colours --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARRAYS)
def test_text_is_readable_on_every_colour(name):
    values = np.linspace(-3, 3, 301)
    painted = colours(name, np.exp(values) if ARRAYS[name].scale == "ratio" else values, 2.0)
    assert min(contrast(*pair) for pair in painted) >= 4.5


def test_colours_are_centred_and_end_at_the_limit():
    low, left, zero, right, high, beyond = (
        pair[0] for pair in colours("log_ratio", np.array([-2.0, -0.5, 0.0, 0.5, 2.0, 9.0]), 2.0)
    )
    assert zero == "#ffffff"
    assert high == beyond != low
    assert int(low[1:3], 16) > int(low[5:7], 16)  # red below
    assert int(high[1:3], 16) < int(high[5:7], 16)  # blue above
    assert len({low, left, zero, right, high}) == 5
    assert colours("trrd_ratio", np.array([1.0, 2.0, 0.5]), np.log(2.0)) == colours(
        "log_ratio", np.array([0.0, 1.0, -1.0]), 1.0
    )
    assert colours("entropy", np.array([np.nan]), 1.0)[0][0] == "#cccccc"


def test_the_range_is_clipped_and_the_sentence_says_so():
    values = [np.array([0.1, -0.2, 0.3, 0.0]), np.linspace(-1, 1, 100), np.array([50.0, -60.0])]
    limit = colour_limit("advantage", values)
    assert 0.9 < limit < 1.1
    said = range_sentence("advantage", limit, values[2:], "of this step's rollout")
    assert (
        said == f"Colours end at ±{limit:.3g} (the 95th percentile of this step's rollout, zeros"
        " aside); 2 tokens shown lie beyond."
    )
    assert "no token shown lies beyond" in range_sentence("advantage", limit, values[:1], "")
    assert "1 token shown lies beyond" in range_sentence("advantage", limit, [np.array([50.0])], "")
    assert range_sentence("trrd_ratio", np.log(2.0), [np.array([1.0, 2.5, 0.1])], "").startswith(
        "Colours end at 0.5 and 2 "
    )
    assert colour_limit("advantage", [np.zeros(3)]) == 1.0
    assert colour_limit("log_ratio", [np.array([-np.inf, 1.0, -1.0])]) == 1.0


# --- the inspector, driven by its controls --------------------------------------------------------


def test_every_value_is_reached_by_the_plain_controls(folder):
    shown = inspect_tokens(folder, 2, prompt=2, sample=3)
    arrays, frame = token_arrays(folder, 2).arrays, token_arrays(folder, 2).frame
    row = 6
    for at in range(len(frame["ids"][row])):
        shown.position.value = at + 1
        assert shown.selected == (0, at)
        said = text_of(shown.detail)
        assert f"position {at + 1} of {len(frame['ids'][row])}" in said
        for name, array in ARRAYS.items():
            assert (
                f"{array.title} " + f"{arrays[name][row][at] + 0.0:.3g}".replace("-", "−") in said
            )
        assert f"dead {'yes' if arrays['dead'][row][at] else 'no'}" in said
    shown.previous.click()
    assert shown.position.value == len(frame["ids"][row]) - 1
    for _ in range(3):
        shown.next.click()
    assert shown.position.value == shown.position.max == len(frame["ids"][row])


def test_a_click_in_the_view_selects(folder):
    shown = inspect_tokens(folder, 1)
    shown.view.selected = [0, 1]  # what the front end sends
    assert shown.position.value == 2
    assert "position 2 of" in text_of(shown.detail)


def test_step_prompt_sample_and_colour_are_chosen(folder):
    shown = inspect_tokens(folder)
    assert (shown.step.value, [value for _, value in shown.step.options]) == (5, [1, 2, 5])
    shown.position.value = 2
    shown.step.value, shown.prompt.value, shown.sample.value, shown.array.value = (
        2,
        2,
        1,
        "advantage",
    )
    frame = token_arrays(folder, 2).frame
    assert len(shown.view.blocks[0]["cells"]) == len(frame["ids"][9])
    values = token_arrays(folder, 2).arrays["advantage"]
    expected = colours("advantage", values[9], colour_limit("advantage", values))
    assert [
        (cell["background"], cell["colour"]) for cell in shown.view.blocks[0]["cells"]
    ] == expected
    assert (
        repr(shown)
        == f"Token inspector of run: step 2, prompt 3, sample 2, {len(frame['ids'][9])} tokens"
        " coloured by advantage."
    )
    assert "advantage" in text_of(shown.legend)
    assert "1: " in shown.sample.options[0][0]


def test_one_prompt_across_steps(folder):
    shown = inspect_tokens(folder, prompt=3)
    shown.mode.value = True
    assert [block["title"].partition(":")[0] for block in shown.view.blocks] == [
        "step 1",
        "step 2",
        "step 5",
    ]
    assert (shown.step.value, shown.selected[0], shown.prompt.value) == (5, 2, 2)
    shown.step.value = 2
    assert shown.selected[0] == 1
    shown.view.selected = [0, 0]
    assert shown.step.value == 1
    assert "0.75" not in text_of(shown.detail)
    assert "75.00 %" in text_of(shown.detail)
    assert set(shown.table()["step"]) == {1, 2, 5}
    assert set(shown.table()["prompt"]) == {3}
    assert "nothing is trained on the probe's prompts" in text_of(shown.legend)
    shown.mode.value = False
    assert len(shown.view.blocks) == 1
    assert "advantage" in shown.table()


def test_a_hundred_probes_are_thinned_out_evenly(tmp_path):
    probes = {step: rollout(step, groups=1, size=1, probe=True) for step in range(10, 1010, 10)}
    shown = inspect_tokens(run_folder(tmp_path / "run", "grpo", probes=probes), across=True)
    steps = [one.step for one in shown.shown]
    assert (len(steps), steps[0], steps[-1]) == (ACROSS, 10, 1000)
    assert "12 of 100 recorded steps" in text_of(shown.legend)


def test_long_completions_are_shown_through_a_window(tmp_path):
    frame = rollout(groups=1, size=2)
    for column in frame:
        if isinstance(frame[column][0], list):
            frame[column] = [
                (list(values) * 3000)[:4000] if values is not None else None
                for values in frame[column]
            ]
    shown = inspect_tokens(run_folder(tmp_path / "run", "grpo", {1: frame}))
    assert [cell["at"] for cell in shown.view.blocks[0]["cells"]] == list(range(400))
    shown.position.value = 399
    assert shown.view.blocks[0]["cells"][0]["at"] == 0  # it does not move under the reader's hand
    shown.view.selected = [0, 400]
    places = [cell["at"] for cell in shown.view.blocks[0]["cells"]]
    assert (len(places), 400 in places, places[0]) == (400, True, 200)
    assert "tokens 201–600 of 4000" in shown.view.blocks[0]["window"]
    shown.position.value = 4000
    assert shown.view.blocks[0]["cells"][-1]["at"] == 3999
    assert shown.html().count("<span title=") == 400
    assert len(shown.table()) == 4000


def test_marks_are_more_than_colour(folder):
    shown = inspect_tokens(folder, 1)
    marked = token_arrays(folder, 1).arrays
    row = next(i for i, dead in enumerate(marked["dead"]) if dead.any() and not dead.all())
    shown.prompt.value, shown.sample.value = row // 4, row % 4
    dead = marked["dead"][row]
    assert [cell["dead"] for cell in shown.view.blocks[0]["cells"]] == dead.tolist()
    assert all(("dead" in cell["label"]) == cell["dead"] for cell in shown.view.blocks[0]["cells"])
    assert (
        "struck through, in a dashed box: dead: A is not 0, but the clip cuts the policy"
        f" gradient: {dead.sum()} of {len(dead)} tokens" in text_of(shown.legend)
    )
    spans = re.findall(r"<span title=[^>]*>", shown.html())
    assert ["dashed" in span and "line-through" in span for span in spans] == dead.tolist()
    assert ["double" in span for span in spans] == marked["bound"][row].tolist()
    shown.position.value = len(dead)
    shown.next_marked.click()
    assert shown.selected[1] == int(np.flatnonzero(dead | marked["bound"][row])[0])


def test_alternatives_or_where_they_are(folder):
    shown = inspect_tokens(folder, 1)
    assert "2 75.00 % 2 75.00 %" in text_of(shown.detail)
    shown.sample.value = 1
    said = text_of(shown.detail)
    assert "prompt 1, sample 1; prompt 2, sample 1" in said
    assert "sampled: " in said


def test_the_parts_of_the_reward_add_up(folder):
    shown = inspect_tokens(folder, 1)
    row = token_arrays(folder, 1).frame.iloc[0]
    accuracy, written = float(row["reward"] > 1), float(row["reward"] > 0)
    assert (
        f"reward {row['reward']:.3g} = 1 × accuracy {accuracy:.3g} + 0.1 × format {written:.3g}"
        in text_of(shown.detail)
    )
    shown.sample.value = 1
    assert "Cut by the length limit" in text_of(shown.detail)


def test_older_runs_lack_columns(tmp_path):
    wanted = [
        "prompt",
        "answer",
        "completion",
        "reward",
        "correct",
        "group",
        "finished",
        "ids",
        "tokens",
        "logps",
        "teacher_logps",
        "ref_logps",
    ]
    shown = inspect_tokens(
        run_folder(tmp_path / "run", "grpo", {1: rollout()[wanted]}), array="entropy"
    )
    assert shown.array.value == "log_ratio"
    assert "its parts were not recorded" in text_of(shown.detail)
    assert "entropy" in text_of(shown.legend)
    assert "has them for none" in text_of(shown.detail)


# --- what a model writes is text ------------------------------------------------------------------


def test_what_a_model_writes_is_never_markup(tmp_path):
    frame = rollout(groups=2, size=6, texts=HOSTILE, longest=12)
    frame["prompt"] = ["<script>p</script>" if group else "&lt;" for group in frame["group"]]
    frame["answer"] = "<img src=x onerror=alert(1)>"
    frame["top_tokens"] = [
        [list(HOSTILE[:2])] * len(ids) if i % 6 == 0 else None for i, ids in enumerate(frame["ids"])
    ]
    probe = frame.iloc[[0, 6]].copy()
    run = run_folder(tmp_path / "run", frames={1: frame}, probes={1: probe})
    for across in (False, True):
        shown = inspect_tokens(run, prompt=2, across=across)
        for text in (shown.html(), shown.legend.value, shown.detail.value):
            read = Reader(text)
            assert set(read.tags) <= {
                "details",
                "summary",
                "div",
                "span",
                "br",
                "b",
                "bdi",
                "table",
                "caption",
                "tr",
                "th",
                "td",
            }
            assert set(read.attributes) <= {"style", "title", "open"}
            assert "\u202e" not in text
        read = Reader(shown.html()).texts
        for token in shown.shown[0].tokens:
            assert token in read
    assert "⟨U+202E⟩abc" in {
        cell["text"]
        for one in range(6)
        for cell in inspect_tokens(run, sample=one + 1).view.blocks[0]["cells"]
    }
    assert "innerHTML" not in shown.view._esm


# --- errors ---------------------------------------------------------------------------------------


def test_errors_are_sentences_and_change_nothing(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match="samples_every=1"):
        inspect_tokens(run_folder(tmp_path / "empty", frames={}))
    with pytest.raises(FileNotFoundError, match="choose one of 1, 2, 5"):
        inspect_tokens(folder, 3)
    with pytest.raises(ValueError, match="did you mean 'entropy'"):
        inspect_tokens(folder, array="entropie")
    shown = inspect_tokens(folder, 1)
    torn = folder.path / "samples" / "step_000002.parquet"
    torn.write_bytes(b"PAR1")
    before = shown.view.blocks
    shown.step.value = 2
    assert "step_000002.parquet is damaged: delete it and look at another step" in text_of(
        shown.banner
    )
    assert (shown.step.value, shown.view.blocks) == (1, before)
    shown.step.value = 5
    assert (shown.banner.value, shown.shown[0].step) == ("", 5)
    with pytest.raises(ValueError, match="damaged"):
        inspect_tokens(folder, 2)


def test_a_mode_without_records_goes_back(tmp_path):
    shown = inspect_tokens(run_folder(tmp_path / "run"))
    shown.mode.value = True
    assert "has no recorded probes" in text_of(shown.banner)
    assert shown.mode.value is shown.across is False
    shown.array.value = "entropy"
    assert "entropy" in repr(shown)


def test_a_live_run_grows(tmp_path):
    run = run_folder(tmp_path / "run", "grpo", {1: rollout()}, written=False)
    shown = inspect_tokens(run)
    assert "advantage" not in shown.table()
    assert "not in metrics.jsonl yet" in text_of(shown.legend)
    other = run_folder(tmp_path / "other", "grpo", {1: rollout(), 2: rollout(1)})
    for row in other.rows():
        run.append("metrics.jsonl", row)
    rollout(1).to_parquet(run.path / "samples" / "step_000002.parquet")
    shown.look_again.click()
    assert [value for _, value in shown.step.options] == [1, 2]
    assert shown.step.value == 1
    assert "advantage" in shown.table()


# --- in a notebook --------------------------------------------------------------------------------


def test_a_step_that_is_recorded_while_it_is_read_is_shown(folder, monkeypatch):
    """The steps are listed, the run records one more, and the last one is read."""
    steps = folder.sample_steps()
    lists = iter([steps[:-1]])
    monkeypatch.setattr(RunFolder, "sample_steps", lambda *of: next(lists, steps))
    shown = inspect_tokens(folder)
    assert (shown.step.value, [value for _, value in shown.step.options]) == (steps[-1], steps)


def test_what_a_notebook_saves_is_a_sentence_and_html(folder):
    InteractiveShell.instance()
    shown = inspect_tokens(folder, 2, prompt=2)
    with capture_output() as captured:
        shown.show()
    widget, static = (output.data for output in captured.outputs)
    assert widget["text/plain"] == repr(shown)
    assert "application/vnd.jupyter.widget-view+json" in widget
    assert "<script" not in static["text/html"]
    assert static["text/html"].startswith("<details open")
    for token in shown.shown[0].tokens:
        assert f">{token.replace('<', '&lt;').replace('>', '&gt;')}</span>" in static["text/html"]
    with capture_output() as captured:
        shown.view._handle_custom_msg({"ready": True}, [])
        shown.view._handle_custom_msg({"ready": True}, [])
    assert len(captured.outputs) == 1
    assert captured.outputs[0].data["text/html"].startswith("<details style")


def test_on_a_narrow_page_tables_scroll_and_nothing_is_cut(folder):
    shown = inspect_tokens(folder, 2)
    for part in (shown.banner, shown.legend, shown.detail):
        assert part.layout.overflow == "auto"
    assert "width:252px;max-width:100%" in shown.legend.value  # the bar of colours


def test_it_has_the_colours_of_the_theme(folder):
    shown = inspect_tokens(folder, 2)
    pages = [shown.legend.value, shown.detail.value, shown.view._css, shown.html()]
    for page in pages:
        assert "var(--jp-layout-color0" in page
        words = re.sub(r"var\(.+?\)\)", "", page)  # but for where there is no theme
        assert not re.search(r"[^-]color:\s*#(?!000000|000;|ffffff)", words)
        assert not re.search(r"background:#fff\b", words)


def test_reprs_are_sentences(folder):
    for across in (False, True):
        shown = inspect_tokens(folder, across=across)
        for text in (repr(shown), repr(shown.view)):
            assert text.endswith(".")
            assert "(children" not in text


def test_the_table_holds_every_value(folder):
    table = inspect_tokens(folder, 2, prompt=3, sample=2).table()
    arrays = token_arrays(folder, 2).arrays
    assert list(table) == ["step", "prompt", "sample", "position", "token", *arrays]
    for name, values in arrays.items():
        np.testing.assert_array_equal(table[name], values[9])
    assert (table[["step", "prompt", "sample"]] == [2, 3, 2]).all(axis=None)
