"""Circuits alone: equal to plain full forwards, prompt by prompt, hook by hook."""

import pytest
import torch
from handmade import random_topk
from tiny import Edit, user_error

from circuits.effects.targets import LogitTarget
from circuits.features.atlas import Examples
from circuits.graph import Readout
from circuits.scoring.ablations import MeanAblation, ResampleAblation
from circuits.scoring.circuit_runs import (
    CircuitRuns,
    Errors,
    by_site,
    covered_sites,
    features_in,
    members_of,
    nearest_layers,
)
from circuits.scoring.faithfulness import Scale
from circuits.scoring.walks import WRITTEN
from sae_core.sites import FeatureId, Site, Stream

ABLATED, KEPT = Errors


def outside_plainly(model, dictionary, site, rows, counted):
    """Mean code and error over the counted places `(row, position)` of some token rows."""
    codes, errors = [], []
    recorded = {row: model.record(rows[row : row + 1], [site])[site][0] for row in {row for row, _ in counted}}
    for row, position in counted:
        h = recorded[row][position]
        codes.append(dictionary.encode(h))
        errors.append(h - dictionary.decode(codes[-1]))
    return torch.stack(codes).mean(0), torch.stack(errors).mean(0)


def value_plainly(model, dictionaries, target, tokens, i, members, errors, outside) -> float:
    """The target after one unpadded prompt: a full forward, a hook per site, a loop over positions."""

    def change(site, h):
        new = h.clone()
        for p in range(1, h.shape[1]):  # position 0 is BOS
            c = dictionaries[site].encode(h[0, p])
            error = h[0, p] - dictionaries[site].decode(c)
            other_code, other_error = outside[site, p]
            left = [c[j] if j in members.get(site, ()) else other_code[j] for j in range(len(c))]
            new[0, p] = dictionaries[site].decode(torch.stack(left)) + (error if errors is KEPT else other_error)
        return new

    hooks = [Edit(site, lambda h, site=site: change(site, h)) for site in covered_sites(dictionaries, target)]
    with model.hooks(*hooks):
        if isinstance(target, LogitTarget):
            logits = model.logits(tokens)[0, -1]
            return (logits[target.plus[i]] - logits[target.minus[i]]).item()
        h = model.record(tokens, [target.site])[target.site]
        return target.dictionary.encode(h[0, -1])[target.node.index].item()


