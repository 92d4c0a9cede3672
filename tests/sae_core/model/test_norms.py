"""Norms computed once: the same numbers, and hooks inside them still see and edit what they did."""

import copy

import pytest
import torch

from sae_core.model.norms import _forward

POINT = "blocks.1.ln1.hook_scale"


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.arange(2, 18).view(2, 8)


def norms(bridge) -> list:
    return [module for module in bridge.modules() if module.__dict__.get("forward", None)]


def test_the_logits_are_those_of_the_library_to_the_bit(storybook, tokens):
    replaced = norms(storybook.bridge)
    assert len(replaced) == 2 * storybook.n_layers + 1
    quick = storybook.bridge(tokens)
    try:
        for norm in replaced:
            del norm.__dict__["forward"]
        assert torch.equal(storybook.bridge(tokens), quick)
    finally:
        for norm in replaced:
            norm.__dict__["forward"] = _forward.__get__(norm)


def test_a_hook_inside_a_norm_sees_the_scale_and_edits_it(storybook, tokens):
    """Control: without the edit nothing changes."""
    seen = []
    plain = storybook.bridge(tokens)
    looked = storybook.bridge.run_with_hooks(tokens, fwd_hooks=[(POINT, lambda x, hook: seen.append(x))])
    assert seen[0].shape == (*tokens.shape, 1) and torch.equal(looked, plain)
    with pytest.warns(UserWarning, match="edited hook_scale"):
        edited = storybook.bridge.run_with_hooks(tokens, fwd_hooks=[(POINT, lambda x, hook: 2 * x)])
    assert (edited - plain).abs().max() > 1e-2


def test_a_copy_of_the_model_computes_with_norms_of_its_own(storybook, tokens):
    other = copy.deepcopy(storybook.bridge)
    with torch.no_grad():
        other.blocks[0].ln1.original_component.weight.zero_()
    assert not torch.equal(other(tokens), storybook.bridge(tokens))
