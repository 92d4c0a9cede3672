"""What contexts begin with, and which tokens are left out, is the text's to say; the model stays what it is."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import random_tokens, user_error

from sae_core.data.activations import harvest
from sae_core.data.reading import bos_of, left_out, plain, token_id
from sae_core.data.text import Text, digest
from sae_core.model.language_model import LanguageModel
from sae_core.sites import Site

SITES = (Site(1),)


@pytest.fixture
def model(tiny_models):
    return tiny_models["gpt2"]


@pytest.fixture
def source(tmp_path) -> str:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"Mary went home {word} ."}) + "\n" for word in ("too", "and", "he")))
    return str(path)


class WithoutBos(LanguageModel):
    """A model whose tokenizer has an end, but no BOS: Qwen 2."""

    def __init__(self, model):
        self.__dict__.update(vars(model) | {"bos_id": None})


# ---- BOS -------------------------------------------------------------------------------------------


def test_by_default_the_models_own(model, source):
    name = bos_of(model, None)
    assert name == model.tokenizer.bos_token and token_id(model, name) == model.bos_id
    by_name, by_model = (Text(source, 4, bos, seed=0) for bos in (name, True))
    assert torch.equal(by_name.contexts(model), by_model.contexts(model))
    assert by_name.read_by(model) is model and by_name.bos_text(model) == name
    assert by_name.shares(by_model) and by_model.shares(by_name)


def test_none(model, source):
    text = Text(source, 4, bos_of(model, "none"), seed=0)
    assert text.prepend_bos is False and text.bos_text(model) == "none" and text.read_by(model) is model
    assert model.bos_id not in text.contexts(model)
    assert not text.shares(replace(text, prepend_bos=True))


def test_another_token(model, source):
    text = Text(source, 4, bos_of(model, "and"), seed=0)
    (bos,) = model.to_ids("and")
    contexts = text.contexts(model)
    assert (contexts[:, 0] == bos).all() and model.bos_id not in contexts and text.bos_text(model) == "and"
    reader = text.read_by(model)
    assert reader.bos_id == bos and model.bos_id != bos
    assert not reader.content(contexts)[:, 0].any() and model.content(contexts).all()


def test_what_is_not_one_token(model):
    for name in ("Mary went", "<|endoftex|>"):
        with user_error(repr(name), "not one token"):
            bos_of(model, name)
    with user_error("did you mean <|endoftext|>"):
        bos_of(model, "<|endoftex|>")


def test_a_model_without_bos_gets_none(model):
    """It used to get its end token, which no context of its training began with."""
    assert bos_of(WithoutBos(model), None) is False


def test_a_set_from_the_time_when_the_end_token_was_taken_for_bos_reads_as_it_did(model):
    assert Text("storybook", 8, True).bos(WithoutBos(model)) == [model.tokenizer.eos_token_id]
    assert Text("somewhere", 8, True, seed=0).bos(WithoutBos(model)) == []


# ---- tokens left out -------------------------------------------------------------------------------


def test_tokens_left_out_are_not_harvested_and_all_others_are(model):
    tokens = random_tokens(40, 6, 9)
    word = model.token_text(int(tokens[2, 3]))
    reader = Text("storybook", 9, True, exclude=(word,)).read_by(model)
    expected = tokens != tokens[2, 3]
    assert torch.equal(reader.content(tokens), expected) and not expected.all() and model.content(tokens).all()
    rows, all_rows = (harvest(each, tokens, SITES)[SITES[0]] for each in (reader, model))
    assert torch.equal(rows, all_rows[expected.flatten()])
    assert torch.equal(reader.logits(tokens), model.logits(tokens))  # it computes what it did


def test_a_reader_is_made_of_the_model_not_of_another_reader(model):
    first = Text("storybook", 8, True, exclude=("Mary",)).read_by(model)
    second = Text("storybook", 8, True, exclude=("went",)).read_by(first)
    assert plain(second) is model and left_out(second) == {token_id(model, "went")}
    assert Text("storybook", 8, True).read_by(first) is model and left_out(model) == frozenset()


def test_a_text_reads_back_with_all_that_it_says():
    from dataclasses import asdict

    text = Text("storybook", 8, "and", exclude=("Mary", "."), seed=3)
    assert Text(**json.loads(json.dumps(asdict(text)))) == text


def test_activations_without_some_tokens_are_others_than_with_them(model):
    tokens = random_tokens(40, 2, 3)
    digests = {digest(tokens, ids) for ids in ((), (3,), (4, 3), (3, 4))}
    assert len(digests) == 3 and digest(tokens) in digests


def test_what_cannot_be_left_out(model):
    with user_error("'Mary went'", "one at a time"):
        Text("storybook", 8, True, exclude=("Mary went",)).read_by(model)


def test_a_path_is_kept_whatever_else_a_text_says(source):
    assert Path(Text(source, 8, "and", exclude=(".",)).source).is_absolute()
