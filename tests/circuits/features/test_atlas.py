"""The atlas of features: what a plain pass over the text gives, and which features predict or write what."""

import math
from dataclasses import replace

import pytest
import torch
from handmade import Circuit, Clean, feature, number, random_topk
from tiny import random_tokens, user_error

from circuits.features.atlas import (
    FeatureAtlas,
    direct_effect,
    loudest,
    most_predictive,
    strongest_writer,
    survey,
)
from circuits.features.reading import Chunks
from sae_core.sites import FeatureId, Site, Stream

TARGET = feature(8)


@pytest.fixture(scope="module")
def circuit() -> Circuit:
    return Circuit()


@pytest.fixture(scope="module")
def atlas(circuit) -> FeatureAtlas:
    return survey(circuit.model, circuit.dictionaries, circuit.contexts())


@pytest.fixture(scope="module")
def surveyed(tiny_models):
    """Statistics of two random dictionaries on 21 contexts, with BOS first and elsewhere."""
    model = tiny_models["neox"]
    contexts = random_tokens(model.n_vocab, 21, 7, seed=4)
    contexts[:, 0] = contexts[::4, 3] = model.bos_id
    dictionaries = {Site(0): random_topk(32, 20, 3), Site(2, Stream.MLP_OUT): random_topk(32, 20, 3, seed=7)}
    return model, dictionaries, contexts, survey(model, dictionaries, contexts, top=6, chunks=Chunks(contexts=5))


def dense_codes(surveyed, site: Site) -> tuple[torch.Tensor, torch.Tensor]:
    """All codes from one pass, zero outside content; and which tokens are content."""
    model, dictionaries, contexts, _ = surveyed
    content = contexts != model.bos_id
    return dictionaries[site].encode(model.record(contexts, [site])[site]) * content[..., None], content


@pytest.mark.parametrize("site", [Site(0), Site(2, Stream.MLP_OUT)], ids=str)
def test_statistics_equal_a_plain_dense_computation(surveyed, site):
    f, content = dense_codes(surveyed, site)
    statistics = surveyed[3].sites[site]
    active = (f != 0).sum((0, 1))
    assert torch.allclose(statistics.density, active / content.sum())
    assert torch.allclose(statistics.mean_active, f.sum((0, 1)) / active.clamp_min(1), rtol=1e-4, atol=1e-6)
    assert statistics.top.shape == statistics.context.shape == statistics.position.shape == (20, 6)
    for j in range(20):
        peaks = sorted(((float(f[row, :, j].max()), row) for row in range(21)), reverse=True)[:6]
        assert statistics.top[j].tolist() == pytest.approx([peak for peak, _ in peaks], abs=1e-5)
        for k in range(6):
            if statistics.top[j, k] > 0:
                row, pos = int(statistics.context[j, k]), int(statistics.position[j, k])
                assert f[row, pos, j].item() == pytest.approx(f[row, :, j].max().item(), abs=1e-5)
                assert row == peaks[k][1] and content[row, pos]


def test_the_mean_final_residual_is_that_of_the_content_tokens(surveyed):
    model, _, contexts, _ = surveyed
    atlas = survey(model, {Site(2): random_topk(32, 20, 3)}, contexts)
    h = model.record(contexts, [Site(2)])[Site(2)][contexts != model.bos_id]
    assert torch.allclose(atlas.mean_final, h.mean(0), atol=1e-4)


def test_how_the_contexts_are_split_does_not_show(surveyed):
    model, dictionaries, contexts, atlas = surveyed
    whole = survey(model, dictionaries, contexts, top=6, chunks=Chunks(contexts=21))
    for site, statistics in whole.sites.items():
        assert torch.equal(statistics.density, atlas.sites[site].density)
        assert torch.allclose(statistics.top, atlas.sites[site].top, atol=1e-5)


