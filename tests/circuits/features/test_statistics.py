"""One pass over a text says what a dense computation says, however the text is cut."""

import pytest
import torch
from handmade import Circuit
from random_cards import SITES, codes, contexts, dictionaries
from tiny import user_error

from circuits.features.catalogue import read_catalogue
from circuits.features.reading import Chunks
from circuits.features.statistics import AFTER, BEFORE, tally
from circuits.features.survey import Survey
from sae_core.sites import Site


@pytest.mark.parametrize("site", SITES, ids=str)
def test_the_tally_is_what_a_dense_computation_says(catalogue, site):
    f, latents = codes(catalogue, site), catalogue.tally.sites[site]
    content = catalogue.model.content(catalogue.training)
    x = catalogue.model.record(catalogue.training, [site])[site][content].double()
    n = int(content.sum())
    assert catalogue.tally.n_tokens == n
    torch.testing.assert_close(latents.statistics.density, (f != 0).sum((0, 1)) / n)
    assert torch.equal(latents.active, (f != 0).sum((0, 1)))
    torch.testing.assert_close(latents.total, f.double().sum((0, 1)))
    torch.testing.assert_close(latents.norm_share, f.double().square().sum((0, 1)) / x.square().sum())
    first = content & (content.cumsum(1) == 1)
    expected = f[first].sum(0) / f.sum((0, 1)).clamp_min(1e-12)
    torch.testing.assert_close(latents.statistics.at_first, expected, atol=1e-6, rtol=1e-5)
    peaks = f.max(1).values.sort(0, descending=True).values[:8].T
    torch.testing.assert_close(latents.statistics.top, peaks)
    dense = torch.zeros(48, catalogue.model.n_vocab, dtype=torch.float64)
    for token in catalogue.training.unique().tolist():
        dense[:, token] = f[catalogue.training == token].double().sum(0)
    sparse = torch.zeros_like(dense)
    sparse[latents.pairs.latent, latents.pairs.token] = latents.pairs.total
    torch.testing.assert_close(sparse, dense)
    assert int(latents.pairs.active.sum()) == int(latents.active.sum()) and (latents.pairs.active > 0).all()


def test_examples_of_the_tally_carry_their_activations(catalogue):
    site = SITES[1]
    f, latents = codes(catalogue, site), catalogue.tally.sites[site]
    for latent in catalogue.alive(site)[:12]:
        for k in range(int((latents.statistics.top[latent] > 0).sum())):
            row, at = int(latents.statistics.context[latent, k]), int(latents.statistics.position[latent, k])
            for offset in range(-BEFORE, AFTER + 1):
                inside = 0 <= at + offset < f.shape[1]
                value = f[row, at + offset, latent].item() if inside else 0.0
                assert latents.nearby[latent, k, offset + BEFORE].item() == pytest.approx(value, abs=1e-5)


def test_the_chunks_do_not_show(tiny_models):
    """Contexts one or many at a time, codes in small pieces, sums merged at once or late."""
    model, saes, text = tiny_models["gpt2"], dictionaries(), contexts(21)
    whole = tally(Survey(model, saes), text)
    pieces = tally(Survey(model, saes), text, chunks=Chunks(contexts=5, codes=18 * 48 * 2, pairs=16))
    for site in SITES:
        a, b = whole.sites[site], pieces.sites[site]
        for name in ("active", "total", "square", "norm_share", "nearby"):
            torch.testing.assert_close(getattr(a, name), getattr(b, name), atol=1e-5, rtol=1e-5)
        for name in ("latent", "token", "active", "total"):
            torch.testing.assert_close(getattr(a.pairs, name), getattr(b.pairs, name), atol=1e-5, rtol=1e-5)
        for name in ("top", "context", "position", "at_first"):
            torch.testing.assert_close(getattr(a.statistics, name), getattr(b.statistics, name))
    torch.testing.assert_close(whole.atlas.mean_final, pieces.atlas.mean_final)


@pytest.mark.parametrize(("n", "passes"), [(3, 1), (33, 3), (160, 10)])
def test_every_stage_is_announced_and_their_number_known(n, passes):
    """Four quarters of the training text, or one stage per forward pass if those are fewer; one held-out pass."""
    circuit, heard = Circuit(), []
    read_catalogue(
        Survey(circuit.model, circuit.dictionaries),
        circuit.contexts(n),
        circuit.contexts(2),
        on_progress=heard.append,
    )
    assert [(step.done, step.total) for step in heard] == [(i, min(passes, 4) + 2) for i in range(min(passes, 4) + 2)]
    assert heard[0].stage == f"training text: reading from context 0 of {n}" and "held-out" in heard[-2].stage


def test_equal_peaks_leave_the_earlier_context():
    circuit = Circuit()
    text = circuit.contexts(1).repeat(9, 1)
    latents = tally(Survey(circuit.model, circuit.dictionaries), text, top=4, chunks=Chunks(contexts=2)).sites[Site(0)]
    assert latents.statistics.context[0].tolist() == [0, 1, 2, 3]


def test_a_text_of_special_tokens_only_is_refused(tiny_models):
    with user_error("no tokens but special ones"):
        tally(Survey(tiny_models["neox"], dictionaries()), torch.zeros(2, 5, dtype=torch.long))
