"""Scores of circuits: identities, a planted circuit with known shares, and plain full forwards prompt by prompt."""

import json
import math

import pytest
import torch
from handmade import complete_basis, random_topk
from planted_circuit import TRUE, WEIGHTS, Planted
from tiny import Edit, random_tokens, user_error

from circuits.effects.targets import FeatureTarget, LogitTarget
from circuits.features.atlas import Examples
from circuits.graph import Readout
from circuits.scoring.ablations import MeanAblation, ResampleAblation
from circuits.scoring.circuit_runs import CircuitRuns, Errors, by_site, covered_sites, features_in, members_of
from circuits.scoring.controls import Control, Controls, Overlap, Stability, compare_with_controls
from circuits.scoring.edge_check import Move, Moves
from circuits.scoring.faithfulness import Scale, Score, Share, score
from circuits.scoring.node_curve import NodeCurve, default_counts, node_curve
from sae_core.dictionaries.baselines import Basis
from sae_core.sites import FeatureId, Site, Stream
from subrank.pages.circuit_figure import scoring_figure
from subrank.pages.circuit_page import scoring_section

ABLATED, KEPT = Errors
NASTY = "<script>alert(1)</script>"

# ---- a planted circuit -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planted() -> Planted:
    return Planted()


@pytest.fixture(scope="module")
def planted_score(planted) -> Score:
    return score(planted.scale(), TRUE)


def test_the_true_members_are_faithful_and_complete(planted_score):
    for way in planted_score.ways.values():
        assert way.faithfulness.value == pytest.approx(1, abs=1e-5)
        assert way.completeness.value == pytest.approx(0, abs=1e-5)
    assert planted_score.ceiling.value == pytest.approx(1, abs=1e-5)  # a complete basis makes no error
    assert planted_score.errors_alone.value == pytest.approx(0, abs=1e-5)
    assert planted_score.of_ceiling.value == pytest.approx(1, abs=1e-5)
    assert planted_score.covered == ("resid_post.0", "resid_post.1", "resid_post.2")


def test_both_ends_of_the_scale_are_the_two_runs(planted, planted_score):
    rows = torch.arange(12)
    for tokens, m in ((planted.clean, planted_score.m_whole), (planted.corrupted, planted_score.m_nothing)):
        assert m == pytest.approx(planted.circuit.activation(8, tokens)[rows, planted.end].mean().item(), abs=1e-5)


def test_minimality_is_what_the_weights_say(planted, planted_score):
    span = planted.difference(8)
    assert [one.member for one in planted_score.ways[ABLATED].drops] == features_in(TRUE)
    for way in planted_score.ways.values():
        found = {one.member.index: one.drop.value for one in way.drops}
        assert found == pytest.approx({i: w * planted.difference(i) / span for i, w in WEIGHTS.items()}, abs=1e-5)
        assert way.worst.member.index == min(found, key=found.get)
        assert way.mean_drop == pytest.approx(sum(found.values()) / 8)


def test_a_useless_member_is_not_missed(planted):
    """Feature 0 is still in the residual after block 1, where nothing reads it; direction 9 is never written."""
    found = score(planted.scale(), TRUE | {Site(1): (4, 5, 0), Site(2): (6, 7, 9)})
    for way in found.ways.values():
        drops = {str(one.member): one.drop for one in way.drops}
        assert abs(drops["1_0"].value) < 1e-6 and abs(drops["2_9"].value) < 1e-6
        assert abs(drops["1_5"].value) > 0.1


def test_half_a_circuit_has_the_share_that_its_paths_carry(planted):
    """Without feature 2 at layer 0, feature 5 keeps a value that comes from the corrupted prompt."""
    scale = planted.scale()
    span = planted.difference(8)
    half = {Site(0): (0, 1), Site(1): (4, 5), Site(2): (6, 7)}
    expected = sum(WEIGHTS[i] * planted.difference(i) for i in (0, 1)) / span
    found = score(scale, half).ways[ABLATED]
    assert found.faithfulness.value == pytest.approx(expected, abs=1e-5)
    assert 0.05 < expected < 0.95
    assert score(scale, {Site(0): (0, 1, 2, 3)}).ways[ABLATED].faithfulness.value == pytest.approx(0, abs=1e-5)


