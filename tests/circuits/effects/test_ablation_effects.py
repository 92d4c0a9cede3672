"""Effects: hand-made circuits with known sizes, and an exhaustive plain loop over full forwards."""

import pytest
import torch
from handmade import Circuit
from tiny import user_error
from whole_forwards import Setting, effects_of, question, some_examples

from circuits.effects.ablation_effects import (
    ablation_effects,
)
from circuits.features.atlas import Examples
from sae_core.sites import FeatureId, Site, Stream


@pytest.fixture(scope="module")
def circuit() -> Circuit:
    return Circuit()


# ---- known circuits --------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_effects_of_a_known_circuit(circuit, layer):
    """Every latent of the layer below on every latent of this one: planted edges, signs, and zeros elsewhere."""
    examples = some_examples(circuit.contexts(20))
    for index, target in enumerate(Circuit.FEATURES[layer]):
        effects = effects_of(
            circuit.model, circuit.dictionaries, Site(layer - 1), FeatureId(Site(layer), index), examples
        )
        expected = [
            circuit.effect(cause, target, examples.tokens, examples.end) for cause in Circuit.FEATURES[layer - 1]
        ]
        assert effects.effect.tolist() == pytest.approx(expected, abs=1e-5)
        planted = [any((to, of) == (target, cause) for w in (*Circuit.WEIGHTS, *Circuit.MOVES) for to, of, _ in w)
                   for cause in Circuit.FEATURES[layer - 1]]  # fmt: skip
        assert [abs(e) > 1e-5 for e in effects.effect.tolist()] == planted


def test_signs_and_a_size_by_hand(circuit):
    """One example: f4 = f0 - 0.5 f1 + 0.001 f3."""
    examples = Examples(torch.tensor([[0, 7, 8]]), torch.tensor([2]), torch.ones(1))
    f0, f1, _, f3 = circuit.by_token[8].tolist()
    whole = f0 - 0.5 * f1 + 0.001 * f3
    effects = effects_of(circuit.model, circuit.dictionaries, Site(0), FeatureId(Site(1), 0), examples)
    assert effects.effect.tolist() == pytest.approx([f0 / whole, -0.5 * f1 / whole, 0, 0.001 * f3 / whole], abs=1e-5)
    assert effects.effect[0] > 0 > effects.effect[1]


def test_an_effect_is_a_ratio_of_sums_and_not_a_mean_of_ratios(circuit):
    tokens = circuit.contexts(20)
    examples = some_examples(tokens)
    single = [circuit.effect(1, 4, tokens[i : i + 1], examples.end[i : i + 1]) for i in range(20)]
    effects = effects_of(circuit.model, circuit.dictionaries, Site(0), FeatureId(Site(1), 0), examples)
    assert effects.effect[1].item() == pytest.approx(circuit.effect(1, 4, tokens, examples.end), abs=1e-5)
    assert effects.effect[1].item() != pytest.approx(sum(single) / 20, abs=1e-3)


def test_attention_carries_a_cause_from_an_earlier_position(circuit):
    """f5 is 0.8 of f2 one position earlier, so that all of it is lost, whatever f2 is at the target's own."""
    target, examples = FeatureId(Site(1), 1), some_examples(circuit.contexts(20))
    examples = Examples(examples.tokens, examples.end.clamp_min(2), examples.activation)
    effects = effects_of(circuit.model, circuit.dictionaries, Site(0), target, examples)
    assert effects.effect.tolist() == pytest.approx([0, 0, 1, 0], abs=1e-5)


def test_a_path_over_several_blocks_is_a_total_effect(circuit):
    examples = some_examples(circuit.contexts(20))
    effects = effects_of(circuit.model, circuit.dictionaries, Site(0), FeatureId(Site(3), 0), examples)
    expected = [circuit.effect(cause, 8, examples.tokens, examples.end) for cause in range(4)]
    assert effects.effect.tolist() == pytest.approx(expected, abs=1e-5)
    assert expected[2] > 0.1 > 0 > expected[1]


