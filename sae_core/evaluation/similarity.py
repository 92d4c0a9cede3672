"""How alike two dictionaries are, by their directions or by what their latents do on the same tokens.

Two questions with different answers. Does every latent of the first have a similar one in the second (mean max, in
both directions: a small dictionary may be contained in a large one)? And can the latents be paired off, each used
once (Hungarian matching)? Both need a baseline: among enough random directions some are close.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, combinations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sae_core.dictionaries.dictionary import Dictionary
from sae_core.sites import Site

EXACT_UP_TO = 2**14
"""Latents up to which the matching is exact: it takes 12 bytes per pair and, at random directions, 40 s."""
ROWS_AT_ONCE = 4096


@dataclass(frozen=True, eq=False)
class Similarity:
    """How alike dictionaries `a` and `b` are, on a scale on which 1 is the same."""

    a_in_b: float
    """Mean over the latents of `a` of the largest similarity to any latent of `b`."""
    b_in_a: float
    """The same the other way round."""
    pairs: Float[Tensor, "pairs"]
    """Similarity of each matched pair, the largest first."""
    n_smaller: int
    """Latents of the smaller dictionary: as many pairs as there could be."""
    exact: bool
    """Whether the pairs are those of largest sum (Hungarian); else each is the other's nearest, and some may lack."""

    @property
    def matched(self) -> float:
        """Mean similarity of the matched pairs; NaN where there are none."""
        return self.pairs.mean().item()

    def share(self, least: float) -> float:
        """Share of the smaller dictionary's latents in pairs at least that similar."""
        return int((self.pairs >= least).sum()) / self.n_smaller


@torch.no_grad()
def similarity(
    a: Float[Tensor, "n d_in"],
    b: Float[Tensor, "m d_in"],
    *,
    exact_up_to: int = EXACT_UP_TO,
    rows_at_once: int = ROWS_AT_ONCE,
) -> Similarity:
    """Similarity of two dictionaries at one site by the cosines of their unit directions.

    With more than `exact_up_to` latents pairs are mutual nearest neighbours, and the cosines are never all there.
    """
    cosines = (rows @ b.T for rows in a.split(rows_at_once))
    return _similarity(cosines, exact=max(len(a), len(b)) <= exact_up_to)


@dataclass(frozen=True, eq=False)
class Likeness:
    """Two sets compared at one site, by cosine, beside what chance gives."""

    a: str
    b: str
    similarity: Similarity
    chance: Similarity
    """Of two random dictionaries of the same sizes."""
    sizes: tuple[int, int, int]
    """Latents of `a`, latents of `b`, and their width."""

    @property
    def expected(self) -> dict[str, float]:
        """What the mean max of random directions tends to, as `a_in_b` and `b_in_a`."""
        n, m, d_in = self.sizes
        return {"a_in_b": expected_max_cosine(m, d_in), "b_in_a": expected_max_cosine(n, d_in)}


def compare(
    sets: Mapping[str, Mapping[Site, Dictionary]], *, generator: torch.Generator
) -> dict[Site, tuple[Likeness, ...]]:
    """Every two sets compared at every site that both have; the baselines are drawn once per size."""
    chance: dict[tuple[int, int, int], Similarity] = {}
    pairs: dict[Site, list[Likeness]] = {}
    for (name_a, a), (name_b, b) in combinations(sets.items(), 2):
        for site in sorted(a.keys() & b.keys()):
            rows_a, rows_b = a[site].directions.float(), b[site].directions.float()
            sizes = (len(rows_a), len(rows_b), rows_b.shape[1])
            if sizes not in chance:
                chance[sizes] = random_baseline(*sizes, generator=generator)
            likeness = Likeness(name_a, name_b, similarity(rows_a, rows_b), chance[sizes], sizes)
            pairs.setdefault(site, []).append(likeness)
    return {site: tuple(at_site) for site, at_site in sorted(pairs.items())}


def random_baseline(n: int, m: int, d_in: int, *, generator: torch.Generator) -> Similarity:
    """Similarity of two dictionaries of `n` and `m` directions drawn uniformly (normalised Gaussian rows).

    In the mean max the expectation is also that of any dictionary against a random one.
    """
    a, b = (F.normalize(torch.randn(size, d_in, generator=generator), dim=-1) for size in (n, m))
    return similarity(a, b)


