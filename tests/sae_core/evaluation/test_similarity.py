"""Similarity: permutations are found, containment is one-sided, chance is stated, and streaming does not show."""

from itertools import permutations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from handmade import normal, random_topk

from sae_core.evaluation.similarity import (
    coactivity,
    compare,
    correlation,
    expected_max_cosine,
    random_baseline,
    similarity,
)
from sae_core.sites import Site


def directions(n: int, d_in: int = 24, *, seed: int = 0) -> torch.Tensor:
    return F.normalize(normal(n, d_in, seed=seed), dim=-1)


def shuffled(rows: torch.Tensor, *, seed: int = 7) -> torch.Tensor:
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]


@pytest.mark.parametrize("limit", [10**6, 1])
def test_a_permuted_dictionary_is_the_same(limit):
    a = directions(90)
    result = similarity(a, shuffled(a), exact_up_to=limit)
    assert result.exact == (limit > 90)
    for value in (result.a_in_b, result.b_in_a, result.matched, result.share(0.9)):
        assert value == pytest.approx(1, abs=1e-5)
    assert len(result.pairs) == 90


def test_opposite_directions_are_not_alike():
    a = F.normalize(torch.eye(6) + 1, dim=-1)
    assert similarity(a, -a).a_in_b < 0


def test_containment_is_one_sided():
    """A small dictionary lies in a large one; most of the large one has nothing like it in the small one."""
    large = directions(80)
    result = similarity(large[:20], large)
    assert result.a_in_b == pytest.approx(1, abs=1e-5) and result.b_in_a < 0.7
    other = similarity(large, large[:20])
    assert (other.a_in_b, other.b_in_a) == pytest.approx((result.b_in_a, result.a_in_b))
    assert len(result.pairs) == result.n_smaller == 20 and result.share(0.9) == other.share(0.9) == 1


def test_the_matching_is_the_best_of_all():
    a, b = directions(5, 4), directions(6, 4, seed=1)
    cosines = (a @ b.T).tolist()
    best = max(sum(cosines[i][j] for i, j in enumerate(order)) for order in permutations(range(6), 5))
    result = similarity(a, b)
    assert result.pairs.sum().item() == pytest.approx(best, abs=1e-5)
    assert result.pairs.tolist() == sorted(result.pairs.tolist(), reverse=True)
    greedy = similarity(a, b, exact_up_to=0)  # control: nearest neighbours alone pair fewer
    assert not greedy.exact and 0 < len(greedy.pairs) < 5 and greedy.share(-1.0) == len(greedy.pairs) / 5


def test_mutual_neighbours_by_hand():
    a, b = torch.eye(3), torch.tensor([[0.0, 0.6, 0.8], [0.0, 0.8, 0.6], [-1.0, 0.0, 0.0]])
    result = similarity(a, b, exact_up_to=0)  # e_1 has the column (0.0, 0.0, -1), which nobody shares
    assert result.pairs.tolist() == pytest.approx([0.8, 0.8])
    assert result.a_in_b == pytest.approx((0 + 0.8 + 0.8) / 3) and result.b_in_a == pytest.approx((0.8 + 0.8 + 0) / 3)


@pytest.mark.parametrize("limit", [10**6, 1])
def test_the_blocks_do_not_show(limit):
    a, b = directions(50), directions(70, seed=1)
    whole = similarity(a, b, exact_up_to=limit)
    blocked = similarity(a, b, exact_up_to=limit, rows_at_once=7)
    assert (blocked.a_in_b, blocked.b_in_a) == pytest.approx((whole.a_in_b, whole.b_in_a), abs=1e-6)
    torch.testing.assert_close(blocked.pairs, whole.pairs, rtol=0, atol=1e-6)


def test_nobodys_nearest_neighbour_is_no_pair():
    same = similarity(directions(4), directions(4), exact_up_to=0)
    assert not same.exact and len(same.pairs) == 4 and same.share(0.9) == 1


# ---- chance ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "d_in"), [(64, 16), (512, 128), (2048, 64), (1024, 512)])
def test_random_directions_are_as_alike_as_expected(n, d_in):
    result = random_baseline(n, n, d_in, generator=torch.Generator().manual_seed(1))
    assert result.a_in_b == pytest.approx(expected_max_cosine(n, d_in), rel=0.02)
    assert result.b_in_a == pytest.approx(result.a_in_b, rel=0.04)
    assert result.matched < result.a_in_b and result.share(0.9) < 0.01


