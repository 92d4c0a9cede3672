"""Scores of circuits: identities, and a planted circuit with known shares."""

import json

import pytest
import torch
from handmade import complete_basis
from planted_circuit import TRUE, WEIGHTS

from circuits.scoring.ablations import MeanAblation
from circuits.scoring.circuit_runs import CircuitRuns, Errors, features_in
from circuits.scoring.faithfulness import CircuitScore, Scale, score_circuit
from sae_core.codec import from_plain, to_plain
from sae_core.dictionaries.baselines import Basis
from sae_core.sites import Site

ABLATED, KEPT = Errors


@pytest.fixture(scope="module")
def planted_score(planted) -> CircuitScore:
    return score_circuit(planted.scale(), TRUE)


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
    assert list(planted_score.ways[ABLATED].drops) == features_in(TRUE)
    for way in planted_score.ways.values():
        drops = {member.index: drop.value for member, drop in way.drops.items()}
        assert drops == pytest.approx({i: w * planted.difference(i) / span for i, w in WEIGHTS.items()}, abs=1e-5)
        assert way.least_missed.index == min(drops, key=drops.get)
        assert way.mean_drop == pytest.approx(sum(drops.values()) / 8)


def test_a_useless_member_is_not_missed(planted):
    """Feature 0 is still in the residual after block 1, where nothing reads it; direction 9 is never written."""
    score = score_circuit(planted.scale(), TRUE | {Site(1): (4, 5, 0), Site(2): (6, 7, 9)})
    for way in score.ways.values():
        drops = {str(member): drop for member, drop in way.drops.items()}
        assert abs(drops["1_0"].value) < 1e-6 and abs(drops["2_9"].value) < 1e-6
        assert abs(drops["1_5"].value) > 0.1


def test_half_a_circuit_has_the_share_that_its_paths_carry(planted):
    """Without feature 2 at layer 0, feature 5 keeps a value that comes from the corrupted prompt."""
    scale = planted.scale()
    span = planted.difference(8)
    half = {Site(0): (0, 1), Site(1): (4, 5), Site(2): (6, 7)}
    expected = sum(WEIGHTS[i] * planted.difference(i) for i in (0, 1)) / span
    score = score_circuit(scale, half).ways[ABLATED]
    assert score.faithfulness.value == pytest.approx(expected, abs=1e-5)
    assert 0.05 < expected < 0.95
    assert score_circuit(scale, {Site(0): (0, 1, 2, 3)}).ways[ABLATED].faithfulness.value == pytest.approx(0, abs=1e-5)


def test_a_mean_over_a_text_is_what_the_empty_circuit_leaves(planted):
    """Feature 8 of the mean code at layer 2, the last that is ablated."""
    text = planted.corrupted
    scale = planted.scale(MeanAblation.over_text(planted.model, planted.dictionaries, text))
    six, seven = (planted.circuit.activation(i, text)[:, 1:].mean().item() for i in (6, 7))
    assert scale.m_nothing == pytest.approx(six - 0.25 * seven, abs=1e-5)
    score = score_circuit(scale, TRUE)
    assert score.ways[ABLATED].faithfulness.value == pytest.approx(1, abs=1e-5)
    assert score.ablation == f"mean over {12 * 6} tokens of text"


def test_intervals_hold_the_value_and_widen_with_disagreement(planted):
    scale = planted.scale()
    half = scale.runs.values([{Site(0): (0, 1), Site(1): (4, 5), Site(2): (6, 7)}], ABLATED)[0]
    share, exact = scale.share(half), scale.share(scale.whole)
    assert share.low < share.value < share.high
    assert (exact.low, exact.high) == pytest.approx((1, 1))
    grouped = Scale(scale.runs, groups=[0] * 6 + [1] * 6).share(half)
    assert grouped.value == share.value and (grouped.low, grouped.high) != (share.low, share.high)


@pytest.mark.parametrize("target", ["logit", "feature"])
def test_identities(tinies, kind, target):
    """All with errors is the model, nothing without them is the corrupted prompt; dictionaries that miss much show."""
    tiny = tinies[kind]
    runs = tiny.runs(target)
    scale, everything = Scale(runs), runs.everything()
    corrupted = tiny.model.record(tiny.corrupted, [runs.target.site])[runs.target.site][torch.arange(3), tiny.end]
    assert scale.nothing.tolist() == pytest.approx(runs.target.read(corrupted, torch.arange(3)).tolist(), abs=1e-4)
    assert runs.without({}) == everything and not any(runs.without(everything).values())
    assert scale.share(runs.values([everything], KEPT)[0]).value == pytest.approx(1, abs=1e-5)
    nothing = score_circuit(scale, {})
    assert nothing.ways[ABLATED].faithfulness.value == pytest.approx(0, abs=1e-5)
    assert nothing.ways[ABLATED].completeness.value == pytest.approx(1, abs=1e-5)
    assert nothing.ways[KEPT].completeness == nothing.ceiling
    assert nothing.ways[KEPT].faithfulness == nothing.errors_alone
    assert nothing.ways[ABLATED].drops == {} and nothing.ways[KEPT].least_missed is None
    if target == "logit":
        assert abs(nothing.ceiling.value - 1) > 1e-3 and abs(nothing.errors_alone.value) > 1e-3


def test_completeness_is_the_faithfulness_of_the_complement(tinies):
    tiny = tinies["neox"]
    scale = Scale(tiny.runs())
    score, complement = score_circuit(scale, tiny.members), scale.runs.without(tiny.members)
    for errors in Errors:
        values = scale.runs.values([complement], errors.other)[0]
        assert score.ways[errors].completeness == scale.share(values)
    assert score.ways[ABLATED].completeness.value != pytest.approx(score.ways[KEPT].completeness.value, abs=1e-3)


def test_a_complete_basis_reaches_the_ceiling_of_one(tinies):
    tiny = tinies["gpt2"]
    dictionaries = {site: complete_basis(32, seed=site.layer) for site in tiny.model.sites()}
    text = MeanAblation.over_text(tiny.model, dictionaries, tiny.corrupted)
    scale = Scale(CircuitRuns(tiny.model, dictionaries, tiny.targets["logit"], tiny.prompts, text))
    assert score_circuit(scale, {}).ceiling.value == pytest.approx(1, abs=1e-4)
    one_less = {
        site: Basis(basis.directions[1:], basis.mean) if site == Site(0) else basis
        for site, basis in dictionaries.items()
    }
    scale = Scale(CircuitRuns(tiny.model, one_less, tiny.targets["logit"], tiny.prompts, text_of(one_less, tiny)))
    assert abs(score_circuit(scale, {}).ceiling.value - 1) > 1e-3


def text_of(dictionaries, tiny) -> MeanAblation:
    return MeanAblation.over_text(tiny.model, dictionaries, tiny.corrupted)


def test_json_gives_the_score_back(planted, planted_score):
    for score in (planted_score, score_circuit(planted.scale(), {})):
        assert from_plain(CircuitScore, json.loads(json.dumps(to_plain(score), allow_nan=False))) == score


def test_lines_say_what_was_measured(planted_score):
    text = "\n".join(planted_score.lines())
    assert "8 nodes on 12 held-out prompts" in text and "the corrupted prompt" in text
    assert f"faithfulness {planted_score.ways[ABLATED].faithfulness} with errors ablated" in text
    assert f"ceiling (all latents, errors ablated) {planted_score.ceiling}" in text
    assert f"({planted_score.ways[KEPT].least_missed}), errors kept" in text
