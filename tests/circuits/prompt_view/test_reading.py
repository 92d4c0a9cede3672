"""What is read of a prompt: every number by its definition, in passes of its own, on every kind of model."""

import math

import pytest
import torch
from comparing import close
from handmade import Zero, random_topk
from massive import Massive
from tiny import random_tokens
from tiny_circuit import strong_topk
from torch.nn.functional import normalize

from circuits.prompt_view.reading import RANDOM, NextToken, PromptConfig, features_on
from editing.interventions.add_direction import AddDirection
from editing.interventions.patch import ablate
from sae_core.dictionaries.baselines import Basis, random_basis
from sae_core.seeds import generator_for
from sae_core.sites import FeatureId, Site, Stream

ALL = PromptConfig(features=1000, exact=4)


def prompt_of(model) -> torch.Tensor:
    tokens = random_tokens(model.n_vocab, 1, 6)
    tokens[:, 0] = model.bos_id
    return tokens


def read(model, tokens, readout, *edits) -> float:
    with model.hooks(*edits):
        return float(readout.read(model.logits(tokens)[0, -1]))


@pytest.fixture
def dictionaries(tiny):
    sites = [Site(0), Site(1), Site(2), Site(1, Stream.MLP_OUT), Site(1, Stream.ATTN_OUT)]
    return {site: strong_topk(number) for number, site in enumerate(sites)}


def test_effects_are_those_of_ablation_and_of_small_steps(tiny, dictionaries):
    tokens, readout = prompt_of(tiny), NextToken(5, 7)
    view = features_on(tiny, dictionaries, tokens, PromptConfig(1000, 4, readout))
    assert view.value == pytest.approx(read(tiny, tokens, readout), abs=1e-5)
    exact = view.exact()
    assert len(exact) == 4
    for cell, each in exact:
        here, dictionary = torch.arange(6)[None] == cell.position, dictionaries[cell.site]
        ablated = read(tiny, tokens, readout, ablate(cell.site, dictionary, [each.feature.index], mask=here))
        assert each.exact == pytest.approx(view.value - ablated, abs=1e-4)
        step = each.activation * dictionary.directions[each.feature.index]
        ends = [read(tiny, tokens, readout, AddDirection(cell.site, step, size, here)) for size in (-0.02, 0.02)]
        assert each.first_order == pytest.approx((ends[1] - ends[0]) / 0.04, abs=0.02 * abs(each.first_order) + 2e-3)
        chance = generator_for(0, "prompt", each.feature, cell.position)
        steps = abs(each.activation) * normalize(torch.randn(RANDOM, len(step), generator=chance), dim=-1)
        moved = [abs(view.value - read(tiny, tokens, readout, AddDirection(cell.site, u, 1.0, here))) for u in steps]
        assert each.control == pytest.approx(sum(moved) / RANDOM, abs=1e-4)


def test_first_order_effects_of_features_and_error_add_up_to_that_of_the_activation(tiny, dictionaries):
    tokens, readout = prompt_of(tiny), NextToken(5)
    view = features_on(tiny, dictionaries, tokens, PromptConfig(1000, 0, readout))
    x = tiny.record(tokens, dictionaries)
    cell = next(cell for cell in view.cells if cell.site == Site(1) and cell.position == 4)
    assert cell.n_active == len(cell.features) and not view.exact()
    here = torch.arange(6)[None] == 4
    parts = sum(each.first_order for each in cell.features) + cell.error_first_order

    def slope(direction: torch.Tensor) -> float:
        ends = [read(tiny, tokens, readout, AddDirection(Site(1), direction, s, here)) for s in (-0.01, 0.01)]
        return (ends[1] - ends[0]) / 0.02

    constant = dictionaries[Site(1)].decode(torch.zeros(1, 48))[0]
    assert parts == pytest.approx(slope(x[Site(1)][0, 4] - constant), abs=0.05)
    error = x[Site(1)][0, 4] - dictionaries[Site(1)].decode(dictionaries[Site(1)].encode(x[Site(1)][0, 4]))
    assert cell.error == pytest.approx(float(error.norm() / x[Site(1)][0, 4].norm()), abs=1e-5)


def test_direct_effects_of_a_complete_basis_are_the_logit_that_follows(tiny):
    """At the last site, where nothing is between: all that is written makes the logit, less that of a zero residual."""
    tokens, basis = prompt_of(tiny), random_basis(32, generator=torch.Generator().manual_seed(0))
    whole = Basis(basis.directions, torch.zeros(32))
    view = features_on(tiny, {Site(2): whole}, tokens, ALL)
    logits = tiny.logits(tokens)[0] - tiny.unembed(torch.zeros(1, 32))
    logits = logits - logits.mean(-1, keepdim=True)
    following = [*tokens[0, 1:].tolist(), int(tiny.logits(tokens)[0, -1].argmax())]
    sums = [sum(each.direct for each in cell.features) for cell in view.cells]
    assert [cell.position for cell in view.cells] == [1, 2, 3, 4, 5]  # none at BOS
    close(torch.tensor(sums), torch.stack([logits[t, following[t]] for t in range(1, 6)]), 1e-3)
    assert max(cell.error for cell in view.cells) < 1e-5


