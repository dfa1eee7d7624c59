"""The project's files agree with each other and with the package."""

import ast
import json
import os
import re
import struct
import subprocess
import sys
import tomllib
from collections import Counter
from importlib.metadata import distributions
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "rlkd_lab"
ZOO = sorted(path.parent for path in PACKAGE.glob("zoo/*/config.json"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIRED = {
    canonicalize_name(requirement.name): requirement
    for requirement in map(Requirement, PROJECT["dependencies"])
}


# --- dependencies ---------------------------------------------------------------------------------


def test_environment_yml_holds_the_dependencies_of_pyproject_and_no_others():
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    pip = [entry for section in listed if isinstance(section, dict) for entry in section["pip"]]
    assert [entry for entry in pip if entry.startswith("-")] == ["-e ."]
    # conda writes a specifier with or without a space before it, and knows no markers
    entries = [Requirement(entry) for entry in listed if isinstance(entry, str)] + [
        Requirement(entry) for entry in pip if entry != "-e ."
    ]
    names = [canonicalize_name(entry.name) for entry in entries]
    assert len(names) == len(set(names)), "a package stands in both sections"
    assert set(names) == set(REQUIRED) | {"python", "pip"}
    for name, entry in zip(names, entries, strict=True):
        if name in REQUIRED:
            assert entry.specifier == REQUIRED[name].specifier, name
            assert entry.marker is None or str(entry.marker) == str(REQUIRED[name].marker), name
    python = next(entry for entry in entries if entry.name == "python")
    assert str(python.specifier) == PROJECT["requires-python"]


def test_constraints_pin_every_dependency_within_its_bounds():
    lines = [
        line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()
    ]
    pins = {}
    for line in filter(None, lines):
        pin = Requirement(line)
        (bound,) = pin.specifier
        assert bound.operator == "==", line
        assert "*" not in bound.version, line
        assert canonicalize_name(pin.name) not in pins, line
        pins[canonicalize_name(pin.name)] = bound.version
    extras = [
        Requirement(text)
        for extra in ("trl", "test", "lab")
        for text in PROJECT["optional-dependencies"][extra]
    ]
    for requirement in [*REQUIRED.values(), *extras]:
        version = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} but {version}"
    assert pins["torch"] == "2.13.0"


@pytest.mark.parametrize("asked", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", None])
def test_the_allocator_grows_its_blocks_unless_somebody_asks_for_something_else(asked):
    given = {name: v for name, v in os.environ.items() if "ALLOC_CONF" not in name}
    given |= {asked: "max_split_size_mb:64"} if asked else {}
    code = "import os, rlkd_lab; print({k: v for k, v in os.environ.items() if 'ALLOC_CONF' in k})"
    done = subprocess.run(
        [sys.executable, "-c", code], env=given, cwd=ROOT, capture_output=True, text=True
    )
    wanted = {asked: "max_split_size_mb:64"} if asked else {}
    if not asked and sys.platform == "linux":
        wanted = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    assert done.stdout.strip() == str(wanted)


def test_ordinary_tests_see_no_gpu_and_gpu_tests_collect_nothing_else():
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    given = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "CUDA"))}
    code = (
        "import atexit, os, pytest; atexit.register(lambda: print('visible',"
        " os.environ.get('CUDA_VISIBLE_DEVICES')));"
        " pytest.main(['-m', 'gpu', '--collect-only', '-p', 'no:cacheprovider'])"
    )
    command = [sys.executable, "-c", code, "-m", "gpu"]  # as pytest's own command has it
    done = subprocess.run(command, env=given, cwd=ROOT, capture_output=True, text=True)
    files = {line.partition("::")[0] for line in done.stdout.splitlines() if "::" in line}
    assert files == {"tests/gpu/test_on_gpu.py"}
    assert "visible None" in done.stdout


def test_everything_installed_takes_the_oldest_python_that_is_promised():
    """A pin that wants 3.11.5 makes `make setup` fail on Debian 12, which has 3.11.2."""
    oldest = PROJECT["requires-python"].removeprefix(">=") + ".0"
    for found in distributions():
        assert SpecifierSet(found.metadata.get("Requires-Python") or "").contains(oldest), (
            f"{found.name} {found.version}"
        )


# --- imports point one way ------------------------------------------------------------------------

