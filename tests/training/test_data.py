"""A run knows what its task gave: changed rows are refused or accepted by name, long rows are
found before the start.
"""

import json
import shutil
import warnings
from collections import Counter
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from rlkd_lab.models.locating import ZOO
from rlkd_lab.runs import RunFolder
from rlkd_lab.tasks import find_task
from rlkd_lab.tasks.verifier import GuardedTask
from rlkd_lab.training import fingerprint as module
from rlkd_lab.training import hooks, make_config, replay, resume, run
from rlkd_lab.training.before_loading import asked_prompts
from rlkd_lab.training.data import data_of, what_changed
from rlkd_lab.training.fingerprint import fingerprint
from rlkd_lab.training.inputs import Inputs
from rlkd_lab.training.weights import weights_of

pytestmark = pytest.mark.filterwarnings("ignore")


def write(path, rows):
    path.write_text(
        "question,answer\n" + "".join(f"{question},{answer}\n" for question, answer in rows)
    )
    return str(path)


ROWS = [(f"{i}+1?", i + 1) for i in range(20)]
CHANGES = {
    "a row more": ([*ROWS, ("99+1?", 100)], "rows then: .* train, .* now: "),
    "another answer": (
        [*ROWS[:-1], ("19+1?", 21)],
        "as many rows as then .*, some with another question, answer or difficulty",
    ),
    "another order": (ROWS[::-1], "the same rows in another order"),
}


def data(path):
    return data_of(GuardedTask(find_task(path)), path, [])


@pytest.mark.parametrize("case", CHANGES)
def test_every_change_that_moves_draws_is_a_change(tmp_path, case):
    rows, says = CHANGES[case]
    before = data(write(tmp_path / "s.csv", ROWS))
    assert (
        what_changed(before, json.loads(json.dumps(data(write(tmp_path / "s.csv", ROWS))))) is None
    )
    with pytest.raises(AssertionError, match=says):
        raise AssertionError(what_changed(before, data(write(tmp_path / "s.csv", rows))))


def test_a_task_that_makes_its_prompts_is_known_by_some_of_them(tmp_path, monkeypatch):
    from rlkd_lab.tasks.reasoning import ReasoningGymTask

    task = GuardedTask(find_task("chain_sum"))
    drawn = task.examples(8, 0)
    before = data_of(task, "chain_sum", drawn)
    assert before["version"].startswith("reasoning-gym 0")
    monkeypatch.setattr("rlkd_lab.training.data.version_of", lambda package: "9.9")
    assert what_changed(before, data_of(task, "chain_sum", drawn)) is None
    says = what_changed(before, data_of(task, "chain_sum", task.examples(8, 1)))
    assert (
        says
        == f"it draws other prompts than then ({before['version']} then, reasoning-gym 9.9 now)"
    )
    assert isinstance(task.task, ReasoningGymTask)
    own = tmp_path / "own.py"
    own.write_text("class Own: pass\n")
    arithmetic = GuardedTask(find_task("arithmetic"))
    first = data_of(arithmetic, f"{own}:Own", drawn)
    own.write_text("class Own: 'edited'\n")
    assert what_changed(first, data_of(arithmetic, f"{own}:Own", drawn)) is None
    assert (
        what_changed(first, data_of(arithmetic, f"{own}:Own", drawn[1:]))
        == "it draws other prompts than then (its file was edited)"
    )


def test_a_later_setting_at_its_default_keeps_the_fingerprint_of_before(monkeypatch):
    def prints(*given):
        return [fingerprint(make_config("grpo", **fields)) for fields in given]

    given = {}, {"max_prompt_tokens": 50}, {"long_prompts": "refuse"}
    assert len(set(prints(*given))) == 3
    monkeypatch.setattr(module, "LATER_SETTINGS", {"max_prompt_tokens"})
    others = {*module.NOT_IN_FINGERPRINT, "max_prompt_tokens"}
    monkeypatch.setattr(module, "NOT_IN_FINGERPRINT", others)
    without = prints({})
    monkeypatch.setattr(module, "NOT_IN_FINGERPRINT", others - {"max_prompt_tokens"})
    assert prints({}) == without != prints({"max_prompt_tokens": 50})


"""As version d8fa068 computed it."""


@pytest.fixture
def stopped(tiny, tmp_path):
    """A run on a file of rows, stopped after two of four steps, and the file."""
    file = tmp_path / "s.csv"
    write(file, ROWS)

    def stop(loop, row):
        loop.stopping = row["step"] == 2

    config = tiny(
        "grpo",
        task=str(file),
        teacher=None,
        difficulty=None,
        steps=4,
        checkpoint_every=1,
        max_new_tokens=8,
    )
    return run(config, tmp_path / "run", on_step=stop), file


