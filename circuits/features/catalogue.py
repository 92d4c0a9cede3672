"""The cards of all features of a set: a light one of each, and full ones of chosen features.

A catalogue is counted from a survey (`statistics.py`). From it every feature has a light card; a full card runs the
model again on the examples of its feature.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.features.atlas import logit_changes
from circuits.features.card import (
    Card,
    Example,
    Spot,
    TokenChanges,
    example,
    first_of_quarters,
    most_moved,
    spots,
    stored_examples,
)
from circuits.features.explanations import (
    Explanation,
    ScoredRule,
    Scores,
    TokenTables,
    mean_score,
    partners_by_site,
    score_on,
    table_scores,
    token_tables,
)
from circuits.features.feature_label import FeatureLabel
from circuits.features.geometry import nearest
from circuits.features.histograms import activation_histogram, logit_drops
from circuits.features.label_predicates import LONGEST, TokensAt
from circuits.features.labelling import Labeller
from circuits.features.patterns import Probe, find_patterns
from circuits.features.reading import Chunks
from circuits.features.statistics import Tally, tally
from circuits.features.survey import Survey
from circuits.features.usual_labels import usual_labels
from editing.steering.feature_text import check_known_features
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.errors import UserError
from sae_core.model.language_model import LanguageModel
from sae_core.progress import OnProgress, Progress, Stages, silent
from sae_core.seeds import generator_for
from sae_core.sites import FeatureId, Site

LIGHT_EXAMPLES = 4
_TOP, _PER_QUARTER = 8, 3
_MADE_FROM, _WEIGHTS = 10, 5e8
"""Places of each quarter of the active tokens from which patterns are made; the first `_PER_QUARTER` are shown.
Fewer of large models: places times weights of the blocks, at most."""
_PROMOTED, _PROMOTED_LIGHT = 8, 4
_CONTROLS = 16
"""Labels of other features that a label is compared with, at most."""
_LOGITS_AT_ONCE = 2**23


@dataclass(frozen=True, eq=False)
class Catalogue:
    """The features of a set on a text: what cards are made from."""

    survey: Survey
    tally: Tally
    """Of the training contexts, on which rules are made. Every number on a card is of them, but a label's scores."""
    held: Int[Tensor, "held pos"]
    """Contexts on which labels are scored."""
    tables: dict[Site, TokenTables]
    scores: dict[Site, Scores]
    """Of each table on held-out contexts."""
    controls: dict[Site, Scores]
    """Of each table on another feature of its site."""
    seed: int

    @property
    def model(self) -> LanguageModel:
        """The language model."""
        return self.survey.model

    @property
    def dictionaries(self) -> Mapping[Site, Dictionary]:
        """The dictionaries of the set."""
        return self.survey.dictionaries

    @property
    def training(self) -> Int[Tensor, "contexts pos"]:
        """The training contexts."""
        return self.tally.atlas.contexts

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The text of every token."""
        return tuple(map(self.model.token_text, range(self.model.n_vocab)))

    @cached_property
    def usual(self) -> dict[Site, list[FeatureLabel]]:
        """Labels of all features by predicates; none of a set that is too large (`usual_labels.py`)."""
        return usual_labels(self.survey, self.training, self.held, self.partner)

    @cached_property
    def partner(self) -> dict[Site, Int[Tensor, "n_latents"]]:
        """Another feature for each, on which its label is tried."""
        return partners_by_site(self.tally.sites, self.seed)

    def alive(self, site: Site) -> list[int]:
        """The latents that are ever active in the training contexts."""
        return self.tally.sites[site].active.nonzero()[:, 0].tolist()

    # ---- light cards ---------------------------------------------------------------------------

    def light(self, site: Site) -> Iterator[Card]:
        """The card of every latent of a site, in order, from the streaming pass alone."""
        latents = torch.arange(len(self.dictionaries[site].directions))
        for part in latents.split(max(1, _LOGITS_AT_ONCE // self.model.n_vocab)):
            change = logit_changes(self.tally.atlas, site, part)
            for index, moved in zip(part.tolist(), most_moved(change, self.names, _PROMOTED_LIGHT), strict=True):
                feature, latents = FeatureId(site, index), self.tally.sites[site]
                examples = stored_examples(latents, index, self.training, self.names, LIGHT_EXAMPLES)
                rule = self._table_rule(feature)
                label = rule and self._table_label(feature, rule, tuple(token for token, _ in moved[0]))
                yield self._card(feature, examples, moved, label=label, rule=rule)

    def _card(
        self, feature: FeatureId, examples: tuple[Example, ...], moved: tuple[TokenChanges, TokenChanges], **rest
    ) -> Card:
        latents, i = self.tally.sites[feature.site], feature.index
        return Card(
            feature,
            density=float(latents.statistics.density[i]),
            mean_active=float(latents.statistics.mean_active[i]),
            max=float(latents.statistics.top[i, 0]),
            first_position=float(latents.statistics.at_first[i]),
            on_outliers=float(latents.statistics.on_outliers[i]),
            norm_share=float(latents.norm_share[i]),
            n_tokens=self.tally.n_tokens,
            examples=examples,
            promotes=moved[0],
            suppresses=moved[1],
            **rest,
        )

    def _table_label(self, feature: FeatureId, rule: ScoredRule, promotes: tuple[str, ...]) -> FeatureLabel:
        tokens, usual = self.tables[feature.site].of(feature.index).tokens, self.usual.get(feature.site)
        if len(tokens) > LONGEST and usual:
            return replace(usual[feature.index], promotes=promotes)
        control = self.controls[feature.site].of(int(self.partner[feature.site][feature.index]))
        return FeatureLabel(TokensAt(0, tokens).text(self.model), "", rule.score.f1, control.f1, promotes)

    def _table_rule(self, feature: FeatureId) -> ScoredRule | None:
        table = self.tables[feature.site].of(feature.index)
        if not table.tokens:
            return None
        score, control = (scores[feature.site].of(feature.index) for scores in (self.scores, self.controls))
        return ScoredRule(table.text(self.model), table.kind, score, control)

    # ---- full cards ----------------------------------------------------------------------------

    def full(
        self,
        features: Sequence[FeatureId],
        on_progress: OnProgress = silent,
        labels: Mapping[FeatureId, FeatureLabel] | None = None,
    ) -> Iterator[Card]:
        """The full cards of features, in order, with `labels`; without these, such as this text gives.

        Raises `UserError` for a feature that no dictionary has, is named twice, or is never active on this text.
        """
        features = list(features)
        if not features:
            return
        check_known_features(self.dictionaries, features)
        for feature in features:
            if not self.tally.sites[feature.site].active[feature.index]:
                raise UserError(
                    f"{feature} is never active on {self.tally.n_tokens} tokens of this text; "
                    "choose another feature, more contexts, or another text"
                )
        stages = Stages(on_progress, 1 + 2 * len(features))
        if labels is None:
            labels = Labeller(self.tally.atlas, self.held, seed=self.seed).labels(features)
        stages.begin(f"reading {len(features)} features again")
        seen = self.survey.activations(features, self.training)
        held = self.survey.activations(features, self.held)
        examples = {feature: self.places(feature, seen[feature]) for feature in features}
        rules = {}
        for feature in features:
            stages.begin(f"patterns of {feature}")
            rules[feature] = self.rule(feature, seen[feature], examples[feature])
        for feature in features:
            stages.begin(f"the card of {feature}")
            rule = self._scored(feature, rules, held[feature])
            yield self._full(feature, labels.get(feature), rule, seen[feature], examples[feature])

    def _full(
        self,
        feature: FeatureId,
        label: FeatureLabel | None,
        rule: ScoredRule,
        activation: Float[Tensor, "contexts pos"],
        places: list[Spot],
    ) -> Card:
        change = logit_changes(self.tally.atlas, feature.site, torch.tensor([feature.index]))
        (moved,) = most_moved(change, self.names, _PROMOTED)
        shown = first_of_quarters(places, _PER_QUARTER)
        return self._card(
            feature,
            tuple(example(spot, self.training, activation, self.names) for spot in shown),
            moved,
            label=label,
            rule=rule,
            histogram=activation_histogram(activation, self.training, self.model.content(self.training), self.names),
            drops=logit_drops(
                self.model,
                self.dictionaries,
                feature,
                self.training,
                activation,
                generator=self._draw(feature, "drops"),
            ),
            near=nearest(self.dictionaries, feature),
        )

    def _draw(self, feature: FeatureId, purpose: str) -> torch.Generator:
        return generator_for(self.seed, purpose, feature)

    def places(
        self, feature: FeatureId, activation: Float[Tensor, "contexts pos"], most: int = _MADE_FROM
    ) -> list[Spot]:
        """Where the examples are from which a feature's patterns are made: of each quarter `most`, or fewer."""
        made_from = max(_PER_QUARTER, min(most, int(_WEIGHTS / self.model.block_weights)))
        return spots(activation, self.training, top=_TOP, per_quarter=made_from, generator=self._draw(feature, "spots"))

    def rule(
        self, feature: FeatureId, activation: Float[Tensor, "contexts pos"], places: Sequence[Spot]
    ) -> Explanation:
        """The token table or the patterns, whichever predicts the activation better on the training contexts."""
        probe = Probe(self.model, self.dictionaries[feature.site], feature)
        patterns = find_patterns(
            probe,
            self.training,
            activation,
            [(spot.context, spot.position) for spot in places],
            generator=self._draw(feature, "patterns"),
        )
        table = self.tables[feature.site].of(feature.index)
        if patterns is None:
            return table
        return max((patterns, table), key=lambda r: score_on(self.model, r, self.training, activation).correlation)

    def _scored(
        self, feature: FeatureId, rules: Mapping[FeatureId, Explanation], held: Float[Tensor, "contexts pos"]
    ) -> ScoredRule:
        """The feature's rule, with its score and that of other features' rules on held-out contexts.

        The control rules are those in `rules` at its site, or, if it has no other, token tables drawn from the site.
        """
        others = [rule for other, rule in rules.items() if other.site == feature.site and other != feature]
        if not others:
            latents = [index for index in self.alive(feature.site) if index != feature.index]
            order = torch.randperm(len(latents), generator=self._draw(feature, "control"))
            others = [self.tables[feature.site].of(latents[i]) for i in order[:_CONTROLS].tolist()]
        control = mean_score([score_on(self.model, rule, self.held, held) for rule in others[:_CONTROLS]])
        rule = rules[feature]
        return ScoredRule(rule.text(self.model), rule.kind, score_on(self.model, rule, self.held, held), control)


