"""What to hold a circuit's score against: random circuits, a first-order circuit, and the circuit found again.

A random circuit has as many latents per site, each of about the density of the member in whose place it
stands; a first-order one the latents of largest attribution, without any search. A circuit that does not
beat the random ones says nothing about its members, and one that discovery finds on some examples only
says something about those.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.scoring.attribution import attribution, attribution_circuit
from circuits.scoring.circuit_runs import Errors, Members
from circuits.scoring.faithfulness import Scale, Share
from editing.random_latents import latents_of_like_density
from sae_core.errors import UserError
from sae_core.sites import Site

# ---- random circuits -------------------------------------------------------------------------------


def random_circuits(
    members: Members, density: Mapping[Site, Float[Tensor, "_"]], n: int = 20, *, generator: torch.Generator
) -> list[dict[Site, tuple[int, ...]]]:
    """`n` circuits with as many latents per site, none of them a member, each near a member's density.

    In the place of every member stands one of the ten free latents whose log density is nearest. Latents that are
    never active (density 0) are not drawn. Raises `UserError` where a site has too few others.
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
class Control:
    """Faithfulness of a control circuit (random or attribution-ranked)."""

    ablated: Share
    """With error terms ablated."""
    kept: Share
    """With error terms kept."""

    def to_json(self) -> dict[str, Any]:
        return {"ablated": self.ablated.to_json(), "kept": self.kept.to_json()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Control":
        return cls(Share.from_json(value["ablated"]), Share.from_json(value["kept"]))


@dataclass(frozen=True)
class Controls:
    """A circuit beside random ones and a first-order one of the same size, under one ablation."""

    ablation: str
    n_nodes: int
    circuit: Control
    random: tuple[Control, ...]
    first_order: Control

    @property
    def best_random(self) -> Control:
        """The random circuit of largest faithfulness, errors ablated."""
        return max(self.random, key=lambda one: one.ablated.value)

    @property
    def better(self) -> bool:
        """Whether the circuit is more faithful, errors ablated, than every random one."""
        return self.circuit.ablated.value > self.best_random.ablated.value

    def lines(self) -> list[str]:
        """The comparison in words."""
        n, best = len(self.random), self.best_random.ablated
        mean = sum(one.ablated.value for one in self.random) / n
        best_kept = max(one.kept.value for one in self.random)
        return [
            f"faithfulness {self.circuit.ablated} with errors ablated; best of {n} random circuits of the same size "
            f"and density {best}, their mean {mean:.3f}: {'above' if self.better else 'NOT above'} the best; "
            f"first-order circuit of the same size {self.first_order.ablated}",
            f"with errors kept: {self.circuit.kept}; best random {best_kept:.3f}; first-order {self.first_order.kept}",
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` is the inverse."""
        return {
            "ablation": self.ablation,
            "n_nodes": self.n_nodes,
            "circuit": self.circuit.to_json(),
            "random": [one.to_json() for one in self.random],
            "first_order": self.first_order.to_json(),
            "better_than_random": self.better,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Controls":
        random = tuple(map(Control.from_json, value["random"]))
        circuit, first = (Control.from_json(value[name]) for name in ("circuit", "first_order"))
        return cls(value["ablation"], value["n_nodes"], circuit, random, first)


def compare_with_controls(
    scale: Scale,
    members: Members,
    density: Mapping[Site, Float[Tensor, "_"]],
    *,
    generator: torch.Generator,
    n: int = 20,
) -> Controls:
    """The circuit beside `n` random ones and the first-order one, on the prompts of `scale`.

    The first-order circuit is made from the very prompts it is scored on: what attribution can do at best.
    """
    if not any(len(own) for own in members.values()) or n < 1:
        raise UserError("there is nothing to compare: the circuit has no members, or no random circuits are asked for")
    runs = scale.runs
    circuits = [members, attribution_circuit(attribution(runs), members)]
    circuits += random_circuits(members, density, n, generator=generator)
    ablated, kept = (runs.values(circuits, errors) for errors in Errors)
    found = [Control(scale.share(a), scale.share(k)) for a, k in zip(ablated, kept, strict=True)]
    n_nodes = sum(map(len, members.values()))
    return Controls(runs.ablation.name, n_nodes, found[0], tuple(found[2:]), found[1])


# ---- the circuit found again -----------------------------------------------------------------------


@runtime_checkable
class Arrow(Protocol):
    """What edges are here: a cause and a target, each a name that can be compared."""

    @property
    def cause(self) -> Hashable: ...

    @property
    def target(self) -> Hashable: ...


@dataclass(frozen=True)
class Overlap:
    """Jaccard of two graphs: of all that is in either, the share that is in both. 1 if both are empty."""

    edges: float
    nodes: float


def overlap(a: Iterable[Arrow], b: Iterable[Arrow]) -> Overlap:
    """How much two sets of edges, and the nodes at their ends, have in common; sizes of edges do not count."""
    pairs = [{(edge.cause, edge.target) for edge in edges} for edges in (a, b)]
    ends = [{node for pair in own for node in pair} for own in pairs]
    return Overlap(_jaccard(*pairs), _jaccard(*ends))


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
        return Overlap(sum(one.edges for one in self.overlaps) / n, sum(one.nodes for one in self.overlaps) / n)

    def lines(self) -> list[str]:
        """The overlap in words."""
        least = min(one.edges for one in self.overlaps)
        return [
            f"stability over {len(self.seeds)} draws of examples: edge overlap (Jaccard) {self.mean.edges:.2f} on "
            f"average, {least:.2f} at least; nodes {self.mean.nodes:.2f}; {self.always} of {self.ever} edges "
            "found always"
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` is the inverse."""
        return {
            "seeds": list(self.seeds),
            "n_edges": list(self.n_edges),
            "overlaps": [{"edges": one.edges, "nodes": one.nodes} for one in self.overlaps],
            "mean": {"edges": self.mean.edges, "nodes": self.mean.nodes},
            "always": self.always,
            "ever": self.ever,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Stability":
        overlaps = tuple(Overlap(one["edges"], one["nodes"]) for one in value["overlaps"])
        return cls(tuple(value["seeds"]), tuple(value["n_edges"]), overlaps, value["always"], value["ever"])


def stability(rediscover: Callable[[int], Iterable[Arrow]], seeds: Sequence[int]) -> Stability:
    """Discovery repeated: `rediscover(seed)` draws examples with that seed and gives the edges it finds.

    Raises `UserError` for fewer than two seeds, or one given twice.
    """
    if len(set(seeds)) < max(2, len(seeds)):
        raise UserError(f"stability needs at least two different seeds; got {', '.join(map(str, seeds)) or 'none'}")
    found = [list(rediscover(seed)) for seed in seeds]
    times = Counter(pair for edges in found for pair in {(edge.cause, edge.target) for edge in edges})
    return Stability(
        seeds=tuple(seeds),
        n_edges=tuple(len({(edge.cause, edge.target) for edge in edges}) for edges in found),
        overlaps=tuple(overlap(a, b) for a, b in combinations(found, 2)),
        always=sum(count == len(seeds) for count in times.values()),
        ever=len(times),
    )
