"""Where models and data sets come from: the bundled model, a directory, or the Hugging Face hub if it answers."""

import os
from pathlib import Path
from urllib.parse import urlparse

from sae_core.errors import UserError, did_you_mean
from sae_core.files import user_path

STORYBOOK = Path(__file__).parents[1] / "storybook" / "model"
"""The bundled model, in Hugging Face layout."""


def model_source(name: str | Path) -> Path | str:
    """The directory or the `.gguf` file to load a model from, or a hub name that answers.

    Raises `UserError` for a directory that is missing or holds no model or several, and where the hub does not answer.
    """
    path = user_path(name)
    if str(name) == "storybook":
        return STORYBOOK
    if path.is_dir():
        if any((path / file).is_file() for file in ("config.json", "adapter_config.json")):
            return path
        return _only_gguf(path)
    if path.suffix.lower() == ".gguf" and path.is_file():
        return path
    looks_local = isinstance(name, Path) or str(name).startswith((".", "/", "~")) or str(name).count("/") > 1
    looks_local |= path.suffix.lower() == ".gguf"
    if looks_local or path.exists():
        beside = path.parent.glob("*/config.json") if path.parent.is_dir() else ()
        near = did_you_mean(path, [config.parent for config in beside])
        raise UserError(
            f"no model directory {path}{near}; give 'storybook', a directory in Hugging Face layout, a .gguf file, or "
            "a hub name"
        )
    return hub_source(str(name), kind="model")


def _only_gguf(folder: Path) -> Path:
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".gguf")
    if len(files) > 1:
        names = ", ".join(path.name for path in files)
        raise UserError(f"{folder} holds several models: {names}; give one of these files")
    if not files:
        raise UserError(
            f"{folder} is not a language model: it has no config.json (Hugging Face layout is expected), no .gguf"
        )
    return files[0]


def hub_source(name: str, *, kind: str) -> Path | str:
    """`name` if the hub answers, else the copy in the local cache; raises `UserError` where there is neither.

    The stock client retries for up to 47 seconds before it says that there is no network.
    """
    from huggingface_hub import constants, snapshot_download

    if not hub_answers(constants.ENDPOINT):
        try:
            return Path(snapshot_download(name, repo_type=kind, local_files_only=True))
        except Exception as error:  # not cached, or no legal hub name: both mean that only the hub could help
            near = did_you_mean(name, ["storybook", *(path for path in Path().iterdir() if path.is_dir())])
            raise UserError(
                f"no local {kind} {name!r}, and the hub does not answer{near}; give a local path instead"
            ) from error
    return name


def hub_answers(endpoint: str, *, seconds: float = 3.0) -> bool:
    """Whether anything answers at the hub's address."""
    import httpx

    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE") or not urlparse(endpoint).hostname:
        return False
    try:
        httpx.head(endpoint, timeout=seconds)
    except (httpx.HTTPError, OSError):
        return False
    return True