def read_catalogue(
    survey: Survey,
    training: Int[Tensor, "contexts pos"],
    held: Int[Tensor, "held pos"],
    *,
    seed: int = 0,
    on_progress: OnProgress = silent,
) -> Catalogue:
    """All features of a set on a text: labels are made on `training` and scored on `held`."""
    chunks = Chunks()
    stages = Stages(on_progress, sum(len(chunks.stages(len(text))) for text in (training, held)) + 1)

    def counted(name: str, contexts: Tensor, top: int) -> Tally:
        def report(part: Progress) -> None:
            stages.begin(f"{name} text: {part.stage}")

        return tally(survey, contexts, top=top, chunks=chunks, on_progress=report)

    on_training, on_held = counted("training", training, 8), counted("held-out", held, 1)
    stages.begin("scoring the tokens of every feature on held-out text")
    tables = {site: token_tables(latents, on_training.token_counts) for site, latents in on_training.sites.items()}
    on = {site: (table, on_held.sites[site], on_held.token_counts) for site, table in tables.items()}
    scores = {site: table_scores(*each) for site, each in on.items()}
    partner = partners_by_site(on_training.sites, seed)
    controls = {site: table_scores(*each, partner[site]) for site, each in on.items()}
    return Catalogue(survey, on_training, held, tables, scores, controls, seed)
