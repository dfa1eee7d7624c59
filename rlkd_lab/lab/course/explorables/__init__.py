"""Pictures that a browser draws by itself: the notebook and the site run the same JavaScript.

Each picture is a module ``NAME.js``; ``plot.js`` has what they share.
``numbers`` in a module equals a function of :mod:`rlkd_lab.lab.course.pictures`; a test compares.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from rlkd_lab.objectives.settings import nearest

NAMES = ("clip", "trust_region", "estimators", "humps")
_IMPORT = re.compile(r'^import \{[^}]*\} from "\./plot\.js";\n', re.MULTILINE)


def source(name: str) -> str:
    """Return a picture as one ES module, with what it shares with the others."""
    here = Path(__file__).parent
    module = (here / f"{nearest(name, NAMES, 'explorable')}.js").read_text(encoding="utf-8")
    return (here / "plot.js").read_text(encoding="utf-8") + _IMPORT.sub("", module)


class Explorable(anywidget.AnyWidget):
    """A picture with sliders; ``values`` holds what the reader has set."""

    _esm = traitlets.Unicode().tag(sync=True)
    values = traitlets.Dict().tag(sync=True)
    data = traitlets.Dict().tag(sync=True)

    def __repr__(self) -> str:
        return "An explorable picture: run this cell to open it."


def explorable(name: str, **data: Any) -> Explorable:
    """Return a picture for the last line of a cell: ``explorable("clip")``.

    Args:
        name: one of :data:`NAMES`.
        data: what the picture shows besides its sliders, such as ``tokens`` of ``trust_region``.
    """
    return Explorable(_esm=source(name), data=data)


def html(name: str) -> str:
    """Return a picture as HTML that needs no other file."""
    return (
        f'<div class="explorable" id="explorable-{name}"></div>\n<script type="module">\n'
        f'{source(name)}explorable.mount(document.getElementById("explorable-{name}"));\n</script>\n'
    )
