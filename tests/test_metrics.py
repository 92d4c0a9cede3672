"""Numbers read off logits, beside the same from other libraries and by hand."""

import pytest
import torch
import torch.nn.functional as F
from handmade import normal
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy
from sklearn.metrics import roc_auc_score

from editing.metrics import auroc, kl_divergence, logit_difference

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
