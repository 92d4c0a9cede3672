"""Intervene and check: changes known by hand in a linear circuit, and full forwards with a hook in real blocks."""

import json
import math

import pytest
import torch
from handmade import Circuit, random_topk
from tiny import random_tokens, user_error

from circuits.effects.target_prompts import TargetPrompts
from circuits.effects.targets import FeatureTarget, LogitTarget
from circuits.features.atlas import Examples
from circuits.graph import Edge, ErrorTerm, Readout
from circuits.scoring.edge_check import EdgeCheck, EdgeCheckConfig, ScaledCause, check_edges
from editing.interventions.patch import codes
from sae_core.codec import from_plain, to_plain
from sae_core.sites import FeatureId, Site, Stream

NAMES = {i: FeatureId(Site(layer), numbers.index(i)) for layer, numbers in enumerate(Circuit.FEATURES) for i in numbers}


def edge(cause, target, effect: float) -> Edge:
    return Edge(cause, target, effect, error=0.0, n_active=1, n_examples=1)


class Known:
    """The planted circuit, its true edges, and two sets of examples for every target."""

    PLANTED = ((0, 4), (1, 4), (3, 4), (2, 5), (4, 6), (5, 6), (4, 7), (6, 8), (7, 8))

    def __init__(self):
        self.circuit = Circuit()
        self.seen, self.held_out = (self.examples(seed) for seed in (1, 2))
        effects = [self.circuit.effect(of, to, self.seen.tokens, self.seen.end) for of, to in self.PLANTED]
        self.edges = [edge(NAMES[of], NAMES[to], e) for (of, to), e in zip(self.PLANTED, effects, strict=True)]

    def examples(self, seed: int) -> Examples:
        tokens = self.circuit.contexts(30, seed=seed)
        return Examples(
            tokens, torch.randint(2, 8, (30,), generator=torch.Generator().manual_seed(seed)), torch.ones(30)
        )

    def check(self, edges=None, examples=None, **config) -> EdgeCheck:
        prompts = {
            NAMES[i]: TargetPrompts(
                FeatureTarget(NAMES[i], self.circuit.dictionaries[NAMES[i].site]), examples or self.seen
            )
            for i in range(4, 9)
        }
        return checked(self.circuit, edges or self.edges, prompts, **config)


def checked(circuit, edges, prompts, **config) -> EdgeCheck:
    generator = torch.Generator().manual_seed(0)
    config = EdgeCheckConfig(**config)
    return check_edges(circuit.model, circuit.dictionaries, edges, prompts, generator=generator, config=config)


@pytest.fixture(scope="module")
def known() -> Known:
    return Known()


def test_a_linear_circuit_moves_exactly_as_its_edges_say(known):
    moves = known.check()
    for move in moves.moves:
        assert move.change == pytest.approx(move.predicted, abs=1e-5)
    assert sum(move.effect is not None for move in moves.moves) == 9 * 3
    for agreement in moves.agreement():
        assert agreement.n_edges == 9 and agreement.correlation == pytest.approx(1, abs=1e-5)
    assert [agreement.factor for agreement in moves.agreement()] == [0, 0.5, 2]


def test_pairs_without_an_edge_do_not_move(known):
    moves = known.check()
    controls = {(m.cause, m.target) for m in moves.moves if m.effect is None}
    expected = {(0, 5), (1, 5), (3, 5), (2, 4), (5, 7)}
    assert controls == {(NAMES[of], NAMES[to]) for of, to in expected}
    for agreement in moves.agreement():
        assert agreement.n_controls == 5 and agreement.controls_move < 1e-6 < 0.05 < agreement.edges_move
    assert known.check(max_controls=2).agreement()[0].n_controls == 2
    assert math.isnan(known.check(max_controls=0).agreement()[0].controls_move)


def test_held_out_examples_agree_but_not_to_the_last_digit(known):
    agreement = known.check(examples=known.held_out).agreement()[0]
    assert 0.98 < agreement.correlation < 1 - 1e-6
    assert agreement.same_sign == 1


def test_wrong_edges_are_caught(known):
    """Control: signs turned, or effects handed round, agree no more; an edge that is not there does not move."""
    turned = [edge(e.cause, e.target, -e.effect) for e in known.edges]
    assert known.check(turned).agreement()[0].correlation == pytest.approx(-1, abs=1e-5)
    assert known.check(turned).agreement()[0].same_sign == 0
    sizes = [e.effect for e in known.edges]
    shifted = [edge(e.cause, e.target, s) for e, s in zip(known.edges, sizes[1:] + sizes[:1], strict=True)]
    assert known.check(shifted).agreement()[0].correlation < 0.8
    invented = known.check([*known.edges, edge(NAMES[0], NAMES[5], 0.9)]).agreement()[0]
    assert invented.correlation < 0.99 and invented.n_controls == 4


