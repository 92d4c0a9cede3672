"""`sr.steer`, `subrank steer`: text with features turned up, down or off, side by side, and what each strength does."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from jaxtyping import Int
from markupsafe import Markup
from torch import Tensor

from circuits.features.atlas import atlas_of, loudest, strongest_writers
from editing.set_quality import SetQuality
from editing.steering.choosing import MEASURED, most_effective
from editing.steering.continuations import Continuation, Writing, continuations, example_prompts
from editing.steering.dose_response import DoseResponse, dose_response
from editing.steering.edits import DEFAULT_STRENGTHS, Mode, Steering
from editing.steering.feature_text import read_features
from editing.steering.held_out import DoseConfig
from sae_core.codec import from_plain, to_plain
from sae_core.data.reading import as_chat
from sae_core.errors import UserError
from sae_core.model.generation import Sampling, check_room
from sae_core.model.language_model import LanguageModel
from sae_core.progress import OnProgress, Progress, silent
from sae_core.sites import FeatureId, Stream
from subrank.checking.recomputed import check_of
from subrank.checking.steering import recomputed
from subrank.experiments.cost import Doses, announce, pass_over, steer_parts
from subrank.pages.evaluation_page import dictionaries_section
from subrank.pages.steering_figure import steering_figure
from subrank.pages.steering_page import described, steering_section
from subrank.progress import shown
from subrank.result import Provenance, Result
from subrank.saes import FeatureName, Saes, a_set
from subrank.settings.experiments import SteerSettings
from subrank.settings.fields import make, takes

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


SITES, PER_SITE = 3, 6
"""The last residual sites, and features of each of two kinds, among which one is chosen."""


@dataclass(frozen=True, eq=False, repr=False)
class Steered(Result):
    """Texts per strength, and dose and response: what each strength does to promoted tokens and to everything else."""

    verb: ClassVar[str] = "steer"
    texts: tuple[Continuation, ...]
    response: DoseResponse
    quality: SetQuality
    provenance: Provenance

    def title(self) -> str:
        return f"Steering {', '.join(self.response.features)}"

    def lines(self) -> list[str]:
        def line(text: Continuation) -> str:
            strength = "unedited" if text.strength is None else f"{text.strength:g}"
            return f"{strength:>9} | {text.prompt} ...{''.join(text.tokens)}".replace("\n", "\\n")[:160]

        return [*described(self.response), *map(line, self.texts)][:10]

    def figures(self) -> "dict[str, Figure]":
        return {"dose and response": steering_figure(self.response)} if self.response.doses else {}

    def body(self) -> Markup:
        return steering_section(self.response, self.texts) + dictionaries_section(self.quality)

    def to_dict(self) -> dict[str, Any]:
        numbers = {"texts": to_plain(self.texts), "dose_response": to_plain(self.response)}
        return {"dictionaries": self.quality.to_json()} | numbers

    @classmethod
    def from_dict(cls, numbers: Mapping[str, Any], provenance: Provenance) -> "Steered":
        texts = tuple(from_plain(Continuation, text) for text in numbers["texts"])
        response = from_plain(DoseResponse, numbers["dose_response"])
        return cls(texts, response, SetQuality.from_json(numbers["dictionaries"]), provenance)


@takes(SteerSettings)
def steer(
    model: LanguageModel,
    saes: Saes,
    features: FeatureName | Sequence[FeatureName] = (),
    *,
    progress: bool = True,
    on_progress: OnProgress | None = None,
    **settings: Any,
) -> Steered:
    """What the model writes with features scaled, clamped or off, and what each strength does to its predictions.

    `features` is a name such as "5_452", or several that are turned together; by default one is chosen.
    """
    names = [features] if isinstance(features, (str, FeatureId)) else features
    chosen = make(SteerSettings, settings)
    with shown("steer", progress, on_progress) as report:
        return run_steer(model, a_set(saes), names, chosen, report)


def run_steer(
    model: LanguageModel,
    saes: Saes,
    names: Sequence[FeatureName],
    settings: SteerSettings,
    on_progress: OnProgress = silent,
) -> Steered:
    """`steer` with its settings made. Features and prompts are chosen where there are none."""
    mode = Mode(settings.mode)
    strengths = strengths_of(mode, settings.strengths)
    writing = writing_of(settings)
    features = saes.ids(names)
    model = saes.on(model)
    texts = settings.prompt or ()
    starts = [as_chat(model, text, reply=True) for text in texts] if settings.chat else texts
    prompts = [saes.tokens(model, text)[0].tolist() for text in starts]
    if prompts:
        check_room(model, prompts, settings.tokens)
    contexts = saes.read(model, settings.text)
    reading, measuring = contexts.training[: settings.read], contexts.held_out[: settings.read]
    layer = min((feature.site.layer for feature in features), default=model.n_layers - 1)
    n_read = len(reading) * (2 - bool(features)) + len(measuring)
    sizes = Doses(len(strengths), settings.tokens, min(settings.contexts, len(measuring)), len(prompts) or 2)
    parts = steer_parts(model, layer, n_read, sizes, saes.text.n_ctx)
    if not features:  # of each candidate five passes over a few contexts, through half of the model on average
        few = 2 * SITES * PER_SITE * 5 * MEASURED // 2
        parts = {**parts, "a feature chosen": pass_over(model, few, saes.text.n_ctx)}
    announce(model, {"": saes.dictionaries}, parts, on_progress)
    quality = saes.measured(model, contexts, settings.text, on_progress)
    if not features:
        on_progress(Progress(f"choosing a feature on {len(reading)} contexts", 0, None))
        features = [default_feature(model, saes, reading, mode, on_progress)]
    on_progress(Progress(f"reading {', '.join(map(str, features))} on {len(reading)} contexts", 0, None))
    text = read_features(model, saes.dictionaries, features, reading)
    steering = Steering(saes.dictionaries, text, mode)
    held = read_features(model, saes.dictionaries, features, measuring)
    prompts = prompts or example_prompts(model, held if held.active.any() else text, mode)
    texts = continuations(model, steering, strengths, prompts, writing)
    config = DoseConfig(contexts=settings.contexts, seed=settings.seed)
    response = dose_response(model, steering, strengths, held, config, on_progress)
    known = asdict(settings) | {"features": list(map(str, features)), "set": saes.folder}
    provenance = Provenance.of("steer", model, known, dictionaries=saes.dictionaries, text=contexts.digest)
    numbers = partial(recomputed, model, steering, held, config, response)
    check = check_of(model, settings.check, on_progress, numbers)
    return Steered(tuple(texts), response, quality, provenance, check=check)


def writing_of(settings: SteerSettings) -> Writing:
    """How texts are written; raises `UserError` for a temperature or a share that nothing could be drawn with."""
    return Writing(settings.tokens, settings.seed, Sampling(settings.temperature, None, settings.top_p))


def strengths_of(mode: Mode, strengths: Sequence[float] | None) -> tuple[float, ...]:
    """The strengths that are set, or those that the mode has by default."""
    if strengths is None:
        return DEFAULT_STRENGTHS[mode]
    if mode is Mode.OFF:
        raise UserError("--mode off has no strengths; leave out --strengths, or give --mode scale or clamp")
    return tuple(dict.fromkeys(strengths))


def default_feature(
    model: LanguageModel,
    saes: Saes,
    contexts: Int[Tensor, "contexts pos"],
    mode: Mode,
    on_progress: OnProgress = silent,
) -> FeatureId:
    """Of the rare features that write most, to one logit or at all, the one that does most for what it costs."""
    sites = sorted(site for site in saes.dictionaries if site.stream is Stream.RESID_POST)[-SITES:]
    if not sites:
        raise UserError(
            f"no resid_post site to choose a feature from; name one, at {', '.join(map(str, saes.dictionaries))}"
        )
    atlas = atlas_of(saes.survey(model), contexts, sites=sites, top=16)
    candidates: dict[FeatureId, None] = {}
    for site in sites:
        dictionary = saes.dictionaries[site]
        strongest = strongest_writers(model, dictionary, site, atlas, PER_SITE)
        candidates |= dict.fromkeys([*strongest, *loudest(dictionary, site, atlas, PER_SITE)])
    return most_effective(model, saes.dictionaries, list(candidates), contexts, mode, on_progress)
