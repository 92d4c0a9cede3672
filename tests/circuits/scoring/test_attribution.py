"""First-order attribution: exact where the model is linear, and a derivative elsewhere."""

from itertools import pairwise

import pytest
import torch
from handmade import random_topk
from planted_circuit import linear_runs
from tiny import Edit, random_tokens

from circuits.effects.targets import LogitTarget
from circuits.features.atlas import Examples
from circuits.graph import Readout
from circuits.scoring.ablations import MeanAblation, ResampleAblation
from circuits.scoring.attribution import attribution, attribution_circuit, strongest
from circuits.scoring.circuit_runs import CircuitRuns, Errors
from circuits.scoring.walks import WRITTEN
from sae_core.sites import FeatureId, Site, Stream


def test_attribution_is_the_effect_where_the_model_is_linear():
    runs = linear_runs()
    attributions = attribution(runs)
    features = [FeatureId(site, j) for site in runs.sites for j in range(12)]
    without = [runs.without({f.site: (f.index,)}) for f in features]
    effects = (runs.whole.double() - runs.values(without, Errors.KEPT)).mean(1)
    assert torch.cat([attributions[site] for site in runs.sites]).tolist() == pytest.approx(effects.tolist(), abs=1e-5)
    planted = {(0, 0), (0, 1), (0, 2), (0, 3), (1, 4), (1, 5), (2, 6), (2, 7)}
    assert {(f.site.layer, f.index) for f, e in zip(features, effects, strict=True) if abs(e) > 1e-6} == planted


def test_attribution_circuits_take_the_largest_of_each_site():
    attributions = attribution(linear_runs())
    circuit = attribution_circuit(attributions, {Site(1): (9, 3), Site(2): (0, 1), Site(0): ()})
    assert {site: set(latents) for site, latents in circuit.items()} == {Site(1): {4, 5}, Site(2): {6, 7}}
    order = strongest(attributions, 8)
    assert {(f.site.layer, f.index) for f in order[:7]} == {(0, 0), (0, 1), (0, 2), (1, 4), (1, 5), (2, 6), (2, 7)}
    sizes = [abs(float(attributions[f.site][f.index])) for f in order]
    assert all(a >= b for a, b in pairwise(sizes))
    assert sizes[0] == max(float(values.abs().max()) for values in attributions.values())


@pytest.mark.parametrize("streams", [(Stream.RESID_POST,), WRITTEN])
def test_attribution_is_the_derivative_by_finite_differences(tiny_models, kind, streams):
    """Every site moved by +-eps (c_j - ablated c_j) d_j at the content positions, in full forwards with a hook."""
    model = tiny_models[kind]
    sites = [site for stream in streams for site in model.sites(stream)[:2]]
    dictionaries = {site: random_topk(32, seed=number) for number, site in enumerate(sites)}
    tokens = random_tokens(model.n_vocab, 3, 6)
    tokens[:, 0] = model.bos_id
    prompts = Examples(tokens, torch.tensor([5, 4, 2]), torch.ones(3))
    plus, minus = random_tokens(model.n_vocab, 2, 3, seed=2)
    ablation = MeanAblation.over_text(model, dictionaries, random_tokens(model.n_vocab, 4, 8, seed=5))
    runs = CircuitRuns(model, dictionaries, LogitTarget(Readout("a - b"), model, plus, minus), prompts, ablation)
    attributions = attribution(runs)
    rows, content = torch.arange(3), model.content(tokens)[..., None]
    recorded = model.record(tokens, sites)

    def moved(site: Site, j: int, step: float) -> float:
        c = dictionaries[site].encode(recorded[site])[..., j, None] - ablation.codes[site][j]
        change = step * c * dictionaries[site].directions[j] * content
        with model.hooks(Edit(site, lambda h: h + change)):
            logits = model.logits(tokens)[rows, prompts.end]
        return (logits[rows, plus] - logits[rows, minus]).double().mean().item()

    for site in dictionaries:
        largest = attributions[site].abs().topk(4).indices.tolist()
        for j in largest:
            slope = (moved(site, j, 0.2) - moved(site, j, -0.2)) / 0.4
            assert attributions[site][j].item() == pytest.approx(slope, rel=0.02, abs=2e-4)
        assert max(abs(attributions[site][largest])) > 5e-3


def test_attribution_leaves_no_gradient_on_and_no_trace(tiny_models):
    model = tiny_models["gpt2"]
    runs = linear_runs()
    with torch.no_grad():
        before = attribution(runs)
    after = attribution(runs)
    assert all(torch.equal(before[site], after[site]) and not after[site].requires_grad for site in runs.sites)
    assert not any(weight.requires_grad for weight in model.bridge.original_model.parameters())
    assert not runs.start.requires_grad


def test_gradients_at_many_shares_add_up_to_what_the_members_carry(tinies):
    """Completeness of integrated gradients, where one site is covered; a single gradient is far from it."""
    tiny = tinies["gpt2"]
    single = {Site(1): tiny.dictionaries[Site(1)]}
    outside = ResampleAblation.paired(tiny.model, single, tiny.prompts, tiny.corrupted)
    runs = CircuitRuns(tiny.model, single, tiny.targets["logit"], tiny.prompts, outside)
    members = {Site(1): tuple(range(48))}
    alone, nothing = runs.values([members, {}], Errors.ABLATED).mean(1)
    carried = (alone - nothing).item()

    def total(n: int) -> float:
        shares = [(step + 0.5) / n for step in range(n)]
        return attribution(runs, members, shares=shares)[Site(1)].double().sum().item()

    assert total(128) == pytest.approx(carried, rel=0.02)
    assert abs(attribution(runs, members)[Site(1)].double().sum().item() - carried) > 0.05 * abs(carried)
