"""A dictionary read at its own k is itself; a threshold lets through what it should; planted codes need their k."""

import pytest
import torch
from handmade import normal
from random_saes import random_sae, with_gain

from editing.metrics import resampled
from sae_core.dictionaries.saes import ReLUSAE
from subrank.studies.metrics.codes import largest, magnitudes, read_at, thresholds
from subrank.studies.metrics.reading import Rows


def rows(x: torch.Tensor, contexts: int = 8) -> Rows:
    return Rows(x, torch.arange(len(x)) % contexts, resampled(range(contexts), 0))


@pytest.mark.parametrize("sae", [random_sae("topk"), with_gain()], ids=["plain", "gain"])
def test_read_at_its_own_k_a_topk_dictionary_is_itself(sae):
    x = normal(50, sae.d_in)
    f = largest(magnitudes(sae, x), sae.k) * (1.0 if sae.gain is None else sae.gain)
    torch.testing.assert_close(f, sae.encode(x))
    at_k, beyond = read_at(sae, rows(x), rows(x), [sae.k, sae.n_latents])
    assert at_k.fvu == rows(x).fvu(sae.decode(sae.encode(x)))
    assert beyond.fvu.value != at_k.fvu.value  # control


@pytest.mark.parametrize("kind", ["relu", "jumprelu", "gated"])
def test_all_magnitudes_above_zero_hold_the_codes(kind):
    sae = random_sae(kind).requires_grad_(False)
    x = normal(50, sae.d_in)
    f, m = sae.encode(x), magnitudes(sae, x)
    torch.testing.assert_close(m[f != 0], f[f != 0])


def test_a_threshold_lets_as_many_through_as_it_should():
    m = normal(400, 30).relu()
    for k, t in zip((1, 3, 7.5), thresholds(m, (1, 3, 7.5)), strict=True):
        assert (m > t).sum().item() / len(m) == pytest.approx(k)
    assert thresholds(m, [29.0]) == [0.0]  # fewer are positive


def test_planted_codes_are_read_best_at_as_many_as_there_are():
    sae = ReLUSAE(32, 32, generator=torch.Generator())
    with torch.no_grad():
        for weight in (sae.W_dec, sae.W_enc):
            weight.copy_(torch.eye(32))
    sae.requires_grad_(False)
    active = torch.rand(600, 32, generator=torch.Generator().manual_seed(0)).topk(4).indices
    x = torch.zeros(600, 32).scatter(1, active, 1 + normal(600, 4).abs())
    fewer, right, more = read_at(sae, rows(x), rows(x), [2, 4, 8])
    assert right.fvu.value < 1e-6 and right.threshold_fvu.value < 1e-6 and right.threshold_l0 == 4
    assert fewer.fvu.low > 0.1 and fewer.threshold_fvu.low > 0.1
    assert more.fvu.value < 1e-6