def test_a_feature_that_acts_on_a_readout(known):
    """Feature 0 stays in the residual, which this model unembeds with its embedding: by hand from two dot products."""
    circuit, examples = known.circuit, known.seen
    plus, minus = torch.full((30,), 7), torch.full((30,), 11)
    target = LogitTarget(Readout("t7 - t11"), circuit.model, plus, minus)
    cause = NAMES[8]
    linked = edge(cause, target.node, 0.5)
    prompts = {target.node: TargetPrompts(target, examples)}
    moves = checked(circuit, [linked], prompts, factors=(0.0,))
    # feature 8 lies along a direction that no embedding has, so that nothing moves; feature 0 below does move it
    assert moves.moves[0].change == pytest.approx(0, abs=1e-6)
    moves = checked(circuit, [edge(NAMES[0], target.node, 0.5)], prompts, factors=(0.0,))
    features, rows = circuit.by_token, torch.arange(30)
    at_end = features[examples.tokens[rows, examples.end]]
    clean = (at_end @ (features[7] - features[11])).sum()
    lost = (at_end[:, 0] * (features[7, 0] - features[11, 0])).sum()
    assert moves.moves[0].change == pytest.approx((-lost / clean.abs()).item(), rel=1e-4)


@pytest.mark.parametrize("place", [Site(0), Site(1), Site(0, Stream.MLP_OUT), Site(1, Stream.ATTN_OUT)])
def test_equal_to_full_forwards_with_a_hook(tiny_models, kind, place):
    model = tiny_models[kind]
    dictionaries = {place: random_topk(32, seed=1), Site(2): random_topk(32, seed=2)}
    tokens, end = random_tokens(model.n_vocab, 3, 6), torch.tensor([5, 3, 4])
    tokens[:, 0] = model.bos_id
    recorded = model.record(tokens, [place, Site(2)])
    rows = torch.arange(3)
    cause = FeatureId(place, int(dictionaries[place].encode(recorded[place][:, 1:]).sum((0, 1)).argmax()))
    target = FeatureId(Site(2), int(dictionaries[Site(2)].encode(recorded[Site(2)][rows, end]).sum(0).argmax()))
    prompts = TargetPrompts(FeatureTarget(target, dictionaries[Site(2)]), Examples(tokens, end, torch.ones(3)))
    result = check_edges(
        model, dictionaries, [edge(cause, target, 0.1)], {target: prompts},
        generator=torch.Generator().manual_seed(0), config=EdgeCheckConfig((0.0, 3.0)),
    )  # fmt: skip
    direction, clean = dictionaries[place].directions[cause.index], None
    for move in (None, *result.moves):

        class Scaled:
            site = place

            def __call__(self, h, factor=1.0 if move is None else move.factor):
                c = codes(place, dictionaries[place], h)[..., cause.index, None] * model.content(tokens)[..., None]
                return h + (factor - 1) * c * direction

        with model.hooks(Scaled()):
            h = model.record(tokens, [Site(2)])[Site(2)][rows, end]
        total = dictionaries[Site(2)].encode(h)[:, target.index].sum().item()
        clean = total if move is None else clean
        assert move is None or move.change == pytest.approx((total - clean) / clean, abs=1e-5)
    assert abs(result.moves[1].change) > 1e-4


def test_json_lines_and_what_was_left_out(known):
    more = [*known.edges, edge(ErrorTerm(Site(1)), NAMES[6], 0.2), edge(NAMES[8], Readout("x"), 0.2)]
    moves = known.check(more)
    assert moves.left_out == 2
    assert from_plain(EdgeCheck, json.loads(json.dumps(to_plain(moves), allow_nan=False))) == moves
    text = "\n".join(moves.lines())
    assert "causes x 0.5: changes of 9 targets correlate 1.000" in text and "over 5 pairs without an edge" in text
    alone = EdgeCheck((ScaledCause(NAMES[0], NAMES[4], 0.0, -0.4, 0.4),), 0)
    assert math.isnan(alone.agreement()[0].correlation) and "no pairs" in alone.lines()[0]


def test_mistakes(known):
    with user_error("scaling by 0.0, 1.0"):
        known.check(factors=(0.0, 1.0))
    with user_error("no edge", "examples"):
        known.check([edge(ErrorTerm(Site(1)), NAMES[6], 0.2)])
    silent = Examples(torch.zeros(2, 4, dtype=torch.long), torch.tensor([3, 3]), torch.ones(2))
    with user_error("1_0 is zero"):
        known.check(examples=silent)
