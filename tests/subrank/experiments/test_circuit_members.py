"""Which circuit is sought by default: of what blocks write where a set has it, else by recursion."""

from types import SimpleNamespace

import pytest
from handmade import random_topk
from tiny import user_error

from circuits.discovery.request import Covered
from circuits.graph import DirectSum, FeatureGraph, Node
from sae_core.sites import FeatureId, Site, Stream
from subrank.experiments.circuit import lighter, members_of, repetitions, request_of
from subrank.settings.circuit import CircuitSettings
from subrank.settings.fields import make

RESIDUAL = {Site(layer): random_topk(8) for layer in range(4)}
WRITTEN = {Site(layer, stream): random_topk(8) for layer in range(4) for stream in (Stream.ATTN_OUT, Stream.MLP_OUT)}


def saes(sites):
    return SimpleNamespace(dictionaries=sites, model="some/model")


@pytest.mark.parametrize(
    ("sites", "target", "settings", "expected"),
    [
        (RESIDUAL | WRITTEN, None, {}, (100, 4, Covered.WRITTEN)),
        (RESIDUAL | WRITTEN, "3_0", {"cover": 2}, (100, 2, Covered.WRITTEN)),
        (WRITTEN, "task: ioi", {"nodes": 30}, (30, 4, Covered.WRITTEN)),
        (RESIDUAL | WRITTEN, "next: )", {"stream": "written"}, (100, 4, Covered.WRITTEN)),
        (RESIDUAL | WRITTEN, None, {"nodes": 0}, (0, 2, None)),
        (RESIDUAL | WRITTEN, None, {"stream": "residual"}, (0, 2, Covered.RESIDUAL)),
        (RESIDUAL | WRITTEN, None, {"stream": "residual", "nodes": 30}, (30, 2, Covered.RESIDUAL)),
        (RESIDUAL | {site: d for site, d in WRITTEN.items() if site.layer > 1}, "1_3", {}, (0, 2, None)),
        (RESIDUAL, None, {}, (0, 2, None)),
        (RESIDUAL | {site: d for site, d in WRITTEN.items() if site.stream is Stream.MLP_OUT}, None, {}, (0, 2, None)),
        *((RESIDUAL | WRITTEN, None, {name: value}, (0, 2, None)) for name, value in (
            ("depth", 2), ("max_targets", 5), ("follow_sinks", True), ("exhaustive", True), ("reach", "adjacent"))),
    ],
)  # fmt: skip
def test_what_is_sought(sites, target, settings, expected):
    assert members_of(make(CircuitSettings, settings), target, saes(sites)) == expected


def test_what_blocks_write_is_chosen_where_it_is_asked_for_and_recursion_is_not_asked_for_beside_it():
    sites = (RESIDUAL | WRITTEN).items()
    some_written = {site: dictionary for site, dictionary in sites if site.stream is not Stream.ATTN_OUT}
    assert members_of(make(CircuitSettings, {"stream": "written"}), "next: )", saes(some_written))[0] == 100
    assert members_of(make(CircuitSettings, {}), "next: )", saes(some_written))[0] == 0  # control
    with user_error("--depth is of recursion"):
        members_of(make(CircuitSettings, {"stream": "written", "depth": 2}), "next: )", saes(RESIDUAL | WRITTEN))


def test_a_circuit_of_many_nodes_has_smaller_defaults_but_what_is_given_stays():
    settings = make(CircuitSettings, {"contexts": 900})
    request = request_of(None, settings, saes(RESIDUAL | WRITTEN))
    light = lighter(settings, request, settings.by_default)
    assert (light.contexts, light.held, light.null) == (900, 200, 100)
    small = SimpleNamespace(block_weights=1)
    assert repetitions(settings, request, small) == {"n_draws": 0, "n_random": 8}
    recursion = request_of(None, settings, saes(RESIDUAL))
    assert repetitions(settings, recursion, small) == {"n_draws": 3, "n_random": 20}
    assert lighter(settings, recursion, settings.by_default) == settings


def test_what_direct_effects_add_up_to_is_said_in_a_line():
    root, other = FeatureId(Site(3), 1), FeatureId(Site(2), 0)
    graph = FeatureGraph(
        root, (Node(root, direct=DirectSum(0.75, 0.125)), Node(other, direct=DirectSum(0.5, -0.375))), ()
    )
    assert all(part in graph.direct_line() for part in ("0.75", "0.88", "+0.12", "2 nodes 0.25"))
    assert FeatureGraph(root, (Node(root),), ()).direct_line() is None
