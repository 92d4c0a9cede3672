"""Feature cards: what is known of a feature on a text, as plain values and in one fixed form as JSON."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.features.explanations import ScoredRule, rule_from_json
from circuits.features.feature_label import FeatureLabel
from circuits.features.histograms import Drops, Histogram
from circuits.features.statistics import AFTER, BEFORE, SiteTally
from sae_core.codec import from_plain, to_plain
from sae_core.sites import FeatureId

TOP = "top"
"""The group of the strongest examples."""
_ALIKE = 8
"""Examples that agree in this many last tokens count as one text."""
_TRIED = 256
"""Places of a quarter among which examples with distinct texts are sought."""
_BEFORE, _AFTER = 24, 8


TokenChanges = tuple[tuple[str, float], ...]
"""Tokens, each with the change of its logit."""


@dataclass(frozen=True)
class Example:
    """A piece of a context with the feature's activation on each token."""

    group: str
    """`top`, or the quarter of the active tokens, by activation, from which it was drawn: `0.75-1.0`."""
    tokens: tuple[str, ...]
    activations: tuple[float, ...]
    end: int
    """Where the token is for which the example was chosen; in `top` the peak of its context."""

    def to_json(self) -> dict[str, Any]:
        """Plain values, activations to four digits."""
        return {
            "group": self.group,
            "tokens": list(self.tokens),
            "activations": [float(f"{value:.4g}") for value in self.activations],
            "end": self.end,
        }


