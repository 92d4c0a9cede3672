"""`sr.evaluate`, `subrank evaluate`: every measurement of one or several sets of dictionaries of one model."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from markupsafe import Markup
from torch import Tensor

from editing.loss_recovered import splice_reports
from editing.set_evaluation import Evaluation as Measurements
from editing.set_evaluation import evaluation_of
from sae_core.evaluation.profiles import profiles
from sae_core.evaluation.similarity import compare
from sae_core.files import write_tensors
from sae_core.model.language_model import LanguageModel
from sae_core.progress import OnProgress, Stages, silent
from subrank.checking.evaluation import DICTIONARIES, recomputed
from subrank.checking.recomputed import check_of
from subrank.experiments.cost import again, announce, evaluate_parts
from subrank.pages.evaluation_figures import frontier_figure, site_figure
from subrank.pages.evaluation_page import evaluation_page
from subrank.progress import shown
from subrank.result import Provenance, Result
from subrank.saes import Saes, by_name, folders_of, text_of
from subrank.settings.experiments import EvaluateSettings
from subrank.settings.fields import make, takes

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation(Result):
    """Reconstruction, density, dead latents, cross-entropy, KL and perplexity spliced in, and how alike sets are."""

    verb: ClassVar[str] = "evaluate"
    evaluation: Measurements
    provenance: Provenance
    densities: dict[str, Tensor] | None = None
    """Of every latent, by `set/site`; not part of `result.json`."""

    def title(self) -> str:
        return f"Dictionaries of {self.provenance.model}"

    def lines(self) -> list[str]:
        return self.evaluation.lines()[:10]

    def figures(self) -> "dict[str, Figure]":
        sites = {str(site): site_figure(self.evaluation, site) for site in self.evaluation.sites}
        several = len(self.evaluation.sets) > 1
        return ({"frontier": frontier_figure(self.evaluation)} if several else {}) | sites

    def body(self) -> Markup:
        return evaluation_page(self.evaluation)

    def to_dict(self) -> dict[str, Any]:
        return self.evaluation.to_json()

    @classmethod
    def from_dict(cls, numbers: Mapping[str, Any], provenance: Provenance) -> "Evaluation":
        return cls(Measurements.from_json(numbers), provenance)

    def write(self, folder: Path) -> None:
        """As every result, and the densities of all latents, in `densities.safetensors`."""
        super().write(folder)
        if self.densities is not None:
            write_tensors(folder / "densities.safetensors", self.densities)


@takes(EvaluateSettings)
def evaluate(
    model: LanguageModel,
    saes: Saes | Mapping[str, Saes],
    *,
    progress: bool = True,
    on_progress: OnProgress | None = None,
    **settings: Any,
) -> Evaluation:
    """Every measurement of one set of dictionaries, or of several by name, on held-out text."""
    sets, chosen = by_name(saes), make(EvaluateSettings, settings)
    with shown("evaluate", progress, on_progress) as report:
        return run_evaluate(model, sets, chosen, report)


def run_evaluate(
    model: LanguageModel, sets: Mapping[str, Saes], settings: EvaluateSettings, on_progress: OnProgress = silent
) -> Evaluation:
    """`evaluate` of sets by name."""
    model, *_ = [saes.on(model) for saes in sets.values()]
    stages = Stages(on_progress, 3 + (len(sets) > 1))
    text, _ = text_of(sets, settings.text)
    stages.begin(f"reading {text.source}")
    contexts = text.read(model).held_out[: settings.contexts]
    dictionaries = {name: saes.dictionaries for name, saes in sets.items()}
    n_few = min(len(contexts), settings.spliced)
    parts = evaluate_parts(model, dictionaries, len(contexts), n_few, text.n_ctx)
    parts = {**parts, **again(model, settings.check, DICTIONARIES * (len(contexts) + 3 * n_few) * text.n_ctx)}
    announce(model, dictionaries, parts, on_progress)
    n = sum(map(len, dictionaries.values()))
    stages.begin(f"measuring {n} dictionaries on {len(contexts)} contexts of {text.n_ctx} tokens")
    measured = profiles(model, dictionaries, contexts)
    few = contexts[: settings.spliced]
    stages.begin(f"splicing each dictionary into the model on {len(few)} of them")
    means = {site: profile.mean for by_site in measured.values() for site, profile in by_site.items()}
    spliced = splice_reports(model, dictionaries, means, few)
    if len(sets) > 1:
        stages.begin("comparing the sets")
    alike = compare(dictionaries, generator=torch.Generator().manual_seed(settings.seed))
    read = {"text": text.source, "contexts": len(contexts), "contexts_spliced": len(few)}
    evaluation = evaluation_of(measured, spliced, alike, **read)
    densities = {f"{name}/{site}": p.density for name, by_site in measured.items() for site, p in by_site.items()}
    known = asdict(settings) | folders_of(sets)
    provenance = Provenance.of("evaluate", model, known, dictionaries=dictionaries, text=contexts)
    numbers = partial(recomputed, model, dictionaries, contexts, evaluation, settings.seed)
    return Evaluation(evaluation, provenance, densities, check=check_of(model, settings.check, on_progress, numbers))