def test_what_follows_the_target_does_not_matter_and_is_not_run(circuit):
    tokens = circuit.contexts(20)
    examples = some_examples(tokens.clone())
    target = FeatureId(Site(2), 0)
    causes = question(circuit.model, circuit.dictionaries, Site(1), target, examples)
    circuit.model.resumed.clear()
    effects = ablation_effects(causes)
    assert {width for _, width in circuit.model.resumed} == {end + 1 for end in examples.end.tolist()}
    later = torch.arange(tokens.shape[1]) > examples.end[:, None]
    other = torch.where(later, (tokens + 17).clamp_max(59), tokens)
    assert not torch.equal(other, tokens)
    again = effects_of(
        circuit.model, circuit.dictionaries, Site(1), target, Examples(other, examples.end, examples.activation)
    )
    assert torch.allclose(again.effect, effects.effect, atol=1e-6) and again.n_pairs == effects.n_pairs
    assert torch.equal(again.n_active, effects.n_active)


def test_the_order_of_the_examples_does_not_matter(circuit):
    examples, order = (
        some_examples(circuit.contexts(20)),
        torch.randperm(20, generator=torch.Generator().manual_seed(4)),
    )
    shuffled = Examples(examples.tokens[order], examples.end[order], examples.activation[order])
    first, other = (
        effects_of(circuit.model, circuit.dictionaries, Site(1), FeatureId(Site(2), 0), e) for e in (examples, shuffled)
    )
    assert torch.allclose(first.effect, other.effect, atol=1e-6) and torch.equal(first.n_active, other.n_active)


# ---- against an exhaustive loop --------------------------------------------------------------------


SOURCES = pytest.mark.parametrize("source", [Site(1), Site(0), Site(1, Stream.MLP_OUT)], ids=str)


@pytest.mark.slow
@SOURCES
def test_effects_equal_an_exhaustive_loop_over_full_forwards(tiny, source):
    setting = Setting(tiny, source)
    effects, expected = setting.effects(), setting.naive()
    assert expected.abs().max() > 0.01  # control: something is there to be found
    assert (effects.effect - expected).abs().max() < 1e-5
    assert torch.equal(effects.n_active, setting.active())
    assert effects.n_pairs == int(effects.n_active.sum()) and effects.source == source


@SOURCES
def test_latents_that_are_not_active_have_exactly_no_effect(tiny, source):
    effects = Setting(tiny, source).effects()
    silent = effects.n_active == 0
    assert silent[:2].all() and not silent.all()
    assert (effects.effect[silent] == 0).all() and (effects.effect[~silent] != 0).any()


@pytest.mark.slow
def test_the_size_of_a_pass_does_not_show(tiny):
    setting = Setting(tiny, Site(1))
    expected = setting.effects()
    for at_once in (1, 3, 50):
        effects = setting.effects(at_once=at_once)
        assert (effects.effect - expected.effect).abs().max() < 1e-6
        assert effects.n_pairs == expected.n_pairs and torch.equal(effects.n_active, expected.n_active)


def test_no_pass_holds_more_runs_than_allowed(circuit):
    causes = question(circuit.model, circuit.dictionaries, Site(0), feature_3_0(), some_examples(circuit.contexts(20)))
    circuit.model.resumed.clear()
    effects = ablation_effects(causes, at_once=3)
    rows = [n for n, _ in circuit.model.resumed]
    assert len(rows) > 20 and sum(rows) == effects.n_pairs and max(rows) == 3


def feature_3_0() -> FeatureId:
    return FeatureId(Site(3), 0)


# ---- mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [Site(1), Site(2), Site(2, Stream.ATTN_OUT)], ids=str)
def test_a_cause_that_cannot_be_measured_is_refused(circuit, source):
    dictionaries = circuit.dictionaries | {source: circuit.dictionaries[Site(1)]}
    with user_error(str(source), "1_0"):
        effects_of(circuit.model, dictionaries, source, FeatureId(Site(1), 0), some_examples(circuit.contexts(4)))


def test_a_target_that_is_not_active_is_refused(circuit):
    """Nothing is active on BOS."""
    examples = Examples(circuit.contexts(4), torch.zeros(4, dtype=torch.long), torch.ones(4))
    with user_error("1_1", "not active"):
        effects_of(circuit.model, circuit.dictionaries, Site(0), FeatureId(Site(1), 1), examples)