@dataclass(frozen=True)
class Card:
    """Everything that is shown about a feature. Light cards have no histogram, no drops and no neighbours."""

    feature: FeatureId
    density: float
    """Share of content tokens on which it is active."""
    mean_active: float
    max: float
    first_position: float
    """Share of its summed |activation| that falls on the first content tokens of contexts."""
    norm_share: float
    """Share of the squared norm of the activations at its site: sum f_j^2 / sum |x|^2."""
    n_tokens: int
    """Content tokens over which the numbers are taken."""
    label: FeatureLabel | None
    rule: ScoredRule | None
    """What predicts its activation on every token, from tokens alone; of light cards a table of tokens."""
    examples: tuple[Example, ...]
    promotes: TokenChanges
    """Tokens whose logits it raises most directly, and by how much at its mean activation."""
    suppresses: TokenChanges
    histogram: Histogram | None = None
    drops: Drops | None = None
    near: tuple[tuple[FeatureId, float], ...] = ()
    """Features of the same and the adjacent layers with the largest cosine to it."""
    on_outliers: float = 0.0
    """Share of its summed |activation| that would fall on tokens of massive norm, which have no codes."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "id": str(self.feature),
            "site": str(self.feature.site),
            "index": self.feature.index,
            "density": self.density,
            "mean_active": self.mean_active,
            "max": self.max,
            "first_position": self.first_position,
            "on_outliers": self.on_outliers,
            "norm_share": self.norm_share,
            "n_tokens": self.n_tokens,
            "label": self.label and self.label.to_json(),
            "rule": self.rule and self.rule.to_json(),
            "examples": [example.to_json() for example in self.examples],
            "histogram": to_plain(self.histogram),
            "drops": to_plain(self.drops),
            "promotes": [list(pair) for pair in self.promotes],
            "suppresses": [list(pair) for pair in self.suppresses],
            "near": [{"id": str(feature), "cosine": cosine} for feature, cosine in self.near],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Card":
        """The card that `to_json` wrote, its activations to the digits that are written; earlier ones had no labels."""
        value = value if "rule" in value else {**value, "rule": value["label"], "label": None}
        near = [(each["id"], each["cosine"]) for each in value["near"]]
        rule = value["rule"] and rule_from_json(value["rule"])
        fields = {name: each for name, each in value.items() if name not in ("id", "site", "index")}
        return replace(from_plain(cls, fields | {"feature": value["id"], "near": near, "rule": None}), rule=rule)


def most_moved(
    change: Float[Tensor, "k vocab"], names: Sequence[str], n: int
) -> list[tuple[TokenChanges, TokenChanges]]:
    """For each row the `n` tokens whose logits rise most, and the `n` whose logits fall most."""
    sides = []
    for largest in (True, False):
        end = change.topk(min(n, change.shape[1]), largest=largest)
        rows = zip(end.indices.tolist(), end.values.tolist(), strict=True)
        sides.append([tuple((names[t], v) for t, v in zip(*row, strict=True)) for row in rows])
    return list(zip(sides[0], sides[1], strict=True))


@dataclass(frozen=True)
class Spot:
    """A place in a text that was chosen to be looked at."""

    group: str
    context: int
    position: int


def spots(
    activation: Float[Tensor, "contexts pos"],
    contexts: Int[Tensor, "contexts pos"],
    *,
    top: int,
    per_quarter: int,
    generator: torch.Generator,
) -> list[Spot]:
    """The peaks of the strongest contexts, then places drawn from each quarter of the active tokens.

    One per context, and no two that end in the same `_ALIKE` tokens.
    """
    peak, where = activation.max(1)
    order = peak.argsort(descending=True, stable=True)
    strongest = [(int(i), int(where[i])) for i in order if peak[i] > 0]
    active = activation.nonzero()
    active = active[activation[active[:, 0], active[:, 1]].argsort(stable=True)]
    chosen, seen = [], set()

    def take(group: str, places: Sequence[tuple[int, int]], n: int) -> Iterator[Spot]:
        for context, position in places:
            if not n:
                return
            text = tuple(contexts[context, max(0, position + 1 - _ALIKE) : position + 1].tolist())
            if not {context, text} & seen:
                seen.update((context, text))
                n -= 1
                yield Spot(group, context, position)

    chosen += take(TOP, strongest, top)
    for quarter in (3, 2, 1, 0):
        part = active[len(active) * quarter // 4 : len(active) * (quarter + 1) // 4]
        part = part[torch.randperm(len(part), generator=generator)[:_TRIED]]
        chosen += take(f"{quarter / 4}-{(quarter + 1) / 4}", [(row, at) for row, at in part.tolist()], per_quarter)
    return chosen


def first_of_quarters(places: Sequence[Spot], n: int) -> list[Spot]:
    """The strongest, and the first `n` of each quarter."""
    groups = [list(members) for _, members in groupby(places, key=lambda spot: spot.group)]
    return [spot for group in groups for spot in (group if group[0].group == TOP else group[:n])]


def example(
    spot: Spot,
    contexts: Int[Tensor, "contexts pos"],
    activation: Float[Tensor, "contexts pos"],
    names: Sequence[str],
) -> Example:
    """The text around a spot."""
    start, stop = max(0, spot.position - _BEFORE), spot.position + 1 + _AFTER
    tokens = tuple(names[int(token)] for token in contexts[spot.context, start:stop])
    return Example(spot.group, tokens, tuple(activation[spot.context, start:stop].tolist()), spot.position - start)


def stored_examples(
    latents: SiteTally, index: int, contexts: Int[Tensor, "contexts pos"], names: Sequence[str], n: int
) -> tuple[Example, ...]:
    """The `n` strongest examples of a latent with distinct texts, or as many as the pass over the text kept."""
    context, position = latents.statistics.context[index].tolist(), latents.statistics.position[index].tolist()
    examples: dict[tuple[int, ...], Example] = {}
    for k, (row, at) in enumerate(zip(context, position, strict=True)):
        if not latents.statistics.top[index, k] > 0 or len(examples) == n:
            break
        start, stop = max(0, at - BEFORE), min(contexts.shape[1], at + 1 + AFTER)
        text, end, shift = contexts[row, start:stop].tolist(), at - start, start - (at - BEFORE)
        tokens = tuple(names[int(token)] for token in text)
        activations = tuple(latents.nearby[index, k, shift : shift + len(text)].tolist())
        examples.setdefault(tuple(text[: end + 1]), Example(TOP, tokens, activations, end))
    return tuple(examples.values())
