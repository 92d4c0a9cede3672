"""Find the features a language model computes with, edit them one at a time, draw the circuits they form.

    import subrank as sr

    model = sr.load_model("storybook")
    saes = sr.train(model, "storybook", tokens=200_000)
    circuit = sr.discover(model, saes)

The names below are loaded when they are first used: importing this loads no torch. Everything else is importable from
its room (`sae_core`, `editing`, `circuits`, `subrank.pages`).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_core.errors import UserError
    from sae_core.model.language_model import LanguageModel, load_model
    from sae_core.sites import FeatureId, Site, Stream
    from subrank.experiments.circuit import discover
    from subrank.experiments.evaluation import evaluate
    from subrank.experiments.features import features
    from subrank.experiments.harvest import harvest
    from subrank.experiments.importing import import_saes
    from subrank.experiments.ioi import ioi
    from subrank.experiments.prompt import prompt
    from subrank.experiments.removal import remove
    from subrank.experiments.steering import steer
    from subrank.experiments.training import sweep, train
    from subrank.result import Result, load_result
    from subrank.saes import Feature, Saes, load
    from subrank.studies.dark_matter import dark_matter
    from subrank.studies.explain import explain
    from subrank.studies.matching import matching
    from subrank.studies.scaling import scaling
    from subrank.studies.splitting import splitting
    from subrank.studies.superposition import superposition

__version__ = "0.1.0"
_HOMES = {
    "UserError": "sae_core.errors",
    "LanguageModel": "sae_core.model.language_model",
    "load_model": "sae_core.model.language_model",
    "FeatureId": "sae_core.sites",
    "Site": "sae_core.sites",
    "Stream": "sae_core.sites",
    "train": "subrank.experiments.training",
    "sweep": "subrank.experiments.training",
    "harvest": "subrank.experiments.harvest",
    "import_saes": "subrank.experiments.importing",
    "evaluate": "subrank.experiments.evaluation",
    "ioi": "subrank.experiments.ioi",
    "discover": "subrank.experiments.circuit",
    "remove": "subrank.experiments.removal",
    "steer": "subrank.experiments.steering",
    "features": "subrank.experiments.features",
    "prompt": "subrank.experiments.prompt",
    "Result": "subrank.result",
    "load_result": "subrank.result",
    "Feature": "subrank.saes",
    "Saes": "subrank.saes",
    "load": "subrank.saes",
    "dark_matter": "subrank.studies.dark_matter",
    "explain": "subrank.studies.explain",
    "scaling": "subrank.studies.scaling",
    "matching": "subrank.studies.matching",
    "splitting": "subrank.studies.splitting",
    "superposition": "subrank.studies.superposition",
}
__all__ = [
    "Feature",
    "FeatureId",
    "LanguageModel",
    "Result",
    "Saes",
    "Site",
    "Stream",
    "UserError",
    "dark_matter",
    "discover",
    "evaluate",
    "explain",
    "features",
    "harvest",
    "import_saes",
    "ioi",
    "load",
    "load_model",
    "load_result",
    "matching",
    "prompt",
    "remove",
    "scaling",
    "splitting",
    "steer",
    "superposition",
    "sweep",
    "train",
]


def __getattr__(name: str) -> Any:
    """The public name, from its home (PEP 562)."""
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