def test_examples_are_one_per_context_with_distinct_texts(circuit):
    """Every context four times, and once more with another end: the doubles are not shown."""
    contexts = circuit.contexts(12)
    changed = contexts.clone()
    changed[:, -1] = contexts[:, -1] % 59 + 1
    atlas = survey(circuit.model, circuit.dictionaries, torch.cat([contexts, contexts, changed, contexts]))
    for target in (feature(8), feature(5), feature(0)):
        examples = atlas.examples(target, 100)
        texts = [
            tuple(row[: end + 1].tolist()) for row, end in zip(examples.tokens, examples.end.tolist(), strict=True)
        ]
        assert len(set(texts)) == len(texts) == len(examples) >= 12
        assert examples.activation.tolist() == sorted(examples.activation.tolist(), reverse=True)
        plain = circuit.activation(number(target), examples.tokens)
        assert torch.allclose(plain[torch.arange(len(texts)), examples.end], examples.activation, atol=1e-5)
        assert torch.allclose(plain.amax(1), examples.activation, atol=1e-5)
        assert len(atlas.examples(target, 5)) == 5


def test_a_latent_that_is_never_active_has_no_examples(circuit):
    silent = random_topk(12, 8, 2)
    with torch.no_grad():
        silent.b_enc[3] = -1e6
    atlas = survey(circuit.model, {Site(1): silent}, circuit.contexts())
    examples = atlas.examples(FeatureId(Site(1), 3), 10)
    assert len(examples) == 0 and atlas.sites[Site(1)].density[3] == 0 and atlas.sites[Site(1)].mean_active[3] == 0
    assert len(atlas.examples(FeatureId(Site(1), 2), 10)) > 0  # control


def test_what_a_last_layer_feature_says(circuit, atlas):
    """Added along one token's embedding, it raises the tokens that have most in common with it."""
    direction = circuit.model.embedding[7]
    change = direct_effect(circuit.model, atlas, Site(3), direction[None], torch.tensor([0]))[0]
    logits = atlas.sites[Site(3)].mean_active[0] * (circuit.model.embedding @ direction)
    assert torch.allclose(change, logits - logits.mean(), atol=1e-4)


def with_feature_2_before(circuit: Circuit, contexts: torch.Tensor) -> tuple[Circuit, torch.Tensor]:
    """Wherever token 50 or 51 comes next, the token is 45, on which feature 2 is large."""
    contexts = contexts.clamp_max(40)
    contexts[:15, 3], contexts[:15, 4], contexts[15:20, 5], contexts[15:20, 6] = 45, 50, 45, 51
    planted = Circuit()
    planted.by_token[45, 2] = 5.0
    planted.model.embedding = planted.by_token @ planted.d[:4]
    return planted, contexts


def correlations(circuit: Circuit, contexts: torch.Tensor, next_tokens: list[int]) -> torch.Tensor:
    """Of features 0-3 with "one of `next_tokens` comes next", over content tokens."""
    content = contexts[:, :-1] != 0
    f = circuit.by_token[contexts[:, :-1]][content].double()
    y = torch.isin(contexts[:, 1:], torch.tensor(next_tokens))[content].double()
    return torch.stack([torch.corrcoef(torch.stack([column, y]))[0, 1] for column in f.T])


def predicts(circuit: Circuit, contexts: torch.Tensor, next_tokens: list[int], *, top: int = 16) -> FeatureId:
    atlas = survey(circuit.model, circuit.dictionaries, contexts, top=top)
    return most_predictive(atlas, Site(0), next_tokens)


def test_most_predictive_finds_a_planted_latent(circuit):
    planted, contexts = with_feature_2_before(circuit, circuit.contexts(30))
    assert predicts(planted, contexts, [50, 51]) == FeatureId(Site(0), 2)
    assert correlations(planted, contexts, [50, 51]).argmax() == 2
    without = circuit, contexts  # control: on token 45 feature 2 is as on any other
    assert predicts(*without, [50, 51]).index == correlations(*without, [50, 51]).argmax() != 2


