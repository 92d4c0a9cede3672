"""Labels for features, made from where they are active and from what comes next.

The context is the predicate (`label_predicates.py`) that "the feature is above a threshold" agrees with best,

    F1 = 2 hits / (tokens above the threshold + tokens on which the predicate is true),

predicate and threshold chosen on one text, F1 that on another; at least half of the activation is above the threshold,
so that a label is of what a feature mostly does, not of its few peaks. The control is the mean F1 there of the same
predicate for other features of the site, each at its own best threshold. The output is what comes next on the
strongest examples, where they agree; else the tokens that the feature promotes (the direct path through the final norm,
at its mean activation), where they do come next: more often than where other features are active. No pass of the model
is needed where a survey has the codes.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.features.atlas import FeatureAtlas, logit_changes
from circuits.features.feature_label import MARGIN, FeatureLabel
from circuits.features.label_predicates import (
    LabelPredicate,
    LabelText,
    Together,
    TokensAt,
    Usual,
    quoted,
    quoted_tokens,
    token_predicates,
)
from circuits.features.verification import LEAST, best_thresholds
from sae_core.seeds import generator_for
from sae_core.sites import FeatureId, Site

READ = 2**16
"""Tokens of each text that are read, at most."""
_SLACK = 0.02
"""The first predicate is taken whose F1 is within so much of the best: the shorter ones come first."""
_SHARE = 0.5
"""Share of a feature's activation that tokens above the threshold carry, at least."""
_GAIN = 0.05
"""By how much F1 must rise for a second predicate to join the first."""
_CONTROLS = 8
"""Other features of the site that a label is tried on."""
_STRONGEST, _AGREE = 8, 0.75
"""Examples whose next token is looked at, and the share of them that must agree."""
_PROMOTED = 3


@dataclass(frozen=True, eq=False)
class Activity:
    """Where a feature is active in a text (`LabelText`), and how strongly."""

    places: Int[Tensor, "n"]
    values: Float[Tensor, "n"]


Both = tuple[Activity, Activity]
"""On the text on which labels are chosen, and on that on which they are scored."""