def test_random_circuits_of_the_same_size_are_not_faithful(planted):
    density = {site: torch.ones(12) for site in TRUE}
    found = compare_with_controls(planted.scale(), TRUE, density, generator=torch.Generator().manual_seed(0))
    assert found.circuit.ablated.value == pytest.approx(1, abs=1e-5)
    assert found.first_order.ablated.value == pytest.approx(1, abs=1e-5)  # linear: attribution sees all of it
    assert len(found.random) == 20 and found.better
    assert found.best_random.ablated.value == pytest.approx(0, abs=1e-5)


def test_a_mean_over_a_text_is_what_the_empty_circuit_leaves(planted):
    """Feature 8 of the mean code at layer 2, the last that is ablated."""
    text = planted.corrupted
    scale = planted.scale(MeanAblation.over_text(planted.model, planted.dictionaries, text))
    six, seven = (planted.circuit.activation(i, text)[:, 1:].mean().item() for i in (6, 7))
    assert scale.m_nothing == pytest.approx(six - 0.25 * seven, abs=1e-5)
    found = score(scale, TRUE)
    assert found.ways[ABLATED].faithfulness.value == pytest.approx(1, abs=1e-5)
    assert found.ablation == f"mean over {12 * 6} tokens of text"


def test_a_mean_over_prompts_stops_at_their_ends(planted):
    own = MeanAblation.over_prompts(planted.model, planted.dictionaries, planted.prompts)
    used = torch.cat([row[1 : end + 1] for row, end in zip(planted.clean, planted.end.tolist(), strict=True)])
    assert own.codes[Site(0)][:4] == pytest.approx(planted.circuit.given[used].mean(0), abs=1e-5)
    beyond = planted.clean.clone()
    for row, end in enumerate(planted.end.tolist()):
        beyond[row, end + 1 :] = 7
    other = MeanAblation.over_prompts(
        planted.model, planted.dictionaries, Examples(beyond, planted.end, torch.ones(12))
    )
    assert torch.equal(own.codes[Site(2)], other.codes[Site(2)])


def test_a_curve_climbs_to_the_whole_circuit(planted):
    scale = planted.scale()
    order = [FeatureId(Site(layer), i) for layer, i in ((2, 6), (1, 5), (0, 2), (1, 4), (0, 0), (2, 7), (0, 1), (0, 3))]
    curve = node_curve(scale, order, "by hand", counts=(0, 2, 3, 8, 99))
    assert [p.n_nodes for p in curve.points] == [0, 2, 3, 8]
    two = 1.6 * planted.difference(2) / planted.difference(8)
    assert [p.ablated.value for p in curve.points] == pytest.approx([0, 0, two, 1], abs=1e-5)
    assert [p.kept.value for p in curve.points] == pytest.approx([0, 0, two, 1], abs=1e-5)
    assert curve.enough(0.5 * two) == 3 and curve.enough(0.99) == 8 and curve.enough(1.5) is None
    assert NodeCurve.from_json(json.loads(json.dumps(curve.to_json()))) == curve
    assert default_counts(20) == [0, 1, 2, 3, 4, 6, 8, 12, 16, 20] and default_counts(0) == [0]


def test_intervals_hold_the_value_and_widen_with_disagreement(planted):
    scale = planted.scale()
    half = scale.runs.values([{Site(0): (0, 1), Site(1): (4, 5), Site(2): (6, 7)}], ABLATED)[0]
    share, exact = scale.share(half), scale.share(scale.whole)
    assert share.low < share.value < share.high
    assert (exact.low, exact.high) == pytest.approx((1, 1))
    grouped = Scale(scale.runs, groups=[0] * 6 + [1] * 6).share(half)
    assert grouped.value == share.value and (grouped.low, grouped.high) != (share.low, share.high)