BELOW = {
    "objectives": set(),
    "tasks": set(),
    "runs": set(),
    "models": {"objectives"},
    "rollouts": {"objectives", "models", "tasks"},
    "training": {"objectives", "models", "rollouts", "tasks", "runs"},
    "study": {"objectives", "models", "rollouts", "tasks", "runs", "training", "terminal"},
    "zoo": {"objectives", "models", "rollouts", "tasks", "runs", "training"},
    "plots": {"objectives", "runs", "study"},
    "lab": {"objectives", "models", "rollouts", "tasks", "runs", "training", "study", "plots"},
    "doctor": {"models", "training"},
    "terminal": set(),
    "serve": set(),
    "progress": set(),
    "__main__": {"commands"},
    "commands": {
        "objectives",
        "runs",
        "training",
        "study",
        "plots",
        "doctor",
        "models",
        "tasks",
        "terminal",
        "progress",
        "lab",
        "serve",
    },
}
"""The packages of ours that each may import besides itself."""

DRAWING = {"matplotlib", "ipywidgets", "anywidget", "traitlets", "IPython"}


def imports(path):
    """Names of all modules that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: a relative import hides where it points"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if part != "__init__":
            yield part, path


@pytest.mark.parametrize("part", sorted({part for part, _ in modules()}))
def test_imports_point_one_way(part):
    assert part in BELOW, f"say in BELOW what {part} may import"
    for owner, path in modules():
        if owner == part:
            ours = {name.split(".")[1] for name in imports(path) if name.startswith("rlkd_lab.")}
            assert ours <= BELOW[part] | {part}, path.name


def test_beside_notebooks_one_file_of_commands_imports_the_lab_and_only_when_it_is_called():
    importers = [
        path.name
        for part, path in modules()
        if part != "lab" and any(name.startswith("rlkd_lab.lab") for name in imports(path))
    ]
    assert importers == ["pages.py"]
    tree = ast.parse((PACKAGE / "commands" / "pages.py").read_text())
    at_once = [node.module for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert not [name for name in at_once if name.startswith("rlkd_lab.lab")]


def test_files_and_functions_of_the_package_are_short():
    """At most 400 lines a file and 60 a function; ruff holds the complexity."""
    long = []
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if text.count("\n") > 400:
            long.append(path.name)
        long += [
            f"{path.name}: {node.name}"
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 60
        ]
    assert long == []


def test_only_plots_draw_and_only_the_lab_has_widgets():
    """Training, the study and the command line load neither matplotlib nor widgets."""
    allowed = {"plots": {"matplotlib"}, "lab": DRAWING}
    for part, path in modules():
        outside = {name.split(".")[0] for name in imports(path)}
        assert outside & DRAWING <= allowed.get(part, set()), path.name


def test_what_is_live_does_not_know_the_course():
    for path in (PACKAGE / "lab" / "live").glob("*.py"):
        assert not [name for name in imports(path) if name.startswith("rlkd_lab.lab.course")], (
            path.name
        )


def test_the_objectives_know_torch_and_the_run_folder_does_not():
    allowed = {
        "objectives": {"torch", "rlkd_lab"},
        "runs": {"filelock", "pandas", "pyarrow", "rlkd_lab"},
    }
    import sys

    for part, path in modules():
        if part in allowed:
            outside = {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names)
            assert outside <= allowed[part], path.name


def test_the_hardware_table_is_what_the_benchmarks_files_say():
    from benchmarks.hardware import MARKS, real_model, table

    page = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    found = page.partition(MARKS[0])[2].partition(MARKS[1])[0]
    assert found.strip() == (table() + real_model()).strip()


# --- the embedded models --------------------------------------------------------------------------


def header(path):
    """Names, dtypes and shapes of a safetensors file, without loading it."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return {
            name: entry
            for name, entry in json.loads(file.read(length)).items()
            if name != "__metadata__"
        }


def count(folder):
    total = 0
    for path in folder.glob("*.safetensors"):
        for entry in header(path).values():
            size = 1
            for length in entry["shape"]:
                size *= length
            total += size
    return total


def test_the_zoo_is_complete_and_small():
    four = ["student", "student-weak", "teacher", "teacher-concise"]
    assert [folder.name for folder in ZOO] == [f"knights-{name}" for name in four] + four
    assert (
        sum(path.stat().st_size for folder in ZOO for path in folder.rglob("*") if path.is_file())
        < 25e6
    )
    assert not [
        path
        for folder in ZOO
        for path in folder.rglob("*")
        if path.suffix in (".bin", ".pt", ".pth", ".pkl")
    ]


