"""Effects: hand-made circuits with known sizes, and an exhaustive plain loop over full forwards."""

from contextlib import nullcontext as nothing

import pytest
import torch
from handmade import Circuit, random_topk
from tiny import random_tokens, user_error

from circuits.effects.ablation_effects import (
    Causes,
    Effects,
    ToMean,
    ToOthers,
    ablation_effects,
    effects_by_position,
    error_effect,
    null_effects,
)
from circuits.effects.targets import FeatureTarget
from circuits.features.atlas import Examples
from editing.interventions.add_direction import AddDirection
from editing.interventions.patch import ErrorPatch, FeaturePatch, ablate
from sae_core.seeds import generator_for
from sae_core.sites import FeatureId, Site, Stream

LATENTS = 24


def question(model, dictionaries, source: Site, target: FeatureId, examples: Examples, **how) -> Causes:
    target = FeatureTarget(target, dictionaries[target.site])
    return Causes.of(model, dictionaries[source], source, target, examples, **how)


def effects_of(model, dictionaries, source: Site, target: FeatureId, examples: Examples, **how) -> Effects:
    return ablation_effects(question(model, dictionaries, source, target, examples, **how))


@pytest.fixture(scope="module")
def circuit() -> Circuit:
    return Circuit()


def some_examples(tokens: torch.Tensor, *, seed: int = 0) -> Examples:
    """Every context with a random end after the BOS."""
    end = torch.randint(1, tokens.shape[1], (len(tokens),), generator=torch.Generator().manual_seed(seed))
    return Examples(tokens, end, torch.ones(len(tokens)))


# ---- known circuits --------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_effects_of_a_known_circuit(circuit, layer):
    """Every latent of the layer below on every latent of this one: planted edges, signs, and zeros elsewhere."""
    examples = some_examples(circuit.contexts(20))
    for index, target in enumerate(Circuit.FEATURES[layer]):
        found = effects_of(
            circuit.model, circuit.dictionaries, Site(layer - 1), FeatureId(Site(layer), index), examples
        )
        expected = [
            circuit.effect(cause, target, examples.tokens, examples.end) for cause in Circuit.FEATURES[layer - 1]
        ]
        assert found.effect.tolist() == pytest.approx(expected, abs=1e-5)
        planted = [any((to, of) == (target, cause) for w in (*Circuit.WEIGHTS, *Circuit.MOVES) for to, of, _ in w)
                   for cause in Circuit.FEATURES[layer - 1]]  # fmt: skip
        assert [abs(e) > 1e-5 for e in found.effect.tolist()] == planted


def test_signs_and_a_size_by_hand(circuit):
    """One example: f4 = f0 - 0.5 f1 + 0.001 f3."""
    examples = Examples(torch.tensor([[0, 7, 8]]), torch.tensor([2]), torch.ones(1))
    f0, f1, _, f3 = circuit.given[8].tolist()
    whole = f0 - 0.5 * f1 + 0.001 * f3
    found = effects_of(circuit.model, circuit.dictionaries, Site(0), FeatureId(Site(1), 0), examples)
    assert found.effect.tolist() == pytest.approx([f0 / whole, -0.5 * f1 / whole, 0, 0.001 * f3 / whole], abs=1e-5)
    assert found.effect[0] > 0 > found.effect[1]


def test_an_effect_is_a_ratio_of_sums_and_not_a_mean_of_ratios(circuit):
    tokens = circuit.contexts(20)
    examples = some_examples(tokens)
    single = [circuit.effect(1, 4, tokens[i : i + 1], examples.end[i : i + 1]) for i in range(20)]
    found = effects_of(circuit.model, circuit.dictionaries, Site(0), FeatureId(Site(1), 0), examples)
    assert found.effect[1].item() == pytest.approx(circuit.effect(1, 4, tokens, examples.end), abs=1e-5)
    assert found.effect[1].item() != pytest.approx(sum(single) / 20, abs=1e-3)


def test_attention_carries_a_cause_from_an_earlier_position(circuit):
    """f5 is 0.8 of f2 one position earlier, so that all of it is lost, whatever f2 is at the target's own."""
    target, examples = FeatureId(Site(1), 1), some_examples(circuit.contexts(20))
    examples = Examples(examples.tokens, examples.end.clamp_min(2), examples.activation)
    found = effects_of(circuit.model, circuit.dictionaries, Site(0), target, examples)
    assert found.effect.tolist() == pytest.approx([0, 0, 1, 0], abs=1e-5)