@pytest.mark.parametrize("stream", ["residual", "written"])
@pytest.mark.parametrize("target", ["logit", "feature"])
@pytest.mark.parametrize("errors", [ABLATED, KEPT])
def test_equal_to_plain_full_forwards_with_the_corrupted_prompt_outside(tinies, written, kind, stream, target, errors):
    tiny = (written if stream == "written" else tinies)[kind]
    members = tiny.covered(target)
    values = tiny.runs(target).values([members], errors)[0].tolist()
    for i, end in enumerate(tiny.end.tolist()):
        outside = {
            (site, p): outside_plainly(tiny.model, tiny.dictionaries[site], site, tiny.corrupted, [(i, p)])
            for site in members
            for p in range(1, end + 1)
        }
        args = (tiny.model, tiny.dictionaries, tiny.targets[target], tiny.tokens[i : i + 1, : end + 1], i)
        assert values[i] == pytest.approx(value_plainly(*args, members, errors, outside), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("errors", [ABLATED, KEPT])
def test_equal_to_plain_full_forwards_with_the_mean_outside(tinies, kind, errors):
    tiny = tinies[kind]
    mean = MeanAblation.over_prompts(tiny.model, tiny.dictionaries, tiny.prompts)
    values = tiny.runs(ablation=mean).values([tiny.members], errors)[0].tolist()
    counted = [(i, p) for i, end in enumerate(tiny.end.tolist()) for p in range(1, end + 1)]
    means = {s: outside_plainly(tiny.model, d, s, tiny.tokens, counted) for s, d in tiny.dictionaries.items()}
    for i, end in enumerate(tiny.end.tolist()):
        outside = {(site, p): pair for site, pair in means.items() for p in range(1, end + 1)}
        args = (tiny.model, tiny.dictionaries, tiny.targets["logit"], tiny.tokens[i : i + 1, : end + 1], i)
        assert values[i] == pytest.approx(value_plainly(*args, tiny.members, errors, outside), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("stream", ["residual", "written"])
@pytest.mark.parametrize("errors", [ABLATED, KEPT])
def test_taking_members_out_from_their_own_site_up_is_exact(tinies, written, kind, stream, errors):
    tiny = (written if stream == "written" else tinies)[kind]
    runs, features = tiny.runs(), features_in(tiny.members)
    fewer = [by_site(f for f in features if f != member) for member in features]
    values, expected = runs.without_each(tiny.members, errors), runs.values(fewer, errors)
    assert torch.allclose(values, expected, rtol=1e-5, atol=1e-5)
    alone = runs.values([tiny.members], errors)
    assert (expected - alone).abs().max() > 1e-2
    assert (values == alone).any()  # a member that is silent here and in the other prompt was not run


def test_what_blocks_write_may_be_covered_from_any_layer_up(written):
    """From a later block on, a run starts at the residual below it: the same numbers as with the tokens."""
    tiny = written["gpt2"]
    upper = {site: dictionary for site, dictionary in tiny.dictionaries.items() if site.layer > 0}
    outside = ResampleAblation.paired(tiny.model, tiny.dictionaries, tiny.prompts, tiny.corrupted)
    runs = CircuitRuns(tiny.model, upper, tiny.targets["logit"], tiny.prompts, outside)
    members = {site: latents for site, latents in tiny.members.items() if site in upper}
    below = {site: range(48) for site in tiny.dictionaries if site.layer == 0}
    expected = tiny.runs().values([members | below], KEPT)
    assert runs.start.shape[-1] == 32 and torch.allclose(runs.values([members], KEPT), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_results_do_not_depend_on_what_is_stacked(tinies):
    tiny = tinies["llama"]
    circuits = [tiny.members, {}, {Site(1): (1, 2, 3)}]
    for errors in Errors:
        whole, few = tiny.runs(), tiny.runs()
        few.__dict__["rows_at_once"] = 2
        assert whole.rows_at_once > 9
        assert torch.allclose(whole.values(circuits, errors), few.values(circuits, errors), rtol=1e-5, atol=1e-5)
        together, apart = (single.without_each(tiny.members, errors) for single in (whole, few))
        assert torch.allclose(together, apart, rtol=1e-5, atol=1e-5)


def test_special_tokens_keep_their_activation(tinies):
    """A later END in a prompt is left alone like BOS: with nothing but it, nothing can be ablated."""
    tiny = tinies["neox"]
    only = Examples(torch.full((2, 3), tiny.model.bos_id), torch.tensor([2, 2]), torch.ones(2))
    other = ResampleAblation.paired(tiny.model, tiny.dictionaries, only, tiny.corrupted[:2, :3])
    runs = CircuitRuns(tiny.model, tiny.dictionaries, tiny.targets["logit"], only, other)
    assert torch.allclose(runs.values([{}], ABLATED)[0], runs.whole.double(), atol=1e-5)
    with user_error("logit: a - b", "no circuit can be scored", "other prompts"):
        Scale(runs)


def test_which_sites_a_circuit_covers(tinies):
    tiny = tinies["neox"]
    more = tiny.dictionaries | {Site(1, Stream.MLP_OUT): random_topk(32)}
    assert covered_sites(more, tiny.targets["logit"]) == tiny.model.sites()
    assert covered_sites(more, tiny.targets["feature"]) == [Site(0), Site(1)]
    blocks = {Site(layer, stream): random_topk(32) for layer in (2, 1) for stream in reversed(WRITTEN)}
    for target in tiny.targets.values():
        assert covered_sites(blocks, target) == sorted(blocks)
    assert nearest_layers(sorted(blocks), 1) == [Site(2, Stream.ATTN_OUT), Site(2, Stream.MLP_OUT)]
    nodes = [FeatureId(Site(0), 5), FeatureId(Site(0), 3), Readout("a - b"), FeatureId(Site(1, Stream.MLP_OUT), 2)]
    assert members_of(nodes, tiny.model.sites()) == {Site(0): (3, 5), Site(1): (), Site(2): ()}


def text_of(dictionaries, tiny) -> MeanAblation:
    return MeanAblation.over_text(tiny.model, dictionaries, tiny.corrupted)


def test_mistakes(tinies, planted):
    tiny = tinies["llama"]
    runs = tiny.runs("feature")
    with user_error("resid_post.2", "covers resid_post.0, resid_post.1"):
        runs.values([tiny.members], ABLATED)
    with user_error("no latent 48", "48, numbered from 0"):
        runs.values([{Site(0): (48,)}], ABLATED)
    with user_error("no resid_post, attn_out or mlp_out site", "lies below"):
        CircuitRuns(
            tiny.model, {Site(2): tiny.dictionaries[Site(2)]}, tiny.targets["feature"], tiny.prompts, runs.ablation
        )
    nobody = Examples(tiny.tokens[:0], tiny.end[:0], torch.ones(0))
    with user_error("no prompts", "discovery has not seen"):
        CircuitRuns(tiny.model, tiny.dictionaries, tiny.targets["logit"], nobody, runs.ablation)
    two = Examples(tiny.tokens[:2], tiny.end[:2], torch.ones(2))
    with user_error("for 3 prompts and there are 2"):
        CircuitRuns(tiny.model, tiny.dictionaries, tiny.targets["logit"], two, runs.ablation)
    with user_error("no values for resid_post.2"):
        two_sites = {site: tiny.dictionaries[site] for site in (Site(0), Site(1))}
        CircuitRuns(tiny.model, tiny.dictionaries, tiny.targets["logit"], tiny.prompts, text_of(two_sites, tiny))
    with user_error("equal lengths"):
        ResampleAblation.paired(tiny.model, tiny.dictionaries, tiny.prompts, tiny.corrupted[:, 1:])
    with user_error("at least two"):
        single = Examples(tiny.tokens[:1], tiny.end[:1], torch.ones(1))
        ResampleAblation.shuffled(tiny.model, tiny.dictionaries, single, generator=torch.Generator())
    with user_error("no tokens"):
        MeanAblation.over_text(tiny.model, tiny.dictionaries, torch.full((1, 3), tiny.model.bos_id))
    same = ResampleAblation.paired(planted.model, planted.dictionaries, planted.prompts, planted.clean)
    with user_error("3_8", "with and without", "other prompts"):
        planted.scale(same)
