"""Uploading an exported folder to the Hugging Face hub: private unless somebody says public."""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id


def check_place(name: str, public: bool) -> None:
    """Refuse a place on the hub that cannot be written, before anything is exported.

    Args:
        name: OWNER/NAME.
        public: whether everybody may see it.

    Raises:
        ValueError: no such name is possible, nobody is logged in, the hub cannot be reached, or
            the place is public and ``public`` is not given.
    """
    if name.count("/") != 1:
        raise ValueError(f"--push {name}: write OWNER/NAME, a place on the hub")
    api = HfApi()
    try:
        validate_repo_id(name)
        api.whoami()
        private = api.model_info(name).private
    except RepositoryNotFoundError:
        return  # it will be made
    except OfflineModeIsEnabled:
        raise ValueError("--push: HF_HUB_OFFLINE is set; unset it to upload") from None
    except (HfHubHTTPError, OSError, ValueError) as error:
        text = " ".join(str(error).split())
        raise ValueError(
            f"--push {name}: the hub refused ({text:.200}); `hf auth login` logs you in"
        ) from None
    if not private and not public:
        raise ValueError(f"--push {name}: this place is public; add --public if you mean it")


def push(folder: Path, name: str, public: bool = False) -> str:
    """Upload a folder and return its address.

    Args:
        folder: what :func:`~rlkd_lab.study.export.export_run` wrote.
        name: OWNER/NAME; a new place is private unless ``public``.
        public: whether everybody may see a new place.

    Raises:
        ValueError: the adapter names a folder of this machine as its base, or the hub refuses.
    """
    config = folder / "adapter_config.json"
    if config.exists():
        base = json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"]
        if Path(base).is_dir():
            raise ValueError(
                f"the adapter's base is {base}, a folder of this machine: export with --merge, or"
                f" name the base's hub id in {config} and upload the folder yourself"
            )
    api = HfApi()
    try:
        api.create_repo(name, private=not public, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Export by rlkd_lab")
    except (HfHubHTTPError, OSError) as error:
        raise ValueError(f"{folder} is written, and not uploaded: {error}") from None
    return f"https://huggingface.co/{name}"