class Labeller:
    """Labels of the features of a set: chosen on the text of `atlas`, scored on `held` contexts.

    Without these, every second context of the text is held out.
    """

    def __init__(self, atlas: FeatureAtlas, held: Int[Tensor, "contexts pos"] | None = None, *, seed: int = 0):
        texts = (atlas.contexts[::2], atlas.contexts[1::2]) if held is None else (atlas.contexts, held)
        most = max(1, READ // atlas.contexts.shape[1])
        self.atlas, self.model, self.seed = atlas, atlas.survey.model, seed
        self.training, self.held = (LabelText(self.model, text[:most]) for text in texts)

    def labels(self, features: Iterable[FeatureId]) -> dict[FeatureId, FeatureLabel]:
        """The label of each feature; an empty one where it is never active."""
        features = list(dict.fromkeys(features))
        sites = {feature.site for feature in features}
        controls = {site: self._controls(site) for site in sites}
        wanted = list(dict.fromkeys([*features, *(other for site in sites for other in controls[site])]))
        read = [self.atlas.survey.entries(wanted, text.contexts) for text in (self.training, self.held)]
        activity = {f: (Activity(*read[0][f]), Activity(*read[1][f])) for f in wanted}
        promoted = self._promoted(features)
        return {
            f: self._label(f, activity[f], promoted[f], [activity[o] for o in controls[f.site] if o != f][:_CONTROLS])
            for f in features
        }

    def _label(
        self, feature: FeatureId, activity: Both, promoted: tuple[int, ...], controls: list[Both]
    ) -> FeatureLabel:
        if not len(activity[0].places):
            return FeatureLabel()
        label = self._context(activity, controls)
        following = "" if label.context.startswith("before ") else self._following(feature)
        if not following:
            each = [tokens for tokens in zip(promoted) if self._come_next(tokens, activity, controls)]
            together = promoted if self._come_next(promoted, activity, controls) else ()
            come_next = tuple(token for tokens in each for token in tokens) or together
            following = f"→ {quoted_tokens(self.model, come_next)}" if come_next else ""
        return replace(label, output=following, promotes=tuple(map(self.model.token_text, promoted)))

    def _context(self, activity: Both, controls: list[Both]) -> FeatureLabel:
        """The label without its output."""
        chosen, held = activity
        candidates: list[LabelPredicate] = [*map(Usual, self.training.truths)]
        candidates += token_predicates(self.training, chosen.places)
        n_true = torch.tensor([candidate.n_true(self.training) for candidate in candidates])
        truths = torch.stack([candidate.at(self.training, chosen.places) for candidate in candidates])
        best, f1, threshold = _best(chosen, truths, n_true)
        predicate = candidates[best]
        everywhere = predicate.at(self.training, torch.arange(self.training.contexts.numel()))
        usual = self.training.table
        second, f1_together, other = _best(chosen, usual[:, chosen.places] & truths[best], (usual & everywhere).sum(1))
        if f1_together > f1 + _GAIN:
            predicate, threshold = Together(predicate, Usual([*self.training.truths][second])), other
        control = _mean(self._as_control(predicate, *other) for other in controls)
        score = f1_of(predicate, self.held, held, threshold)
        return FeatureLabel(predicate.text(self.model), "", score, control)

    def _as_control(self, predicate: LabelPredicate, chosen: Activity, held: Activity) -> float:
        """F1 of a predicate as the label of another feature."""
        truth, n_true = predicate.at(self.training, chosen.places), predicate.n_true(self.training)
        _, threshold = best_thresholds(chosen.values, truth[None], torch.tensor([n_true]), _SHARE)
        return f1_of(predicate, self.held, held, float(threshold))

    def _controls(self, site: Site) -> list[FeatureId]:
        """Features of the site that are ever active, drawn once, one more than are needed."""
        alive = (self.atlas.sites[site].density > 0).nonzero()[:, 0]
        order = torch.randperm(len(alive), generator=generator_for(self.seed, "label controls", site))
        return [FeatureId(site, index) for index in alive[order[: _CONTROLS + 1]].tolist()]

    # ---- output --------------------------------------------------------------------------------

    def _following(self, feature: FeatureId) -> str:
        """What comes next on the strongest examples; empty where they disagree."""
        examples = self.atlas.examples(feature, _STRONGEST)
        ends = [(row, int(end) + 1) for row, end in enumerate(examples.end) if end + 1 < examples.tokens.shape[1]]
        content = self.model.content(examples.tokens)
        after = Counter(int(examples.tokens[place]) for place in ends if content[place])
        token, n = after.most_common(1)[0] if after else (0, 0)
        agree = n >= max(_AGREE * after.total(), _STRONGEST / 2)
        return f"→ {quoted(self.model.token_text(token))} {n}/{after.total()}" if agree else ""

    def _come_next(self, tokens: tuple[int, ...], activity: Both, controls: list[Both]) -> bool:
        """Whether they do on held-out text where the feature is active, more often than where others are."""

        def share(activity: Both) -> float:
            return float(TokensAt(1, tokens).at(self.held, activity[1].places).float().mean().nan_to_num())

        return share(activity) >= _mean(map(share, controls)) + MARGIN

    def _promoted(self, features: list[FeatureId]) -> dict[FeatureId, tuple[int, ...]]:
        promoted = {}
        for site in {feature.site for feature in features}:
            here = torch.tensor([feature.index for feature in features if feature.site == site])
            for part in here.split(64):
                tokens = logit_changes(self.atlas, site, part).topk(_PROMOTED).indices.tolist()
                promoted |= {FeatureId(site, i): tuple(row) for i, row in zip(part.tolist(), tokens, strict=True)}
        return promoted


def _best(activity: Activity, truths: Tensor, n_true: Tensor) -> tuple[int, float, float]:
    """The first predicate whose F1 at its best threshold is within `_SLACK` of the largest; that F1 and threshold."""
    f1, thresholds = best_thresholds(activity.values, truths, n_true, _SHARE)
    f1 = f1 * (n_true >= LEAST)
    best = int((f1 >= f1.max() - _SLACK).int().argmax())
    return best, float(f1[best]), float(thresholds[best])


def f1_of(predicate: LabelPredicate, text: LabelText, activity: Activity, threshold: float) -> float:
    """F1 on a text of "the feature is above the threshold" and the predicate."""
    above = activity.places[activity.values > threshold]
    return 2 * int(predicate.at(text, above).sum()) / max(1, len(above) + predicate.n_true(text))


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / max(1, len(values))
