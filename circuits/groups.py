"""A circuit's nodes in groups (supernodes): those of one label in one layer, and the effects between groups.

With e(a, b) the effect of an edge, the effect of a group A on a group B is

    e(A, B) = sum of e(a, b) over the edges from a member of A to a member of B.

It is a sum of effects of single ablations, each a share of its own target's activation: no run ablates a group as a
whole. Effects between members of one group are in no sum.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import networkx

from circuits.graph import Edge, ErrorTerm, FeatureGraph, Node, NodeId, Readout, depth
from circuits.influence import influence

MOST_GROUPS = 8
"""Groups that a picture for newcomers shows."""


@dataclass(frozen=True)
class Group:
    """Nodes that are shown as one."""

    label: str
    nodes: tuple[NodeId, ...]
    """Later layers before earlier."""

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers of its nodes, rising; none for what is read from the logits."""
        return tuple(sorted({node.site.layer for node in self.nodes if not isinstance(node, Readout)}))

    @property
    def name(self) -> str:
        """The label and the layers, which no other group has both, but for one of the target's label in its layer."""
        return f"{self.label} ({self.where})" if self.where else self.label

    @property
    def where(self) -> str:
        """The layers in words; empty for what is read from the logits."""
        first, last = self.layers[:1], self.layers[-1:]
        return f"layers {first[0]}-{last[0]}" if first < last else f"layer {first[0]}" if first else ""


@dataclass(frozen=True)
class GroupEdge:
    """The summed effects of the edges from one group to another."""

    cause: Group
    target: Group
    effect: float
    n_edges: int
    solid: bool
    """Whether any of the edges stands out from random directions."""


@dataclass(frozen=True)
class Story:
    """A circuit in few groups, the target's first."""

    groups: tuple[Group, ...]
    edges: tuple[GroupEdge, ...]
    left_out: tuple[Group, ...]
    """Groups that are not shown, since others have more influence, or since they have none on any that is shown."""
    n_within: int
    """Edges between members of one group, which are not shown."""
    influence: float
    """Share of the influence on the target (`circuits/influence.py`), summed over nodes, that the shown groups have."""


def groups_of(graph: FeatureGraph) -> tuple[Group, ...]:
    """Every node of the graph in a group: the target alone, all error terms in one, others by label and layer."""
    members: defaultdict[tuple, list[NodeId]] = defaultdict(list)
    for node in sorted(graph.nodes, key=lambda node: depth(node.id)):
        is_error = isinstance(node.id, ErrorTerm)
        members[node.id != graph.target, is_error, is_error or -(node.layer or 0), label_of(node)].append(node.id)
    return tuple(Group(key[-1], tuple(nodes)) for key, nodes in sorted(members.items()))


def label_of(node: Node) -> str:
    """What a node is called in a group: a human's name, its label, or else its id."""
    if isinstance(node.id, ErrorTerm):
        return "error terms"
    return node.title or str(node.id)


def effects_between(groups: Sequence[Group], edges: Iterable[Edge]) -> tuple[GroupEdge, ...]:
    """The summed effects between groups, in their order; edges within one or to what is in none are passed over."""
    return tuple(
        GroupEdge(
            groups[cause],
            groups[target],
            math.fsum(edge.effect for edge in summed),
            len(summed),
            any(edge.solid for edge in summed),
        )
        for (cause, target), summed in sorted(_between(groups, edges).items())
        if cause != target
    )


def _between(groups: Sequence[Group], edges: Iterable[Edge]) -> dict[tuple[int, int], list[Edge]]:
    """The edges between every two groups, by their numbers, and those within each."""
    home = {node: number for number, group in enumerate(groups) for node in group.nodes}
    between: defaultdict[tuple[int, int], list[Edge]] = defaultdict(list)
    for edge in edges:
        if edge.cause in home and edge.target in home:
            between[home[edge.cause], home[edge.target]].append(edge)
    return between


def story_of(graph: FeatureGraph, most: int = MOST_GROUPS) -> Story:
    """The graph in at most `most` groups.

    Groups of one label in neighbouring layers are joined where there are too many. Then the target's group is taken,
    and again and again the group of largest influence among those that have an effect on one that is taken already.
    """
    node_influence = influence(graph.target, {(edge.cause, edge.target): edge.effect for edge in graph.edges})

    def strength_of(group: Group) -> float:
        return math.fsum(node_influence.get(node, 0.0) for node in group.nodes)

    every = groups_of(graph)
    near = [group for number, group in enumerate(every) if not number or strength_of(group)]
    groups = _joined(near, graph.edges, most)
    strength = [strength_of(group) for group in groups]
    between, taken = _between(groups, graph.edges), {0}
    while len(taken) < most and (causes := {cause for cause, target in between if target in taken} - taken):
        taken.add(max(causes, key=lambda number: (strength[number], -number)))
    whole = math.fsum(strength)
    shown = tuple(groups[number] for number in sorted(taken))
    return Story(
        shown,
        effects_between(shown, graph.edges),
        tuple(group for number, group in enumerate(groups) if number not in taken)
        + tuple(group for group in every if group not in near),
        sum(len(between.get((number, number), ())) for number in taken),
        math.fsum(strength[number] for number in taken) / whole if whole else 1.0,
    )


def _joined(groups: Sequence[Group], edges: Sequence[Edge], most: int) -> tuple[Group, ...]:
    """Groups of one label in neighbouring layers made one, from the input up, until `most` are left.

    Two stay apart where a third carries an effect from one to the other: joined, arrows would go in a circle.
    """
    arrows = networkx.DiGraph(pair for pair in _between(groups, edges) if len({*pair}) == 2)
    arrows.add_nodes_from(range(len(groups)))
    left, lower = dict(enumerate(groups)), dict[str, int]()
    for number in reversed(range(1, len(groups))):  # lowest layers first; the target's group stays alone
        group, below = groups[number], lower.get(groups[number].label, 0)
        near = below and group.layers[0] - left[below].layers[-1] == 1
        if near and len(left) > most and not _meet(arrows, below, number):
            left[number] = Group(group.label, group.nodes + left.pop(below).nodes)
            networkx.contracted_nodes(arrows, number, below, self_loops=False, copy=False)
        lower[group.label] = number
    return tuple(left.values())


def _meet(arrows: networkx.DiGraph, lower: int, upper: int) -> bool:
    """Whether effects go from one of two groups to the other through a third."""
    return any(
        networkx.has_path(arrows, third, end)
        for start, end in ((lower, upper), (upper, lower))
        for third in set(arrows[start]) - {end}
    )