def expected_max_cosine(n: int, d_in: int) -> float:
    """The mean largest cosine of a vector with `n` random directions: E max; about sqrt(2 ln n / d_in) for large d_in.

    The angle to a random direction has density sin^(d_in - 2); that of the nearest of n exceeds it with P^n.
    """
    angle = torch.linspace(0, math.pi, 2**16 + 1, dtype=torch.float64)
    density = ((max(d_in, 2) - 2) * angle.sin().clamp_min(1e-300).log()).exp()
    beyond = (1 - density.cumsum(0) / density.sum()).clamp(0, 1)
    nearest = -beyond.pow(n).diff(prepend=torch.ones(1, dtype=torch.float64))
    return (angle.cos() * nearest).sum().item()


@torch.no_grad()
def coactivity(
    codes: Iterable[tuple[Float[Tensor, "_ n"], Float[Tensor, "_ m"]]], *, exact_up_to: int = EXACT_UP_TO
) -> Similarity:
    """Similarity by Pearson correlation of latent activations on the same tokens, at any two sites of any two models.

    `codes` yields (codes of `a`, codes of `b`) for the same tokens, batch by batch. A latent that never changes
    correlates with nothing (0).
    """
    scores = correlation(codes)
    return _similarity(scores.split(ROWS_AT_ONCE), exact=max(scores.shape) <= exact_up_to)


def correlation(codes: Iterable[tuple[Float[Tensor, "_ n"], Float[Tensor, "_ m"]]]) -> Float[Tensor, "n m"]:
    """Pearson correlation of every latent of one dictionary with every latent of the other, in one pass in float64.

    Sums are about the first token's code, which cancels, so that a constant latent has a variance of exactly 0.
    """
    batches = iter(codes)
    first = next(batches, None)
    if first is None:
        raise ValueError("a correlation needs codes of at least one batch; got none")
    shift_f, shift_g = (part[0].double().clone() for part in first)
    sum_f, square_f = torch.zeros_like(shift_f), torch.zeros_like(shift_f)
    sum_g, square_g = torch.zeros_like(shift_g), torch.zeros_like(shift_g)
    cross, n_tokens = torch.outer(sum_f, sum_g), 0
    for batch in chain([first], batches):
        f, g = (part.double() for part in batch)
        f, g = f - shift_f, g - shift_g
        n_tokens += len(f)
        sum_f += f.sum(0)
        sum_g += g.sum(0)
        square_f += f.pow(2).sum(0)
        square_g += g.pow(2).sum(0)
        cross.addmm_(f.T, g)
    variance_f, variance_g = square_f - sum_f.pow(2) / n_tokens, square_g - sum_g.pow(2) / n_tokens
    scale = torch.outer(variance_f.clamp_min(0).sqrt(), variance_g.clamp_min(0).sqrt())
    covariance = cross - torch.outer(sum_f, sum_g) / n_tokens
    return torch.where(scale > 0, covariance / scale, 0.0).float()


def _similarity(blocks: Iterable[Float[Tensor, "_ m"]], *, exact: bool) -> Similarity:
    """From the similarities of all pairs, a block of rows at a time."""
    best_a, to_b, kept, start = [], [], [], 0
    best_b = to_a = torch.empty(0)
    for scores in blocks:
        best, where = scores.max(1)
        best_a.append(best)
        to_b.append(where)
        best, where = scores.max(0)
        where = where + start
        if not start:
            best_b, to_a = best, where
        else:
            to_a = torch.where(best > best_b, where, to_a)
            best_b = torch.maximum(best, best_b)
        start += len(scores)
        if exact:
            kept.append(scores)
    values, nearest = torch.cat(best_a), torch.cat(to_b)
    if exact:
        pairs = _assigned(torch.cat(kept))
    else:
        mutual = to_a[nearest] == torch.arange(start, device=nearest.device)
        pairs = values[mutual]
    return Similarity(
        a_in_b=values.double().mean().item(),
        b_in_a=best_b.double().mean().item(),
        pairs=pairs.double().sort(descending=True).values.cpu(),
        n_smaller=min(start, len(best_b)),
        exact=exact,
    )


def _assigned(scores: Float[Tensor, "n m"]) -> Float[Tensor, "pairs"]:
    """The scores of the one-to-one pairs with the largest sum."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(scores.cpu().numpy(), maximize=True)
    return scores[torch.from_numpy(rows), torch.from_numpy(columns)]
