"""What contexts begin with, and which tokens are left out, is the text's to say; the model stays what it is."""

import json
from copy import copy, deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import random_tokens, user_error

from sae_core.data.activations import harvest
from sae_core.data.reading import as_chat, bos_of, left_out, plain, token_id
from sae_core.data.text import Text
from sae_core.digest import digest
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


# ---- chat ------------------------------------------------------------------------------------------

TURNS = [{"role": "user", "content": "Mary went"}, {"role": "assistant", "content": "home ."}]
TEMPLATE = (
    "{% for turn in messages %}{% if turn.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "<|endoftext|> {{ turn.role == 'user' and 'he' or 'she' }} : {{ turn.content }} {% endfor %}"
    "{% if add_generation_prompt %}<|endoftext|> she :{% endif %}"
)


@pytest.fixture
def chatting(model):
    """The tiny model, with a template: `he` is the user, `she` the assistant."""
    copied = copy(model)
    copied.tokenizer = deepcopy(model.tokenizer)
    copied.tokenizer.chat_template = TEMPLATE
    return copied


def lines(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_prompts_are_what_a_user_says(chatting):
    assert as_chat(chatting, "Mary went", reply=True) == "<|endoftext|> he : Mary went <|endoftext|> she :"


@pytest.mark.parametrize(
    "row",
    [
        {"messages": TURNS},
        {
            "conversations": [
                {"from": who, "value": turn["content"]} for who, turn in zip(("human", "gpt"), TURNS, strict=True)
            ]
        },
        {"text": TURNS},
    ],
    ids=["messages", "conversations", "text"],
)
def test_conversations_are_written_by_the_template(chatting, tmp_path, row):
    expected = chatting.to_ids("<|endoftext|> he : Mary went <|endoftext|> she : home .")
    source = lines(tmp_path / "a.jsonl", [row])
    text = Text(source, len(expected), True, seed=0, chat=True)
    assert text.contexts(chatting).tolist() == [expected]  # its own BOS, and no second one


def test_plain_texts_are_what_a_user_says(chatting, tmp_path):
    expected = chatting.to_ids("<|endoftext|> he : Mary went")
    text = Text(lines(tmp_path / "a.jsonl", [{"text": "Mary went"}]), len(expected), True, seed=0, chat=True)
    assert text.contexts(chatting).tolist() == [expected]


def test_conversations_need_the_word_chat_and_a_template_that_takes_them(chatting, model, tmp_path):
    source = lines(tmp_path / "a.jsonl", [{"messages": TURNS}])
    with user_error("conversations", "--chat"):
        Text(source, 4, True, seed=0).contexts(chatting)
    with user_error("no chat template", "leave --chat out"):
        Text(source, 4, True, seed=0, chat=True).contexts(model)
    system = lines(tmp_path / "b.jsonl", [{"messages": [{"role": "system", "content": "Mary"}]}])
    with user_error("does not take", "no system"):
        Text(system, 4, True, seed=0, chat=True).contexts(chatting)
    with user_error("token ids", "--chat"):
        Text(lines(tmp_path / "d.jsonl", [{"input_ids": [2, 3, 4, 5]}]), 4, True, seed=0, chat=True).contexts(chatting)
    with user_error("turns"):
        Text(lines(tmp_path / "c.jsonl", [{"messages": [{"who": "Mary"}]}]), 4, True, chat=True).contexts(chatting)


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
    digests = {digest(tokens, frozenset(ids)) for ids in ((), (3,), (4, 3), (3, 4))}
    assert len(digests) == 3 and digest(tokens, frozenset()) in digests


def test_what_cannot_be_left_out(model):
    with user_error("'Mary went'", "one at a time"):
        Text("storybook", 8, True, exclude=("Mary went",)).read_by(model)


def test_a_path_is_kept_whatever_else_a_text_says(source):
    assert Path(Text(source, 8, "and", exclude=(".",)).source).is_absolute()