def test_most_predictive_asks_what_the_strongest_examples_say():
    """50 follows 45, on which features 2 and 3 are 1. Feature 3 correlates better, but is strongest on 44."""
    contexts = torch.ones(40, 7, dtype=torch.long)
    contexts[:20, 2:4], contexts[:20, 5], contexts[:10, 4], contexts[:, 0] = torch.tensor([45, 50]), 46, 44, 0
    planted = Circuit()
    planted.by_token = torch.zeros(60, 4)
    planted.by_token[45, 2:], planted.by_token[46, 2], planted.by_token[44, 3] = 1.0, 0.9, 1.05
    planted.model.embedding = planted.by_token @ planted.d[:4]
    planted.dictionaries = {Site(0): Clean(planted.dictionaries[Site(0)])}
    correlation = correlations(planted, contexts, [50])
    assert correlation[3] > correlation[2] > 0.5
    assert predicts(planted, contexts, [50]) == FeatureId(Site(0), 2)
    contexts[contexts == 44] = 1  # control: without it feature 3 is as clean, and correlates better
    assert predicts(planted, contexts, [50]) == FeatureId(Site(0), 3)


def test_a_peak_at_the_end_of_a_context_says_nothing_about_what_follows():
    """Feature 3 is large on 50 itself, at the contexts' ends: once, the token it stands on was taken for the next."""
    contexts = torch.ones(40, 7, dtype=torch.long)
    contexts[:, 0], contexts[:24, 6], contexts[:24, 5], contexts[20:22, 2] = 0, 50, 46, 50
    contexts[20:22, 1] = 45
    planted = Circuit()
    planted.by_token = torch.zeros(60, 4)
    planted.by_token[45, 2], planted.by_token[46, 3], planted.by_token[50, 3] = 1.0, 0.9, 1.0
    planted.model.embedding = planted.by_token @ planted.d[:4]
    planted.dictionaries = {Site(0): Clean(planted.dictionaries[Site(0)])}
    assert predicts(planted, contexts, [50]) == FeatureId(Site(0), 2)


def test_most_predictive_needs_the_tokens_in_the_text(circuit):
    with user_error("none of the tokens"):
        predicts(circuit, circuit.contexts(10).clamp_max(40), [55])


def test_strongest_writer_is_the_latent_with_the_largest_direct_effect(circuit, atlas):
    """Of f6 and f7 read as if they were final: compared by hand over all tokens."""
    dictionary, statistics = circuit.dictionaries[Site(0)], atlas.sites[Site(0)]
    effect = statistics.mean_active[:, None] * (dictionary.directions @ circuit.model.embedding.T)
    expected = int((effect - effect.mean(-1, keepdim=True)).amax(-1).argmax())
    assert strongest_writer(circuit.model, dictionary, Site(0), atlas) == FeatureId(Site(0), expected)


def test_strongest_writer_prefers_rare_latents(circuit):
    """A latent of density 1/200 wins against all that are always active, however small it is."""
    contexts = circuit.contexts(240, 6, seed=3).clamp_max(40)
    contexts[:6, 3] = 50
    rare = Circuit()
    rare.by_token[:, 3], rare.by_token[50, 3] = 0, 0.1
    rare.model.embedding = rare.by_token @ rare.d[:4]
    dictionaries = {Site(0): Clean(rare.dictionaries[Site(0)])}
    atlas = survey(rare.model, dictionaries, contexts, top=6)
    assert atlas.sites[Site(0)].density[3] == pytest.approx(6 / 1200)
    assert strongest_writer(rare.model, dictionaries[Site(0)], Site(0), atlas) == FeatureId(Site(0), 3)


def test_strongest_writer_needs_a_latent_that_is_active(circuit):
    silent = random_topk(12, 8, 2)
    with torch.no_grad():
        silent.b_enc.fill_(-1e6)
    atlas = survey(circuit.model, {Site(3): silent}, circuit.contexts())
    with user_error("resid_post.3", "active"):
        strongest_writer(circuit.model, silent, Site(3), atlas)