def test_the_expectation_by_hand_and_at_large_width():
    assert expected_max_cosine(2**40, 10**6) == pytest.approx((2 * np.log(2**40) / 10**6) ** 0.5, rel=0.06)
    assert expected_max_cosine(1, 50) == pytest.approx(0, abs=1e-3)  # one direction is as often behind as before
    assert expected_max_cosine(3, 3) == pytest.approx(0.5, abs=1e-3)  # uniform on [-1, 1]: 1 - 2 / (n + 1)
    assert expected_max_cosine(10**6, 2) == pytest.approx(1, abs=1e-3)


def test_any_dictionary_against_a_random_one_is_as_the_baseline():
    """A dictionary of bunched directions too: what is random about the other is its every row."""
    bunched = F.normalize(torch.eye(32)[:1] + 0.3 * normal(300, 32), dim=-1)
    draws = [similarity(bunched, directions(500, 32, seed=seed)).a_in_b for seed in range(30)]
    base = random_baseline(300, 500, 32, generator=torch.Generator().manual_seed(0))
    assert np.mean(draws) == pytest.approx(base.a_in_b, rel=0.04)


# ---- sets ------------------------------------------------------------------------------------------


def test_sets_are_compared_in_pairs_at_the_sites_they_share():
    sets = {
        "a": {Site(0): random_topk(24), Site(1): random_topk(24, seed=1)},
        "b": {Site(1): random_topk(24, 60, seed=2), Site(0): random_topk(24)},
        "c": {Site(1): random_topk(24, 60, seed=3)},
    }
    result = compare(sets, generator=torch.Generator().manual_seed(0))
    assert {site: [(first.a, first.b) for first in pairs] for site, pairs in result.items()} == {
        Site(0): [("a", "b")],
        Site(1): [("a", "b"), ("a", "c"), ("b", "c")],
    }
    same, other = result[Site(0)][0], result[Site(1)][0]
    assert same.similarity.matched == pytest.approx(1, abs=1e-5) and same.chance.matched < 0.7
    assert other.similarity.a_in_b == pytest.approx(other.chance.a_in_b, rel=0.1)  # random both
    assert other.chance is result[Site(1)][1].chance  # one draw per size
    assert compare({"a": sets["a"]}, generator=torch.Generator()) == {}
    assert same.similarity.share(0.9) == 1 and other.sizes == (48, 60, 24)
    assert other.expected["a_in_b"] == pytest.approx(other.chance.a_in_b, rel=0.05)


# ---- by activation ---------------------------------------------------------------------------------


def test_correlation_is_that_of_numpy_however_the_tokens_come():
    x = normal(300, 24)
    f, g = random_topk(24).encode(x), random_topk(24, 30, 5, seed=4).encode(x) + 100.0
    f[:, 3], g[:, 5] = 0.0, 1 / 3  # a dead latent and one that never changes
    with np.errstate(invalid="ignore"):
        expected = np.corrcoef(f.double().numpy().T, g.double().numpy().T)[: f.shape[1], f.shape[1] :]
    varies = np.isfinite(expected)
    varies[:, 5] = False
    for size in (300, 7):
        got = correlation(zip(f.split(size), g.split(size), strict=True)).numpy()
        np.testing.assert_allclose(got[varies], expected[varies], atol=1e-6)
        assert (got[3] == 0).all() and (got[:, 5] == 0).all()


def test_the_same_latents_in_another_space_are_found():
    """Rotated activations: no direction is alike, and every latent does the same on the same tokens."""
    a, x = random_topk(24, 60, 6), normal(2000, 24)
    rotation = torch.linalg.qr(normal(24, 24, seed=3)).Q
    f = a.encode(x)
    g = shuffled(f.T).T
    assert coactivity([(f, g)]).share(0.9) == 1
    assert similarity(a.directions, shuffled(a.directions) @ rotation).share(0.9) == 0
    assert coactivity([(f, g[torch.randperm(2000)])]).a_in_b < 0.3  # control: other tokens


def test_no_codes_at_all():
    with pytest.raises(ValueError, match="at least one"):
        correlation([])
