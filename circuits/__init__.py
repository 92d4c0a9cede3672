"""Top floor: what features do to each other, and the pictures of it."""

from circuits.discovery import Asked, DiscoveryConfig, assemble, discover
from circuits.drawing import dot_source, draw
from circuits.effects import Effects, ablation_effects
from circuits.features import Examples, FeatureAtlas, survey
from circuits.graph import Edge, FeatureGraph, Node

__all__ = [
    "Asked",
    "DiscoveryConfig",
    "Edge",
    "Effects",
    "Examples",
    "FeatureAtlas",
    "FeatureGraph",
    "Node",
    "ablation_effects",
    "assemble",
    "discover",
    "dot_source",
    "draw",
    "survey",
]
