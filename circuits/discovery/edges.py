"""The causes of a target at one site that are strong enough for an edge, and the numbers that an edge carries."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.effects.ablation_effects import (
    Causes,
    Effects,
    ablation_effects,
    effects_by_position,
    error_effect,
    null_effects,
)
from circuits.effects.exact_routes import Rerun, route_through
from circuits.effects.screens import audited, first_order, shortlist
from circuits.graph import Edge, ErrorTerm
from sae_core.errors import UserError
from sae_core.sites import FeatureId

AUDIT = 60
"""Latents that an audit draws."""
OFFSETS = 4
"""Single positions of the cause whose effects an edge lists, at most."""
NULL_QUANTILE = 0.99
"""Quantile of |effect| over random directions with which an edge is compared."""
LISTED = 20
"""Latents that each of the three screens proposes, at least; for ten kept causes 60 were needed (seven each)."""


class SearchMode(StrEnum):
    """How causes more than one block away are found; between neighbours all active latents are ablated."""

    SCREENED = "screened"
    """Three screens propose, ablation decides, an audit checks."""
    EXHAUSTIVE = "exhaustive"
    """All active latents are ablated, however far away."""
    FIRST_ORDER = "first-order"
    """Nothing is ablated, not between neighbours either: effects to first order, at once."""


@dataclass(frozen=True)
class EdgeConfig:
    """Which causes are kept, and what is measured of them."""

    keep: int | None = 3
    """Causes per target and site; None keeps all above `min_effect`."""
    min_effect: float = 0.01
    """Edges weaker than this are not kept."""
    search: SearchMode = SearchMode.SCREENED
    n_null: int = 1000
    """Random directions with which an edge is compared, where at most one block lies between; 0 for none."""
    errors: bool = True
    """Whether error terms are ablated, too, and kept where their effect is at least `min_effect`."""
    described: bool = True
    """Whether of every kept edge the direct effect and the effects by position are measured, too."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.keep is not None and self.keep < 1:
            raise UserError(f"at least one cause per target must be kept; got keep={self.keep}")
        if not self.min_effect >= 0:
            raise UserError(f"the smallest effect kept cannot be {self.min_effect}; give a number from 0 up")
        if self.n_null < 0:
            raise UserError(f"the number of random directions cannot be {self.n_null}")


@dataclass(frozen=True)
class SiteCauses:
    """The causes of one target at one site."""

    edges: tuple[Edge, ...]
    n_pairs: int
    """Pairs of latent and example that were ablated."""
    audit: dict[str, Any] | None = None
    """A random sample of the latents that no screen proposed; None where all active latents were ablated."""


def find_edges(causes: Causes, config: EdgeConfig, among: Sequence[int] | None = None) -> SiteCauses:
    """The strongest causes, the largest |effect| first; the error term, if it is kept, comes last.

    With `among`, of these latents only: all of them are ablated, however far away.
    """
    if config.search is SearchMode.FIRST_ORDER:
        effect = first_order(causes)
        if among is not None:
            inside = _at(causes, among).to(effect.device)
            effect = torch.zeros_like(effect).index_copy_(0, inside, effect[inside])
        unknown = Effects(
            causes.scene.source, effect, effect * torch.nan, torch.zeros(len(effect), dtype=torch.long), 0
        )
        best = _best(effect, config)
        return SiteCauses(tuple(_edge(causes, unknown, latent, certified=False) for latent in best), 0)
    if among is None:
        effects, audit = _searched(causes, config)
    else:
        effects, audit = ablation_effects(causes, _at(causes, among)), None
    best = _best(effects.effect, config)
    certified = audit is None or audit["n_rest"] == 0
    edges = [_edge(causes, effects, latent, certified=certified) for latent in best]
    if config.n_null and not isinstance(causes.route, Rerun):
        edges = [replace(e, null=null_of(causes, latent, config)) for e, latent in zip(edges, best, strict=True)]
    if config.described and causes.scene.gap > 1:
        edges = [replace(e, direct=direct) for e, direct in zip(edges, _direct(causes, best), strict=True)]
    if config.described and edges:
        edges = _with_offsets(causes, edges, best, config.min_effect)
    if config.errors:
        effect, error = error_effect(causes)
        n = len(causes.scene.end)
        if abs(effect) >= config.min_effect:
            edges.append(Edge(ErrorTerm(causes.scene.source), causes.scene.target.node, effect, error, n, n))
    return SiteCauses(tuple(edges), effects.n_pairs, audit)


