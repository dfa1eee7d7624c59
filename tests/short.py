"""The embedded pair cut to its first layer, for tests that do not care what is learned.

A step takes a third of the time. What these models write is nonsense.
"""

import atexit
import json
import shutil
import tempfile
from pathlib import Path

from safetensors.torch import load_file, save_file

from rlkd_lab.models.locating import ZOO

PLACE = Path(tempfile.mkdtemp(prefix="short-pair-"))
atexit.register(shutil.rmtree, PLACE, ignore_errors=True)


def cut(name):
    """Copy an embedded model with its first layer alone; return the folder."""
    folder = shutil.copytree(ZOO / name, PLACE / name)
    weights = load_file(folder / "model.safetensors")
    first = {k: v for k, v in weights.items() if "layers." not in k or "layers.0." in k}
    save_file(first, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config |= {"num_hidden_layers": 1, "layer_types": config["layer_types"][:1]}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


SHORT = {name: cut(name) for name in ("student", "teacher")}
EMBEDDED = {name: name for name in SHORT}
"""The whole pair, for tests in which it has to solve something."""
