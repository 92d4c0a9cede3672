"""Screens against what they approximate: finite differences, sums over a path, and causes that slopes misjudge."""

from math import log

import pytest
import torch
from handmade import HandModel, random_topk
from planted import unchecked
from tiny import random_tokens

from circuits.effects.ablation_effects import Causes, ablation_effects
from circuits.effects.screens import Audit, audited, first_order, integrated, shortlist, squared_norms
from circuits.effects.targets import FeatureTarget
from circuits.features.atlas import Examples
from editing.interventions.add_direction import AddDirection
from sae_core.dictionaries.baselines import Basis, Rectified
from sae_core.dictionaries.saes import ReLUSAE
from sae_core.sites import FeatureId, Site, Stream


def smooth(d_in: int, n: int = 24, seed: int = 9) -> ReLUSAE:
    return ReLUSAE(d_in, n, generator=torch.Generator().manual_seed(seed)).requires_grad_(False)


def causes_of(model, source: Site, dictionary, **how) -> Causes:
    """The loudest latent of the last layer on a few random contexts."""
    tokens, end = random_tokens(model.n_vocab, 6, 9, seed=3), torch.tensor([8, 3, 5, 7, 4, 8])
    tokens[:, 0] = model.bos_id
    other = smooth(32)
    f = other.encode(model.record(tokens, [Site(2)])[Site(2)][torch.arange(6), end])
    target = FeatureTarget(FeatureId(Site(2), int(f.sum(0).argmax())), other)
    return Causes.of(model, dictionary, source, target, Examples(tokens, end, torch.ones(6)), **how)


SOURCES = pytest.mark.parametrize(
    "source", [Site(1), Site(0), Site(1, Stream.ATTN_OUT), Site(1, Stream.ATTN_Z), Site(0, Stream.MLP_HIDDEN)], ids=str
)


@pytest.mark.slow
@SOURCES
def test_first_order_effects_are_slopes(tiny, source):
    """Taking a hundredth of each latent away, and adding it, moves the target by a hundredth of the slope."""
    dictionary, small = random_topk(tiny.d_in(source), 20, 4), 0.01
    ends = [
        ablation_effects(causes_of(tiny, source, dictionary, ablation=lambda codes, _, by=by: (1 - by) * codes)).effect
        for by in (small, -small)
    ]
    slope = (ends[0] - ends[1]) / (2 * small)
    estimate = first_order(causes_of(tiny, source, dictionary))
    assert (estimate - slope).abs().max() < 2e-3 * slope.abs().max() + 1e-4 and slope.abs().max() > 1e-3


@pytest.mark.slow
@SOURCES
def test_integrated_gradients_add_up_to_all_latents_ablated_at_once(tiny, source):
    dictionary = random_topk(tiny.d_in(source), 20, 4)
    causes = causes_of(tiny, source, dictionary)
    rows, drop = torch.arange(6), 0.0
    for i in range(6):
        width = int(causes.scene.end[i]) + 1
        gone = AddDirection(source, -(causes.taken(i) @ dictionary.directions)[None])
        with tiny.hooks(gone):
            h = tiny.record(causes.scene.tokens[i, None, :width], [Site(2)])[Site(2)][:, -1]
        drop += float(causes.scene.clean[i] - causes.scene.target.read(h, rows[i, None]))
    whole = drop / causes.total
    with unchecked():
        total = float(integrated(causes, steps=20).sum())
    assert total == pytest.approx(whole, abs=0.03 * abs(whole) + 2e-3)
    assert abs(whole) > 1e-3


def test_a_cancelling_pair_and_a_saturating_cause():
    """target = relu(f0 - f1), with f0 just above f1: ablating f0 can take no more than all, ablating f1 gives tenfold.

    To first order the two look alike; by ablation f1 is by far the stronger, and f0 is exactly 1.
    """
    n = 12
    f0, f1 = 1 + torch.rand(n, generator=torch.Generator().manual_seed(0)), torch.zeros(n)
    f1 += 0.9 * f0
    embedding = torch.zeros(n + 1, 4)
    embedding[1:, 0], embedding[1:, 1] = f0, f1
    write = torch.zeros(4, 4)
    write[2, 0], write[2, 1] = 1, -1
    model = HandModel(embedding, [(torch.zeros(4, 4), torch.zeros(4, 4)), (write, torch.zeros(4, 4))])
    dictionary, other = Basis(torch.eye(4)[:2], torch.zeros(4)), Rectified(torch.eye(4)[2:3], torch.zeros(4))
    tokens = torch.stack([torch.zeros(n, dtype=torch.long), torch.arange(1, n + 1)], 1)
    examples = Examples(tokens, torch.ones(n, dtype=torch.long), torch.ones(n))
    causes = Causes.of(model, dictionary, Site(0), FeatureTarget(FeatureId(Site(1), 0), other), examples)
    exact, estimate = ablation_effects(causes).effect, first_order(causes)
    assert exact.tolist() == pytest.approx([1.0, -9.0], abs=1e-4)
    assert estimate.tolist() == pytest.approx([10.0, -9.0], abs=1e-4)
    assert exact.abs().argmax() == 1 and estimate.abs().argmax() == 0, "a gradient ranks them the other way round"


@pytest.mark.slow
def test_the_three_lists_are_united(tiny):
    causes = causes_of(tiny, Site(0), random_topk(32, 60, 20))
    listed_latents = set(shortlist(causes, 5).tolist())
    for score in (first_order(causes).abs(), integrated(causes).abs(), squared_norms(causes)):
        assert set(score.topk(5).indices.tolist()) <= listed_latents
    assert len(listed_latents) <= 15


def test_norms_are_what_is_taken(tiny):
    dictionary = random_topk(32, 20, 4)
    causes = causes_of(tiny, Site(0), dictionary)
    f = dictionary.encode(causes.scene.x) * causes.content[..., None]
    assert torch.allclose(squared_norms(causes), f.double().square().sum((0, 1)))


def test_an_audit_ablates_what_no_screen_proposed(tiny):
    causes = causes_of(tiny, Site(0), random_topk(32, 60, 20))
    every = ablation_effects(causes).effect
    listed = every.abs().topk(10).indices
    level = float(every.abs().topk(10).values[-1])
    audit, drawn, effects = audited(causes, listed, 12, level)
    assert len(drawn) == audit.n_drawn == 12 and not set(drawn.tolist()) & set(listed.tolist())
    assert torch.allclose(effects.effect[drawn], every[drawn], atol=1e-6) and audit.n_beyond == 0
    assert audit.share == pytest.approx(min(1, -log(0.05) / 12)) and audit.n_rest > 0
    low, drawn, _ = audited(causes, listed, 12, 0.0)
    assert low.n_beyond > 0 and low.share == 1.0, "an audit that finds something promises nothing"
    everything, _, _ = audited(causes, listed, 1000, level)
    assert everything.n_rest == 0 and everything.share == 0.0


def test_an_audit_says_as_much_as_it_drew():
    assert Audit(60, 1000, 0).share == pytest.approx(0.05, abs=1e-3)
    assert Audit(0, 10, 0).share == 1.0 and Audit(5, 0, 0).share == 0.0
