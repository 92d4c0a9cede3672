"""Reconstructions in place of activations, and their cost on the scale from zeroed to original."""

import pytest
import torch
from handmade import Zero, complete_basis, random_topk
from test_models import close, n_hooks
from tiny import random_tokens

from editing.patch import ErrorPatch
from editing.splice import Splice, SpliceCost, splice_costs
from sae_core.dictionaries import Basis
from sae_core.sites import Site, Stream

SITES = (Site(1), Site(0, Stream.MLP_OUT), Site(2, Stream.ATTN_OUT))


@pytest.fixture
def tokens(tiny):
    """Two contexts of three begin with BOS; one has BOS in the middle."""
    tokens = random_tokens(tiny.n_vocab, 3, 10)
    tokens[:2, 0] = tokens[0, 5] = tiny.bos_id
    return tokens


def with_edits(model, tokens, *edits):
    with model.hooks(*edits):
        return model.logits(tokens)


def test_a_complete_basis_leaves_the_logits_alone(tiny, tokens):
    for site in SITES:
        close(with_edits(tiny, tokens, Splice(site, complete_basis(32))), tiny.logits(tokens), 1e-4)
    half = Basis(complete_basis(32).directions[:16], torch.zeros(32))  # control
    assert (with_edits(tiny, tokens, Splice(Site(1), half)) - tiny.logits(tokens)).abs().max() > 0.1


def test_the_reconstruction_with_the_error_is_the_original(tiny, tokens):
    for site in SITES:
        sae, x = random_topk(32), tiny.record(tokens, [site])[site]
        error = x - sae.decode(sae.encode(x))
        close(with_edits(tiny, tokens, ErrorPatch(site, sae, error)), tiny.logits(tokens), 1e-4)
        far = with_edits(tiny, tokens, Splice(site, sae)) - tiny.logits(tokens)  # control: the error is needed
        assert far.abs().max() > 0.1


def test_a_mask_limits_the_splice(tiny, tokens):
    h, sae = tiny.record(tokens, [Site(1)])[Site(1)], random_topk(32)
    mask = tiny.content(tokens)
    spliced = Splice(Site(1), sae, mask)(h)
    assert torch.equal(spliced[~mask], h[~mask])
    close(spliced[mask], sae.decode(sae.encode(h))[mask])


# ---- loss recovered --------------------------------------------------------------------------------


def test_a_perfect_dictionary_recovers_all_and_a_zero_one_nothing(tiny, tokens):
    for site in SITES:
        perfect = splice_costs(tiny, {site: complete_basis(32)}, tokens)[site]
        zero = splice_costs(tiny, {site: Zero(32)}, tokens)[site]
        assert perfect.spliced == pytest.approx(perfect.original, abs=1e-4)
        assert zero.spliced == pytest.approx(zero.zeroed, abs=1e-6)
        assert abs(zero.zeroed - zero.original) > 0.01
        assert zero.recovered == pytest.approx(0, abs=1e-4)
        assert perfect.recovered == pytest.approx(1, abs=1e-2)


def test_on_a_model_that_can_read(storybook):
    """There zeroing really costs, and half of the principal directions lie between."""
    from editing.tasks.ioi import Corruption, IOITask

    tokens = IOITask.of(storybook).pairs(storybook, Corruption.IO, "test", 12, seed=0).clean[:, :12]
    x = storybook.record(tokens, [Site(4)])[Site(4)].flatten(0, 1)
    strongest = torch.linalg.svd(x - x.mean(0), full_matrices=False).Vh[:6]
    dictionaries = {"perfect": complete_basis(128), "zero": Zero(128), "some": Basis(strongest, x.mean(0))}
    recovered = {
        name: splice_costs(storybook, {Site(4): d}, tokens)[Site(4)].recovered for name, d in dictionaries.items()
    }
    assert recovered["perfect"] == pytest.approx(1, abs=1e-4)
    assert recovered["zero"] == pytest.approx(0, abs=1e-4)
    assert 0.01 < recovered["some"] < 0.99


def test_recovered_by_hand():
    assert SpliceCost(original=2.0, spliced=3.0, zeroed=6.0).recovered == 0.75


def test_original_is_the_cross_entropy_of_all_content_tokens(tiny, tokens):
    content = tiny.content(tokens[:, 1:])
    assert not content.all()  # special tokens are not asked for
    expected = torch.nn.functional.cross_entropy(tiny.logits(tokens)[:, :-1][content], tokens[:, 1:][content]).item()
    sae = random_topk(32)
    cost = splice_costs(tiny, {Site(1): sae}, tokens)[Site(1)]
    assert cost.original == pytest.approx(expected, rel=1e-5)
    edited = with_edits(tiny, tokens, Splice(Site(1), sae, tiny.content(tokens)))[:, :-1][content]
    expected = torch.nn.functional.cross_entropy(edited, tokens[:, 1:][content]).item()
    assert cost.spliced == pytest.approx(expected, rel=1e-5)


def test_sites_are_spliced_one_at_a_time_and_chunks_do_not_show(tiny, tokens):
    hooks, dictionaries = n_hooks(tiny), {site: random_topk(32, seed=i) for i, site in enumerate(SITES)}
    together = splice_costs(tiny, dictionaries, tokens, at_once=2)
    for site, dictionary in dictionaries.items():
        alone = splice_costs(tiny, {site: dictionary}, tokens)[site]
        for field in ("original", "spliced", "zeroed"):
            assert getattr(together[site], field) == pytest.approx(getattr(alone, field), rel=1e-5)
    assert n_hooks(tiny) == hooks
