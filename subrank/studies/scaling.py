"""Scaling laws: the loss of dictionaries over latents, sparsity and compute, and what else changes (Gao et al. 2024).

Sets of one model, as one pass of `subrank train` or `sr.sweep` makes them, at every site that all have:

1. L(n) = e + A n^-m at each k, L(n, k), L(C) along the lower hull of loss over training compute, and the best n for a
   budget, each fitted with intervals (`laws/`). The losses are those that `evaluate` and
   `train` measure, of held-out text; on the way, those in the log of training (`laws/curves.py`).
2. What a dictionary is worth beyond its loss, over n and k (`metrics/measuring.py`).

Controls: every law is also fitted with its sizes shuffled; a law is not read beyond its points where the interval of an
exponent includes 0; every metric stands beside its own. Sets of fewer than three sizes show no law, only metrics. Cost:
seconds for the laws; the metrics say what they take.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from markupsafe import Markup

from editing.set_quality import SetQuality
from sae_core.codec import from_plain, to_plain
from sae_core.dictionaries.kinds import parts
from sae_core.model.language_model import LanguageModel
from sae_core.progress import OnProgress, Stages, silent
from sae_core.sites import Site
from sae_core.training.config import recipe_to_json
from subrank.progress import shown
from subrank.result import Provenance, Result
from subrank.saes import Saes, by_name, folders_of, text_of
from subrank.settings.fields import make, takes
from subrank.settings.studies import ScalingSettings
from subrank.studies.laws.curves import logged
from subrank.studies.laws.figures import all_figures
from subrank.studies.laws.page import scaling_section, sentences
from subrank.studies.laws.scaling_laws import Laws, Point, joint_of, series_of
from subrank.studies.metrics.measuring import check_files, set_metrics
from subrank.studies.splitting import shared_sites

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True, eq=False, repr=False)
class Scaling(Result):
    """Laws of the loss over latents, sparsity and compute, and metrics of every dictionary."""

    verb: ClassVar[str] = "scaling"
    laws: Laws
    provenance: Provenance

    def title(self) -> str:
        return f"Scaling laws: dictionaries of {self.provenance.model}"

    def lines(self) -> list[str]:
        return sentences(self.laws)[:10]

    def figures(self) -> "dict[str, Figure]":
        return all_figures(self.laws)

    def body(self) -> Markup:
        return scaling_section(self.laws, self.figures())

    def to_dict(self) -> dict[str, Any]:
        return to_plain(self.laws)

    @classmethod
    def from_dict(cls, numbers: Mapping[str, Any], provenance: Provenance) -> "Scaling":
        return cls(from_plain(Laws, numbers), provenance)


@takes(ScalingSettings)
def scaling(
    model: LanguageModel,
    saes: Saes | Mapping[str, Saes],
    *,
    progress: bool = True,
    on_progress: OnProgress | None = None,
    **settings: Any,
) -> Scaling:
    """Laws of the loss over latents, sparsity and compute, and metrics, of sets that `sr.sweep` returns.

    Training leaves its log with the command only: without one, L(C) is of finished dictionaries.
    """
    sets, chosen = by_name(saes), make(ScalingSettings, settings)
    with shown("scaling", progress, on_progress) as report:
        return run_scaling(model, sets, chosen, report)


def run_scaling(
    model: LanguageModel, sets: Mapping[str, Saes], settings: ScalingSettings, on_progress: OnProgress = silent
) -> Scaling:
    """`scaling` with its settings made."""
    sites = shared_sites(sets, settings.site, least=1)
    model, *_ = [saes.on(model) for saes in sets.values()]
    check_files(model, settings)
    text, _ = text_of(sets, settings.text)
    stages = Stages(on_progress)
    stages.begin(f"reading {text.source}")
    contexts = text.read(model)
    alike = all(saes.text == text for saes in sets.values())  # else numbers are not of the same held-out contexts
    source = settings.text or (None if alike else text.source)
    points = []
    for name, saes in sets.items():
        quality = saes.measured(model, contexts, source, on_progress)
        points += [point_of(name, saes, site, quality) for site in sites]
    points.sort(key=lambda p: (p.site, p.kind, p.k, p.n_latents))
    stages.begin("fitting laws")
    series = tuple(series_of(each, settings) for each in grouped(points, lambda p: (p.site, p.kind, p.k)))
    joints = (joint_of(each, settings) for each in grouped(points, lambda p: (p.site, p.kind)))
    dictionaries = {name: {site: saes.dictionaries[site] for site in sites} for name, saes in sets.items()}
    metrics = set_metrics(model, dictionaries, contexts, settings, on_progress) if settings.metrics else {}
    laws = Laws(tuple(points), series, tuple(joint for joint in joints if joint), metrics)
    known = asdict(settings) | folders_of(sets)
    provenance = Provenance.of(Scaling.verb, model, known, dictionaries=dictionaries, text=contexts.digest)
    return Scaling(laws, provenance)


def point_of(name: str, saes: Saes, site: Site, measured: SetQuality) -> Point:
    """A dictionary as a point of the laws; for kinds that keep no fixed number of latents k is the rounded L0."""
    quality, cost, directions = measured.quality[site], measured.cost[site], saes.dictionaries[site].directions
    if saes.training is None:
        whole = parts(saes.dictionaries[site])
        kind, recipe, tokens = whole.kind.name, whole.sae, 0
    else:
        recipe, tokens = saes.training.recipe, saes.training.tokens
        kind = recipe_to_json(recipe)["kind"]
    return Point(
        name=name,
        site=site,
        kind=kind,
        k=int(getattr(recipe, "k", round(quality.l0))),
        n_latents=directions.shape[0],
        d_in=directions.shape[1],
        tokens=tokens,
        fvu=quality.fvu,
        l0=quality.l0,
        dead=quality.dead,
        original=cost.original,
        rise=cost.spliced - cost.original,
        curve=tuple(logged(saes.folder, site)),
    )


def grouped(points: Iterable[Point], key: Callable[[Point], Any]) -> list[list[Point]]:
    """Points of equal key, by rising key, each by rising size."""
    groups: dict[Any, list[Point]] = defaultdict(list)
    for point in points:
        groups[key(point)].append(point)
    return [sorted(groups[each], key=lambda point: point.n_latents) for each in sorted(groups)]
