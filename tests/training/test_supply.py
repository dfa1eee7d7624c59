"""Files, folders and settings from elsewhere are data: nothing in them is run, followed out of
its place, or obeyed by a screen.
"""

import ast
import getpass
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from rlkd_lab.commands import app
from rlkd_lab.models import load_policy, load_teacher
from rlkd_lab.objectives import METHODS
from rlkd_lab.runs import RunFolder, compare, overview
from rlkd_lab.study import find_target
from rlkd_lab.terminal import visible
from rlkd_lab.training import config_of, environment, make_config, replay, resume, run
from rlkd_lab.training.config_file import _Loader
from rlkd_lab.training.context import Context
from rlkd_lab.training.forks import Forks
from rlkd_lab.training.loop_knobs import LOOP_KNOBS
from rlkd_lab.training.requests import RequestHandler
from rlkd_lab.training.state import Progress
from rlkd_lab.training.trainer import Trainer
from tests.short import EMBEDDED

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / "rlkd_lab").rglob("*.py"))


@pytest.fixture
def mark(tmp_path):
    """A file that code from elsewhere would make."""
    path = tmp_path / "it-ran"
    yield path
    assert not path.exists(), "code from elsewhere was run"


class Bomb:
    """A pickle that makes a file when it is opened."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


# --- safetensors, parquet, JSON -------------------------------------------------------------------


def calls(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = (
                node.func.attr
                if isinstance(node.func, ast.Attribute)
                else getattr(node.func, "id", "")
            )
            yield (
                ast.unparse(node.func),
                name,
                {word.arg: ast.unparse(word.value) for word in node.keywords},
            )


def test_the_package_has_no_way_to_run_what_it_reads():
    found = []
    for path in MODULES:
        text = path.read_text()
        found += [
            f"{path.name}: {name}"
            for name in ("pickle", "joblib", "dill", "marshal", "shelve", "yaml")
            if re.search(rf"^\s*(import|from) {name}\b", text, re.M)
        ]
        for whole, name, words in calls(path):
            unsafe = whole in (
                "eval",
                "exec",
                "compile",
                "np.load",
                "numpy.load",
                "os.system",
                "pd.read_pickle",
            )
            unsafe = unsafe or (whole == "torch.load" and words.get("weights_only") != "True")
            unsafe = (
                unsafe
                or words.get("shell") == "True"
                or words.get("allow_pickle") == "True"
                or words.get("trust_remote_code", "False") != "False"
            )
            # where it is left out, transformers asks on the terminal
            unsafe = unsafe or (
                name == "from_pretrained"
                and whole.startswith("Auto")
                and words.get("trust_remote_code") != "False"
            )
            unsafe = unsafe or (
                whole == "AutoModelForCausalLM.from_pretrained"
                and words.get("use_safetensors") != "True"
            )
            found += [f"{path.name}: {whole}"] * unsafe
    # over a pipe from a run to its verifier; and config files, by a loader of plain values
    assert found == ["verifier_process.py: pickle", "config_file.py: yaml"]
    assert issubclass(_Loader, yaml.SafeLoader)


def test_every_adapter_that_peft_reads_is_looked_at_before():
    for path in MODULES:
        for line in path.read_text().splitlines():
            if "PeftModel.from_pretrained(" in line or ".load_adapter(" in line:
                assert (
                    "adapter_folder(" in line
                    or ", start," in line
                    or "(start," in line
                    or "print" in line
                    or '"model = ' in line
                ), f"{path.name}: {line}"


@pytest.mark.parametrize("load", [load_policy, load_teacher])
def test_an_adapter_in_a_pickle_is_refused_and_not_opened(
    make_model, make_adapter, tmp_path, mark, load
):
    folder = tmp_path / "adapter"
    shutil.copytree(make_adapter(make_model()), folder)
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(FileNotFoundError, match=r"holds no adapter_model\.safetensors"):
        load(make_model(), "none", adapter=str(folder))


def test_an_adapter_whose_config_names_code_is_refused(
    make_model, make_adapter, tmp_path, monkeypatch, mark
):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "theirs.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    folder = make_adapter(make_model(), megatron_config={"a": 1}, megatron_core="theirs")
    with pytest.raises(ValueError, match="Megatron, whose config names code"):
        load_policy(make_model(), "none", adapter=folder)
    (Path(folder) / "adapter_config.json").write_text("[")
    with pytest.raises(ValueError, match=r"no adapter_config\.json that can be read"):
        load_policy(make_model(), "none", adapter=folder)


def test_a_model_that_asks_for_a_kernel_of_the_hub_is_refused(make_model, tmp_path):
    shutil.copytree(make_model(), tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"attn_implementation": "somebody/attention"})
    )
    with pytest.raises(ValueError, match="kernel somebody/attention, which is code from the hub"):
        load_policy(str(tmp_path / "model"), "none")


def test_a_parquet_file_with_a_pickled_type_is_read_without_opening_it(trained, tmp_path, mark):
    field = pa.field(
        "prompt",
        pa.string(),
        metadata={
            "ARROW:extension:name": "arrow.py_extension_type",
            "ARROW:extension:metadata": pickle.dumps(Bomb(mark)),
        },
    )
    folder = copy(trained("kdrl").path, tmp_path / "run")
    pq.write_table(
        pa.table({"prompt": ["1+1?"]}, schema=pa.schema([field])),
        folder / "samples" / "step_000001.parquet",
    )
    assert RunFolder.open(folder).samples(1)["prompt"].tolist() == ["1+1?"]


# --- run folders from elsewhere -------------------------------------------------------------------


def copy(path, to):
    shutil.copytree(path, to)
    return to


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("what", ["task", "engine"])
@pytest.mark.parametrize("place", ["task.py", "samples/task.py", "link.py"])
def test_code_in_a_run_folder_is_never_run(trained, tmp_path, mark, what, place):
    folder = copy(trained("kdrl").path, tmp_path / "theirs")
    code = folder / place
    if place == "link.py":  # from outside into the folder
        code = tmp_path / "link.py"
        code.symlink_to(folder / "task.py")
        (folder / "task.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    else:
        code.write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    edit(folder / "config.json", **{what: f"{code}:Mine"})
    opened = RunFolder.open(folder)  # reading it is one thing
    assert len(opened.metrics()) == 2
    compare([opened])
    assert overview(tmp_path, lambda pid, since: False)["state"].tolist() == ["done"]
    for use in (
        resume,
        find_target,
        lambda path: replay(path, tmp_path / "again"),
        lambda path: config_of(RunFolder.open(path)),
    ):
        with pytest.raises(
            ValueError,
            match=rf"as its {what}, which lies in a run folder: such a folder is data, and no"
            r" code in it is run",
        ):
            use(str(folder))


def test_code_beside_a_run_is_the_users_own_and_opening_does_not_run_it(trained, tmp_path, mark):
    folder = copy(trained("kdrl").path, tmp_path / "runs" / "mine")
    (tmp_path / "task.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    edit(folder / "config.json", task=f"{tmp_path / 'task.py'}:Mine")
    assert config_of(RunFolder.open(folder)).task.endswith("task.py:Mine")
    assert overview(tmp_path / "runs", lambda pid, since: False)["state"].tolist() == ["done"]


@pytest.mark.parametrize(
    "name",
    [
        "metrics.jsonl",
        "samples",
        "checkpoints/step_000002/state.json",
        "twins",
        "requests.jsonl",
        "eval",
    ],
)
def test_a_link_that_leads_out_of_a_run_folder_is_refused(trained, tmp_path, name):
    folder, outside = copy(trained("kdrl").path, tmp_path / "theirs"), tmp_path / "mine"
    outside.mkdir()
    (outside / "precious").write_text("mine")
    place = folder / name
    if place.is_dir():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    place.symlink_to(outside if "." not in place.name else outside / "precious")
    for use in (
        RunFolder.open,
        resume,
        lambda path: replay(path, tmp_path / "again"),
        lambda path: find_target(str(path)),
    ):
        with pytest.raises(
            ValueError, match=r"a link that leads out of it, .*a run folder is data"
        ):
            use(folder)
    assert (outside / "precious").read_text() == "mine"
    (row,) = overview(tmp_path, lambda pid, since: False).to_dict("records")
    assert row["state"] == "torn"


def test_a_link_within_and_a_link_to_a_run_folder_are_followed(trained, tmp_path):
    folder = copy(trained("kdrl").path, tmp_path / "mine")
    (folder / "newest").symlink_to(folder / "checkpoints")
    (tmp_path / "link").symlink_to(folder)
    assert len(RunFolder.open(tmp_path / "link").rows()) == 2


def test_twins_of_a_run_from_elsewhere_delete_nothing_outside(trained, tmp_path):
    """Also where the folder was changed after it was opened."""
    folder, outside = copy(trained("kdrl").path, tmp_path / "theirs"), tmp_path / "mine"
    outside.mkdir()
    (outside / "precious").touch()
    (folder / "twins").mkdir()
    (folder / "twins" / "step_000001").mkdir()
    (folder / "twins" / "step_000001" / "link").symlink_to(outside)
    (folder / "twins" / "step_000002").write_text("no folder")
    for number, about in enumerate(
        ["[]", '{"step": "../../x"}', '{"step": {}, "stream": ""}', '{"step": 9, "stream": 1}'], 3
    ):
        (folder / "twins" / f"step_{number:06d}").mkdir()
        (folder / "twins" / f"step_{number:06d}" / "fork.json").write_text(about)
    (folder / "twins" / "step_000007").symlink_to(outside)
    (outside / "config.json").touch()
    config = make_config("kdrl")
    run = Context(config, RunFolder(folder))
    run.progress = Progress(2)
    assert Forks(SimpleNamespace(config=config), run).alive == []
    assert sorted(path.name for path in outside.iterdir()) == ["config.json", "precious"]
    assert sorted(path.name for path in (folder / "twins").iterdir()) == [
        f"step_{number:06d}" for number in (1, 2, 3, 4, 5, 7)
    ]  # 6 is of a later step
    assert [path.name for path in (folder / "twins" / "step_000003").iterdir()] == ["fork.json"]
    warned = [
        event["text"] for event in run.folder.rows("events.jsonl") if event["event"] == "warning"
    ]
    assert [text.partition(" (")[0] for text in warned] == [
        f"the fork step_{number:06d} cannot be resumed" for number in (1, 3, 4, 5)
    ]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"step": 7}, "its state is that of step 7"),
        ({"step": "../../x"}, "ValueError"),
        ({"held": 3}, "TypeError"),
    ],
)
def test_a_checkpoint_that_lies_about_itself_is_refused(trained, tiny, tmp_path, change, says):
    folder = copy(trained("kdrl").path, tmp_path / "theirs")
    edit(folder / "checkpoints" / "step_000002" / "state.json", sha256_of_this=None, **change)
    config = tiny("kdrl")
    trainer, context = Trainer(config), Context(config, RunFolder(folder))
    with pytest.raises(ValueError, match=f"the checkpoint .* is damaged.*{says}"):
        trainer.load(context, folder / "checkpoints" / "step_000002")


def test_a_recorded_move_that_nobody_could_have_asked_for_is_refused(trained, tmp_path):
    folder = copy(trained("kdrl").path, tmp_path / "theirs")
    for move, says in (
        (
            {"knob": "learning_rate", "value": 1e9},
            "out of range",
        ),  # kd_coef would be refused by the objective too
        ({"knob": "temperature", "value": "1"}, "no value"),
        ({"knob": "x", "value": 1}, "knob"),
    ):
        (folder / "events.jsonl").write_text(
            json.dumps({"event": "knob", "step": 1, **move}) + "\n"
        )
        with pytest.raises(ValueError, match=says):
            replay(folder, tmp_path / "again")


# --- screens --------------------------------------------------------------------------------------

HOSTILE = (
    "<img src=x onerror=alert(1)><script>alert(2)<\\script>[red]\x1b]0;mine\x07\x1b[2J\x9b31m\u202e"
)


@pytest.fixture
def hostile(trained, tmp_path):
    """A run with such a name, and such texts wherever a file holds text."""
    folder = copy(trained("kdrl").path, tmp_path / "runs" / HOSTILE)
    edit(folder / "config.json", student=HOSTILE, system_prompt=HOSTILE)
    edit(folder / "status.json", state="failed", why=HOSTILE)
    copy(trained("kdrl").path, tmp_path / "runs" / "other")
    with (folder / "events.jsonl").open("a") as file:
        file.write(json.dumps({"event": "warning", "step": 1, "text": HOSTILE}) + "\n")
    return folder


def steers(text):
    return [one for one in text if visible(one) != one]


@pytest.mark.parametrize(
    "words",
    [
        ["runs"],
        ["runs", "--json"],
        ["compare"],
        ["compare", "--json"],
        ["resume"],
        ["eval"],
        ["export"],
    ],
    ids=" ".join,
)
def test_nothing_in_a_run_folder_steers_the_terminal(hostile, tmp_path, words):
    paths = {
        "runs": [hostile.parent],
        "compare": [hostile, hostile.parent / "other", "--figure", tmp_path / "a.png"],
        "export": [hostile, "--out", tmp_path / "out"],
    }
    result = CliRunner(env={"COLUMNS": "400"}).invoke(
        app, [words[0], *map(str, paths.get(words[0], [hostile])), *words[1:]]
    )
    assert steers(result.output) == []
    if words[0] in ("runs", "compare"):
        assert result.exit_code == 0, result.output
        assert "[red]" in result.output  # as it stands, and not as markup
        assert "\\u001b" in result.output
        if "--json" in words:
            json.loads(result.stdout)
    else:
        assert "Traceback" not in result.output
        assert result.exit_code == 2


def test_damaged_numbers_in_a_run_make_it_torn_and_no_crash(hostile):
    with (hostile / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 3, "reward": HOSTILE}) + "\n")
    result = CliRunner(env={"COLUMNS": "400"}).invoke(app, ["runs", str(hostile.parent)])
    assert result.exit_code == 0, result.output
    assert "torn" in result.stdout
    assert compare([RunFolder.open(hostile)])["run"].tolist() == [HOSTILE]


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found, self.attributes = set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.add(tag)
        self.attributes |= {name for name, _ in attrs}


def test_nothing_in_a_run_folder_is_markup_in_a_notebook(hostile):
    from rlkd_lab.lab import open_run, panel

    edit(hostile / "config.json", student="student")
    run_ = open_run(hostile)
    watched = panel(run_)
    try:
        bundle, _ = (
            watched._repr_mimebundle_() if hasattr(watched, "_repr_mimebundle_") else ({}, {})
        )
        texts = [watched.state.value, watched.banner.value, bundle.get("text/html", "")]
        tables = [
            overview(hostile.parent, lambda pid, since: False),
            compare([RunFolder.open(hostile)]),
        ]
        for text in [*texts, *(table._repr_html_() for table in tables)]:
            read = Tags(text)
            assert not read.found & {"img", "script"}
            assert not any(name.startswith("on") for name in read.attributes)
    finally:
        watched.close() if hasattr(watched, "close") else None


# --- knobs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_the_command_line_and_a_request_take_and_refuse_the_same(tmp_path, method):
    config = make_config(method)
    folder = RunFolder.create(tmp_path / "run", config.model_dump(), {})
    asked = {}
    for name, knob in {**METHODS[method].knobs, **LOOP_KNOBS}.items():
        for value in (
            knob.low,
            knob.high,
            (knob.low + knob.high) / 2,
            knob.low - 1,
            2 * knob.high + 1,
            float("nan"),
            float("inf"),
            -float("inf"),
            None,
        ):
            asked[folder.ask("knob", knob=name, value=value)] = (name, value)
    for name in {knob for other in METHODS.values() for knob in other.knobs} - METHODS[
        method
    ].knobs.keys() | {"steps", "__class__"}:
        asked[folder.ask("knob", knob=name, value=0.1)] = (name, 0.1)
    context = Context(config, folder)
    RequestHandler(context, lambda: None)
    refused = {event["id"] for event in folder.rows("events.jsonl") if event["event"] == "refused"}
    took = {move["id"] for move in context.knobs.drop()}
    assert refused | took == set(asked)
    assert not refused & took
    assert took
    for number, (name, value) in asked.items():
        try:
            make_config(method, settings={name: "off" if value is None else repr(value)})
        except ValueError:
            assert number in refused, (name, value)
        else:
            # what `--set` sets beside the knobs is no knob
            assert number in took or name == "steps", (name, value)


# --- servers --------------------------------------------------------------------------------------


def test_make_lab_listens_on_loopback_alone():
    (line,) = [
        line
        for line in (ROOT / "Makefile").read_text().splitlines()
        if "jupyter lab" in line and line.startswith("\t.venv")
    ]
    assert "--ip=127.0.0.1" in line


def test_no_notebook_and_no_module_starts_a_server():
    listens = re.compile(
        r"http\.server|socketserver|socket\.socket|uvicorn|flask|gradio|share=True|0\.0\.0\.0|create_server|start_server",
        re.I,
    )
    for path in [*MODULES, *(ROOT / "notebooks").glob("*.py")]:
        for line in path.read_text().splitlines():
            assert not listens.search(line), f"{path.name}: {line}"
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        code = "\n".join(
            "".join(cell["source"])
            for cell in json.loads(path.read_text())["cells"]
            if cell["cell_type"] == "code"
        )
        assert not listens.search(code), path.name


def test_ray_is_started_without_its_dashboard(tmp_path, monkeypatch):
    from rlkd_lab.study import pools

    class Enough(Exception):
        pass

    def init(**words):
        given.update(words)
        raise Enough

    given = {}
    monkeypatch.setitem(
        sys.modules, "ray", SimpleNamespace(init=init, is_initialized=lambda: False)
    )
    with pytest.raises(Enough):
        pools.on_ray(lambda job: None, [], tmp_path, None, None, lambda: None)
    assert given["include_dashboard"] is False


# --- secrets --------------------------------------------------------------------------------------


def test_secrets_and_places_of_this_machine_stand_in_no_file_of_a_run(tiny, tmp_path, monkeypatch):
    secrets = {
        "HF_TOKEN": "hf_tellnobody1",
        "AWS_SECRET_ACCESS_KEY": "tellnobody2",
        "WANDB_API_KEY": "tellnobody3",
        "https_proxy": "http://me:tellnobody4@proxy",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    checkout = tmp_path / "checkout"
    subprocess.run(["git", "init", "--quiet", str(checkout)], check=True)
    for words in (
        ["remote", "add", "origin", "https://me:tellnobody5@example.org/x.git"],
        ["-c", "user.name=a", "-c", "user.email=b", "commit", "--allow-empty", "-qm", "x"],
    ):
        subprocess.run(["git", *words], cwd=checkout, check=True)
    monkeypatch.setattr(environment, "__file__", str(checkout / "environment.py"))
    folders = [
        run(tiny("kdrl", samples_every=1, eval_every=1, steps=1), tmp_path / "run"),
        run(tiny("rft", samples_every=1, steps=1), tmp_path / "traces"),
    ]
    assert len(folders[0].env()["commit"]) == 12
    forbidden = [b"tellnobody", str(ROOT).encode(), str(tmp_path).encode(), b"example.org"]
    home = str(Path.home())
    forbidden += [home.encode()] if len(home) > 1 else []
    user = getpass.getuser()
    forbidden += [f"/{user}/".encode(), f'"{user}"'.encode()]
    seen = 0
    for folder in folders:
        for path in sorted(folder.path.rglob("*")):
            if path.is_file():
                content = path.read_bytes()
                if path.suffix == ".parquet":  # packed
                    content += (
                        repr(pq.read_metadata(path).metadata).encode()
                        + pd.read_parquet(path).to_csv().encode()
                    )
                assert [one for one in forbidden if one in content] == [], path
                seen += 1
    assert seen > 12


def test_a_checkpoint_names_its_base_as_the_run_does(trained):
    (last,) = trained("kdrl", **EMBEDDED).checkpoints()
    assert (
        json.loads((last / "adapter_config.json").read_text())["base_model_name_or_path"]
        == "student"
    )
    assert not (last / "README.md").exists()
    assert find_target(str(last)).load().adapter == "default"
