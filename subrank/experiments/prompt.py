"""`sr.prompt`, `subrank prompt`: the features of one prompt, layer by token, and what they do to the next token."""

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from markupsafe import Markup

from circuits.discovery.prompts import logit_target
from circuits.features.atlas import atlas_of
from circuits.features.feature_label import FeatureLabel
from circuits.features.labelling import Labeller
from circuits.graph import FeatureGraph
from circuits.prompt_view.placement import PlacedCircuit, placed
from circuits.prompt_view.prompt_features import PromptFeatures
from circuits.prompt_view.reading import NextToken, PromptConfig, features_on
from editing.set_quality import SetQuality
from sae_core.codec import from_plain, to_plain
from sae_core.digest import digest
from sae_core.errors import UserError
from sae_core.model.language_model import LanguageModel
from sae_core.progress import OnProgress, Progress, silent
from sae_core.sites import FeatureId
from subrank.checking.prompt import recomputed
from subrank.checking.recomputed import check_of
from subrank.experiments.circuit_result import CircuitResult
from subrank.experiments.cost import announce, pass_over
from subrank.pages.evaluation_page import dictionaries_section
from subrank.pages.page import titled
from subrank.pages.prompt_page import IN_CELL, prompt_section
from subrank.progress import shown
from subrank.result import Provenance, Result, load_result
from subrank.saes import Saes, a_set
from subrank.settings.fields import make, takes
from subrank.settings.model_size import fitted
from subrank.settings.prompt import PromptSettings

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True, eq=False, repr=False)
class PromptResult(Result):
    """What is active where on a prompt, what it does to the next token, and where a circuit's features act."""

    verb: ClassVar[str] = "prompt"
    prompt: str
    features: PromptFeatures
    labels: dict[FeatureId, FeatureLabel]
    """Of the features that are shown, those that have one."""
    circuit: PlacedCircuit | None
    quality: SetQuality | None
    """None where nothing is known of the set."""
    provenance: Provenance

    def title(self) -> str:
        return "The features of a prompt"

    def lines(self) -> list[str]:
        view, end = self.features, self.features.tokens[-1].likely[0]
        model = Path(self.provenance.model).name
        loss = "" if math.isnan(view.cross_entropy) else f", cross-entropy {view.cross_entropy:.2f} nats per token"
        lines = [f"{model} expects {end.token!r} ({end.probability:.1%}) after {len(view.tokens)} tokens{loss}"]
        lines.append(f"{view.readout}: {view.value:+.2f}; features ablated one at a time:")
        for cell, each in view.exact()[:5]:
            label = self.labels.get(each.feature)
            where = f"{each.feature} on {view.tokens[cell.position].text!r} ({cell.position})"
            effects = f"{each.exact:+.2f}, first order {each.first_order:+.2f}, random directions {each.control:.2f}"
            lines.append(f"{where}: {effects}{f'; {label.short}' if label else ''}")
        if not view.exact():
            lines[-1] = f"{view.readout}: {view.value:+.2f}; no feature was ablated"
        if not any(cell.n_active for cell in view.cells):
            lines.append("no feature is active on this prompt")
        if self.circuit:
            active, n = len(self.circuit.places), self.circuit.n_features
            lines.append(f"of the circuit of {self.circuit.target} {active} of {n} features are active on this prompt")
        if outliers := sorted({cell.position for cell in view.cells if cell.outlier}):
            lines.append(f"tokens of massive norm, on which no feature is read: {', '.join(map(str, outliers))}")
        return lines

    def figures(self) -> "dict[str, Figure]":
        return {}

    def body(self) -> Markup:
        section = prompt_section(self.features, self.labels, self.circuit)
        return section + (titled("The dictionaries", dictionaries_section(self.quality)) if self.quality else "")

    def to_dict(self) -> dict[str, Any]:
        return {
            "dictionaries": self.quality and self.quality.to_json(),
            "prompt": self.prompt,
            "features": to_plain(self.features),
            "labels": {str(feature): label.to_json() for feature, label in self.labels.items()},
            "circuit": to_plain(self.circuit),
        }

    @classmethod
    def from_dict(cls, numbers: Mapping[str, Any], provenance: Provenance) -> "PromptResult":
        labels = {FeatureId.parse(name): FeatureLabel.from_json(label) for name, label in numbers["labels"].items()}
        circuit = numbers["circuit"] and from_plain(PlacedCircuit, numbers["circuit"])
        features, known = from_plain(PromptFeatures, numbers["features"]), numbers["dictionaries"]
        quality = SetQuality.from_json(known) if known else None
        return cls(numbers["prompt"], features, labels, circuit, quality, provenance)


