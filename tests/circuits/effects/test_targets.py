"""Targets: reading near known activations equals reading in full; logits are those of whole forward passes."""

import pytest
import torch
from handmade import normal, random_topk
from tiny import random_tokens, user_error

from circuits.discovery.prompts import PromptSource, from_lines, from_task, from_text
from circuits.effects.targets import FeatureTarget, LogitTarget
from circuits.features.atlas import Examples
from circuits.graph import Readout
from editing.tasks.task import task_of
from sae_core.dictionaries.saes import GatedSAE, JumpReLUSAE, ReLUSAE, TiedSAE, TopKSAE
from sae_core.sites import FeatureId, Site


@pytest.mark.parametrize("scale", [0.0, 1e-4, 0.05, 2.0])
@pytest.mark.parametrize("gain", [False, True], ids=["plain", "gain"])
def test_a_contested_latent_is_read_as_in_full(scale, gain):
    """Near the examples, where a bound decides, far from them, where it does not, and in between."""
    sae = random_topk(32, 64, 6)
    if gain:
        sae.gain = 1 + torch.rand(64, generator=torch.Generator().manual_seed(1))
    h, example = normal(40, 32, seed=2), torch.arange(40).repeat(25)
    moved = h[example] + scale * normal(1000, 32, seed=3)
    seen = set()
    for latent in sae.encode(h).gt(0).sum(0).topk(8).indices.tolist():
        target = FeatureTarget(FeatureId(Site(0), latent), sae)
        expected = target.read(moved, example)
        nearby = target.near(h).read(moved, example)
        assert (nearby - expected).abs().max() < 1e-5
        seen |= set((expected > 0).tolist())
    assert seen == {True, False}, "control: the latent is both in and out of the k largest"


def test_a_contested_latent_is_rarely_computed_in_full(monkeypatch):
    sae, rows = random_topk(32, 64, 6), []
    h, example = normal(40, 32, seed=2), torch.arange(40).repeat(25)
    target = FeatureTarget(FeatureId(Site(0), int(sae.encode(h).gt(0).sum(0).argmax())), sae).near(h)
    encode = TopKSAE.encode
    monkeypatch.setattr(TopKSAE, "encode", lambda self, x: (rows.append(len(x)), encode(self, x))[1])
    target.read(h[example] + 1e-3 * normal(1000, 32, seed=3), example)
    assert sum(rows) < 100


@pytest.mark.parametrize("kind", [ReLUSAE, TiedSAE, JumpReLUSAE, GatedSAE])
def test_a_latent_alone(kind):
    sae = kind(16, 24, generator=torch.Generator().manual_seed(0)).requires_grad_(False)
    for name, parameter in sae.named_parameters():
        if parameter.ndim == 1:
            parameter += 0.1 * normal(len(parameter), seed=len(name))
    x = normal(50, 16, seed=4)
    whole = sae.encode(x)
    assert torch.allclose(sae.only([3, 20]).encode(x), whole[:, [3, 20]], atol=1e-6) and (whole > 0).any()
    target = FeatureTarget(FeatureId(Site(0), 3), sae)
    assert torch.allclose(target.near(x).read(x, torch.arange(50)), whole[:, 3], atol=1e-6)
    with pytest.raises(TypeError, match="compete"):
        random_topk(16, 24, 3).only([3])


def test_gradients_of_a_latent_read_nearby_are_those_in_full():
    sae, h = random_topk(32, 64, 6), normal(10, 32, seed=2)
    latent = int(sae.encode(h).gt(0).sum(0).argmax())
    target, example = FeatureTarget(FeatureId(Site(0), latent), sae), torch.arange(10)
    slopes = []
    for way in (target, target.near(h)):
        x = h.clone().requires_grad_()
        slopes.append(torch.autograd.grad(way.read(x, example).sum(), x)[0])
    assert torch.allclose(*slopes, atol=1e-5) and slopes[0].any()


def test_logits_are_those_of_a_whole_forward_pass(tiny):
    tokens = random_tokens(tiny.n_vocab, 4, 9, seed=1)
    plus, minus, end = torch.tensor([5, 6, 7, 8]), torch.tensor([50, 51, 52, 53]), torch.tensor([8, 2, 4, 6])
    rows = torch.arange(4)
    h = tiny.record(tokens, [Site(2)])[Site(2)][rows, end]
    logits = tiny.logits(tokens)[rows, end]
    assert torch.allclose(LogitTarget(Readout("a"), tiny, plus).read(h, rows), logits[rows, plus], atol=1e-5)
    both = LogitTarget(Readout("a - b"), tiny, plus, minus).read(h[[2, 0]], torch.tensor([2, 0]))
    assert torch.allclose(both, (logits[rows, plus] - logits[rows, minus])[[2, 0]], atol=1e-5)


