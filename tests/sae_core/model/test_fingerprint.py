"""A fingerprint is of the configuration, of every weight and of the tokenizer, and of nothing else."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny import random_tokens, write_tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_core.model.fingerprint import parts_other_than, sampled, weights_digest
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


@pytest.mark.slow
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
    before, sample = weights_digest(inner), sampled(model.bridge.cfg, inner)
    weight = max(inner.state_dict().values(), key=lambda each: each.numel())
    flat = weight.view(-1)
    assert len(flat) >= 1024  # of which at most every second number is sampled, from the first on
    original = flat[1].item()
    flat[1] = original + 0.5
    assert sampled(model.bridge.cfg, inner) == sample and weights_digest(inner) != before
    assert parts_other_than(fingerprint, model) == ["weights"] and not parts_other_than(sample, model)
    flat[1] = original
    first, second = flat[2].item(), flat[3].item()
    flat[2], flat[3] = second, first  # the same numbers in another order
    assert weights_digest(inner) != before
    flat[2], flat[3] = first, second
    assert weights_digest(inner) == before and model.fingerprint() == fingerprint


def changed(folder: Path, file: str, change) -> Path:
    """The checkpoint in `folder` with the JSON of one of its files changed in place."""
    value = json.loads((folder / file).read_text())
    change(value)
    (folder / file).write_text(json.dumps(value))
    return folder


def swap(tokenizer: dict) -> None:
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]


def test_a_permuted_vocabulary_is_another_tokenizer(checkpoints, tiny_models, tmp_path):
    """Once accepted: every text then reads as other tokens."""
    folder = changed(shutil.copytree(checkpoints["gpt2"], tmp_path / "other"), "tokenizer.json", swap)
    fingerprint = tiny_models["gpt2"].fingerprint()
    assert parts_other_than(fingerprint, load_model(folder, device="cpu")) == ["tokenizer"]


def test_what_changes_nothing_that_a_model_computes_is_not_part_of_it(checkpoints, tiny_models, tmp_path):
    def change(config: dict) -> None:
        config |= {"transformers_version": "4.0.0", "use_cache": False, "initializer_range": 0.5, "an_option": None}
        config |= {"task_specific_params": {"a": 1}, "a_note": "mine"}

    folder = changed(shutil.copytree(checkpoints["gpt2"], tmp_path / "other"), "config.json", change)
    assert load_model(folder, device="cpu").fingerprint() == tiny_models["gpt2"].fingerprint()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "<padding>"})
    assert len(tokenizer) > tiny_models["gpt2"].n_vocab  # else it might stand for a word
    tokenizer.save_pretrained(folder)
    with torch.inference_mode():
        assert load_model(folder, device="cpu").fingerprint() == tiny_models["gpt2"].fingerprint()


def test_a_fingerprint_that_was_cut_is_of_no_model(tiny_models):
    model = tiny_models["gpt2"]
    for cut in (model.fingerprint().split()[0], "x:y"):
        assert parts_other_than(cut, model) == ["fingerprint"]
    assert not parts_other_than(model.fingerprint(), model)


def test_a_fingerprint_is_of_numbers_not_of_their_precision(checkpoints, tiny_models, tmp_path):
    """In half precision weights are other numbers; saved so, they are these wherever they are loaded."""
    half = load_model(checkpoints["gpt2"], device="cpu", dtype="bfloat16")
    assert parts_other_than(tiny_models["gpt2"].fingerprint(), half) == ["weights"]
    model = AutoModelForCausalLM.from_pretrained(checkpoints["gpt2"], dtype=torch.bfloat16)
    shutil.copytree(checkpoints["gpt2"], tmp_path / "half")
    model.save_pretrained(tmp_path / "half")
    assert load_model(tmp_path / "half", device="cpu").fingerprint() == half.fingerprint()
