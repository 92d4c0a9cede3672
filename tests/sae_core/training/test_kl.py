"""The divergence that a reconstruction causes is what plain code says, has its gradient, and falls when trained on."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from comparing import n_hooks
from planted import generator, unchecked
from tiny import Edit, random_tokens, user_error

from sae_core.data.activations import harvest
from sae_core.data.text import Text
from sae_core.sites import Site, Stream
from sae_core.training.config import TrainConfig
from sae_core.training.kl import ContextBatch, ContextStream, Divergence
from sae_core.training.loop import start, train
from sae_core.training.penalty_recipes import ReLU
from sae_core.training.recipe import Recipe
from sae_core.training.topk_recipes import TopK

SITES = (Site(1), Site(0, Stream.MLP_OUT), Site(2, Stream.ATTN_OUT))


@pytest.fixture
def batch(tiny) -> ContextBatch:
    """Three contexts, two of which begin with BOS, one with another inside."""
    tokens = random_tokens(tiny.n_vocab, 3, 10)
    tokens[:2, 0] = tokens[0, 5] = tiny.bos_id
    return next(ContextStream(tiny, tokens, SITES, seed=0, batch=30).block(0))


def noisy(x: torch.Tensor, size: float = 0.5) -> torch.Tensor:
    return x + size * torch.randn(x.shape, generator=generator(3))


# ---- the divergence ----------------------------------------------------------------------------------


def test_a_perfect_reconstruction_has_no_divergence(tiny, batch):
    hooks = n_hooks(tiny)
    for site in SITES:
        assert Divergence(tiny)(site, batch[site], batch).abs() < 1e-5
        assert Divergence(tiny)(site, noisy(batch[site]), batch) > 1e-3  # control
    assert n_hooks(tiny) == hooks


def test_the_divergence_is_that_of_plain_code(tiny, batch):
    """Without any edit: the residual is overwritten by hand and the blocks above run on it."""
    tokens, site = batch.contexts, Site(1)
    content = tiny.content(tokens)
    h = tiny.record(tokens, [site])[site].clone()
    p = tiny.unembed(tiny.final(h, 1))[content].double().log_softmax(-1)
    h[content] = noisy(batch[site])
    q = tiny.unembed(tiny.final(h, 1))[content].double().log_softmax(-1)
    expected = F.kl_div(q, p, log_target=True, reduction="batchmean")
    assert Divergence(tiny)(site, noisy(batch[site]), batch).item() == pytest.approx(expected.item(), rel=1e-3)


def by_an_edit(model, site: Site, x_hat: torch.Tensor, batch: ContextBatch) -> torch.Tensor:
    """Two whole forward passes, one with the reconstruction in place."""
    content = model.content(batch.contexts)
    clean = model.logits(batch.contexts)[content].log_softmax(-1)
    with model.hooks(Edit(site, lambda h: h.index_put(content.nonzero(as_tuple=True), x_hat))):
        edited = model.logits(batch.contexts)[content].log_softmax(-1)
    return (clean.exp() * (clean - edited)).sum(-1).mean()


@pytest.mark.parametrize("site", [*SITES, Site(0), Site(2)], ids=str)
def test_running_from_the_site_on_is_running_all_with_an_edit(tiny, site):
    """Blocks below a residual are not run again; value and gradient do not show it."""
    tokens = random_tokens(tiny.n_vocab, 3, 10)
    tokens[:2, 0] = tokens[0, 5] = tiny.bos_id
    batch = next(ContextStream(tiny, tokens, (site,), seed=0, batch=30).block(0))
    x_from_site, x_edited = (noisy(batch[site]).requires_grad_() for _ in range(2))
    a, b = Divergence(tiny)(site, x_from_site, batch), by_an_edit(tiny, site, x_edited, batch)
    a.backward()
    b.backward()
    assert a.item() == pytest.approx(b.item(), rel=1e-4) and a > 1e-3
    assert torch.allclose(x_from_site.grad, x_edited.grad, atol=1e-5) and x_from_site.grad.abs().max() > 1e-4


def test_the_untouched_model_is_run_once_per_batch(tiny, batch, monkeypatch):
    """However many sites and members ask."""
    expected = tiny.logits(batch.contexts)[tiny.content(batch.contexts)].log_softmax(-1)
    calls, logits = [], type(tiny).logits
    monkeypatch.setattr(type(tiny), "logits", lambda self, tokens: (calls.append(len(tokens)), logits(self, tokens))[1])
    for site in (*SITES, *SITES):
        Divergence(tiny)(site, noisy(batch[site]), batch)
        assert torch.equal(batch.log_probs, expected)
    assert calls == [3]


def test_the_gradient_is_a_difference_quotient(tiny, batch):
    for site in SITES:
        x_hat = noisy(batch[site]).requires_grad_()
        divergence = Divergence(tiny)
        divergence(site, x_hat, batch).backward()
        for seed in range(3):
            along, step = torch.randn(x_hat.shape, generator=generator(seed)), 1e-3
            with torch.no_grad():
                up, down = (divergence(site, x_hat + sign * step * along, batch).item() for sign in (1, -1))
            expected = (x_hat.grad * along).sum().item()
            assert (up - down) / (2 * step) == pytest.approx(expected, rel=0.05, abs=0.01)


def test_whole_contexts_are_needed(tiny, batch):
    with user_error("contexts", "ContextStream"):
        Divergence(tiny)(Site(1), batch[Site(1)], dict(batch))


# ---- batches of whole contexts -----------------------------------------------------------------------


def contexts_of(stream: ContextStream, block: int) -> list[tuple[int, ...]]:
    return [tuple(row) for batch in stream.block(block) for row in batch.contexts.tolist()]


def test_a_block_is_an_epoch_in_an_order_of_its_own(tiny_models):
    model = tiny_models["gpt2"]
    tokens = random_tokens(model.n_vocab, 12, 8)
    stream = ContextStream(model, tokens, (Site(1),), seed=0, batch=24)
    first, second = contexts_of(stream, 0), contexts_of(stream, 1)
    assert Counter(first) == Counter(second) == Counter(map(tuple, tokens.tolist())) and first != second
    assert contexts_of(ContextStream(model, tokens, (Site(1),), seed=0, batch=24), 1) == second
    assert contexts_of(ContextStream(model, tokens, (Site(1),), seed=1, batch=24), 1) != second
    for batch in stream.block(0):
        assert torch.allclose(batch[Site(1)], harvest(model, batch.contexts, (Site(1),))[Site(1)], atol=1e-5)


def test_batches_hold_as_many_contexts_as_have_their_tokens(tiny_models):
    model = tiny_models["gpt2"]
    tokens = random_tokens(model.n_vocab, 12, 8)

    def sizes(batch: int) -> list[int]:
        return [len(part.contexts) for part in ContextStream(model, tokens, (Site(1),), seed=0, batch=batch).block(0)]

    assert sizes(24) == [3] * 4
    assert sizes(40) == [5] * 2  # two contexts left over
    assert sizes(1) == [1] * 12
    assert sizes(1000) == [12]  # all there are


# ---- training on it ----------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [TopK(4), ReLU(2.0)], ids=["topk", "relu"])
def test_training_on_the_divergence_lowers_it(storybook, recipe: Recipe, training_seed):
    """On a model that can read, and on contexts it was not trained on; the control trains on reconstruction alone.

    One architecture whose loss is an FVU, and one with a penalty.
    """
    site, size = Site(3), 8 * 32
    contexts = Text("storybook", 32, True, 9_000).contexts(storybook)
    stream = ContextStream(storybook, contexts[:-32], (site,), seed=training_seed, batch=size)
    held_out = next(ContextStream(storybook, contexts[-32:], (site,), seed=0, batch=32 * 32).block(0))
    divergence, cost = Divergence(storybook), {}
    both = [
        TrainConfig(recipe, expansion=2, tokens=20 * size, batch=size, lr=5e-3, warm_up=5, kl=kl, seed=training_seed)
        for kl in (0.0, 1.0)
    ]
    state = start(stream, *both)
    before = state.members[0].dictionaries()[site]
    with unchecked():
        for _ in train(stream, state, divergence):
            pass
    for member in state.members:
        dictionary = member.dictionaries()[site]
        with torch.no_grad():
            cost[member.config.kl] = divergence(site, dictionary.decode(dictionary.encode(held_out[site])), held_out)
    with torch.no_grad():
        untrained = divergence(site, before.decode(before.encode(held_out[site])), held_out)
    if isinstance(recipe, TopK):  # reconstruction alone lowers it about as far: by how much less depends on the seed
        assert max(cost.values()) < 0.5 * untrained
    else:  # a ReLU begins with half of its latents active, and so with little divergence
        assert cost[1.0] < 0.5 * cost[0.0] and cost[1.0] < untrained
