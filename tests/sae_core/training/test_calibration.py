"""Thresholds that give a wanted L0, and the geometric median."""

import pytest
import torch
from planted import Rows, generator
from trained import BATCH, config, finish, small

from sae_core.dictionaries.saes import JumpReLUSAE
from sae_core.evaluation.reconstruction import l0
from sae_core.sites import Site
from sae_core.training.calibration import calibrate, geometric_median
from sae_core.training.config import TrainConfig
from sae_core.training.loop import start, train
from sae_core.training.penalty_recipes import JumpReLU
from sae_core.training.recipe import LossContext
from sae_core.training.state import TrainState
from sae_core.training.topk_recipes import BatchTopK


def trained(stream, *configs: TrainConfig) -> TrainState:
    state = start(stream, *configs)
    finish(stream, state)
    return state


# ---- thresholds ------------------------------------------------------------------------------------


def test_the_running_threshold_of_equal_batches_is_theirs():
    """Bias-corrected: a mean that started from zero would be far too small."""
    x = torch.cat([batch[Site(0)] for batch in small((Site(0),)).block(0)])[:BATCH]
    state = start(Rows(x, BATCH), config(BatchTopK(2), lr=1e-30, steps=9))
    (at_site,) = state.members[0].sites.values()
    kept = BatchTopK(2).loss(at_site.sae, at_site.scale * x, LossContext(at_site.dead)).threshold.item()
    for step in train(Rows(x, BATCH), state):
        sae = state.dictionaries()[Site(0)]
        assert sae.threshold[0].item() * at_site.scale == pytest.approx(kept, rel=1e-5), step.step
        assert l0(sae.encode(x)) == pytest.approx(2, abs=2 / BATCH)
    assert at_site.threshold[1] < 0.1  # what must be corrected for


def test_the_running_threshold_is_a_weighted_mean_of_the_batches():
    stream, kept = small((Site(0),)), []
    state = start(stream, config(BatchTopK(2), steps=40))
    for step in train(stream, state):
        kept.append(step.outcomes[0][Site(0)].threshold.item())
    weights = [0.99 ** (39 - i) for i in range(40)]
    expected = sum(w * t for w, t in zip(weights, kept, strict=True)) / sum(weights)
    at_site = state.members[0].sites[Site(0)]
    assert at_site.scale * state.dictionaries()[Site(0)].threshold[0].item() == pytest.approx(expected, rel=1e-5)
    assert min(kept) < 0.95 * max(kept)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_calibration_gives_the_wanted_l0(k):
    """Exactly on the rows it saw, within 2% on others of their kind."""
    sae = JumpReLUSAE(12, 24, generator=generator()).double()
    x, other = (torch.randn(30_000, 12, generator=generator(seed)).double() for seed in (1, 2))
    threshold = calibrate(sae, x, k)
    assert (sae.threshold == threshold).all() and threshold > 0
    assert (sae.encode(x) != 0).sum() == k * len(x)
    assert l0(sae.encode(other)) == pytest.approx(k, rel=0.02)


def test_thresholds_that_fall_below_zero_come_back():
    """Below zero they got no gradient, and stayed whatever L0 was."""
    stream, recipe = small((Site(0),)), JumpReLU(1, l0=1.0)
    state = start(stream, config(recipe, steps=60, warm_up=1, lr=1e-2))
    (at_site,) = state.members[0].sites.values()
    with torch.no_grad():
        at_site.sae.threshold.fill_(-1.0)
    first, *_, last = ((step.step, at_site.sae.threshold.min().item(), step.numbers()) for step in train(stream, state))
    assert first[1] >= 0 and (at_site.sae.threshold > 0).float().mean() > 0.5
    assert last[2][0][Site(0)]["l0"] < 0.5 * first[2][0][Site(0)]["l0"]


def test_calibration_where_not_enough_is_positive():
    sae, x = JumpReLUSAE(12, 24, generator=generator()), torch.randn(100, 12, generator=generator())
    with torch.no_grad():
        sae.b_enc.fill_(-3)
    assert calibrate(sae, x, 12) == 0
    assert torch.equal(sae.encode(x), sae.pre(x).relu())


def test_calibration_of_a_trained_dictionary():
    stream = small((Site(0),), batches=100)
    sae = trained(stream, config(BatchTopK(2))).dictionaries()[Site(0)]
    x, other = (torch.cat([batch[Site(0)] for batch in stream.block(block)]) for block in (2, 3))
    running = sae.threshold[0].item()
    assert calibrate(sae, x, 2) != running
    assert l0(sae.encode(x)) == pytest.approx(2, abs=1e-3)
    assert l0(sae.encode(other)) == pytest.approx(2, rel=0.02)


# ---- the geometric median --------------------------------------------------------------------------


def test_outliers_do_not_move_the_geometric_median():
    x = torch.randn(200, 5, generator=generator()).double()
    far = torch.cat([x, 1000 + torch.zeros(20, 5).double()])
    assert (geometric_median(far) - geometric_median(x)).norm() < 0.5
    assert (far.mean(0) - x.mean(0)).norm() > 100  # control: the mean


def test_the_geometric_median_is_the_middle_of_what_is_symmetric():
    x = torch.randn(100, 5, generator=generator()).double()
    middle = torch.tensor([1.0, -2.0, 3.0, 0.0, 5.0]).double()
    assert torch.allclose(geometric_median(torch.cat([middle + x, middle - x])), middle, atol=1e-4)
    assert torch.allclose(geometric_median(middle.expand(9, -1)), middle)


def test_no_other_point_has_a_smaller_summed_distance():
    x = torch.randn(60, 4, generator=generator()).double().exp()
    best = geometric_median(x)
    cost = (x - best).norm(dim=-1).sum()
    for seed in range(20):
        other = best + 0.05 * torch.randn(4, generator=generator(seed)).double()
        assert (x - other).norm(dim=-1).sum() > cost
    assert (x - x.mean(0)).norm(dim=-1).sum() > cost
