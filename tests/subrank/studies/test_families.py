"""Families: a planted tree is recovered by direction and by activity, and shuffled it is not."""

import pytest
import torch
import torch.nn.functional as F
from handmade import normal

from subrank.studies.relations.families import NEAR, NOBODY, TOGETHER, Coactivity, Seen, edge_f1, n_children, nearest
from subrank.studies.relations.shares import shuffled

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


def counted(coarse, fine) -> Coactivity:
    counts = Coactivity(coarse.shape[1], fine.shape[1])
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
    seen = Seen()
    for a, b in zip(coarse.split(700), fine.split(700), strict=True):
        seen.add(a, b)
    families = TRUTH, shuffled(TRUTH, chance), torch.full_like(TRUTH, NOBODY)
    whole, other, none = map(seen.covered, families)
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