@pytest.mark.parametrize(
    "site", [Site(0, Stream.MLP_OUT), Site(1, Stream.ATTN_OUT), Site(1, Stream.MLP_HIDDEN)], ids=str
)
def test_direct_effects_elsewhere_are_of_what_is_written_to_the_residual(tiny_models, site):
    """Along the weights of the last residual's coordinates; of a hidden feature what its output layer makes of it."""
    model, coordinates = tiny_models["gpt2"], Basis(torch.eye(32), torch.zeros(32))
    tokens, out = (
        prompt_of(model),
        Site(site.layer, Stream.ATTN_OUT if site.stream is Stream.ATTN_OUT else Stream.MLP_OUT),
    )
    sae, readout = random_topk(model.d_in(site)), NextToken(5, 7)
    config = PromptConfig(1000, 0, readout)
    view, last = (features_on(model, {s: d}, tokens, config) for s, d in ((site, sae), (Site(2), coordinates)))
    slopes = {c.position: {e.feature.index: e.direct / e.activation for e in c.features} for c in last.cells}
    clean = model.record(tokens, [out])[out][0]
    for cell in view.cells:
        weights = torch.tensor([slopes[cell.position][i] for i in range(32)])
        for each in cell.features:
            here = torch.arange(6)[None] == cell.position
            step = AddDirection(site, each.activation * sae.directions[each.feature.index], 1.0, here)
            with model.hooks(step):
                written = model.record(tokens, [out])[out][0, cell.position] - clean[cell.position]
            assert each.direct == pytest.approx(float(written @ weights), abs=2e-3)
    assert max(abs(each.direct) for cell in view.cells for each in cell.features) > 0.02


def test_the_model_is_heard_first(tiny):
    tokens = prompt_of(tiny)
    view = features_on(tiny, {Site(1): strong_topk(0)}, tokens, ALL)
    chances = tiny.logits(tokens)[0].softmax(-1)
    assert [token.special for token in view.tokens] == [True, *[False] * 5]
    assert view.tokens[0].probability is None and view.tokens[5].likely[0].probability == pytest.approx(
        view.probability
    )
    expected = [float(chances[t - 1, tokens[0, t]]) for t in range(1, 6)]
    assert [token.probability for token in view.tokens[1:]] == pytest.approx(expected, abs=1e-5)
    assert view.cross_entropy == pytest.approx(-sum(map(math.log, expected)) / 5, abs=1e-4)
    assert view.tokens[5].likely[0].probability == pytest.approx(float(chances[-1].max()), abs=1e-5)


def test_a_few_are_listed_and_some_always(tiny):
    """The most active, and features of a circuit wherever they are active; what is not active is nowhere."""
    tokens, sae = prompt_of(tiny), random_topk(32)
    whole = features_on(tiny, {Site(1): sae}, tokens, PromptConfig(1000, 0))
    weakest = whole.cells[0].features[-1].feature
    few = features_on(tiny, {Site(1): sae}, tokens, PromptConfig(2, 0, always=frozenset({weakest})))
    for all_of, some_of in zip(whole.cells, few.cells, strict=True):
        wanted = [each for n, each in enumerate(all_of.features) if n < 2 or each.feature == weakest]
        assert [each.feature for each in wanted] == [each.feature for each in some_of.features]
        assert some_of.n_active == len(all_of.features)
    assert len(few.cells[0].features) == 3


@pytest.mark.parametrize(
    "tokens", [[0], [0, 5], [5], [0, 0, 0]], ids=["only BOS", "one word", "no BOS", "special ones"]
)
def test_short_prompts(tiny_models, tokens):
    model = tiny_models["neox"]
    view = features_on(model, {Site(1): strong_topk(0)}, torch.tensor([tokens]), ALL)
    assert len(view.tokens) == len(tokens) and len(view.cells) == sum(token != 0 for token in tokens)
    assert math.isnan(view.cross_entropy) == (len(tokens) == 1)
    assert len(view.exact()) == (4 if 5 in tokens else 0)


def test_where_nothing_is_active_all_is_error(tiny_models):
    model = tiny_models["neox"]
    view = features_on(model, {Site(1): Zero(32)}, prompt_of(model), ALL)
    assert len(view.cells) == 5 and not view.exact()
    assert {(cell.n_active, cell.features, cell.outlier) for cell in view.cells} == {(0, (), False)}
    assert all(cell.error == pytest.approx(1) for cell in view.cells)


def test_tokens_of_massive_norm_are_marked(tiny_models):
    model, sae = tiny_models["neox"], strong_topk(0)
    tokens = prompt_of(model)
    sae.outlier_norm = 4 * float(model.record(tokens, [Site(1)])[Site(1)].norm(dim=-1).max())
    with model.hooks(Massive(Site(1), 100.0)):
        view = features_on(model, {Site(1): sae}, tokens, ALL)
    assert [(cell.outlier, cell.n_active > 0) for cell in view.cells] == [
        (position == 3, position != 3) for position in range(1, 6)
    ]
    assert all(cell.position != 3 for cell, _ in view.exact())


def test_what_cannot_matter_is_not_ablated(tiny_models):
    """At the last site only the prompt's end is read: there are six features that could matter, and no ninth."""
    view = features_on(
        tiny_models["neox"], {Site(2): random_topk(32, k=6)}, prompt_of(tiny_models["neox"]), PromptConfig()
    )
    assert {cell.position for cell, _ in view.exact()} == {5} and len(view.exact()) <= 6


def test_the_same_seed_gives_the_same_numbers(tiny_models):
    model = tiny_models["neox"]
    first, again, other = (
        features_on(model, {Site(1): strong_topk(0)}, prompt_of(model), PromptConfig(seed=seed)) for seed in (0, 0, 1)
    )
    assert first == again
    controls = [[each.control for _, each in view.exact()] for view in (first, other)]
    assert controls[0] != controls[1]


def test_a_feature_is_called_by_its_site(tiny_models):
    model, site = tiny_models["neox"], Site(1, Stream.MLP_HIDDEN)
    view = features_on(model, {site: random_topk(64)}, prompt_of(model), ALL)
    assert {each.feature.site for cell in view.cells for each in cell.features} == {site}
    assert isinstance(view.cells[0].features[0].feature, FeatureId)
