"""A set of dictionaries as people work with it: `saes["5_452"]`, `saes.at(...)`, `saes.ablate(...)`.

What the floors below do with a site, a dictionary and a latent, under the names of features: `5_452` is latent 452 at
`resid_post.5`.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.features.atlas import atlas_of
from circuits.features.survey import Survey, card_of
from editing.interventions.patch import FeaturePatch, FeatureScale, ablate, clamp, patch_features, scale
from editing.set_quality import SetQuality, measure_set
from sae_core import checks
from sae_core.data.kept_text import read_kept
from sae_core.data.text import Contexts, Text
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.dictionaries.normalised import Autoencoder
from sae_core.dictionaries.opened import Opened
from sae_core.errors import UserError
from sae_core.files import read_json, user_path, write_json
from sae_core.formats.hook_names import parse_site
from sae_core.model.language_model import LanguageModel, load_model
from sae_core.progress import OnProgress, Progress, silent
from sae_core.sites import FeatureId, Site
from sae_core.storage import QUALITY, DictionarySet, load_set
from subrank.hub_sets import local_set, push
from subrank.top_examples import TopExamples

FeatureName = str | FeatureId
SURVEY = "survey"
"""Folder in a set's that holds what was read of texts."""


@dataclass(frozen=True, eq=False)
class Feature:
    """One latent of a dictionary, by its name."""

    id: FeatureId
    dictionary: Dictionary = field(repr=False)

    @property
    def direction(self) -> Float[Tensor, "d_in"]:
        """Its decoder direction d_j, of unit length: what it writes."""
        return self.dictionary.directions[self.id.index]

    def activation(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch"]:
        """f_j(x), its activation on activations of its site."""
        return self.dictionary.encode(x)[..., self.id.index]


@dataclass(frozen=True, eq=False)
class Saes(DictionarySet):
    """One dictionary per site, with what people do with them first. `sr.train` and `sr.load` return one."""

    quality: SetQuality | None = None
    """FVU, L0, dead share and loss recovered on held-out text; None where nothing was measured."""
    bound: LanguageModel | None = field(default=None, repr=False)
    """The model they were trained on, where it is loaded already."""
    folder: str | None = None
    """Where they were loaded from."""
    whole: "Saes | None" = field(default=None, repr=False)
    """The set that this is a part of, where its survey, which has all of its sites, is to serve the part."""
    _surveys: dict[str, Survey] = field(default_factory=dict, init=False, repr=False)
    """The survey of the set as it is, by the card that it depends on."""

    @classmethod
    def of(cls, plain: DictionarySet, model: LanguageModel | None = None, quality: SetQuality | None = None) -> "Saes":
        """The same set, with its model and its quality where they are known."""
        return cls(
            **{each.name: getattr(plain, each.name) for each in fields(DictionarySet)}, quality=quality, bound=model
        )

    def __repr__(self) -> str:
        sites = ", ".join(map(str, self.dictionaries))
        return f"Saes({len(self.dictionaries)} dictionaries of {self.model} at {sites})"

    # ---- what is in it -------------------------------------------------------------------------

    def at(self, site: str | Site) -> Autoencoder:
        """The dictionary of a site, `"resid_post.5"`; raises `UserError` that names the nearest where there is none."""
        if not isinstance(site, (str, Site)):
            raise UserError(f"{site!r:.80} is no site; sites read like 'resid_post.3'")
        return super().at(parse_site(site) if isinstance(site, str) else site)

    def __getitem__(self, name: FeatureName) -> Feature:
        """The feature of that name; raises `UserError` where its site has no dictionary, or not so many latents."""
        if not isinstance(name, (str, FeatureId)):
            raise UserError(f"{name!r} is no feature; features read like '5_2079' or 'mlp_out.5_2079'")
        feature = self.check_feature(FeatureId.parse(name) if isinstance(name, str) else name)
        return Feature(feature, self.at(feature.site))

    def ids(self, names: Iterable[FeatureName]) -> list[FeatureId]:
        """The features of these names; raises `UserError` for one that is not there, or is given twice."""
        if not isinstance(names, Iterable):
            raise UserError(f"{names!r} is no feature; features read like '5_2079' or 'mlp_out.5_2079'")
        features = [self[name].id for name in names]
        for feature in features:
            if features.count(feature) > 1:
                raise UserError(f"{feature} is given twice; give each feature once")
        return features

    # ---- what features are on a text -----------------------------------------------------------

    def encode(self, model: LanguageModel, text: str) -> dict[Site, Float[Tensor, "pos n_latents"]]:
        """Latent activations of every dictionary on each token of `text`, BOS first where they were trained with it."""
        recorded = self.on(model).record(self.tokens(model, text), self.dictionaries)
        return {site: self.dictionaries[site].encode(x[0]) for site, x in recorded.items()}

    def tokens(self, model: LanguageModel, text: str) -> Int[Tensor, "1 pos"]:
        """`text` as one row of tokens, after BOS where the dictionaries were trained with it."""
        ids = model.to_ids(text)
        if not ids:
            raise UserError(f"{text!r} has no tokens in {model.name}; give at least one word")
        row = self.text.read_by(model).with_bos(ids, prepend=bool(self.text.prepend_bos))
        if len(row) > model.n_ctx:
            raise UserError(f"{text!r:.40} has {len(row)} tokens; {model.name} reads {model.n_ctx}: give less text")
        return torch.tensor([row])

    def top_examples(self, name: FeatureName, n: int = 8, *, contexts: int = 300) -> TopExamples:
        """The `n` contexts on which a feature is most active, of the first `contexts` less those held out."""
        checks.whole("n", n, 1)
        checks.whole("contexts", contexts, 2)  # the first is held out
        feature, model = self[name], self.language_model
        text = replace(self.text, max_tokens=contexts * self.text.n_ctx, digest="").read(model).training
        survey = self.survey(model)
        examples = atlas_of(survey, text, sites=[feature.id.site], top=4 * n).examples(feature.id, n)
        activations = [*survey.activations([feature.id], examples.tokens)[feature.id]] if len(examples) else []
        return TopExamples.of(model, feature.id, examples, activations)

    # ---- edits, for `with model.hooks(*...)` ---------------------------------------------------

    def ablate(self, *names: FeatureName) -> list[FeaturePatch]:
        """Edits that set features to zero, one per site: h + sum_j (0 - f_j(h)) d_j."""
        return [ablate(site, self.dictionaries[site], latents) for site, latents in self._by_site(names).items()]

    def clamp(self, *names: FeatureName, value: float) -> list[FeaturePatch]:
        """Edits that set features to `value` at every position, one per site."""
        checks.finite("value", value)
        return [clamp(site, self.dictionaries[site], latents, value) for site, latents in self._by_site(names).items()]

    def steer(self, *names: FeatureName, strength: float) -> list[FeatureScale]:
        """Edits that multiply what features contribute by `strength`, one per site: 0 ablates, 1 changes nothing."""
        checks.finite("strength", strength)
        groups = self._by_site(names)
        return [scale(site, self.dictionaries[site], latents, strength) for site, latents in groups.items()]

    def patch(self, model: LanguageModel, clean: str, *names: FeatureName) -> list[FeaturePatch]:
        """Edits that give features the values they have on the text `clean`, position by position, one per site.

        x' = x + sum_j (f_j(clean) - f_j(x)) d_j, the sub-rank-one patch of Cunningham et al. 2023.
        """
        groups = self._by_site(names)
        recorded = self.on(model).record(self.tokens(model, clean), groups)
        return [patch_features(s, self.dictionaries[s], latents, recorded[s]) for s, latents in groups.items()]

    def _by_site(self, names: Iterable[FeatureName]) -> dict[Site, list[int]]:
        groups: dict[Site, list[int]] = defaultdict(list)
        for feature in self.ids(names):  # one given twice would be edited twice
            groups[feature.site].append(feature.index)
        if not groups:
            raise UserError("give at least one feature, such as 5_452")
        return dict(sorted(groups.items()))

    # ---- with its model ------------------------------------------------------------------------

    @cached_property
    def language_model(self) -> LanguageModel:
        """The model the dictionaries belong to, loaded from where the set says it is."""
        return self.on(self.bound or load_model(self.model))

    def on(self, model: LanguageModel) -> LanguageModel:
        """`model` as the set's text reads it, checked to be theirs; moves the dictionaries to its device."""
        self.check(a_model(model))
        for part in [self.dictionaries] if isinstance(self.dictionaries, Opened) else self.dictionaries.values():
            part.to(model.device)
        return self.text.read_by(model)

    def survey(self, model: LanguageModel) -> Survey:
        """What is known of the set's features on texts, beside the set where it was loaded from a folder."""
        if self.whole is not None:
            return self.whole.survey(model)
        model = self.on(model)
        key = json.dumps(card_of(model, self.dictionaries))
        if key not in self._surveys:  # one at a time: other weights leave what was known of no use
            folder = Path(self.folder) / SURVEY if self.folder else None
            self._surveys.clear()
            self._surveys[key] = Survey(model, self.dictionaries, folder)
        return self._surveys[key]

    def read(self, model: LanguageModel, source: str | None = None) -> Contexts:
        """The contexts of the set's text, or of another `source` cut in the same way."""
        text = self.text.at(source)
        return read_kept(text, model, Path(self.folder) / SURVEY) if self.folder else text.read(model)

    def measured(
        self,
        model: LanguageModel,
        contexts: Contexts,
        source: str | None,
        on_progress: OnProgress = silent,
    ) -> SetQuality:
        """The quality that is known of the set, or what the held-out part of another text gives."""
        if self.quality is not None and not source:
            return self.quality
        on_progress(Progress("measuring the dictionaries", 0, None))
        return measure_set(model, self, contexts.held_out)

    # ---- on disk -------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        """Write the set, in the layout that SAELens reads, into `folder`; `sr.load` is the inverse."""
        super().save(user_path(folder))

    def write(self, folder: Path) -> None:
        """As every set, and what is known of its quality."""
        super().write(folder)
        if self.quality is not None:
            write_json(folder / QUALITY, self.quality.to_json())

    def push_to_hub(self, repository: str, *, private: bool = False, message: str | None = None) -> str:
        """Put the set, with a model card, on the Hugging Face hub; what it returns `sr.load` reads (`hub_sets.py`).

        `repository` is `OWNER/NAME` or, of a folder in it, `OWNER/NAME/FOLDER`; made, `private` or not, if need be.
        """
        return push(repository, self, self.quality, private=private, message=message)


def load(folder: str | Path) -> Saes:
    """The set in `folder`, or on the Hugging Face hub: `hf:OWNER/NAME`, `hf:OWNER/NAME@REVISION/FOLDER`.

    Raises `UserError` where there is none, or where it is damaged. Its dictionaries are moved to the device of the
    model that they are used with.
    """
    folder = local_set(folder)
    saes = replace(Saes.of(load_set(folder)), folder=str(folder))
    path = folder / QUALITY
    if not path.is_file():
        return saes
    try:
        return replace(saes, quality=SetQuality.from_json(read_json(path)))
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged: {error}; remove it to have it measured again") from error


def a_model(model: LanguageModel) -> LanguageModel:
    """`model` itself; raises `UserError` for anything else than a loaded model."""
    if not isinstance(model, LanguageModel):
        raise UserError(f"{model!r:.80} is no language model; give what sr.load_model(name) returns")
    return model


def a_set(saes: Saes) -> Saes:
    """`saes` itself; raises `UserError` for anything else than one set."""
    if not isinstance(saes, Saes):
        raise UserError(f"{saes!r:.80} is no set of dictionaries; give what sr.train or sr.load(folder) returns")
    return saes


def by_name(saes: Saes | Mapping[str, Saes]) -> dict[str, Saes]:
    """Sets by their names; a single one is called `dictionary`. Raises `UserError` unless all are of one model."""
    sets = dict(saes) if isinstance(saes, Mapping) else {"dictionary": saes}
    if not sets:
        raise UserError("give at least one set of dictionaries")
    for each in sets.values():
        a_set(each)
    first, *others = sets
    for other in others:
        prints = [sets[name].fingerprint for name in (first, other)]
        if prints[0] != prints[1] and prints[0].count(":") == prints[1].count(":"):  # old ones say less; models tell
            raise UserError(
                f"{other} belongs to another model ({sets[other].model}) than {first} ({sets[first].model}); "
                "use them apart"
            )
    return sets


def folders_of(sets: Mapping[str, Saes]) -> dict[str, dict[str, str | None]]:
    """Where the sets were loaded from, for a result's provenance."""
    return {"sets": {name: saes.folder for name, saes in sets.items()}}


def text_of(sets: Mapping[str, Saes], source: str | None) -> tuple[Text, list[str]]:
    """The text to measure on, of which the held-out part was trained on by none of the sets that share it, and notes.

    Where documents are held out, that is the longest, else the shortest: held-out contexts are its first tenth. A note
    names each set of another text than the first.
    """
    first = next(iter(sets.values())).text
    if source:
        return first.at(source), []
    sharing = [s.text for s in sets.values() if s.text.shares(first)]
    others = {name: s.text for name, s in sets.items() if s.text not in sharing}
    notes = [
        f"note: {name} was trained on other contexts ({text.source}, {text.n_ctx} tokens)"
        for name, text in others.items()
    ]
    pick = min if first.seed is None else max
    return pick(sharing, key=lambda text: text.max_tokens), notes
