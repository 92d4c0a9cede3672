"""Controls for a circuit's score: random circuits, an attribution-ranked circuit, and the circuit discovered again.

A random circuit has as many latents per site, each of about the density of the member that it replaces; the
attribution-ranked one has the latents of largest attribution, without any search. A circuit that does not beat the
random ones says nothing about its members, and one that discovery finds on some examples only says something about
those.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.graph import Edge
from circuits.scoring.attribution import attribution, attribution_circuit
from circuits.scoring.circuit_runs import Errors, Members
from circuits.scoring.faithfulness import Scale
from editing.random_latents import latents_of_like_density
from sae_core.errors import UserError
from sae_core.estimate import Estimate
from sae_core.sites import Site

# ---- random circuits -------------------------------------------------------------------------------


def random_circuits(
    members: Members, density: Mapping[Site, Float[Tensor, "_"]], n: int = 20, *, generator: torch.Generator
) -> list[dict[Site, tuple[int, ...]]]:
    """`n` circuits with as many latents per site, none of them a member, each near a member's density.

    Every member is replaced by one of the ten free latents whose log density is nearest. Latents that are never
    active (density 0) are not drawn. Raises `UserError` where a site has too few others.
    """
    return [
        {
            site: tuple(latents_of_like_density(site, density[site], latents, generator=generator))
            for site, latents in members.items()
            if len(latents)
        }
        for _ in range(n)
    ]


# ---- beside the circuit ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Faithfulness:
    """Faithfulness of one circuit, with error terms ablated and kept."""

    ablated: Estimate
    kept: Estimate


@dataclass(frozen=True)
class Controls:
    """A circuit beside control circuits of the same size, under one ablation."""

    ablation: str
    n_nodes: int
    circuit: Faithfulness
    random: tuple[Faithfulness, ...]
    """Of circuits of random latents of like density."""
    first_order: Faithfulness
    """Of the circuit of largest attribution."""

    @property
    def best_random(self) -> Faithfulness:
        """The random circuit of largest faithfulness, errors ablated."""
        return max(self.random, key=lambda control: control.ablated.value)

    @property
    def better(self) -> bool:
        """Whether the circuit is more faithful, errors ablated, than every random one."""
        return self.circuit.ablated.value > self.best_random.ablated.value

    def lines(self) -> list[str]:
        """The comparison in words."""
        n, best = len(self.random), self.best_random.ablated
        mean = sum(control.ablated.value for control in self.random) / n
        best_kept = max(control.kept.value for control in self.random)
        return [
            f"faithfulness {self.circuit.ablated} with errors ablated; best of {n} random circuits of the same size "
            f"and density {best}, their mean {mean:.3f}: {'above' if self.better else 'NOT above'} the best; "
            f"first-order circuit of the same size {self.first_order.ablated}",
            f"with errors kept: {self.circuit.kept}; best random {best_kept:.3f}; first-order {self.first_order.kept}",
        ]


def compare_with_controls(
    scale: Scale,
    members: Members,
    density: Mapping[Site, Float[Tensor, "_"]],
    *,
    generator: torch.Generator,
    n: int = 20,
) -> Controls:
    """The circuit beside `n` random ones and the attribution-ranked one, on the prompts of `scale`.

    The attribution-ranked circuit is made from the very prompts it is scored on: what attribution can do at best.
    """
    if not any(len(latents) for latents in members.values()) or n < 1:
        raise UserError("there is nothing to compare: the circuit has no members, or no random circuits are asked for")
    runs = scale.runs
    circuits = [members, attribution_circuit(attribution(runs), members)]
    circuits += random_circuits(members, density, n, generator=generator)
    ablated, kept = (runs.values(circuits, errors) for errors in Errors)
    circuit, first, *random = (Faithfulness(scale.share(a), scale.share(k)) for a, k in zip(ablated, kept, strict=True))
    return Controls(runs.ablation.name, sum(map(len, members.values())), circuit, tuple(random), first)


# ---- the circuit discovered again ------------------------------------------------------------------


@dataclass(frozen=True)
class Overlap:
    """Jaccard indices of two graphs, |A and B| / |A or B|; 1 if both are empty."""

    edges: float
    nodes: float


def overlap(a: Iterable[Edge], b: Iterable[Edge]) -> Overlap:
    """How much two sets of edges, and the nodes at their ends, have in common; sizes of edges do not count."""
    pairs = [_pairs(a), _pairs(b)]
    ends = [{node for pair in graph for node in pair} for graph in pairs]
    return Overlap(_jaccard(*pairs), _jaccard(*ends))


def _pairs(edges: Iterable[Edge]) -> set[tuple]:
    """Cause and target of each edge."""
    return {(edge.cause, edge.target) for edge in edges}


def _jaccard(a: set, b: set) -> float:
    return len(a & b) / len(a | b) if a | b else 1.0


@dataclass(frozen=True)
class Stability:
    """The graphs that discovery finds on several draws of examples, pair by pair."""

    seeds: tuple[int, ...]
    n_edges: tuple[int, ...]
    """Edges found with each seed."""
    overlaps: tuple[Overlap, ...]
    """Of every two draws."""
    always: int
    """Edges found with every seed."""
    ever: int
    """Edges found with any."""

    @property
    def mean(self) -> Overlap:
        """Mean over pairs of draws."""
        n = len(self.overlaps)
        return Overlap(sum(pair.edges for pair in self.overlaps) / n, sum(pair.nodes for pair in self.overlaps) / n)

    def lines(self) -> list[str]:
        """The overlap in words."""
        least = min(pair.edges for pair in self.overlaps)
        return [
            f"stability over {len(self.seeds)} draws of examples: edge overlap (Jaccard) {self.mean.edges:.2f} on "
            f"average, {least:.2f} at least; nodes {self.mean.nodes:.2f}; {self.always} of {self.ever} edges "
            "found always"
        ]


def stability(rediscover: Callable[[int], Iterable[Edge]], seeds: Sequence[int]) -> Stability:
    """Discovery repeated: `rediscover(seed)` draws examples with that seed and gives the edges it finds.

    Raises `UserError` for fewer than two seeds, or one given twice.
    """
    if len(set(seeds)) < max(2, len(seeds)):
        raise UserError(f"stability needs at least two different seeds; got {', '.join(map(str, seeds)) or 'none'}")
    draws = [list(rediscover(seed)) for seed in seeds]
    times = Counter(pair for edges in draws for pair in _pairs(edges))
    return Stability(
        seeds=tuple(seeds),
        n_edges=tuple(len(_pairs(edges)) for edges in draws),
        overlaps=tuple(overlap(a, b) for a, b in combinations(draws, 2)),
        always=sum(count == len(seeds) for count in times.values()),
        ever=len(times),
    )