def test_a_run_on_changed_rows_is_refused_or_accepted_by_name(stopped, tmp_path):
    folder, file = stopped
    original = file.read_text()
    assert folder.env()["data"]["rows"] == dict(
        Counter(
            split
            for split in ("train", "validation", "test")
            for _ in find_task(str(file)).rows(split)
        )
    )
    before = (folder.path / "metrics.jsonl").read_bytes()
    write(file, ROWS[::-1])
    with pytest.raises(
        ValueError,
        match=r"s\.csv was changed since the run began: the same rows in another order.*`rlkd"
        r" resume .*run --accept-changed-data`",
    ):
        resume(folder.path)
    assert (folder.path / "metrics.jsonl").read_bytes() == before
    with pytest.raises(
        ValueError,
        match=r"the same rows in another order.*`rlkd replay .*run --accept-changed-data`",
    ):
        replay(folder.path, tmp_path / "again")
    assert not (tmp_path / "again").exists()

    resume(
        folder.path,
        accept_changed_data=True,
        on_step=lambda loop, row: setattr(loop, "stopping", row["step"] == 3),
    )
    (event,) = [event for event in folder.rows("events.jsonl") if event["event"] == "data"]
    assert event["step"] == 2
    assert "from here on the run is trained on changed data" in event["text"]
    first, last = Inputs.recorded(folder, 1), Inputs.recorded(folder)
    assert first.data == folder.env()["data"] != last.data == event["data"]
    resume(folder.path)  # what was accepted once is not asked again
    assert RunFolder.open(folder.path).status()["state"] == "done"
    assert len([event for event in folder.rows("events.jsonl") if event["event"] == "data"]) == 1

    with pytest.raises(
        ValueError, match="was changed since the run began"
    ):  # it began with the other rows
        replay(folder.path, tmp_path / "again")
    assert replay(folder.path, tmp_path / "other", accept_changed_data=True).difference is not None
    file.write_text(original)
    found = replay(folder.path, tmp_path / "again")
    assert (found.difference, found.steps) == (None, 2)


def test_a_run_that_did_not_record_its_rows_goes_on_with_a_note(stopped):
    folder, file = stopped
    env = folder.env()
    del env["data"]
    folder.write_json("env.json", env)
    write(file, ROWS[::-1])
    with pytest.warns(UserWarning, match="made by a version that did not record its data"):
        resume(folder.path)
    assert any(
        "did not record its data" in event.get("text", "") for event in folder.rows("events.jsonl")
    )
    assert folder.env()["data"] == json.loads(json.dumps(data(str(file))))


def test_a_run_with_changed_weights_is_refused_or_accepted_by_name(tiny, make_adapter, tmp_path):
    """Before, it went on with another teacher, without a word."""
    adapter, model = tmp_path / "adapter", tmp_path / "model"
    shutil.copytree(make_adapter("student", 1), adapter)
    shutil.copytree(ZOO / "student", model)

    def stop(step):
        return lambda loop, row: setattr(loop, "stopping", row["step"] == step)

    settings = {"teacher": str(model), "teacher_adapter": str(adapter), "steps": 4}
    config = tiny("opd", checkpoint_every=1, max_new_tokens=8, **settings)
    folder = run(config, tmp_path / "run", on_step=stop(1))
    assert folder.env()["weights"].keys() == {"student", "teacher", "teacher_adapter"}
    resume(folder.path, on_step=stop(2))
    assert Inputs.recorded(folder).weights == weights_of(config) == folder.env()["weights"]

    shutil.copy2(Path(make_adapter("student", 2)) / "adapter_model.safetensors", adapter)
    says = r"the files of teacher_adapter=\S+adapter were changed .*`rlkd {} \S+run --accept-ch"
    with pytest.raises(ValueError, match=says.format("resume")):
        resume(folder.path)
    with pytest.raises(ValueError, match=says.format("replay")):
        replay(folder.path, tmp_path / "again")
    resume(folder.path, accept_changed_data=True, on_step=stop(3))
    (event,) = [event for event in folder.rows("events.jsonl") if event["event"] == "data"]
    assert (event["step"], event["weights"]) == (2, weights_of(config))
    before, after = Inputs.recorded(folder, 1), Inputs.recorded(folder)
    assert before.weights == folder.env()["weights"] != after.weights == event["weights"]

    told = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(told | {"transformers_version": "9"}))
    assert weights_of(config) == Inputs.recorded(folder).weights  # says nothing of its numbers
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"][3] *= 2
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"the files of teacher=\S+model were changed"):
        resume(folder.path)

    folder.write_json("env.json", {k: v for k, v in folder.env().items() if k != "weights"})
    events = (folder.path / "events.jsonl").read_text().splitlines(keepends=True)
    (folder.path / "events.jsonl").write_text(
        "".join(line for line in events if '"weights"' not in line)
    )
    with pytest.warns(UserWarning, match="a version that did not record the weights"):
        resume(folder.path)
    assert folder.env()["weights"] == weights_of(config)


