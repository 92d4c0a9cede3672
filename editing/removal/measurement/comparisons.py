"""Features beside other methods at one site: which needs less damage to remove a share of the capability."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from editing.removal.measurement.curve import SHARES, MeasuredCurve, Needed
from editing.removal.measurement.evaluation import EVERYWHERE, Method

CLEARLY = 0.975
"""Share of resamples from which on the features do clearly less damage."""


@dataclass(frozen=True)
class Comparison:
    """Features beside one other method, at one site (or at all layers at once) and one share of the capability."""

    site: str
    share: float
    rival: Method
    place: str
    """Where an eraser was fitted."""
    features: Needed
    other: Needed
    less: float
    """Share of the bootstrap resamples of prompts and text, the same for both, in which the features need less damage
    than the other method; one that does not reach the share needs more than any that does."""

    @property
    def better(self) -> bool:
        """Whether the features remove the share, and with less damage."""
        if self.features.damage is None:
            return False
        return self.other.damage is None or self.features.damage < self.other.damage

    @property
    def clearly(self) -> bool:
        """Whether they do so beyond chance."""
        return self.better and self.less >= CLEARLY

    @property
    def times(self) -> float | None:
        """How many times the features' damage the other method's is; None where either never reaches the share."""
        if self.features.damage is None or self.other.damage is None:
            return None
        return self.other.damage / max(self.features.damage, 1e-12)


def compared(curves: Mapping[Method, MeasuredCurve]) -> tuple[Comparison, ...]:
    """The features beside every other curve of the same site."""
    features = curves[Method.FEATURES]
    return tuple(
        Comparison(
            site=rival.curve.site,
            share=share,
            rival=method,
            place=rival.curve.place,
            features=features.curve.at(share),
            other=rival.curve.at(share),
            less=_less(features.resamples[share], rival.resamples[share]),
        )
        for method, rival in curves.items()
        if method is not Method.FEATURES
        for share in SHARES
    )


def _less(first: np.ndarray, second: np.ndarray) -> float:
    n = min(len(first), len(second))
    return float((first[:n] < second[:n]).mean()) if n else 0.0


def verdict(comparisons: Sequence[Comparison], rival: Method, share: float) -> str:
    """At how many sites features remove the share with less damage than the rival, in a sentence or two."""
    chosen = [each for each in comparisons if each.rival is rival and each.share == share]
    single = [each for each in chosen if each.site != EVERYWHERE]
    if not single:
        return f"Features and {rival} were not compared"
    better = [each for each in single if each.better]
    clearly = sum(each.clearly for each in better)
    where = f" ({', '.join(each.site for each in better)}; beyond the 95% interval at {clearly})" if better else ""
    sentences = [
        f"Features remove {share:.0%} with less damage than {rival} at {len(better)} of {len(single)} sites{where}"
    ]
    for each in chosen:
        if each.site == EVERYWHERE:
            needed = f"features {each.features}, {rival} {each.other}"
            sentences.append(f"At all layers at once (nats per token): {needed}")
    return ". ".join(sentences)
