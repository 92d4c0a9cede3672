"""Where causes are searched, and which targets can be explained."""

import pytest
import torch
from handmade import Circuit, random_topk
from tiny import user_error

from circuits.discovery.target_causes import (
    Reach,
    cause_sites,
    check_target,
)
from circuits.effects.targets import FeatureTarget, LogitTarget
from circuits.graph import Readout
from sae_core.sites import FeatureId, Site, Stream


@pytest.fixture(scope="module")
def circuit() -> Circuit:
    return Circuit()


def test_the_nearest_residual_site_or_every_earlier_one(tiny):
    sites = (Site(0), Site(1, Stream.MLP_OUT), Site(1), Site(2, Stream.ATTN_OUT), Site(2, Stream.MLP_OUT))
    dictionaries = {site: random_topk(32) for site in sites}

    def at(site: Site, reach: Reach) -> list[Site]:
        return cause_sites(tiny, dictionaries, FeatureTarget(FeatureId(site, 0), random_topk(32)), reach)

    assert at(Site(2), Reach.ADJACENT) == [Site(1)] and at(Site(1, Stream.MLP_OUT), Reach.ADJACENT) == [Site(0)]
    everything = at(Site(2, Stream.MLP_OUT), Reach.ALL)
    parallel = not tiny.feeds(Site(2, Stream.ATTN_OUT), Site(2, Stream.MLP_OUT))
    assert everything == ([] if parallel else [Site(2, Stream.ATTN_OUT)]) + [Site(1), Site(1, Stream.MLP_OUT), Site(0)]
    target = LogitTarget(Readout("a"), tiny, torch.tensor([5]))
    assert cause_sites(tiny, dictionaries | {Site(2): random_topk(32)}, target) == [Site(2)]


@pytest.mark.parametrize(
    "target, words",
    [("5_0", ("resid_post.5", "resid_post.0")), ("3_1", ("3_1", "1 latents")), ("0_2", ("0_2", "below it"))],
)
def test_a_target_that_cannot_be_explained_is_refused(circuit, target, words):
    with user_error(*words):
        check_target(circuit.model, circuit.dictionaries, FeatureId.parse(target))


def test_good_targets_pass(circuit):
    for target in ("3_0", "1_1", "2_0"):
        check_target(circuit.model, circuit.dictionaries, FeatureId.parse(target))
