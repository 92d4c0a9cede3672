"""Families: a planted tree is recovered by direction and by activity, and shuffled it is not."""

import pytest
import torch
import torch.nn.functional as F
from handmade import normal
from planted import Planted, unchecked

from sae_core.sites import Site
from sae_core.training.config import TrainConfig
from sae_core.training.loop import start, train
from sae_core.training.topk_recipes import TopK
from subrank.studies.families import NEAR, NOBODY, TOGETHER, Coactivity, edge_f1, n_children, nearest
from subrank.studies.shares import shuffled

N_PARENTS, N_CHILDREN, D_IN = 12, 3, 32
TRUTH = torch.arange(N_PARENTS * N_CHILDREN) % N_PARENTS


def planted(tokens: int = 4000, seed: int = 0):
    """Directions of parents and children, and where they are active: a parent where one of its children is."""
    chance = torch.Generator().manual_seed(seed)
    parents = F.normalize(normal(N_PARENTS, D_IN, seed=seed), dim=-1)
    children = F.normalize(parents[TRUTH] + 0.6 * F.normalize(normal(len(TRUTH), D_IN, seed=seed + 1), dim=-1), dim=-1)
    fine = torch.rand(tokens, len(TRUTH), generator=chance) < 0.02
    coarse = fine.float() @ F.one_hot(TRUTH, N_PARENTS).float() > 0
    return parents, children, coarse, fine


def counted(coarse, fine, families=()) -> Coactivity:
    counts = Coactivity(coarse.shape[1], fine.shape[1], families)
    for a, b in zip(coarse.split(700), fine.split(700), strict=True):
        counts.add(a, b)
    return counts


@pytest.mark.parametrize("seed", range(3))
def test_a_planted_tree_is_recovered_by_direction_and_by_activity(seed):
    parents, children, coarse, fine = planted(seed=seed)
    chance = torch.Generator().manual_seed(seed)
    by_direction = nearest(children @ parents.T, NEAR)
    by_activity = nearest(counted(coarse, fine).excess(), TOGETHER)
    assert edge_f1(by_direction, TRUTH) >= 0.9 and edge_f1(by_activity, TRUTH) >= 0.9
    random = F.normalize(normal(len(TRUTH), D_IN, seed=9), dim=-1)
    assert edge_f1(nearest(random @ parents.T, NEAR), TRUTH) < 0.1  # controls
    assert edge_f1(nearest(counted(shuffled(coarse, chance), fine).excess(), TOGETHER), TRUTH) < 0.1
    assert edge_f1(shuffled(by_direction, chance), TRUTH) < 0.25


def test_children_cover_their_parents_and_others_do_not():
    _, _, coarse, fine = planted()
    chance = torch.Generator().manual_seed(0)
    counts = counted(coarse, fine, [TRUTH, shuffled(TRUTH, chance), torch.full_like(TRUTH, NOBODY)])
    whole, other, none = counts.covered()
    assert (whole == 1).all() and other.mean() < 0.5 and (none == 0).all()


def test_counts_are_those_of_all_tokens_at_once():
    _, _, coarse, fine = planted()
    counts = counted(coarse, fine)
    inside = torch.stack([coarse[fine[:, j]].float().mean(0) for j in range(fine.shape[1])])
    outside = torch.stack([coarse[~fine[:, j]].float().mean(0) for j in range(fine.shape[1])])
    torch.testing.assert_close(counts.excess(), inside - outside)
    assert counts.n_tokens == len(fine) and torch.equal(counts.small, coarse.sum(0).float())


def test_a_latent_that_is_always_or_never_active_has_no_part_in_it():
    _, _, coarse, fine = planted()
    coarse[:, 0], fine[:, 5], fine[:, 6] = True, True, False
    parents = nearest(counted(coarse, fine).excess(), TOGETHER)
    assert parents[5] == parents[6] == NOBODY and 0 not in parents.tolist()


def test_edges_are_counted():
    truth = torch.tensor([0, 0, 1, NOBODY])
    assert edge_f1(truth, truth) == 1 and edge_f1(torch.full_like(truth, NOBODY), truth) == 0
    assert edge_f1(torch.tensor([0, 1, 1, 1]), truth) == pytest.approx(2 * 2 / (4 + 3))
    assert n_children(truth, 3).tolist() == [2, 1, 0]


@pytest.mark.slow
def test_a_hierarchy_that_was_trained_on_is_recovered(training_seed):
    """Sixteen parents of three children each; a dictionary of 16 latents finds the parents, one of 48 the children."""
    parents, noise = torch.eye(16), F.normalize(normal(48, 16, seed=1), dim=-1)
    children = F.normalize(parents.repeat(3, 1) + 0.6 * noise, dim=-1)
    small, large = (trained_on(children, expansion, training_seed) for expansion in (1, 3))
    of_parent = (small @ parents.T).argmax(0)  # the latent of each parent
    truth = of_parent[(large @ children.T).argmax(1) % 16]
    recovered = nearest(large @ small.T, NEAR)
    assert edge_f1(recovered, truth) >= 0.9
    chance = torch.Generator().manual_seed(training_seed)
    assert edge_f1(shuffled(recovered, chance), truth) < 0.3
    stream = Planted(children, n_active=1)
    x = next(iter(stream.block(10**4)))[Site(0)]
    coarse, fine = (x @ directions.T for directions in (small, large))
    counts = counted(coarse == coarse.amax(1, keepdim=True), fine == fine.amax(1, keepdim=True))
    assert edge_f1(nearest(counts.excess(), TOGETHER), truth) >= 0.9


def trained_on(children: torch.Tensor, expansion: int, seed: int) -> torch.Tensor:
    """The directions of a dictionary with one active latent, trained on rows in which one child is active."""
    stream, shape = Planted(children, n_active=1), {"batch": 256, "tokens": 256 * 400, "bfloat16": False}
    state = start(stream, TrainConfig(TopK(1), seed=seed, expansion=expansion, dead_after=2048, **shape), outliers=0)
    with unchecked():
        for _ in train(stream, state):
            pass
    return F.normalize(state.members[0].sites[Site(0)].sae.directions.detach(), dim=-1)
