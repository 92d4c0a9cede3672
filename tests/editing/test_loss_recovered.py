"""Reconstructions in place of activations, and their cost on the scale from zeroed to original."""

import json
import math

import pytest
import torch
from comparing import close, n_hooks
from handmade import Zero, complete_basis, random_topk
from tiny import random_tokens

from editing.interventions.patch import ActivationPatch, ErrorPatch
from editing.loss_recovered import Loss, Splice, SpliceCost, SpliceReport, splice_costs, splice_reports
from editing.metrics import kl_divergence
from sae_core.dictionaries.baselines import Basis
from sae_core.evaluation.profiles import profiles
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


def test_nothing_to_recover_is_no_number():
    assert math.isnan(SpliceCost(original=2.0, spliced=3.0, zeroed=2.0).recovered)


# ---- the whole report ------------------------------------------------------------------------------


@pytest.fixture
def sets():
    """Two sets that share one site."""
    return {
        "small": {site: random_topk(32, seed=i) for i, site in enumerate(SITES)},
        "large": {SITES[0]: random_topk(32, 96, 20, seed=9)},
    }


def means_of(model, sets, tokens):
    measured = profiles(model, sets, tokens)
    return {site: profile.mean for by_site in measured.values() for site, profile in by_site.items()}


def test_a_report_equals_whole_forward_passes_with_each_edit(tiny, tokens, sets):
    means, mask, content = means_of(tiny, sets, tokens), tiny.content(tokens), tiny.content(tokens[:, 1:])
    clean = tiny.logits(tokens)[:, :-1][content]
    reports = splice_reports(tiny, sets, means, tokens, at_once=2)
    for name, dictionaries in sets.items():
        assert reports[name].keys() == dictionaries.keys()
        for site, dictionary in dictionaries.items():
            report = reports[name][site]
            edits = {
                "original": (),
                "spliced": (Splice(site, dictionary, mask),),
                "zeroed": (ActivationPatch(site, torch.zeros(1, 1, 32), mask),),
                "averaged": (ActivationPatch(site, means[site].float()[None, None], mask),),
            }
            for field, edit in edits.items():
                logits, got = with_edits(tiny, tokens, *edit)[:, :-1][content], getattr(report, field)
                expected = torch.nn.functional.cross_entropy(logits, tokens[:, 1:][content]).item()
                assert got.cross_entropy == pytest.approx(expected, rel=1e-5)
                assert got.kl == pytest.approx(kl_divergence(clean, logits).mean().item(), rel=1e-4, abs=1e-6)
                assert got.perplexity == pytest.approx(math.exp(expected), rel=1e-4)
            assert report.n_tokens == int(content.sum())
            assert report.spliced.kl > 0.01 and report.zeroed.kl != pytest.approx(report.averaged.kl)


def test_a_report_shows_neither_the_chunks_nor_what_else_was_measured(tiny, tokens, sets, monkeypatch):
    hooks, means = n_hooks(tiny), means_of(tiny, sets, tokens)
    whole = splice_reports(tiny, sets, means, tokens)
    chunked = splice_reports(tiny, sets, means, tokens, at_once=1)
    alone = {"large": splice_reports(tiny, {"large": sets["large"]}, means, tokens)["large"]}
    monkeypatch.setattr("editing.edited_contexts.LOGITS_AT_ONCE", 3 * 5 * tiny.n_vocab)
    for other in (chunked, alone, splice_reports(tiny, sets, means, tokens)):
        for name, by_site in other.items():
            for site, got in by_site.items():
                for field in ("original", "spliced", "zeroed", "averaged"):
                    expected = getattr(whole[name][site], field)
                    assert getattr(got, field).cross_entropy == pytest.approx(expected.cross_entropy, rel=1e-5)
                    assert getattr(got, field).kl == pytest.approx(expected.kl, rel=1e-4, abs=1e-6)
                assert [worst.context for worst in got.worst] == [worst.context for worst in whole[name][site].worst]
    assert n_hooks(tiny) == hooks


def test_a_perfect_dictionary_has_no_divergence_and_the_mean_and_zero_dictionaries_are_the_ablations(tiny, tokens):
    for site in SITES:
        mean = means_of(tiny, {"": {site: complete_basis(32)}}, tokens)[site]
        rank_none = Basis(torch.zeros(1, 32), mean.float())
        sets = {"perfect": {site: complete_basis(32)}, "zero": {site: Zero(32)}, "mean": {site: rank_none}}
        reports = {name: by_site[site] for name, by_site in splice_reports(tiny, sets, {site: mean}, tokens).items()}
        assert reports["perfect"].spliced.kl == pytest.approx(0, abs=1e-5)
        assert reports["perfect"].recovered == pytest.approx(1, abs=1e-2)
        assert reports["zero"].spliced == reports["zero"].zeroed and reports["zero"].recovered == 0
        assert reports["mean"].spliced.kl == pytest.approx(reports["mean"].averaged.kl, rel=1e-4)
        assert reports["mean"].recovered_from_mean == pytest.approx(0, abs=1e-3)


def test_the_worst_contexts_are_those_whose_perplexity_rises_the_most(tiny):
    tokens = random_tokens(tiny.n_vocab, 9, 12)
    tokens[:, 0] = tokens[4, 5] = tiny.bos_id
    tokens[7] = tiny.bos_id  # nothing is asked for there
    site, sae = SITES[0], random_topk(32)
    mask = tiny.content(tokens)
    clean, edited = tiny.logits(tokens), with_edits(tiny, tokens, Splice(site, sae, mask))
    nll = [-logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0] for logits in (clean, edited)]
    perplexity = []
    for row in range(9):
        asked = mask[row, 1:]
        perplexity.append([loss[row][asked].mean().exp().item() for loss in nll] if asked.any() else [0.0, -math.inf])
    expected = sorted(range(9), key=lambda row: perplexity[row][0] - perplexity[row][1])[:3]
    for at_once in (1, 4):
        report = splice_reports(tiny, {"": {site: sae}}, {site: torch.zeros(32)}, tokens, worst=3, at_once=at_once)
        report = report[""][site]
        assert [worst.context for worst in report.worst] == expected
    for worst in report.worst:
        row = worst.context
        assert [worst.perplexity, worst.perplexity_spliced] == pytest.approx(perplexity[row], rel=1e-4)
        assert worst.tokens == tuple(tiny.token_text(token) for token in tokens[row].tolist())
        assert [rise is None for rise in worst.rise] == [True, *(~mask[row, 1:]).tolist()]
        rise = (nll[1] - nll[0])[row]
        for position in range(1, 12):
            if worst.rise[position] is not None:
                assert worst.rise[position] == pytest.approx(rise[position - 1].item(), abs=1e-4)
        assert worst.rise[worst.position] == max(rise for rise in worst.rise if rise is not None)


def test_worst_contexts_are_few_where_contexts_are(tiny, tokens):
    report = splice_reports(tiny, {"": {SITES[0]: random_topk(32)}}, {SITES[0]: torch.zeros(32)}, tokens, worst=50)
    assert len(report[""][SITES[0]].worst) == len(tokens)


def test_json_has_no_numbers_that_it_cannot_say():
    certain, broken = Loss(0.0, 0.0), Loss(1e4, 1e4)
    report = SpliceReport(5, certain, broken, certain, certain, ())
    assert broken.perplexity == math.inf
    value = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert value["loss_recovered"] is None and value["loss_recovered_from_mean"] is None
    assert value["spliced"] == {"cross_entropy": 1e4, "kl": 1e4, "perplexity": None}