def test_a_path_over_several_blocks_is_a_total_effect(circuit):
    examples = some_examples(circuit.contexts(20))
    found = effects_of(circuit.model, circuit.dictionaries, Site(0), FeatureId(Site(3), 0), examples)
    expected = [circuit.effect(cause, 8, examples.tokens, examples.end) for cause in range(4)]
    assert found.effect.tolist() == pytest.approx(expected, abs=1e-5)
    assert expected[2] > 0.1 > 0 > expected[1]


def test_what_follows_the_target_does_not_matter_and_is_not_run(circuit):
    tokens = circuit.contexts(20)
    examples = some_examples(tokens.clone())
    target = FeatureId(Site(2), 0)
    causes = question(circuit.model, circuit.dictionaries, Site(1), target, examples)
    circuit.model.resumed.clear()
    found = ablation_effects(causes)
    assert {width for _, width in circuit.model.resumed} == {end + 1 for end in examples.end.tolist()}
    later = torch.arange(tokens.shape[1]) > examples.end[:, None]
    other = torch.where(later, (tokens + 17).clamp_max(59), tokens)
    assert not torch.equal(other, tokens)
    again = effects_of(
        circuit.model, circuit.dictionaries, Site(1), target, Examples(other, examples.end, examples.activation)
    )
    assert torch.allclose(again.effect, found.effect, atol=1e-6) and again.n_pairs == found.n_pairs
    assert torch.equal(again.n_active, found.n_active)


def test_the_order_of_the_examples_does_not_matter(circuit):
    examples, order = (
        some_examples(circuit.contexts(20)),
        torch.randperm(20, generator=torch.Generator().manual_seed(4)),
    )
    shuffled = Examples(examples.tokens[order], examples.end[order], examples.activation[order])
    one, other = (
        effects_of(circuit.model, circuit.dictionaries, Site(1), FeatureId(Site(2), 0), e) for e in (examples, shuffled)
    )
    assert torch.allclose(one.effect, other.effect, atol=1e-6) and torch.equal(one.n_active, other.n_active)


# ---- against an exhaustive loop --------------------------------------------------------------------


SOURCES = pytest.mark.parametrize("source", [Site(1), Site(0), Site(1, Stream.MLP_OUT)], ids=str)


class Setting:
    """A tiny random model with random dictionaries, and 18 examples of the loudest latent of the last layer."""

    def __init__(self, model, source: Site):
        self.model, self.source = model, source
        self.dictionaries = {source: random_topk(32, LATENTS, 3), Site(2): random_topk(32, LATENTS, 12, seed=9)}
        self.dictionaries[source].b_enc[:2] = -1e3  # two latents that are never active
        tokens = random_tokens(model.n_vocab, 18, 9, seed=3)
        tokens[:, 0] = tokens[::3, 4] = model.bos_id
        self.examples = some_examples(tokens)
        f = self.dictionaries[Site(2)].encode(model.record(tokens, [Site(2)])[Site(2)])
        loudest = f[torch.arange(18), self.examples.end].sum(0).argmax()
        self.target = FeatureId(Site(2), int(loudest))

    def causes(self, **how) -> Causes:
        return question(self.model, self.dictionaries, self.source, self.target, self.examples, **how)

    def effects(self, *, at_once: int | None = None) -> Effects:
        return ablation_effects(self.causes(), at_once=at_once)

    def read(self, *edits) -> torch.Tensor:
        """The target's activation at the examples' ends in full forwards over whole contexts."""
        with self.model.hooks(*edits):
            h = self.model.record(self.examples.tokens, [Site(2)])[Site(2)]
        return self.dictionaries[Site(2)].encode(h)[torch.arange(18), self.examples.end, self.target.index].double()

    def naive(self) -> torch.Tensor:
        """Ablate every latent in turn at all content positions."""
        content, clean = self.model.content(self.examples.tokens), self.read().sum()
        ablated = [
            self.read(ablate(self.source, self.dictionaries[self.source], [j], mask=content)).sum()
            for j in range(LATENTS)
        ]
        return (clean - torch.stack(ablated)) / clean

    def active(self) -> torch.Tensor:
        """Examples on which each latent is active on a content token up to the target's position."""
        x, tokens = self.model.record(self.examples.tokens, [self.source])[self.source], self.examples.tokens
        f = self.dictionaries[self.source].encode(x)
        n_active = torch.zeros(LATENTS, dtype=torch.long)
        for row, end in enumerate(self.examples.end.tolist()):
            for j in range(LATENTS):
                n_active[j] += any(
                    f[row, pos, j] != 0 and int(tokens[row, pos]) not in self.model.special_ids
                    for pos in range(end + 1)
                )
        return n_active