def _searched(causes: Causes, config: EdgeConfig) -> tuple[Effects, dict[str, Any] | None]:
    """Effects, and the audit where not all active latents were ablated."""
    near = causes.scene.gap <= 1 or not isinstance(causes.route, Rerun)
    if near or config.search is SearchMode.EXHAUSTIVE:
        return ablation_effects(causes), None
    listed = shortlist(causes, max(LISTED, 7 * (config.keep or LISTED)))
    effects = ablation_effects(causes, listed.to(causes.scene.x.device))
    kept = effects.effect.abs().sort(descending=True).values
    threshold = max(
        config.min_effect, float(kept[config.keep - 1]) if config.keep and config.keep <= len(kept) else 0.0
    )
    audit, drawn, more = audited(causes, listed, AUDIT, threshold, seed=config.seed)
    # What the audit ablated is known exactly, too, and may become an edge.
    effect, error, n_active = effects.effect.clone(), effects.error.clone(), effects.n_active.clone()
    effect[drawn], error[drawn], n_active[drawn] = more.effect[drawn], more.error[drawn], more.n_active[drawn]
    both = Effects(effects.source, effect, error, n_active, effects.n_pairs + more.n_pairs)
    return both, {"site": str(effects.source), "share": audit.share, **asdict(audit)}


def _at(causes: Causes, latents: Sequence[int]) -> Tensor:
    return torch.tensor(list(latents), dtype=torch.long, device=causes.scene.x.device)


def _best(effect: Tensor, config: EdgeConfig) -> list[int]:
    order = effect.abs().argsort(descending=True, stable=True)[: config.keep].tolist()
    return [latent for latent in order if abs(float(effect[latent])) >= max(config.min_effect, 1e-12)]


def _edge(causes: Causes, effects: Effects, latent: int, *, certified: bool) -> Edge:
    scene = causes.scene
    return Edge(
        FeatureId(scene.source, latent),
        scene.target.node,
        float(effects.effect[latent]),
        float(effects.error[latent]),
        int(effects.n_active[latent]),
        len(scene.end),
        certified=certified,
    )


def null_of(causes: Causes, latent: int, config: EdgeConfig) -> float:
    """The 99th percentile of |effect| where a latent's codes are taken along random directions."""
    return float(null_effects(causes, latent, config.n_null, seed=config.seed).abs().quantile(NULL_QUANTILE))


def _direct(causes: Causes, latents: list[int]) -> list[float | None]:
    """What of each latent's effect no block in between carries; None where that is not known."""
    try:
        way = route_through(causes.scene, direct=True)
    except UserError:  # a source that is no part of the residual, or blocks of unknown parts
        return [None] * len(latents)
    alone = Causes.along(way, causes.dictionary, causes.ablation)
    return ablation_effects(alone, _at(causes, latents)).effect[latents].tolist()


def _with_offsets(causes: Causes, edges: list[Edge], latents: list[int], least: float) -> list[Edge]:
    """The edges with the effects of ablating each cause at single positions, by how far before the target's."""
    by_position, _ = effects_by_position(causes, torch.tensor(latents, device=causes.scene.x.device))
    result = []
    for edge, latent in zip(edges, latents, strict=True):
        result.append(replace(edge, offsets=largest_offsets(by_position[latent], least)))
    return result


def largest_offsets(effects: Float[Tensor, "pos"], least: float) -> tuple[tuple[int, float], ...]:
    """The largest few effects of single positions, by how far before the target's, none below `least`."""
    strongest = effects.abs().argsort(descending=True, stable=True)[:OFFSETS].tolist()
    return tuple((back, float(effects[back])) for back in strongest if abs(float(effects[back])) >= least)