def test_of_a_large_file_samples_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("rlkd_lab.training.weights.WHOLE", 1000)
    monkeypatch.setattr("rlkd_lab.training.weights.START", 100)
    shutil.copytree(ZOO / "student", tmp_path / "model")
    config = make_config("grpo", student=str(tmp_path / "model"), teacher=None)
    before = weights_of(config)
    with (tmp_path / "model" / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"!")
    assert weights_of(config) != before


def test_a_long_row_is_left_out_before_the_start_and_the_plan_knows_it(tiny, tmp_path):
    """Before, the run ended at the step that drew it, and again after every resume."""
    file = write(tmp_path / "s.csv", [*ROWS[:16], ("1+" * 260 + "1?", 261), *ROWS[16:]])
    config = tiny(
        "grpo",
        student="student",
        task=file,
        teacher=None,
        difficulty=None,
        steps=3,
        prompts_per_step=8,
        max_new_tokens=4,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        folder = run(config, tmp_path / "run")
    (sentence,) = [str(one.message) for one in caught if "above" in str(one.message)]
    assert (
        "1 of 21 rows have prompts above 508 tokens (the context of 512 tokens of student,"
        " less 4 for the completion)" in sentence
    )
    assert sentence.endswith("(s.csv, row 17)")
    assert sentence in [event.get("text") for event in folder.rows("events.jsonl")]
    assert folder.status()["state"] == "done"
    assert asked_prompts(config).longest < 120
    assert asked_prompts(config.model_copy(update={"max_prompt_tokens": 80})).longest <= 80
    with pytest.raises(
        ValueError, match=r"longest 5\d\d \(s\.csv, row 17\): shorten or remove them"
    ):
        run(config.model_copy(update={"long_prompts": "refuse"}), tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


def test_a_system_prompt_without_a_template_is_refused(tiny, tmp_path):
    with pytest.raises(
        ValueError,
        match=r"the tokenizer of student has no chat template; drop system_prompt, or"
        r" .*prompt_template",
    ):
        run(
            tiny("grpo", student="student", teacher=None, system_prompt="Be brief."),
            tmp_path / "run",
        )
    assert not (tmp_path / "run").exists()


def test_evaluations_ask_another_file_and_say_so(tiny, tmp_path, monkeypatch):
    asked = []
    said = hooks.evaluate
    monkeypatch.setattr(
        hooks, "evaluate", lambda *a, **k: (asked.append(said(*a, **k)), asked[-1])[1]
    )
    rows = [{"question": f"{i}+1?", "answer": str(i + 1)} for i in range(6)]
    splits = ["train"] * 5 + ["validation"]
    own = [{**row, "split": split} for row, split in zip(rows, splits, strict=True)]
    other = [*rows[3:5], {"question": "7-7?", "answer": "0"}]
    own = [{"Frage": row.pop("question"), **row} for row in own]  # the other file has usual names
    for name, part in (("train", own), ("held", other)):
        lines = "\n".join(map(json.dumps, part))
        (tmp_path / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    held = str(tmp_path / "held.jsonl")
    config = tiny(
        "grpo",
        task=str(tmp_path / "train.jsonl"),
        difficulty=None,
        task_settings={"question": "Frage"},
        prompt_template="{question}",
        eval_task=held,
        eval_every=1,
        eval_prompts=3,
        eval_samples=2,
        patience=1,
        verifier_seconds=0,
    )
    with pytest.warns(UserWarning, match="of its questions are trained on too"):
        folder = run(config, tmp_path / "run")
    prompts = [[row["prompt"] for row in one.rows] for one in asked]
    assert sorted(prompts[0]) == sorted(2 * ["3+1?", "4+1?", "7-7?"])
    assert prompts[0] == prompts[1]
    assert folder.rows()[-1]["eval/accuracy"] == asked[-1].accuracy
    assert f"evaluations on {held} without a better accuracy" in folder.status()["why"]
    assert resume(folder.path).rows() == folder.rows()
    (tmp_path / "held.jsonl").write_text(lines.replace("7-7", "8-8"), encoding="utf-8")
    folder.set_status("idle", 1)
    with pytest.raises(ValueError, match="evaluations ask other prompts than then"):
        resume(folder.path)