@pytest.mark.parametrize("folder", ZOO, ids=lambda folder: folder.name)
def test_an_embedded_model_is_qwen3_in_16_bit_with_widths_that_nf4_decodes(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "qwen3"
    heads = config["head_dim"] * config["num_attention_heads"]
    for width in (
        config["hidden_size"],
        config["intermediate_size"],
        heads,
        config["head_dim"] * config["num_key_value_heads"],
    ):
        assert width % 64 == 0
    for path in folder.glob("*.safetensors"):
        for name, entry in header(path).items():
            assert entry["dtype"] in ("BF16", "F16"), name
            if "proj" in name:
                assert all(length % 64 == 0 for length in entry["shape"]), name


@pytest.mark.parametrize("folder", ZOO, ids=lambda folder: folder.name)
def test_an_embedded_model_has_the_size_it_should(folder):
    low, high = (1.5e6, 2e6) if "teacher" in folder.name else (0.5e6, 1e6)
    assert low <= count(folder) <= high


def test_the_zoo_is_in_the_wheel():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"][
        "package-data"
    ]["rlkd_lab"]
    packed = {path for pattern in patterns for path in PACKAGE.glob(pattern)}
    assert {path for folder in ZOO for path in folder.iterdir() if path.is_file()} <= packed


# --- notebooks, paths, README ---------------------------------------------------------------------


def test_notebooks_carry_no_widget_state():
    for path in (ROOT / "notebooks").rglob("*.ipynb"):
        notebook = json.loads(path.read_text())
        assert "widgets" not in notebook["metadata"], path.name
        assert all("widgets" not in cell.get("metadata", {}) for cell in notebook["cells"]), (
            path.name
        )


def test_no_file_names_a_place_on_one_machine():
    try:
        tracked = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no git checkout")
    place = re.compile(rb"(?<![\w.])/(?:work|root|Users/\w+|home/\w+)/")
    found = []
    for name in filter(None, tracked):
        path = ROOT / name
        if path.is_file() and path.suffix not in (".png", ".pdf", ".safetensors", ".parquet"):
            found += [
                f"{name}: {match.group().decode()}" for match in place.finditer(path.read_bytes())
            ]
    assert found == []


def test_the_architecture_page_names_every_file_of_the_package():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    files = Counter(path.name for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
    named = Counter(re.findall(r"^ +(\w+\.py) ", page, re.MULTILINE))
    assert files - named == Counter()


DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
BY_HAND = [page for page in PAGES if page.parent.name != "reference"]


def anchors(path):
    """The anchors that a Markdown viewer makes of a page's headings."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_points_to_a_file_and_a_heading_that_exist(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            name, _, anchor = target.partition("#")
            file = page.parent / name if name else page
            assert file.exists(), target
            assert not anchor or anchor in anchors(file), target


def test_the_index_names_every_page():
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    index += (DOCS / "methods.md").read_text(encoding="utf-8")  # names the methods' pages
    for page in PAGES[1:]:
        name = page.relative_to(DOCS).as_posix()
        assert name == "index.md" or f"({name})" in index, name


def test_the_readme_and_the_findings_are_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
    assert len((DOCS / "findings.md").read_text(encoding="utf-8").split()) <= 1800


def sentences(page):
    """Yield the sentences of paragraphs, lists and cells, with code and formulas as one word."""
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"<!-- (generated|hardware).*?<!-- (end|/hardware) -->", "", text, flags=re.S)
    text = re.sub(r"\$\$.*?\$\$|\$[^$\n]+\$", "X", text, flags=re.S)
    words = {"code_inline": "X", "softbreak": " ", "image": ""}
    for before, token in pairwise(MarkdownIt("commonmark").enable("table").parse(text)):
        if token.type == "inline" and before.type != "heading_open":
            block = "".join(words.get(part.type, part.content) for part in token.children)
            yield from re.split(r"(?<=[.!?])[)\"”]*\s+", block)


@pytest.mark.parametrize("page", BY_HAND, ids=lambda page: page.name)
def test_no_sentence_of_a_page_has_more_than_25_words(page):
    assert [each for each in sentences(page) if len(each.split()) > 25] == []


def test_the_troubleshooting_page_quotes_messages_that_exist():
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^\| `([^`]+)` \|", page.partition("## Without")[0], re.MULTILINE)
    assert len(quoted) >= 25
    nodes = [node for _, path in modules() for node in ast.walk(ast.parse(path.read_text()))]
    texts = {node.value for node in nodes if isinstance(node, ast.Constant)}
    written = "\n".join(text for text in texts if isinstance(text, str))
    for message in quoted:
        for part in message.split("…"):
            assert part.strip() in written, message


def test_every_make_target_that_the_readme_names_exists():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"setup", "demo", "lab", "test", "test-fast", "figures", "lint"} <= targets
    # in code, not in prose
    assert (
        set(
            re.findall(
                r"(?:`|^ *)make ([a-z][\w-]*)", (ROOT / "README.md").read_text(), re.MULTILINE
            )
        )
        <= targets
    )
