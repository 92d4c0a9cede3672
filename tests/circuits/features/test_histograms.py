"""Histograms are those of dense computations and of full forward passes."""

import numpy
import pytest
import torch
from handmade import Circuit, Zero, random_topk
from random_cards import codes, contexts
from torch import Tensor

from circuits.features.histograms import N_BINS, N_TOKENS, activation_histogram, logit_drops
from circuits.features.survey import Survey
from editing.interventions.patch import ablate
from sae_core.sites import FeatureId, Site, Stream


def test_the_histogram_is_that_of_a_dense_computation(catalogue, full):
    content = catalogue.model.content(catalogue.training)
    for card in full:
        f = codes(catalogue, card.feature.site)[..., card.feature.index]
        histogram, active = card.histogram, content & (f != 0)
        values, tokens = f[active].double().numpy(), catalogue.training[active].numpy()
        assert histogram.edges == pytest.approx(numpy.linspace(0, values.max(), N_BINS + 1).tolist())
        counts, _ = numpy.histogram(values, histogram.edges)
        parts = numpy.array([*(bar.counts for bar in histogram.tokens), histogram.other])
        assert (parts.sum(0) == counts).all() and parts.sum() == len(values)
        often = numpy.bincount(tokens)
        ranked = sorted(numpy.unique(tokens), key=lambda token: (-often[token], token))[:N_TOKENS]
        assert [bar.token for bar in histogram.tokens] == [catalogue.names[token] for token in ranked]
        for bar, token in zip(histogram.tokens, ranked, strict=True):
            assert (numpy.histogram(values[tokens == token], histogram.edges)[0] == bar.counts).all()
        assert histogram.zero == pytest.approx(1 - len(values) / int(content.sum()))
        assert histogram.zero == pytest.approx(1 - card.density, abs=1e-6)


def test_a_feature_of_few_tokens_has_no_others():
    f = torch.tensor([[0.0, 2.0, 0.0, 1.0]])
    histogram = activation_histogram(f, torch.tensor([[5, 3, 5, 4]]), f >= 0, [f"t{i}" for i in range(6)])
    assert (
        [bar.token for bar in histogram.tokens] == ["t3", "t4"] and not any(histogram.other) and histogram.zero == 0.5
    )
    assert histogram.tokens[0].counts[-1] == 1 and histogram.tokens[1].counts[N_BINS // 2] == 1


@pytest.mark.parametrize("stream", list(Stream), ids=str)
@pytest.mark.parametrize("layer", [0, 1])
def test_logit_drops_are_those_of_full_forward_passes(tiny, stream, layer):
    site = Site(layer, stream)
    if site in tiny.unfit:
        pytest.skip(tiny.unfit[site])
    dictionaries = {site: random_topk(tiny.d_in(site), k=8, seed=5)}
    text = contexts(5, 12)
    alive = codes_of(tiny, dictionaries, site, text).flatten(0, 1).sum(0).argmax()
    feature = FeatureId(site, int(alive))
    f = Survey(tiny, dictionaries).activations([feature], text)[feature]
    drops = logit_drops(tiny, dictionaries, feature, text, f, generator=torch.Generator().manual_seed(0))

    mask = tiny.content(text)
    with torch.no_grad(), tiny.hooks(ablate(site, dictionaries[site], [feature.index], mask=mask)):
        ablated = tiny.logits(text)
    drop = (tiny.logits(text) - ablated)[f != 0].double()
    drop = drop - drop.mean(-1, keepdim=True)
    token = int(drop.mean(0).argmax())
    assert drops.token == tiny.token_text(token)
    assert drops.mean == pytest.approx(drop[:, token].mean().item(), abs=1e-5) and abs(drops.mean) > 1e-3
    edges = numpy.array(drops.edges)
    assert edges[0] == pytest.approx(drop[:, token].min().item(), abs=1e-5)
    assert edges[-1] == pytest.approx(drop[:, token].max().item(), abs=1e-5)
    edges[[0, -1]] += (-1e-4, 1e-4)  # rounding must not push an end out of its bin
    assert numpy.abs(numpy.histogram(drop[:, token].numpy(), edges)[0] - numpy.array(drops.counts)).sum() <= 2
    assert sum(drops.counts) == len(drop)


def codes_of(model, dictionaries, site, text) -> Tensor:
    return dictionaries[site].encode(model.record(text, [site])[site]) * model.content(text)[..., None]


def test_drops_of_a_planted_circuit_have_the_sign_of_its_path():
    """In `Circuit` the unembedding is the embedding: ablating f0 lowers the tokens that are given most of it."""
    circuit = Circuit()
    text = circuit.contexts()
    feature = FeatureId(Site(3), 0)
    f = Survey(circuit.model, circuit.dictionaries).activations([feature], text)[feature]
    nothing = logit_drops(
        circuit.model, circuit.dictionaries, feature, text, f, generator=torch.Generator().manual_seed(0)
    )
    assert abs(nothing.mean) < 1e-4  # f8's direction is orthogonal to every token's
    feature = FeatureId(Site(0), 0)
    f = Survey(circuit.model, circuit.dictionaries).activations([feature], text)[feature]
    drops = logit_drops(
        circuit.model, circuit.dictionaries, feature, text, f, generator=torch.Generator().manual_seed(0)
    )
    centred = circuit.by_token[:, 0] - circuit.by_token[:, 0].mean()
    assert drops.token == circuit.model.token_text(int(centred.argmax())) and drops.mean > 0


def test_drops_of_a_silent_feature_are_none(tiny_models):
    text = contexts()
    drops = logit_drops(
        tiny_models["neox"],
        {Site(1): Zero(32)},
        FeatureId(Site(1), 0),
        text,
        torch.zeros(text.shape),
        generator=torch.Generator(),
    )
    assert drops is None
