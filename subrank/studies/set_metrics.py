"""The metrics of sets of dictionaries on one text, which the model reads once for all of them."""

from collections.abc import Mapping

from sae_core.data.text import Contexts
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.model.language_model import LanguageModel
from sae_core.progress import OnProgress, silent
from sae_core.sites import Site
from subrank.settings.studies import MetricSettings
from subrank.studies.metrics import SetMetrics


def set_metrics(
    model: LanguageModel,
    sets: Mapping[str, Mapping[Site, Dictionary]],
    contexts: Contexts,
    settings: MetricSettings,
    on_progress: OnProgress = silent,
) -> dict[str, dict[Site, SetMetrics]]:
    """Every metric of every dictionary: choices are made on training contexts, numbers are of held-out ones."""
    raise NotImplementedError
