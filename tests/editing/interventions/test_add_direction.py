"""Adding a direction: what is added, where, and that it can be learned."""

import pytest
import torch
from comparing import close
from handmade import normal
from tiny import random_tokens

from editing.interventions.add_direction import AddDirection, written
from sae_core.sites import Site, Stream

SITE = Site(1)


def test_a_direction_is_added_times_its_strength():
    h, direction = normal(3, 7, 16), normal(16, seed=1)
    assert torch.equal(AddDirection(SITE, direction)(h), h + direction)
    assert torch.equal(AddDirection(SITE, direction, -2.5)(h), h - 2.5 * direction)
    assert torch.equal(AddDirection(SITE, direction, 0.0)(h), h)


@pytest.mark.parametrize("shape", [(3, 7), (1, 7), (3, 1), (1, 1)])
def test_directions_may_differ_by_row_and_by_position(shape):
    h, directions = normal(3, 7, 16), normal(*shape, 16, seed=1)
    assert torch.equal(AddDirection(SITE, directions, 2.0)(h), h + 2.0 * directions.expand_as(h))


def test_a_mask_limits_it_and_the_activation_given_stays_as_it_is():
    h, mask = normal(3, 7, 16), torch.zeros(3, 7, dtype=torch.bool)
    mask[0, 2] = mask[2] = True
    before, edit = h.clone(), AddDirection(SITE, normal(16, seed=1), 3.0, mask)
    changed = edit(h)
    assert torch.equal(changed[~mask], h[~mask]) and torch.equal(changed[mask], h[mask] + 3.0 * edit.direction)
    assert torch.equal(h, before)


def test_directions_at_one_site_add_up_in_any_order(tiny):
    tokens = random_tokens(tiny.n_vocab, 3, 8)
    first, other = AddDirection(SITE, normal(32)), AddDirection(SITE, normal(32, seed=1), 2.0)

    def logits(*edits):
        with tiny.hooks(*edits):
            return tiny.logits(tokens)

    both = logits(AddDirection(SITE, first.direction + 2.0 * other.direction))
    close(logits(first, other), both, 1e-4)
    close(logits(other, first), both, 1e-4)
    assert (logits(first) - both).abs().max() > 0.1


def test_at_the_last_residual_a_tokens_direction_raises_its_logit(tiny):
    """Dose and response: the unembedding's own direction for a token, before the norm."""
    tokens, token = random_tokens(tiny.n_vocab, 3, 8), 17
    unembedding = tiny.bridge.W_U[:, token]
    direction = unembedding - unembedding.mean()
    rise = []
    for strength in (-4.0, 0.0, 1.0, 4.0):
        with tiny.hooks(AddDirection(Site(2), direction, strength)):
            rise.append(tiny.logits(tokens)[..., token].mean())
    assert rise == sorted(rise) and rise[0] < rise[-1]
    with tiny.hooks(AddDirection(Site(2), direction, 0.0)):
        assert torch.equal(tiny.logits(tokens)[..., token].mean(), rise[1])


def test_a_direction_can_be_learned(tiny):
    """A few steps of gradient descent on the direction lower the loss it is learned for."""
    tokens = random_tokens(tiny.n_vocab, 4, 8)
    direction = torch.zeros(32, requires_grad=True)
    losses = []
    for _ in range(4):
        with tiny.hooks(AddDirection(Site(0, Stream.MLP_OUT), direction)):
            loss = -tiny.logits(tokens)[:, -1].log_softmax(-1)[:, 5].mean()
        losses.append(loss.item())
        (gradient,) = torch.autograd.grad(loss, direction)
        direction = (direction - 0.2 * gradient / gradient.norm()).detach().requires_grad_()
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] - 0.01


@pytest.mark.parametrize(("inner", "outer"), [(Stream.MLP_HIDDEN, Stream.MLP_OUT), (Stream.ATTN_Z, Stream.ATTN_OUT)])
def test_a_hidden_direction_writes_what_the_block_makes_of_it(tiny, inner, outer):
    site, out = Site(1, inner), Site(1, outer)
    directions = torch.nn.functional.normalize(normal(4, tiny.d_in(site)), dim=-1)
    rows = written(tiny, site, directions)
    text = random_tokens(30, 4, 12)
    for direction, expected in zip(directions, rows, strict=True):
        push = type("Push", (), {"site": site, "__call__": lambda _, h, d=direction: h + 3 * d})()
        with tiny.hooks(push):
            moved = tiny.record(text, [out])[out]
        change = (moved - tiny.record(text, [out])[out]) / 3
        torch.testing.assert_close(change, expected.expand_as(change), atol=1e-4, rtol=1e-4)
    assert torch.equal(written(tiny, out, directions[:, :32]), directions[:, :32])