@SOURCES
def test_effects_equal_an_exhaustive_loop_over_full_forwards(tiny, source):
    setting = Setting(tiny, source)
    found, expected = setting.effects(), setting.naive()
    assert expected.abs().max() > 0.01  # control: something is there to be found
    assert (found.effect - expected).abs().max() < 1e-5
    assert torch.equal(found.n_active, setting.active())
    assert found.n_pairs == int(found.n_active.sum()) and found.source == source


@SOURCES
def test_latents_that_are_not_active_have_exactly_no_effect(tiny, source):
    found = Setting(tiny, source).effects()
    silent = found.n_active == 0
    assert silent[:2].all() and not silent.all()
    assert (found.effect[silent] == 0).all() and (found.effect[~silent] != 0).any()


def test_the_size_of_a_pass_does_not_show(tiny):
    setting = Setting(tiny, Site(1))
    expected = setting.effects()
    for at_once in (1, 3, 50):
        found = setting.effects(at_once=at_once)
        assert (found.effect - expected.effect).abs().max() < 1e-6
        assert found.n_pairs == expected.n_pairs and torch.equal(found.n_active, expected.n_active)


def test_no_pass_holds_more_runs_than_allowed(circuit):
    causes = question(circuit.model, circuit.dictionaries, Site(0), feature_3_0(), some_examples(circuit.contexts(20)))
    circuit.model.resumed.clear()
    found = ablation_effects(causes, at_once=3)
    rows = [n for n, _ in circuit.model.resumed]
    assert len(rows) > 20 and sum(rows) == found.n_pairs and max(rows) == 3


def feature_3_0() -> FeatureId:
    return FeatureId(Site(3), 0)


# ---- other ablations, single positions, errors, chance ----------------------------------------------


class Edited(Setting):
    """A setting whose effects are measured by whole forwards with one edit each."""

    def effect(self, edit) -> float:
        clean = self.read()
        return float((clean - self.read(edit)).sum() / clean.sum())

    def patch(self, latent: int, target: torch.Tensor, mask: torch.Tensor) -> FeaturePatch:
        index = torch.tensor([latent])
        return FeaturePatch(self.source, self.dictionaries[self.source], index, target, mask)

    @property
    def content(self) -> torch.Tensor:
        return self.model.content(self.examples.tokens)


def test_latents_set_to_their_mean(tiny):
    setting = Edited(tiny, Site(1))
    mean = torch.rand(LATENTS, generator=torch.Generator().manual_seed(2))
    found = ablation_effects(setting.causes(ablation=ToMean(mean)))
    expected = [setting.effect(setting.patch(j, mean[j].view(1, 1, 1), setting.content)) for j in range(LATENTS)]
    assert found.effect.tolist() == pytest.approx(expected, abs=1e-5)
    assert (found.n_active == len(setting.examples)).all(), "a mean that is not zero changes every example"


def test_latents_set_to_those_of_other_tokens(tiny):
    """The values that were drawn, put in by a whole forward pass."""
    setting = Edited(tiny, Site(1))
    others = torch.rand(50, LATENTS, generator=torch.Generator().manual_seed(2)).relu()
    ablation = ToOthers(others, seed=3)
    found = ablation_effects(setting.causes(ablation=ablation))
    width = setting.examples.tokens.shape[1]
    drawn = torch.zeros(len(setting.examples), width, LATENTS)
    for i, end in enumerate(setting.examples.end.tolist()):
        drawn[i, : end + 1] = ablation(torch.zeros(end + 1, LATENTS), i)
    expected = [setting.effect(setting.patch(j, drawn[..., [j]], setting.content)) for j in range(LATENTS)]
    assert found.effect.tolist() == pytest.approx(expected, abs=1e-5)
    again = ablation_effects(setting.causes(ablation=ToOthers(others, seed=3)))
    assert torch.equal(again.effect, found.effect)
    assert not torch.equal(ablation_effects(setting.causes(ablation=ToOthers(others, seed=4))).effect, found.effect)


