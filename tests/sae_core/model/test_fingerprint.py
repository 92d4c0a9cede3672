"""A fingerprint is of the weights and the architecture, and of nothing else."""

import pytest
from tiny import random_tokens, write_tiny

from sae_core.model.fingerprint import weights_digest
from sae_core.model.language_model import load_model


def test_fingerprint_is_the_same_for_two_loads(tiny, checkpoints, kind):
    before = tiny.fingerprint()
    tiny.logits(random_tokens(tiny.n_vocab, 1, 4))
    assert load_model(checkpoints[kind], device="cpu").fingerprint() == before == tiny.fingerprint()


def test_fingerprints_of_the_tiny_models_differ(tiny_models):
    assert len({model.fingerprint() for model in tiny_models.values()}) == 3


@pytest.mark.slow
def test_fingerprint_changes_with_every_weight(checkpoints, kind):
    model = load_model(checkpoints[kind], device="cpu")
    before = model.fingerprint()
    for name, weight in model.bridge.original_model.state_dict().items():
        original = weight.clone()
        weight.mul_(1.01).add_(0.01)
        assert model.fingerprint() != before, name
        weight.copy_(original)
    assert model.fingerprint() == before


@pytest.mark.parametrize(
    ("kind", "change"),
    [("neox", {"rotary_pct": 1.0}), ("gpt2", {"activation_function": "relu"}), ("llama", {"rms_norm_eps": 0.1})],
)
def test_fingerprint_changes_with_the_architecture(tiny_models, kind, change, tmp_path):
    other = load_model(write_tiny(tmp_path / "other", kind, **change), device="cpu")
    tokens = random_tokens(other.n_vocab, 1, 8)
    assert (other.logits(tokens) - tiny_models[kind].logits(tokens)).abs().max() > 1e-2
    assert other.fingerprint() != tiny_models[kind].fingerprint()


def test_an_edit_between_the_sampled_numbers_shows_in_the_digest_of_weights(checkpoints):
    """A rank-one edit or a pruned neuron: once a survey of the model before it was taken for one of the model after."""
    model = load_model(checkpoints["neox"], device="cpu")
    inner, fingerprint = model.bridge.original_model, model.fingerprint()
    before = weights_digest(inner)
    weight = max(inner.state_dict().values(), key=lambda each: each.numel())
    flat = weight.view(-1)
    assert len(flat) >= 1024  # of which at most every second number is sampled, from the first on
    original = flat[1].item()
    flat[1] = original + 0.5
    assert model.fingerprint() == fingerprint and weights_digest(inner) != before
    flat[1] = original
    first, second = flat[2].item(), flat[3].item()
    flat[2], flat[3] = second, first  # the same numbers in another order
    assert weights_digest(inner) != before
    flat[2], flat[3] = first, second
    assert weights_digest(inner) == before
