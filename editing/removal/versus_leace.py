"""Whether features reach chance at less damage than LEACE at the same layer: the question, and its answer in words."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from editing.metrics import estimate_from, resampled
from editing.removal.evaluation import EVERYWHERE, Judged
from sae_core.estimate import Estimate


@dataclass(frozen=True)
class LeaceComparison:
    """Features beside LEACE at one site (or at all of them)."""

    site: str
    features_gone: bool
    leace_gone: bool
    saved: Estimate
    """Damage of LEACE minus damage of the features, nats per token; the same contexts are drawn for both."""

    @classmethod
    def of(cls, features: Judged, leace: Judged, seed: int) -> "LeaceComparison":
        """The comparison of two judged edits on the same text."""
        n = len(features[1].contexts)
        difference = torch.tensor(leace[1].contexts, dtype=torch.float64) - torch.tensor(features[1].contexts)
        counts = torch.tensor(features[1].counts, dtype=torch.float64)
        weights = resampled(torch.arange(n), seed)
        drawn = (weights @ difference) / (weights @ counts).clamp_min(1e-12)
        ours, theirs = features[0], leace[0]
        saved = estimate_from(theirs.damage.value - ours.damage.value, drawn)
        return cls(ours.site, ours.gone, theirs.gone, saved)

    @property
    def better(self) -> bool:
        """Whether the features reach chance and do less damage."""
        return self.features_gone and self.saved.value > 0

    @property
    def clearly(self) -> bool:
        """Whether that holds in the whole interval."""
        return self.features_gone and self.saved.low > 0


def verdict(comparisons: Sequence[LeaceComparison]) -> str:
    """The answer in plain words, for single sites and for all layers at once."""
    single = [c for c in comparisons if c.site != EVERYWHERE]
    if not single:
        return "features and LEACE were not compared"
    n, better = len(single), [c for c in single if c.better]
    reached, theirs = sum(c.features_gone for c in single), sum(c.leace_gone for c in single)
    answer = "yes" if len(better) == n else "at some sites" if better else "no"
    at = f": {', '.join(c.site for c in better)}" if better else ""
    words = [
        f"{answer}: within the budget features reach chance at {reached} of {n} sites, LEACE as fitted at {theirs}; "
        f"with less damage than LEACE at the same site features do it at {len(better)}{at} (beyond the 95% interval "
        f"at {sum(c.clearly for c in single)})"
    ]
    for c in comparisons:
        if c.site == EVERYWHERE:
            ours, leace = ("reach" if c.features_gone else "do not reach"), ("does" if c.leace_gone else "does not")
            less = "less" if c.saved.value > 0 else "more"
            words.append(
                f"at all layers at once features {ours} chance and LEACE {leace}; features do "
                f"{abs(c.saved.value):.4f} nats per token {less} damage"
            )
    return "; ".join(words)
