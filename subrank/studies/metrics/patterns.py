"""How well n-grams explain latents: rules made on training contexts, precision and recall on held-out ones.

The rules are patterns of tokens in the manner of N2G (`circuits/features/patterns.py`; Gao et al. 2024, section 4.3),
each measured on the model. The control scores a latent by the rule of another one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.features.card import spots
from circuits.features.explanations import Score, score
from circuits.features.patterns import Patterns, Probe, find_patterns
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.model.language_model import LanguageModel
from sae_core.seeds import generator_for
from sae_core.sites import FeatureId, Site
from subrank.studies.metrics.reading import Reading

_TOP, _PER_QUARTER = 4, 2
"""Examples that rules are made from: of the strongest contexts, and of each quarter of the active tokens."""
_ROWS = 512
_SILENT = Score(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Explained:
    """The rules of some latents, and how well they do on held-out tokens."""

    scores: tuple[Score, ...]
    """Zeros where no rule was to be had."""
    controls: tuple[Score, ...]
    """Of the next latent's rule on each."""


def activations(dictionary: Dictionary, reading: Reading, latents: Int[Tensor, "k"]) -> Float[Tensor, "k contexts pos"]:
    """The codes of a few latents at every token of a text; 0 at tokens that do not count."""
    f = torch.cat([dictionary.encode(few)[:, latents] for few in reading.rows.x.split(_ROWS)])
    every = torch.zeros(len(latents), *reading.tokens.shape)
    every[:, reading.counted.cpu()] = f.T.cpu()
    return every


@torch.no_grad()
def explained(
    model: LanguageModel,
    site: Site,
    dictionary: Dictionary,
    readings: tuple[Reading, Reading],
    latents: Int[Tensor, "k"],
    seed: int,
) -> Explained:
    """Rules for `latents`, made on the first of the `readings` and scored on the second."""
    training, held = readings
    rules: list[Patterns | None] = []
    for latent, activation in zip(latents.tolist(), activations(dictionary, training, latents), strict=True):
        feature = FeatureId(site, latent)
        chance = generator_for(seed, "n-grams", feature)
        places = spots(activation, training.tokens, top=_TOP, per_quarter=_PER_QUARTER, generator=chance)
        examples = [(spot.context, spot.position) for spot in places]
        tested = Probe(model, dictionary, feature)
        rules.append(find_patterns(tested, training.tokens, activation, examples, generator=chance))
    true = activations(dictionary, held, latents)
    return Explained(_scores(rules, held, true), _scores([*rules[1:], *rules[:1]], held, true))


def _scores(rules: Sequence[Patterns | None], held: Reading, true: Tensor) -> tuple[Score, ...]:
    counted = held.counted.cpu()
    return tuple(
        score(rule.predict(held.tokens, counted)[counted], activation[counted]) if rule else _SILENT
        for rule, activation in zip(rules, true, strict=True)
    )
