"""The files in which every verb states its numbers and where they come from."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subrank import __version__

if TYPE_CHECKING:
    from sae_core.model.language_model import LanguageModel


def save_result(out: Path, numbers: dict[str, Any], model: "LanguageModel", settings: dict[str, Any]) -> None:
    """Write `result.json`, and `provenance.json` beside it."""
    import platform
    from importlib.metadata import version

    from sae_core.files import write_json

    plain = {
        k: v if isinstance(v, (int, float, bool, dict, list, type(None))) else str(v)
        for k, v in settings.items()
        if k != "run"
    }
    packages = ("torch", "transformers", "transformer-lens", "numpy")
    provenance = {
        "subrank": __version__,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "model": model.name,
        "fingerprint": model.fingerprint(),
        "device": str(model.device),
        "settings": plain,
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    write_json(out / "provenance.json", provenance)
    write_json(out / "result.json", numbers)
