"""Settings of the documentation site: Sphinx, MyST and the executed notebooks as they are saved.

    make site    # build/site/index.html

The source folder is the repository's root, so links work on GitHub and on the site alike.
Nothing is fetched: formulas become MathML, and every script lies in the theme.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive
from latex2mathml.converter import convert
from sphinx.application import Sphinx

from rlkd_lab import __version__
from rlkd_lab.lab.course.explorables import html

sys.path.append(str(Path(__file__).parent))
project = "rlkd_lab"
author = "the authors of rlkd_lab"
version = release = __version__
root_doc = "docs/index"
include_patterns = ["docs/**", "notebooks/*.ipynb", "CHANGELOG.md", "CONTRIBUTING.md"]
include_patterns += ["rlkd_lab/zoo/CARD.md", "results/embedded/scorecard.md"]
exclude_patterns = ["**.ipynb_checkpoints"]
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_external_toc",
    "glossary_links",
]
external_toc_path = "docs/_toc.yml"
external_toc_exclude_missing = False

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the saved outputs are the site's: `make notebooks` makes them
nb_merge_streams = True
nb_ipywidgets_js: dict[str, Any] = {}  # a live widget needs a kernel; its saved picture does not
autodoc_typehints = "description"
autodoc_member_order = "bysource"
suppress_warnings = ["mystnb.unknown_mime_type"]

html_theme = "sphinx_book_theme"
html_title = "rlkd_lab"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_context = {"default_mode": "auto"}  # light or dark, as the reader's system
html_math_renderer = "mathml"
html_show_sourcelink = False
html_theme_options: dict[str, Any] = {
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "path_to_docs": "",
    "navbar_start": [],
    "navbar_persistent": [],
}
# Where GitHub builds the site, it says whose repository it is; elsewhere nothing is launched.
if repository := os.environ.get("GITHUB_REPOSITORY"):
    html_theme_options |= {
        "repository_url": f"https://github.com/{repository}",
        "repository_branch": os.environ.get("GITHUB_REF_NAME", "main"),
        "use_repository_button": True,
        "launch_buttons": {"colab_url": "https://colab.research.google.com"},
    }


def _mathml(self: Any, node: nodes.Element) -> None:
    display = "inline" if isinstance(node, nodes.math) else "block"
    self.body.append(convert(node.astext(), display=display))
    raise nodes.SkipNode


class ExplorableDirective(Directive):
    """Shows a picture of the lab that the browser draws: ```` ```{explorable} clip ````."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the picture's HTML with its script inside, so that no file is loaded."""
        return [nodes.raw("", html(self.arguments[0]), format="html")]


def setup(app: Sphinx) -> None:
    """Register the pictures and the formulas' renderer."""
    app.add_directive("explorable", ExplorableDirective)
    app.add_html_math_renderer("mathml", (_mathml, None), (_mathml, None))