# ---- against plain full forwards -------------------------------------------------------------------


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


def strong_topk(seed: int):
    """An untrained TopK dictionary whose reconstruction is as large as its error."""
    sae = random_topk(32, seed=seed)
    with torch.no_grad():
        sae.W_enc.mul_(10)
    return sae


class Tiny:
    """Prompts of several lengths, dictionaries that miss much, two targets."""

    def __init__(self, model):
        self.model = model
        self.dictionaries = {site: strong_topk(site.layer) for site in model.sites()}
        self.tokens, self.corrupted = (random_tokens(model.n_vocab, 3, 6, seed=seed) for seed in (0, 1))
        self.tokens[:, 0] = self.corrupted[:, 0] = model.bos_id
        self.end = torch.tensor([5, 3, 4])
        self.prompts = Examples(self.tokens, self.end, torch.ones(3))
        plus, minus = random_tokens(model.n_vocab, 2, 3, seed=2)
        h = model.record(self.tokens, model.sites())
        strongest = int(self.dictionaries[Site(2)].encode(h[Site(2)][0, 5]).argmax())
        self.targets = {
            "logit": LogitTarget(Readout("a - b"), model, plus, minus),
            "feature": FeatureTarget(FeatureId(Site(2), strongest), self.dictionaries[Site(2)]),
        }
        active = {site: d.encode(h[site][:, 1:]).sum((0, 1)) for site, d in self.dictionaries.items()}
        ranked = {site: sums.argsort(descending=True) for site, sums in active.items()}
        self.members = {site: tuple(order[[0, 1, 2, 3, -1]].tolist()) for site, order in ranked.items()}

    def trial(self, target="logit", ablation=None) -> CircuitRuns:
        target = self.targets[target]
        ablation = ablation or ResampleAblation.paired(self.model, self.dictionaries, self.prompts, self.corrupted)
        return CircuitRuns(self.model, self.dictionaries, target, self.prompts, ablation)

    def covered(self, target="logit") -> dict:
        return {site: own for site, own in self.members.items() if target == "logit" or site.layer < 2}


@pytest.fixture(scope="module")
def tinies(tiny_models) -> dict[str, Tiny]:
    return {kind: Tiny(model) for kind, model in tiny_models.items()}