def test_single_positions(tiny):
    setting = Edited(tiny, Site(1))
    found, _ = effects_by_position(setting.causes())
    end, width = setting.examples.end, setting.examples.tokens.shape[1]
    for back in (0, 2):
        place = (torch.arange(width) == (end - back)[:, None]) & setting.content
        for j in found.abs().sum(1).topk(3).indices.tolist():
            edit = ablate(Site(1), setting.dictionaries[Site(1)], [j], mask=place)
            assert float(found[j, back]) == pytest.approx(setting.effect(edit), abs=1e-5)
    assert found.abs().max() > 0.01


def test_the_error_term_as_a_cause(tiny):
    setting = Edited(tiny, Site(1))
    zero = torch.zeros(1, 1, 32)
    edit = ErrorPatch(Site(1), setting.dictionaries[Site(1)], zero, setting.content)
    assert error_effect(setting.causes())[0] == pytest.approx(setting.effect(edit), abs=1e-5)


def test_random_directions_in_place_of_a_latents_own(tiny):
    """Each null effect is that of a whole forward pass in which the codes go along that direction."""
    setting = Edited(tiny, Site(1))
    causes = setting.causes()
    latent = int(ablation_effects(causes).effect.abs().argmax())
    found = null_effects(causes, latent, 5, seed=1)
    x = tiny.record(setting.examples.tokens, [Site(1)])[Site(1)]
    codes = setting.dictionaries[Site(1)].encode(x)[..., latent] * setting.content
    drawn = torch.randn(5, 32, generator=generator_for(1, "null", str(setting.target), "resid_post.1"))
    for r, direction in enumerate(torch.nn.functional.normalize(drawn, dim=-1)):
        edit = AddDirection(Site(1), -codes[..., None] * direction)
        assert float(found[r]) == pytest.approx(setting.effect(edit), abs=1e-5)


@pytest.mark.slow
def test_about_one_in_a_hundred_random_directions_stands_out(tiny_models):
    """With a random dictionary a cause's own direction is like those that it is held against."""
    setting = Edited(tiny_models["neox"], Site(1))
    own = setting.dictionaries[Site(1)] = random_topk(32, 128, 6)
    drawn = torch.randn(128, 32, generator=torch.Generator().manual_seed(11))  # the encoder's rows are no longer near
    own.W_dec.data = torch.nn.functional.normalize(drawn, dim=-1)
    causes = setting.causes()
    found, percentiles = ablation_effects(causes), []
    for latent in (found.n_active > 2).nonzero()[:, 0].tolist():
        null = null_effects(causes, latent, 100)
        percentiles.append(float((null.abs() < abs(float(found.effect[latent]))).double().mean()))
    beyond = [sum(p > level for p in percentiles) / len(percentiles) for level in (0.99, 0.5)]
    assert len(percentiles) >= 40 and beyond[0] <= 0.06 and 0.3 < beyond[1] < 0.7, (len(percentiles), beyond)


def test_the_standard_error_is_that_of_a_ratio(tiny):
    """Against the jackknife, which takes examples out one by one; both estimate the same."""
    setting = Edited(tiny, Site(1))
    found = setting.effects()
    latent = int((found.effect.abs() * (found.n_active > 9)).argmax())
    clean = setting.read()
    edit = ablate(Site(1), setting.dictionaries[Site(1)], [latent], mask=setting.content)
    drop, n = clean - setting.read(edit), len(clean)
    without = torch.stack([(drop.sum() - drop[i]) / (clean.sum() - clean[i]) for i in range(n)])
    jackknife = ((n - 1) / n * (without - without.mean()).square().sum()).sqrt()
    assert float(found.error[latent]) == pytest.approx(float(jackknife), rel=0.3)
    one = Examples(setting.examples.tokens[:1], setting.examples.end[:1], setting.examples.activation[:1])
    with user_error("not active") if not clean[0] > 0 else nothing():
        alone = effects_of(tiny, setting.dictionaries, Site(1), setting.target, one)
        assert alone.error.isnan().all()


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
