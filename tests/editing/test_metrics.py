"""Numbers read off logits, beside the same from other libraries and by hand."""

import random

import pytest
import torch
import torch.nn.functional as F
from handmade import normal
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy
from sklearn.metrics import roc_auc_score

from editing.metrics import auroc, bootstrap_estimate, interval, kl_divergence, logit_difference, resampled

seeds = st.integers(0, 10**6)


@settings(max_examples=25, deadline=None)
@given(seeds, st.floats(0.1, 20))
def test_kl_equals_that_of_torch_and_scipy(seed, scale):
    clean, edited = scale * normal(4, 3, 11, seed=seed), scale * normal(4, 3, 11, seed=seed + 1)
    got = kl_divergence(clean, edited)
    assert got.shape == (4, 3)
    p, q = clean.log_softmax(-1), edited.log_softmax(-1)
    assert torch.allclose(got, F.kl_div(q, p, log_target=True, reduction="none").sum(-1), rtol=1e-4, atol=1e-5)
    expected = entropy(clean.double().softmax(-1).numpy(), edited.double().softmax(-1).numpy(), axis=-1)
    assert torch.allclose(got.double(), torch.tensor(expected), rtol=1e-4, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(seeds, st.floats(-30, 30))
def test_kl_laws(seed, shift):
    clean, edited = normal(5, 11, seed=seed), normal(5, 11, seed=seed + 1)
    assert (kl_divergence(clean, clean) == 0).all()
    assert (kl_divergence(clean, edited) > 0).all()
    assert torch.allclose(kl_divergence(clean + shift, edited - shift), kl_divergence(clean, edited), atol=1e-4)


def test_kl_is_from_the_clean_run_to_the_edited_one():
    """By hand: p = (1/2, 1/2), q = (1/4, 3/4)."""
    p, q = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
    assert kl_divergence(p, q).item() == pytest.approx(0.5 * torch.tensor(4 / 3).log().item(), rel=1e-5)
    assert kl_divergence(q, p).item() != pytest.approx(kl_divergence(p, q).item(), rel=1e-2)


def test_logit_difference_by_hand():
    logits = torch.tensor([[1.0, 5.0, -2.0], [0.0, 3.0, 4.0]])
    difference = logit_difference(logits, torch.tensor([1, 0]), torch.tensor([2, 2]))
    assert difference.tolist() == [7.0, -4.0]
    swapped = logit_difference(logits, torch.tensor([2, 2]), torch.tensor([1, 0]))
    assert torch.equal(swapped, -difference)


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(2, 40), st.sampled_from([0, 1, 3]))
def test_auroc_equals_that_of_sklearn_also_with_ties(seed, n, decimals):
    scores = (normal(n, seed=seed) * 10**decimals).round() / 10**decimals
    positive = normal(n, seed=seed + 1) > 0
    positive[0], positive[1] = True, False
    assert auroc(scores, positive) == pytest.approx(roc_auc_score(positive.numpy(), scores.numpy()), abs=1e-9)
    assert auroc(-scores, positive) == pytest.approx(1 - auroc(scores, positive), abs=1e-9)


def test_auroc_of_known_scores():
    positive = torch.tensor([True, True, False, False])
    assert auroc(torch.zeros(4), positive) == 0.5
    assert auroc(torch.tensor([3.0, 2.0, 1.0, 0.0]), positive) == 1
    assert auroc(torch.tensor([0.0, 1.0, 2.0, 3.0]), positive) == 0
    assert auroc(torch.tensor([2.0, 0.0, 1.0, 0.0]), positive) == pytest.approx((2 + 0 + 0.5) / 4)


@pytest.mark.parametrize("positive", [torch.ones(3, dtype=torch.bool), torch.zeros(3, dtype=torch.bool)])
def test_auroc_needs_both_classes(positive):
    with pytest.raises(ValueError, match="both classes"):
        auroc(torch.arange(3.0), positive)


# ---- intervals -------------------------------------------------------------------------------------


def bootstrap(values: torch.Tensor, groups, seed: int, n: int = 1000) -> tuple[float, float]:
    estimate = bootstrap_estimate(values, resampled(groups, seed, n))
    assert estimate.value == pytest.approx(values.double().mean().item())
    return estimate.low, estimate.high


def plain_bootstrap(values: list[float], groups: list[str], n: int, seed: int) -> tuple[float, float]:
    """Draw groups, then members of each drawn group, one at a time."""
    rng, names, means = random.Random(seed), sorted(set(groups)), []
    for _ in range(n):
        drawn = []
        for _ in names:
            group = rng.choice(names)
            members = [value for value, label in zip(values, groups, strict=True) if label == group]
            drawn += [rng.choice(members) for _ in members]
        means.append(sum(drawn) / len(drawn))
    means.sort()
    return means[int(0.025 * n)], means[int(0.975 * n)]


def test_bootstrap_draws_groups_and_then_their_members():
    """Beside a slow one that draws one value at a time; groups of unequal size in no order."""
    groups = list("abcabcddaaeff")
    values = normal(13, seed=3) + torch.tensor([ord(g) - 100.0 for g in groups])
    low, high = bootstrap(values, groups, seed=0, n=20_000)
    expected = plain_bootstrap(values.tolist(), groups, 6_000, seed=1)
    assert (low, high) == pytest.approx(expected, abs=0.08)
    ordinary = bootstrap(values, range(13), seed=0, n=20_000)
    assert high - low > 1.2 * (ordinary[1] - ordinary[0])  # control: values of a group are alike


def test_bootstrap_of_independent_values_is_the_normal_interval():
    values = normal(400, seed=5)
    low, high = bootstrap(values, torch.arange(400), seed=2, n=4_000)
    half = 1.96 * values.std().item() / 20
    assert (low, high) == pytest.approx((values.mean().item() - half, values.mean().item() + half), abs=0.1 * half)


def test_bootstrap_is_decided_by_its_seed():
    values, groups = normal(30, seed=6), [i % 5 for i in range(30)]
    assert bootstrap(values, groups, 1) == bootstrap(values, groups, 1) != bootstrap(values, groups, 2)
    assert bootstrap(values, groups, 1) == bootstrap(values, [f"template {g}" for g in groups], 1)


def test_bootstrap_of_equal_values_has_no_width():
    assert bootstrap(torch.full((7,), 2.5), [0, 0, 1, 1, 1, 2, 3], 0) == pytest.approx((2.5, 2.5))
    assert bootstrap(torch.tensor([4.0]), ["one"], 0) == (4.0, 4.0)


def test_resampled_weights_serve_several_quantities():
    weights, values = resampled([0, 0, 1, 1, 1], 0, 500), normal(5, 3, seed=7).double()
    assert torch.allclose(weights.sum(1), torch.ones(500).double()) and (weights >= 0).all()
    low, high = interval(weights @ values)
    for column in range(3):
        assert (low[column], high[column]) == pytest.approx(bootstrap(values[:, column], [0, 0, 1, 1, 1], 0, 500))


def test_bootstrap_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        bootstrap(torch.zeros(0), [], 0)
