"""The pictures that a browser draws have the numbers of the Python functions."""

import json
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rlkd_lab.lab import explorable
from rlkd_lab.lab.course.explorables import NAMES, source
from rlkd_lab.lab.course.pictures.estimators import estimator_numbers
from rlkd_lab.lab.course.pictures.fits import hump_numbers
from rlkd_lab.lab.course.pictures.ratios import clip_numbers
from rlkd_lab.lab.course.pictures.trust_regions import trust_region_numbers

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "rlkd_lab" / "lab" / "course" / "explorables"
CAPS = (None, 1.5, 3.0)


def in_javascript(name: str, cases: list[dict[str, Any]]) -> list[Any]:
    """What ``numbers`` of a module returns for each case, from Node or Chromium."""
    call = f"{json.dumps(cases)}.map((one) => numbers(one))"
    if node := shutil.which("node"):
        script = f"{source(name)}process.stdout.write(JSON.stringify({call}));"
        done = subprocess.run(
            [node, "--input-type=module"], input=script, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout)
    if CHROMIUM is None:
        pytest.skip("neither node nor chromium is here: the JavaScript cannot run")
    playwright = pytest.importorskip("playwright.sync_api", reason="no node, and no playwright")
    with playwright.sync_playwright() as started:
        page = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]).new_page()
        page.set_content(f'<script type="module">{source(name)}window.found = {call};</script>')
        page.wait_for_function("window.found")
        return json.loads(page.evaluate("JSON.stringify(window.found)"))


def equal(found: Any, expected: Any) -> None:
    """Within 1e-9 relative; what is 0 in one is below 1e-12 in the other."""
    if isinstance(expected, dict):
        assert set(found) == set(expected)
        for key, value in expected.items():
            equal(found[key], value)
    elif expected is None:
        assert found is None
    else:
        numbers = np.array(found, dtype=float).ravel()
        np.testing.assert_allclose(numbers, np.asarray(expected).ravel(), rtol=1e-9, atol=1e-12)


def draws(name: str) -> list[dict[str, Any]]:
    """Forty settings at random, the ends of the sliders, and the defaults."""
    r = np.random.default_rng(7)
    cases: list[dict[str, Any]] = [{}]
    for i in range(40):
        low, high = r.uniform(0, 0.9), r.uniform(0, 1)
        clips = {"clip_low": low, "clip_high": high, "ratio_cap": CAPS[i % 3]}
        if name == "clip":
            cases.append({"rho": r.uniform(0.05, 3.5), "sign": (1, -1)[i // 3 % 2], **clips})
        elif name == "trust_region":
            n = r.integers(1, 40)
            gap, moved, credit = r.normal(0, 4, n), r.normal(0, 0.3, n), r.normal(size=n)
            tokens = {"gap": gap, "moved": moved, "advantages": credit}
            cases.append({"alpha": r.uniform(), "gap_bound": (None, 0.3, 1, 2)[i % 4], **clips})
            if i % 2:
                cases[-1]["tokens"] = {key: value.tolist() for key, value in tokens.items()}
        elif name == "estimators":
            models = {who: r.dirichlet([2, 2, 2]).tolist() for who in ("student", "teacher")}
            cases.append({"n": int(r.integers(1, 300)), "seed": int(r.integers(21)), **models})
        else:
            at, middle, left = r.uniform(0.01, 0.99), r.uniform(0.01, 0.9), r.uniform(0.05, 0.95)
            cases.append({"q": at, "middle": middle, "left": left})
    ends = [{key: value} for key, values in EDGES[name].items() for value in values]
    return cases + ends + CORNERS.get(name, [])


EDGES: dict[str, dict[str, tuple[Any, ...]]] = {
    "clip": {
        "rho": (0.05, 3.5),
        "sign": (-1,),
        "clip_low": (0, 0.9),
        "clip_high": (0, 1),
        "ratio_cap": (1.5, 3),
    },
    "trust_region": {
        "alpha": (0, 1),
        "gap_bound": (None, 0.3, 2),
        "clip_low": (0, 0.9),
        "clip_high": (0, 1),
        "ratio_cap": (None, 1.5),
    },
    "estimators": {"n": (1, 2000), "seed": (20,)},
    "humps": {"q": (0.01, 0.99), "middle": (0.01, 0.9), "left": (0.05, 0.95)},
}
CORNERS: dict[str, list[dict[str, Any]]] = {
    "trust_region": [{"alpha": 0, "gap_bound": 0.3, "clip_high": 1}],  # only the bound makes dead
    "humps": [{"left": 0.6}],  # the smaller hump has a minimum that is not the smallest
}
PYTHON = {
    "clip": clip_numbers,
    "trust_region": trust_region_numbers,
    "estimators": estimator_numbers,
    "humps": hump_numbers,
}


@pytest.mark.parametrize("name", NAMES)
def test_the_javascript_has_the_numbers_of_python(name):
    cases = draws(name)
    for case, found in zip(cases, in_javascript(name, cases), strict=True):
        if name == "trust_region":
            found["thresholds"] = [np.inf if one is None else one for one in found["thresholds"]]
            case = case | {"tokens": pd.DataFrame(case["tokens"]) if "tokens" in case else None}
        equal(found, PYTHON[name](**case))


def test_a_widget_carries_the_module_and_the_data():
    widget = explorable("clip", tokens=[1])
    assert widget._esm == source("clip")
    assert "import" not in widget._esm  # a browser would ask for ./plot.js
    assert widget.data == {"tokens": [1]}
    with pytest.raises(ValueError, match="did you mean 'humps'"):
        explorable("hump")


def test_every_module_is_in_the_wheel():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["rlkd_lab"]
    packed = {path for pattern in patterns for path in (ROOT / "rlkd_lab").glob(pattern)}
    assert {*FOLDER.glob("*.js")} <= packed
    assert len(packed & {*FOLDER.glob("*.js")}) == len(NAMES) + 1  # with plot.js
