"""Top floor: what features do to each other, and the pictures of it."""

from circuits.discovery import Asked, Discovery, DiscoveryConfig, assemble
from circuits.drawing import dot_source, draw
from circuits.edges import EdgeConfig
from circuits.effects import Causes, Effects, ablation_effects
from circuits.features import Examples, FeatureAtlas, survey
from circuits.graph import Edge, ErrorTerm, FeatureGraph, Node, Readout
from circuits.targets import FeatureTarget, LogitTarget

__all__ = [
    "Asked",
    "Causes",
    "Discovery",
    "DiscoveryConfig",
    "Edge",
    "EdgeConfig",
    "Effects",
    "ErrorTerm",
    "Examples",
    "FeatureAtlas",
    "FeatureGraph",
    "FeatureTarget",
    "LogitTarget",
    "Node",
    "Readout",
    "ablation_effects",
    "assemble",
    "dot_source",
    "draw",
    "survey",
]
