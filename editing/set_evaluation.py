"""What `subrank evaluate` measures: sets of dictionaries of one model, side by side on one text."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from editing.loss_recovered import SpliceReport
from sae_core.codec import from_plain, to_plain
from sae_core.evaluation.reconstruction import Outliers, Part, Profile
from sae_core.evaluation.similarity import Likeness, Similarity
from sae_core.sites import Site

SIMILAR = ("0.7", "0.9")
"""Least cosines for which the share of matched directions is reported."""


@dataclass(frozen=True)
class Densities:
    """Latents that are alive, counted by log10 of the share of tokens on which they are active."""

    log10_edges: tuple[float, ...]
    """One more than there are counts."""
    counts: tuple[int, ...]


@dataclass(frozen=True)
class DictionaryReport:
    """One dictionary on the text; the fields are those of `sae_core.evaluation.reconstruction.Profile`."""

    fvu: float
    l0: float
    dead: float
    """Share of latents that are active on no token measured."""
    n_tokens: int
    n_latents: int
    n_alive: int
    cosine: float
    """Mean over tokens of cos(x, x_hat)."""
    norm_ratio: float
    """Mean over tokens of |x_hat| / |x|."""
    density: Densities
    at_start: tuple[int, ...]
    """Latents that are active mostly on the first content token of a context."""
    by_position: tuple[Part, ...]
    by_frequency: tuple[Part, ...]
    splice: SpliceReport
    """What the model's predictions lose with the reconstruction in place of the activation."""
    fvu_median: float = math.nan
    outliers: Outliers | None = None


@dataclass(frozen=True)
class Matching:
    """How alike two dictionaries are: cosines of their directions."""

    a_in_b: float
    """Mean over the latents of a of the largest cosine to any of b."""
    b_in_a: float
    matching: str
    """How pairs were found."""
    n_pairs: int
    matched: float
    """Mean cosine of the pairs, every latent used once; NaN where there are none."""
    shares: dict[str, float]
    """Of the smaller dictionary's latents, the share in pairs of at least so large a cosine."""

    @classmethod
    def of(cls, similarity: Similarity) -> "Matching":
        """The numbers of a `Similarity`."""
        matching = "hungarian" if similarity.exact else "mutual nearest neighbours"
        shares = {least: similarity.share(float(least)) for least in SIMILAR}
        numbers = (len(similarity.pairs), similarity.matched, shares)
        return cls(similarity.a_in_b, similarity.b_in_a, matching, *numbers)


@dataclass(frozen=True)
class SetPair:
    """Two sets compared at one site."""

    a: str
    b: str
    cosine: Matching
    random: Matching
    """Of two random dictionaries of the same sizes."""
    expected: dict[str, float]
    """What `a_in_b` and `b_in_a` of random directions tend to."""


@dataclass(frozen=True)
class Evaluation:
    """Sets of dictionaries of one model, measured on one text. `from_plain` reads what `to_json` writes."""

    text: str
    contexts: int
    tokens: int
    """Content tokens measured."""
    contexts_spliced: int
    """Contexts on which dictionaries were spliced in: the first of those measured."""
    sets: dict[str, dict[Site, DictionaryReport]]
    similarity: dict[Site, tuple[SetPair, ...]]
    mean_ablation: str = "the mean over all tokens measured"

    @property
    def sites(self) -> list[Site]:
        """The sites at which any set has a dictionary."""
        return sorted({site for reports in self.sets.values() for site in reports})

    def at(self, site: Site) -> dict[str, DictionaryReport]:
        """The dictionaries at `site`, by the name of their set."""
        return {name: reports[site] for name, reports in self.sets.items() if site in reports}

    def to_json(self) -> dict[str, Any]:
        """All fields, with the perplexities and ratios that follow from the losses; null for what has no value."""
        plain = to_plain(self)
        for name, reports in self.sets.items():
            for site, report in reports.items():
                plain["sets"][name][str(site)]["splice"] = report.splice.to_json()
        return plain

    @classmethod
    def from_json(cls, value: Any) -> "Evaluation":
        """The evaluation that `to_json` wrote; raises `UserError` for anything else."""
        return from_plain(cls, value)

    def lines(self) -> list[str]:
        """One line for each set and site."""
        return [
            f"{site} {name}: FVU {report.fvu:.3f}, L0 {report.l0:.1f}, dead {report.dead:.1%} of {report.n_latents} "
            f"on {report.n_tokens} tokens, perplexity {perplexity(report.splice.original.perplexity)} -> "
            f"{perplexity(report.splice.spliced.perplexity)}, KL {report.splice.spliced.kl:.4f}, "
            f"loss recovered {report.splice.recovered:.3f}"
            for site in self.sites
            for name, report in self.at(site).items()
        ]


def perplexity(value: float) -> str:
    """A perplexity as text, which may be anything from 1 to infinity."""
    return f"{value:.2f}" if value < 1000 else f"{value:,.0f}" if value < 1e6 else f"{value:.1e}"


def evaluation_of(
    profiles: Mapping[str, Mapping[Site, Profile]],
    splices: Mapping[str, Mapping[Site, SpliceReport]],
    likenesses: Mapping[Site, Sequence[Likeness]],
    *,
    text: str,
    contexts: int,
    contexts_spliced: int,
) -> Evaluation:
    """The numbers of `profiles`, `splice_reports` and `compare`, all of the same sets, in one value."""
    sets = {
        name: {site: _report(profile, splices[name][site]) for site, profile in by_site.items()}
        for name, by_site in profiles.items()
    }
    tokens = next(profile.quality.n_tokens for by_site in profiles.values() for profile in by_site.values())
    pairs = {site: tuple(map(_pair, compared)) for site, compared in likenesses.items()}
    return Evaluation(text, contexts, tokens, contexts_spliced, sets, pairs)


def _report(profile: Profile, splice: SpliceReport) -> DictionaryReport:
    edges, counts = profile.histogram()
    return DictionaryReport(
        **{part.name: getattr(profile.quality, part.name) for part in fields(profile.quality)},
        n_latents=len(profile.density),
        n_alive=profile.n_alive,
        cosine=profile.cosine,
        norm_ratio=profile.norm_ratio,
        density=Densities(tuple(edges), tuple(counts)),
        at_start=profile.at_start,
        by_position=profile.by_position,
        by_frequency=profile.by_frequency,
        splice=splice,
    )


def _pair(likeness: Likeness) -> SetPair:
    expected = likeness.expected
    return SetPair(likeness.a, likeness.b, Matching.of(likeness.similarity), Matching.of(likeness.chance), expected)
