"""Uploading an export: what is refused before anything is made, and what the hub is asked for."""

import json

import pytest
from huggingface_hub.errors import OfflineModeIsEnabled, RepositoryNotFoundError
from typer.testing import CliRunner

from rlkd_lab.commands import app
from rlkd_lab.study import push as module


class Hub:
    """The part of HfApi that is called; it has one place, or none."""

    def __init__(self, private=None, fails=None):
        self.private, self.fails, self.asked = private, fails, []

    def __call__(self):
        return self

    def whoami(self):
        if self.fails:
            raise self.fails

    def model_info(self, name):
        if self.private is None:
            raise RepositoryNotFoundError("not there", response=_Response())
        return self

    def create_repo(self, name, **options):
        self.asked.append(("create", name, options))

    def upload_folder(self, **options):
        self.asked.append(("upload", options["repo_id"], options["folder_path"]))


class _Response:
    headers, request, status_code = {}, None, 404


@pytest.fixture
def hub(monkeypatch):
    def use(**state):
        hub = Hub(**state)
        monkeypatch.setattr(module, "HfApi", hub)
        return hub

    return use


@pytest.mark.parametrize("state", [{"private": None}, {"private": True}])
@pytest.mark.parametrize("public", [False, True])
def test_a_new_place_is_private_unless_somebody_says_public(hub, tmp_path, state, public):
    there = hub(**state)
    module.check_place("me/mine", public)
    assert module.push(tmp_path, "me/mine", public) == "https://huggingface.co/me/mine"
    assert there.asked == [
        ("create", "me/mine", {"private": not public, "exist_ok": True}),
        ("upload", "me/mine", tmp_path),
    ]


@pytest.mark.parametrize(
    ("name", "state", "words"),
    [
        ("mine", {}, "write OWNER/NAME"),
        ("me/a b", {}, "the hub refused"),
        ("me/mine", {"private": False}, "this place is public; add --public"),
        ("me/mine", {"fails": OfflineModeIsEnabled("offline")}, "HF_HUB_OFFLINE is set"),
        ("me/mine", {"fails": OSError("no token")}, "`hf auth login` logs you in"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_the_export(
    hub, tmp_path, name, state, words
):
    hub(**state)
    words_of = CliRunner().invoke(
        app, ["export", str(tmp_path), "--out", str(tmp_path / "out"), "--push", name]
    )
    assert words_of.exit_code == 2
    assert words in " ".join(words_of.output.split())
    assert not (tmp_path / "out").exists()


def test_an_adapter_of_a_folder_of_this_machine_is_not_uploaded(hub, tmp_path):
    there = hub()
    config = {"base_model_name_or_path": str(tmp_path)}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="a folder of this machine: export with --merge"):
        module.push(tmp_path, "me/mine")
    assert there.asked == []
