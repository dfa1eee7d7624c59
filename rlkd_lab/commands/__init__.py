"""The command line: commands parse and print; what they do is elsewhere.

The order of the imports is the order of ``rlkd --help``.
"""

from rlkd_lab.commands.common import app, main

from rlkd_lab.commands import train, methods, show, pages, evaluate, study  # isort: skip

__all__ = ["app", "evaluate", "main", "methods", "pages", "show", "study", "train"]
