"""Edits apply to every forward pass inside their block, left to right, and leave no trace behind it."""

import pytest
import torch
from comparing import close, n_hooks
from tiny import Edit, random_tokens, user_error

from sae_core.sites import Site, Stream


@pytest.fixture
def tokens(tiny):
    return random_tokens(tiny.n_vocab, 3, 12)


def test_an_edit_replaces_the_activation(tiny, tokens):
    """At the last residual the logits must be those of the edited vector."""
    edit = Edit(Site(2), lambda h: h.flip(-1) + 1)
    h = tiny.record(tokens, [Site(2)])[Site(2)]
    with tiny.hooks(edit):
        close(tiny.record(tokens, [Site(2)])[Site(2)], edit(h), 1e-6)
        close(tiny.logits(tokens), tiny.unembed(edit(h)), 1e-6)
        assert (tiny.logits(tokens) - tiny.unembed(h)).abs().max() > 0.1


def test_an_edit_that_changes_nothing_changes_no_bit(tiny, tokens):
    before = tiny.logits(tokens)
    with tiny.hooks(
        *(Edit(site, lambda h: h) for site in [site for stream in Stream for site in tiny.offered(stream)])
    ):
        assert torch.equal(tiny.logits(tokens), before)


def test_edits_compose_left_to_right(tiny, tokens):
    site = Site(1)
    add, double = Edit(site, lambda h: h + 1), Edit(site, lambda h: 2 * h)
    h = tiny.record(tokens, [site])[site]
    with tiny.hooks(add, double):
        assert torch.equal(tiny.record(tokens, [site])[site], 2 * (h + 1))
    with tiny.hooks(double, add):
        assert torch.equal(tiny.record(tokens, [site])[site], 2 * h + 1)
    with tiny.hooks(add), tiny.hooks(double):
        assert torch.equal(tiny.record(tokens, [site])[site], 2 * (h + 1))


def test_nothing_is_left_after_the_block(tiny, tokens):
    before, hooks = tiny.logits(tokens), n_hooks(tiny)
    with tiny.hooks(Edit(Site(0), torch.zeros_like), Edit(Site(1, Stream.ATTN_OUT), torch.zeros_like)):
        assert n_hooks(tiny) == hooks + 2
        assert not torch.equal(tiny.logits(tokens), before)
    assert n_hooks(tiny) == hooks
    assert torch.equal(tiny.logits(tokens), before)


def test_nothing_is_left_after_an_exception_in_the_block(tiny, tokens):
    before, hooks = tiny.logits(tokens), n_hooks(tiny)
    with pytest.raises(ZeroDivisionError), tiny.hooks(Edit(Site(0), torch.zeros_like)):
        raise ZeroDivisionError
    assert n_hooks(tiny) == hooks
    assert torch.equal(tiny.logits(tokens), before)


def test_nothing_is_left_after_an_exception_in_an_edit(tiny, tokens):
    def fail(h):
        raise ZeroDivisionError

    before, hooks = tiny.logits(tokens), n_hooks(tiny)
    with pytest.raises(ZeroDivisionError), tiny.hooks(Edit(Site(0), torch.zeros_like), Edit(Site(1), fail)):
        tiny.logits(tokens)
    assert n_hooks(tiny) == hooks
    assert torch.equal(tiny.logits(tokens), before)


def test_nothing_is_left_when_a_later_site_does_not_exist(tiny, tokens):
    before, hooks = tiny.logits(tokens), n_hooks(tiny)
    with user_error("resid_post.7"), tiny.hooks(Edit(Site(0), torch.zeros_like), Edit(Site(7), torch.zeros_like)):
        pass
    with user_error("resid_post.7"):
        tiny.record(tokens, [Site(0), Site(7)])
    assert n_hooks(tiny) == hooks
    assert torch.equal(tiny.logits(tokens), before)