# ---- prompts ---------------------------------------------------------------------------------------


def test_prompts_of_a_task_are_read_at_their_ends(storybook):
    pairs = task_of("ioi", storybook).pairs("selection", 8, seed=0)
    prompts = from_task(storybook, pairs)
    target, examples = prompts.target, prompts.examples
    rows = torch.arange(len(pairs))
    logits = storybook.logits(pairs.clean)[rows, pairs.end]
    expected = logits[rows, pairs.answer] - logits[rows, pairs.rival]
    assert torch.allclose(examples.activation, expected, atol=1e-4) and (expected > 0).all()
    assert str(target.node) == f"logit: {pairs.name}, right - wrong"


def test_places_of_a_text_at_which_a_logit_is_largest(storybook):
    contexts = random_tokens(storybook.n_vocab, 12, 20, seed=2)
    contexts[:, 0] = storybook.bos_id
    prompts = from_text(storybook, "she - he", contexts, 5, at_once=4)
    target, examples = prompts.target, prompts.examples
    logits = storybook.logits(contexts)
    value = logits[..., storybook.to_ids(" she")[0]] - logits[..., storybook.to_ids(" he")[0]]
    value[:, 0] = -torch.inf
    best = value.max(1).values.sort(descending=True).values[:5]
    assert torch.allclose(examples.activation, best, atol=1e-4) and len(target.plus) == 5
    assert torch.allclose(value[[contexts.tolist().index(row) for row in examples.tokens.tolist()], examples.end], best)


def test_lines_of_ones_own(storybook):
    lines = ["John went to the store and", "", "Mary said that"]
    examples = from_lines(storybook, "she", lines, prepend_bos=True).examples
    assert len(examples) == 2 and examples.tokens[0, 0] == storybook.bos_id
    for row, line in enumerate([lines[0], lines[2]]):
        logits = storybook.logits(torch.tensor([[storybook.bos_id, *storybook.to_ids(line)]]))[0, -1]
        assert float(examples.activation[row]) == pytest.approx(float(logits[storybook.to_ids(" she")[0]]), abs=1e-4)
    with_bos = [f"{storybook.tokenizer.bos_token} {line}" for line in lines if line]  # once such a line got two
    assert torch.equal(from_lines(storybook, "she", with_bos, prepend_bos=True).examples.tokens, examples.tokens)


@pytest.mark.parametrize(
    "name, lines, words",
    [("a - b - c", ["she"], "difference of two"), ("qqqq", ["she"], "'qqqq'"), ("she", ["", " "], "no prompts")],
)
def test_what_cannot_be_asked(storybook, name, lines, words):
    with user_error(words):
        from_lines(storybook, name, lines, prepend_bos=True)


def test_features_on_prompts(tiny):
    """Every prompt at the content position where the latent is strongest, up to its end, the strongest first."""
    tokens, end = random_tokens(tiny.n_vocab, 10, 9, seed=3), torch.tensor([8, 2, 4, 6, 8, 8, 5, 3, 8, 1])
    tokens[:, 0] = tiny.bos_id
    sae = random_topk(32, 24, 4)
    source = PromptSource(tiny, {Site(1): sae}, Examples(tokens, end, torch.ones(10)))
    f = sae.encode(tiny.record(tokens, [Site(1)])[Site(1)])
    for latent in range(24):
        expected = []
        for row in range(10):
            activations = f[row, 1 : end[row] + 1, latent]
            if activations.numel() and activations.max() > 0:
                expected.append((float(activations.max()), row, int(activations.argmax()) + 1))
        expected.sort(key=lambda peak: -peak[0])
        examples = source.examples(FeatureId(Site(1), latent), 6)
        assert examples.activation.tolist() == pytest.approx([value for value, _, _ in expected[:6]])
        assert examples.end.tolist() == [place for _, _, place in expected[:6]]
        assert torch.equal(examples.tokens, tokens[[row for _, row, _ in expected[:6]]])