@pytest.mark.parametrize("target", ["logit", "feature"])
@pytest.mark.parametrize("errors", [ABLATED, KEPT])
def test_equal_to_plain_full_forwards_with_the_corrupted_prompt_outside(tinies, kind, target, errors):
    own = tinies[kind]
    members = own.covered(target)
    found = own.trial(target).values([members], errors)[0].tolist()
    for i, end in enumerate(own.end.tolist()):
        outside = {
            (site, p): outside_plainly(own.model, own.dictionaries[site], site, own.corrupted, [(i, p)])
            for site in members
            for p in range(1, end + 1)
        }
        args = (own.model, own.dictionaries, own.targets[target], own.tokens[i : i + 1, : end + 1], i)
        assert found[i] == pytest.approx(value_plainly(*args, members, errors, outside), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("errors", [ABLATED, KEPT])
def test_equal_to_plain_full_forwards_with_the_mean_outside(tinies, kind, errors):
    own = tinies[kind]
    mean = MeanAblation.over_prompts(own.model, own.dictionaries, own.prompts)
    found = own.trial(ablation=mean).values([own.members], errors)[0].tolist()
    counted = [(i, p) for i, end in enumerate(own.end.tolist()) for p in range(1, end + 1)]
    means = {s: outside_plainly(own.model, d, s, own.tokens, counted) for s, d in own.dictionaries.items()}
    for i, end in enumerate(own.end.tolist()):
        outside = {(site, p): pair for site, pair in means.items() for p in range(1, end + 1)}
        args = (own.model, own.dictionaries, own.targets["logit"], own.tokens[i : i + 1, : end + 1], i)
        assert found[i] == pytest.approx(value_plainly(*args, own.members, errors, outside), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("target", ["logit", "feature"])
def test_identities(tinies, kind, target):
    """All with errors is the model, nothing without them is the corrupted prompt; dictionaries that miss much show."""
    own = tinies[kind]
    trial = own.trial(target)
    scale, everything = Scale(trial), trial.everything()
    corrupted = own.model.record(own.corrupted, [trial.target.site])[trial.target.site][torch.arange(3), own.end]
    assert scale.nothing.tolist() == pytest.approx(trial.target.read(corrupted, torch.arange(3)).tolist(), abs=1e-4)
    assert trial.without({}) == everything and not any(trial.without(everything).values())
    assert scale.share(trial.values([everything], KEPT)[0]).value == pytest.approx(1, abs=1e-5)
    nothing = score(scale, {})
    assert nothing.ways[ABLATED].faithfulness.value == pytest.approx(0, abs=1e-5)
    assert nothing.ways[ABLATED].completeness.value == pytest.approx(1, abs=1e-5)
    assert nothing.ways[KEPT].completeness == nothing.ceiling
    assert nothing.ways[KEPT].faithfulness == nothing.errors_alone
    assert nothing.ways[ABLATED].drops == () and nothing.ways[KEPT].worst is None
    if target == "logit":
        assert abs(nothing.ceiling.value - 1) > 1e-3 and abs(nothing.errors_alone.value) > 1e-3


def test_completeness_is_the_faithfulness_of_the_complement(tinies):
    own = tinies["neox"]
    scale = Scale(own.trial())
    found, complement = score(scale, own.members), scale.runs.without(own.members)
    for errors in Errors:
        values = scale.runs.values([complement], errors.other)[0]
        assert found.ways[errors].completeness == scale.share(values)
    assert found.ways[ABLATED].completeness.value != pytest.approx(found.ways[KEPT].completeness.value, abs=1e-3)


def test_a_complete_basis_reaches_the_ceiling_of_one(tinies):
    own = tinies["gpt2"]
    dictionaries = {site: complete_basis(32, seed=site.layer) for site in own.model.sites()}
    text = MeanAblation.over_text(own.model, dictionaries, own.corrupted)
    scale = Scale(CircuitRuns(own.model, dictionaries, own.targets["logit"], own.prompts, text))
    assert score(scale, {}).ceiling.value == pytest.approx(1, abs=1e-4)
    one_less = {
        site: Basis(basis.directions[1:], basis.mean) if site == Site(0) else basis
        for site, basis in dictionaries.items()
    }
    scale = Scale(CircuitRuns(own.model, one_less, own.targets["logit"], own.prompts, text_of(one_less, own)))
    assert abs(score(scale, {}).ceiling.value - 1) > 1e-3


def text_of(dictionaries, own) -> MeanAblation:
    return MeanAblation.over_text(own.model, dictionaries, own.corrupted)


@pytest.mark.parametrize("errors", [ABLATED, KEPT])
def test_taking_members_out_from_their_own_site_up_is_exact(tinies, kind, errors):
    own = tinies[kind]
    trial, features = own.trial(), features_in(own.members)
    fewer = [by_site(f for f in features if f != member) for member in features]
    found, expected = trial.without_each(own.members, errors), trial.values(fewer, errors)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
    alone = trial.values([own.members], errors)
    assert (expected - alone).abs().max() > 1e-2
    assert (found == alone).any()  # a member that is silent here and in the other prompt was not run


def test_results_do_not_depend_on_what_is_stacked(tinies):
    own = tinies["llama"]
    circuits = [own.members, {}, {Site(1): (1, 2, 3)}]
    for errors in Errors:
        whole, few = own.trial(), own.trial()
        few.__dict__["rows_at_once"] = 2
        assert whole.rows_at_once > 9
        assert torch.allclose(whole.values(circuits, errors), few.values(circuits, errors), rtol=1e-5, atol=1e-5)
        together, apart = (one.without_each(own.members, errors) for one in (whole, few))
        assert torch.allclose(together, apart, rtol=1e-5, atol=1e-5)


def test_special_tokens_keep_their_activation(tinies):
    """A later END in a prompt is left alone like BOS: with nothing but it, nothing can be ablated."""
    own = tinies["neox"]
    only = Examples(torch.full((2, 3), own.model.bos_id), torch.tensor([2, 2]), torch.ones(2))
    other = ResampleAblation.paired(own.model, own.dictionaries, only, own.corrupted[:2, :3])
    trial = CircuitRuns(own.model, own.dictionaries, own.targets["logit"], only, other)
    assert torch.allclose(trial.values([{}], ABLATED)[0], trial.whole.double(), atol=1e-5)
    with user_error("logit: a - b", "no circuit can be scored", "other prompts"):
        Scale(trial)


# ---- resampling from other prompts -----------------------------------------------------------------


def test_another_prompt_gives_its_values_at_the_same_position(tinies):
    own = tinies["gpt2"]
    shuffled = ResampleAblation.shuffled(
        own.model, own.dictionaries, own.prompts, generator=torch.Generator().manual_seed(0)
    )
    h = own.model.record(own.tokens, [Site(1)])[Site(1)]
    for i, end in enumerate(own.end.tolist()):
        donors = [
            j
            for j in range(3)
            if j != i and all(torch.equal(shuffled.h[Site(1)][i, p], h[j, min(p, own.end[j])]) for p in range(end + 1))
        ]
        assert len(donors) == 1
        assert own.end[donors[0]] >= end or end == 5  # the longest has none as long
    again = ResampleAblation.shuffled(
        own.model, own.dictionaries, own.prompts, generator=torch.Generator().manual_seed(0)
    )
    assert torch.equal(again.h[Site(1)], shuffled.h[Site(1)])
    codes, error = shuffled.at(Site(1), own.dictionaries[Site(1)], torch.tensor([2, 0, 2]), 4)
    rebuilt = own.dictionaries[Site(1)].decode(codes) + error
    assert torch.allclose(rebuilt, shuffled.h[Site(1)][[2, 0, 2], :4], atol=1e-5)


# ---- places and mistakes ---------------------------------------------------------------------------


def test_which_sites_a_circuit_covers(tinies):
    own = tinies["neox"]
    more = own.dictionaries | {Site(1, Stream.MLP_OUT): random_topk(32)}
    assert covered_sites(more, own.targets["logit"]) == own.model.sites()
    assert covered_sites(more, own.targets["feature"]) == [Site(0), Site(1)]
    nodes = [FeatureId(Site(0), 5), FeatureId(Site(0), 3), Readout("a - b"), FeatureId(Site(1, Stream.MLP_OUT), 2)]
    assert members_of(nodes, own.model.sites()) == {Site(0): (3, 5), Site(1): (), Site(2): ()}


def test_mistakes(tinies, planted):
    own = tinies["llama"]
    trial = own.trial("feature")
    with user_error("resid_post.2", "covers resid_post.0, resid_post.1"):
        trial.values([own.members], ABLATED)
    with user_error("no latent 48", "48, numbered from 0"):
        trial.values([{Site(0): (48,)}], ABLATED)
    with user_error("no resid_post site", "lies below"):
        CircuitRuns(
            own.model, {Site(2): own.dictionaries[Site(2)]}, own.targets["feature"], own.prompts, trial.ablation
        )
    nobody = Examples(own.tokens[:0], own.end[:0], torch.ones(0))
    with user_error("no prompts", "discovery has not seen"):
        CircuitRuns(own.model, own.dictionaries, own.targets["logit"], nobody, trial.ablation)
    two = Examples(own.tokens[:2], own.end[:2], torch.ones(2))
    with user_error("for 3 prompts and there are 2"):
        CircuitRuns(own.model, own.dictionaries, own.targets["logit"], two, trial.ablation)
    with user_error("no values for resid_post.2"):
        some = {site: own.dictionaries[site] for site in (Site(0), Site(1))}
        CircuitRuns(own.model, own.dictionaries, own.targets["logit"], own.prompts, text_of(some, own))
    with user_error("equal lengths"):
        ResampleAblation.paired(own.model, own.dictionaries, own.prompts, own.corrupted[:, 1:])
    with user_error("at least two"):
        one = Examples(own.tokens[:1], own.end[:1], torch.ones(1))
        ResampleAblation.shuffled(own.model, own.dictionaries, one, generator=torch.Generator())
    with user_error("no tokens"):
        MeanAblation.over_text(own.model, own.dictionaries, torch.full((1, 3), own.model.bos_id))
    same = ResampleAblation.paired(planted.model, planted.dictionaries, planted.prompts, planted.clean)
    with user_error("3_8", "with and without", "other prompts"):
        planted.scale(same)


# ---- results ---------------------------------------------------------------------------------------


def test_json_gives_the_score_back(planted, planted_score):
    value = json.loads(json.dumps(planted_score.to_json(), allow_nan=False))
    assert Score.from_json(value) == planted_score
    empty = score(planted.scale(), {})
    assert Score.from_json(json.loads(json.dumps(empty.to_json(), allow_nan=False))) == empty
    assert Share.from_json(Share(1.0, math.nan, math.inf).to_json()).value == 1.0
    assert Share(1.0, math.nan, math.inf).to_json() == [1.0, None, None]


def test_lines_say_what_was_measured(planted_score):
    text = "\n".join(planted_score.lines())
    assert "8 nodes on 12 held-out prompts" in text and "the corrupted prompt" in text
    assert f"faithfulness {planted_score.ways[ABLATED].faithfulness} with errors ablated" in text
    assert f"ceiling (all latents, errors ablated) {planted_score.ceiling}" in text
    assert f"({planted_score.ways[KEPT].worst.member}), errors kept" in text


def nasty_results():
    half = Share(0.5, 0.4, math.nan)
    curve = NodeCurve(NASTY, NASTY, (), half)
    controls = Controls(NASTY, 3, Control(half, half), (Control(half, half),), Control(half, half))
    moves = Moves((Move(FeatureId(Site(0), 1), FeatureId(Site(1), 1), 0.0, -0.5, 0.5),), 0)
    return curve, controls, Stability((0, 1), (3, 3), (Overlap(0.5, 0.7),), 2, 4), moves


def test_the_section_shows_the_numbers_and_nothing_unescaped(planted, planted_score):
    curve, controls, stable, moves = nasty_results()
    named = Score.from_json(planted_score.to_json() | {"target": NASTY, "ablation": NASTY})
    drawn = node_curve(planted.scale(), features_in(TRUE), NASTY)
    drawn = NodeCurve(NASTY, NASTY, drawn.points, drawn.ceiling)
    page = scoring_section([named], [controls], [drawn, curve], stable, moves)
    assert NASTY not in page and "&lt;script&gt;" in page
    text = page.replace("<small>", " ")
    for errors in Errors:
        assert str(named.ways[errors].faithfulness) in text and str(named.ways[errors].completeness) in text
    assert "plotly-graph-div" in page and "2 of 4 edges found always" in page
    assert page.count("<tr") > 8 + len(named.members)
    assert "plotly-graph-div" not in scoring_section([named])


def test_the_figure_has_all_three_ways_and_the_random_circuits(planted):
    curve = node_curve(planted.scale(), features_in(TRUE), "by layer")
    one = Control(Share(0.1, 0.0, 0.2), Share(0.3, 0.2, 0.4))
    figure = scoring_figure([curve], [Controls(curve.ablation, 8, one, (one, one), one)])
    assert [trace.name for trace in figure.data] == [
        "by layer, errors ablated",
        "by layer, errors kept",
        "random circuits, errors ablated",
    ]
    assert list(figure.data[0].y) == [p.ablated.value for p in curve.points]
    assert list(figure.data[2].x) == [8, 8] and figure.layout.shapes[0].y0 == curve.ceiling.value
