"""Which sites a sufficient set is chosen from: by what a set has below the target."""

import pytest
from handmade import random_topk
from tiny import user_error

from circuits.discovery.request import CircuitRequest, Covered, covered, with_reach
from circuits.discovery.target_causes import DiscoveryConfig, Reach
from circuits.effects.targets import FeatureTarget
from sae_core.sites import FeatureId, Site, Stream

RESIDUAL = {Site(layer): random_topk(32) for layer in range(3)}
WRITTEN = {Site(layer, stream): random_topk(32) for layer in (1, 2) for stream in (Stream.ATTN_OUT, Stream.MLP_OUT)}


def target(layer: int) -> FeatureTarget:
    return FeatureTarget(FeatureId(Site(layer), 0), random_topk(32))


@pytest.mark.parametrize(
    ("saes", "layer", "n_nodes", "expected"),
    [
        (RESIDUAL | WRITTEN, 2, 9, WRITTEN),
        (RESIDUAL | WRITTEN, 0, 9, RESIDUAL),  # none of it lies below the target
        (RESIDUAL | WRITTEN, 2, 0, RESIDUAL),  # recursion
        (WRITTEN, 2, 0, WRITTEN),
        ({Site(1, Stream.MLP_OUT): random_topk(32)}, 2, 9, None),
    ],
)
def test_what_is_usual(saes, layer, n_nodes, expected):
    chosen = covered(CircuitRequest("2_0", n_nodes=n_nodes), saes, target(layer))
    assert chosen.keys() == (saes if expected is None else expected).keys()


def test_what_is_asked_for_and_is_not_there():
    asked = CircuitRequest("2_0", n_nodes=9, stream=Covered.RESIDUAL)
    assert covered(asked, RESIDUAL | WRITTEN, target(2)).keys() == RESIDUAL.keys()
    with user_error("--stream residual", "attn_out, mlp_out"):
        covered(asked, WRITTEN, target(2))


def test_what_blocks_write_is_read_by_all_later_ones():
    config, pruned = DiscoveryConfig(), CircuitRequest("2_0", n_nodes=9)
    assert with_reach(config, pruned, RESIDUAL | WRITTEN, target(2)).reach is Reach.ALL
    assert with_reach(config, pruned, RESIDUAL, target(2)).reach is Reach.ADJACENT
    assert with_reach(config, CircuitRequest("2_0"), RESIDUAL | WRITTEN, target(2)).reach is Reach.ADJACENT