@takes(PromptSettings)
def prompt(
    model: LanguageModel,
    saes: Saes,
    prompt: str,
    circuit: CircuitResult | str | Path | None = None,
    *,
    progress: bool = True,
    on_progress: OnProgress | None = None,
    **settings: Any,
) -> PromptResult:
    """The features of one prompt, site by token, and what they do to the next token.

    With `circuit`, a result of `sr.discover` or its folder, its features and edges where they act on the prompt.
    """
    chosen = make(PromptSettings, settings)
    with shown("prompt", progress, on_progress) as report:
        return run_prompt(model, a_set(saes), prompt, circuit_of(circuit, saes), chosen, report)


def run_prompt(
    model: LanguageModel,
    saes: Saes,
    text: str,
    circuit: FeatureGraph | None,
    settings: PromptSettings,
    on_progress: OnProgress = silent,
) -> PromptResult:
    """`prompt` with its settings made and its circuit read."""
    model = saes.on(model)
    settings = fitted(settings, model.block_weights, on_progress)
    tokens = saes.tokens(model, text)
    members = frozenset(circuit.features()) if circuit else frozenset()
    config = PromptConfig(settings.features, settings.exact, readout_of(model, settings.logit), members, settings.seed)
    on_progress(Progress(f"reading {tokens.shape[1]} tokens at {len(saes.dictionaries)} sites", 0, None))
    view = features_on(model, saes.dictionaries, tokens, config)
    labels = labels_of(saes, model, named(view, members), settings, on_progress)
    known = asdict(settings) | {"prompt": text, "set": saes.folder}
    depends = {"dictionaries": saes.dictionaries, "circuit": to_plain(circuit)}
    provenance = Provenance.of("prompt", model, known, **depends)
    again = partial(recomputed, model, saes.dictionaries, tokens, view, config)
    check = check_of(model, settings.check, on_progress, again)
    where = placed(circuit, view) if circuit else None
    return PromptResult(text, view, labels, where, saes.quality, provenance, check=check)


def named(view: PromptFeatures, members: Set[FeatureId]) -> list[FeatureId]:
    """The features that are labelled: the first of each cell, those that were ablated, and a circuit's."""
    features = (
        each.feature
        for cell in view.cells
        for n, each in enumerate(cell.features)
        if n < IN_CELL or each.exact is not None or each.feature in members
    )
    return sorted(set(features))


def labels_of(
    saes: Saes, model: LanguageModel, features: Sequence[FeatureId], settings: PromptSettings, on_progress: OnProgress
) -> dict[FeatureId, FeatureLabel]:
    """Labels of features, from the first contexts of the text: made on every second one, scored on the others."""
    if not settings.contexts or not features:
        return {}
    text = saes.text.at(settings.text)
    contexts = replace(text, max_tokens=settings.contexts * text.n_ctx, digest="").read(model).all
    survey = saes.survey(model)
    if unread := survey.n_unread(contexts):
        parts = {f"{unread} contexts read for labels": pass_over(model, unread, text.n_ctx, saes.sites)}
        announce(model, {"": saes.dictionaries}, parts, on_progress)
    on_progress(Progress(f"labelling {len(features)} features on {len(contexts)} contexts", 0, None))
    return Labeller(atlas_of(survey, contexts, top=16), seed=settings.seed).labels(features)


def readout_of(model: LanguageModel, name: str | None) -> NextToken | None:
    """The logit, or the difference of two, of that name; raises `UserError` where a word is not one token."""
    if name is None:
        return None
    target = logit_target(model, name, 1)
    return NextToken(int(target.plus), None if target.minus is None else int(target.minus))


def circuit_of(circuit: CircuitResult | str | Path | None, saes: Saes) -> FeatureGraph | None:
    """The graph of a circuit, or of that in a folder; raises `UserError` unless it is of these dictionaries."""
    if circuit is None:
        return None
    result = load_result(circuit) if isinstance(circuit, str | Path) else circuit
    if not isinstance(result, CircuitResult):
        kind = result.verb if isinstance(result, Result) else type(result).__name__
        raise UserError(f"{circuit!s:.80} is no circuit but of {kind}; give a folder that `subrank circuit` wrote")
    known = digest(saes.dictionaries)
    saes.ids(result.graph.features())
    if result.provenance.digests.get("dictionaries", known) != known:
        raise UserError(f"the circuit of {result.target} was found with other dictionaries; give the set of its run")
    return result.graph