# ---- attention sinks -------------------------------------------------------------------------------


def sinking(n_first: int, elsewhere: int = 0, limit: float = math.inf, massive: int = 0, several: bool = True):
    """Feature 2 on `n_first` first tokens and on others, some perhaps of massive norm; feature 3 between."""
    contexts = torch.ones(40, 7, dtype=torch.long)
    contexts[:, 0], contexts[:, 4], contexts[:30, 5] = 0, 46, 50
    contexts[:n_first, 1], contexts[:elsewhere, 3], contexts[:massive, 2] = 45, 45, 47
    contexts[1:n_first:2, 1] = 44 if several else 45
    planted = Circuit()
    planted.by_token = torch.zeros(60, 4)
    planted.by_token[44:46, 2], planted.by_token[46, 3], planted.by_token[47, 2] = 1.0, 0.5, 1000.0
    planted.model.embedding = planted.by_token @ planted.d[:4]
    planted.dictionaries = {Site(0): Clean(planted.dictionaries[Site(0)])}
    planted.dictionaries[Site(0)].outlier_norm = limit
    return planted, contexts


@pytest.mark.parametrize(
    ("how", "sink"),
    [
        ({"n_first": 20}, True),
        ({"n_first": 3}, False),  # too few to tell
        ({"n_first": 20, "several": False}, False),  # a word with which texts begin
        ({"n_first": 10, "elsewhere": 20}, False),  # mostly active elsewhere
        ({"n_first": 0, "elsewhere": 20, "massive": 2, "limit": 50.0}, True),
        ({"n_first": 0, "elsewhere": 20, "limit": 50.0}, False),
    ],
)
def test_latents_of_attention_sinks_are_told_from_others(how, sink):
    planted, contexts = sinking(**how)
    latents = survey(planted.model, planted.dictionaries, contexts).sites[Site(0)]
    assert latents.sinks.tolist()[:4] == [False, False, sink, False]
    if how.get("massive"):
        assert latents.on_outliers[2] == pytest.approx(2000 / 2020) and latents.density[2] == 20 / 240


def test_a_sink_is_no_default_target():
    """Feature 2 predicts best and writes most, but on first tokens only."""
    planted, contexts = sinking(20)
    contexts[:20, 2], contexts[20:, 2] = 55, 1
    atlas = survey(planted.model, planted.dictionaries, contexts)
    predictive = most_predictive(atlas, Site(0), [55])
    writer = strongest_writer(planted.model, planted.dictionaries[Site(0)], Site(0), atlas)
    assert predictive != FeatureId(Site(0), 2) and writer == FeatureId(Site(0), 3)
    told = replace(atlas.sites[Site(0)], sinks=torch.zeros_like(atlas.sites[Site(0)].sinks))
    free = replace(atlas, sites={Site(0): told})
    assert most_predictive(free, Site(0), [55]) == FeatureId(Site(0), 2)


def test_the_loudest_are_those_that_write_most_where_they_are_most_active():
    """Rare ones first of all: the common latent is louder, and a direction may be longer than one."""
    circuit = Circuit()
    contexts = circuit.contexts()
    measured = survey(circuit.model, {Site(0): circuit.dictionaries[Site(0)]}, contexts)
    statistics = measured.sites[Site(0)]
    basis = circuit.dictionaries[Site(0)]
    basis.directions[1] *= 3
    density = torch.tensor([0.5, 5e-3, 5e-3, 5e-3])
    top = torch.tensor([[50.0], [2.0], [5.0], [1.0]]).expand(4, statistics.top.shape[1])
    planted = replace(measured, sites={Site(0): replace(statistics, density=density, top=top)})
    assert [f.index for f in loudest(basis, Site(0), planted, 2)] == [1, 2], "3 x 2, then 5"
    assert [f.index for f in loudest(basis, Site(0), planted, 9)] == [1, 2, 3]
