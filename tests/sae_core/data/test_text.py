"""Contexts are what the rule says, stated plainly; held-out text is never trained on; mistakes are one line."""

import json
import random
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import user_error

from sae_core.data.documents import documents
from sae_core.data.text import Contexts, Text, held_out
from sae_core.model import hub
from sae_core.storybook.grammar import Grammar, vocabulary

SHARED = Path(__file__).resolve().parents[4] / "shared"


@pytest.fixture
def model(tiny_models):
    return tiny_models["gpt2"]


def write_documents(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return str(path)


def read(source: str, model, n_ctx: int, *, prepend_bos: bool = True, **rest) -> list[list[int]]:
    return Text(source, n_ctx, prepend_bos, **rest).contexts(model).tolist()


def by_hand(rows: list[list[int]], n_ctx: int, bos: list[int]) -> list[list[int]]:
    """The rule, told plainly: cut documents into pieces, fill contexts with pieces, cut what stands over."""
    size = n_ctx - len(bos)
    pieces = [bos + row[start : start + size] for row in rows for start in range(0, len(row), size)]
    contexts, context = [], []
    for piece in pieces:
        context = context + piece
        if len(context) >= n_ctx:
            contexts.append(context[:n_ctx])
            context = []
    return contexts


WORDS = [(i, word) for i, word in enumerate(vocabulary()) if word.isalpha()]


def some_ids(n: int, first: int = 0) -> list[int]:
    """Ids of `n` different words."""
    return [i for i, _ in WORDS[first : first + n]]


def as_text(ids: list[int]) -> str:
    return " ".join(dict(WORDS)[i] for i in ids)


# ---- contexts --------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.integers(4, 16), st.booleans())
def test_contexts_follow_the_rule(model, tmp_path, lengths, n_ctx, prepend_bos):
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    rows = [some_ids(n, first) for n, first in zip(lengths, starts, strict=True)]
    source = write_documents(tmp_path / "text.jsonl", [as_text(row) for row in rows])
    expected = by_hand(rows, n_ctx, [model.bos_id] if prepend_bos else [])
    if expected:
        assert read(source, model, n_ctx, prepend_bos=prepend_bos) == expected
    else:
        with user_error("fewer than one context"):
            read(source, model, n_ctx, prepend_bos=prepend_bos)


def test_a_long_document_loses_only_its_end(model, tmp_path):
    """14 tokens at 4 per context after BOS: three contexts hold the first 12, in order."""
    ids = some_ids(14)
    source = write_documents(tmp_path / "text.jsonl", [as_text(ids)])
    contexts = read(source, model, 5)
    assert [len(row) for row in contexts] == [5, 5, 5]
    assert all(row[0] == model.bos_id for row in contexts)
    assert [token for row in contexts for token in row[1:]] == ids[:12]


def test_the_piece_that_does_not_fit_is_cut_and_the_next_context_begins_a_piece(model, tmp_path):
    a, b, c = some_ids(4, 10), some_ids(5, 20), some_ids(7, 30)
    source = write_documents(tmp_path / "text.jsonl", [as_text(row) for row in (a, b, c)])
    bos = model.bos_id
    assert read(source, model, 8) == [[bos, *a, bos, *b[:2]], [bos, *c]]


def test_every_piece_starts_with_bos_and_no_context_starts_inside_one(model, tmp_path):
    lengths = [3, 9, 1, 17, 6, 6, 2, 30, 11]
    rows = [some_ids(n, sum(lengths[:i])) for i, n in enumerate(lengths)]
    source = write_documents(tmp_path / "text.jsonl", [as_text(row) for row in rows])
    starts = {row[i] for row in rows for i in range(0, len(row), 7)}
    contexts = read(source, model, 8)
    assert len(contexts) > 5
    for context in contexts:
        assert context[0] == model.bos_id
        assert {context[i + 1] for i, token in enumerate(context[:-1]) if token == model.bos_id} <= starts
    assert {context[0] for context in read(source, model, 8, prepend_bos=False)} != {model.bos_id}


def test_max_tokens_bounds_what_is_read(model, tmp_path):
    source = write_documents(tmp_path / "text.jsonl", [as_text(some_ids(9)) for _ in range(50)])
    everything = read(source, model, 10)
    assert len(everything) == 50
    assert read(source, model, 10, max_tokens=100) == everything[:10]
    assert read(source, model, 10, max_tokens=95) == everything[:9]


def test_one_long_document_is_bounded_too(model, tmp_path):
    source = write_documents(tmp_path / "text.jsonl", [as_text(some_ids(500))])
    assert len(read(source, model, 10)) == 55
    assert len(read(source, model, 10, max_tokens=100)) == 10


@pytest.mark.slow
def test_contexts_can_be_read_again(model):
    text = Text("storybook", 32, True, max_tokens=2000)
    first = text.contexts(model)
    assert first.dtype == torch.long and first.shape == (2000 // 32, 32)
    assert torch.equal(first, text.contexts(model))


@pytest.mark.slow
def test_storybook_text_holds_no_unknown_words_and_no_training_document(model):
    sample = list(islice(documents("storybook"), 100))
    unknown = model.tokenizer.unk_token_id
    assert all(unknown not in model.to_ids(document) for document in sample)
    rng, grammar = random.Random(0), Grammar()
    trained = {" ".join(token.text for token in grammar.document(rng)[:-1]) for _ in range(100)}
    assert len(set(sample) & trained) < 10  # a few shortest ones may be drawn twice
    assert list(islice(documents("storybook"), 100)) == sample


# ---- held-out text ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "n_held"), [(2, 1), (9, 1), (10, 1), (100, 10), (2560, 256), (10_000, 256)])
def test_held_out_text_is_never_trained_on(n, n_held):
    contexts = torch.arange(n)[:, None].expand(n, 3)
    training, held = held_out(contexts)
    assert len(held) == n_held and len(training) == n - n_held
    assert not set(training[:, 0].tolist()) & set(held[:, 0].tolist())
    assert sorted([*training[:, 0].tolist(), *held[:, 0].tolist()]) == list(range(n))


def test_a_single_context_serves_for_both():
    contexts = torch.arange(3)[None]
    training, held = held_out(contexts)
    assert torch.equal(training, contexts) and torch.equal(held, contexts)


@pytest.mark.real
@pytest.mark.parametrize("by_document, n, n_apart", [(False, 5, 4), (True, 5, 5), (False, 1, 1)])
def test_training_apart_shares_no_document_with_what_is_held_out(by_document, n, n_apart):
    """Held-out contexts come first in the text: the last of their documents may run on into the first of training."""
    rows = torch.arange(n * 3).view(n, 3)
    assert torch.equal(Contexts(rows, rows - 100, by_document=by_document).training_apart, rows[n - n_apart :])


def test_a_real_page_reads(model):
    page = SHARED / "DESIGN.md"
    if not page.is_file():
        pytest.skip("needs ../shared/DESIGN.md, which is not part of the repository")
    contexts = Text(str(page), 32, True).contexts(model)
    assert contexts.shape[1] == 32 and len(contexts) > 50


# ---- mistakes --------------------------------------------------------------------------------------


def test_a_missing_file(tmp_path):
    with user_error(str(tmp_path / "gone.txt"), "no text at"):
        list(documents(str(tmp_path / "gone.txt")))
    with user_error("no text at"):
        list(documents("./gone"))


def test_a_folder_without_text(tmp_path):
    (tmp_path / "README.md").write_text("Mary")
    with user_error(str(tmp_path), ".txt"):
        list(documents(str(tmp_path)))
    (tmp_path / "a.txt").write_text(" ")
    with user_error(str(tmp_path), "holds no text"):
        list(documents(str(tmp_path)))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
@pytest.mark.parametrize("content", ["", " \n\n  \n"])
def test_a_file_without_text(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content)
    with user_error(str(path), "holds no text"):
        list(documents(str(path)))


@pytest.mark.parametrize("line", ["{", '["text"]', '{"body": "x"}', "3", "null", '{"text": 3}', '{"text": null}'])
def test_a_bad_line_is_named_by_number(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "fine"}}\n\n{line}\n')
    with user_error(str(path), "line 3"):
        list(documents(str(path)))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_file_that_is_not_utf8(tmp_path, name):
    path = tmp_path / name
    path.write_bytes('{"text": "Straße"}'.encode("latin-1"))
    with user_error(str(path), "not UTF-8"):
        list(documents(str(path)))


def test_text_shorter_than_one_context(tmp_path, model):
    path = tmp_path / "a.txt"
    path.write_text("Mary went home .")
    with user_error(str(path), "4 tokens", "context of 32"):
        read(str(path), model, 32)
    assert len(read(str(path), model, 5)) == 1


def test_a_context_longer_than_the_model_reads(model):
    with user_error("65", "64"):
        read("storybook", model, 65)
    assert len(read("storybook", model, 64, max_tokens=64)[0]) == 64


@pytest.mark.parametrize("n_ctx", [0, 1, -3])
def test_a_context_without_room_for_text(model, tmp_path, n_ctx):
    path = tmp_path / "a.txt"
    path.write_text("Mary went home .")
    with user_error("context", str(n_ctx)):
        read(str(path), model, n_ctx)


def test_a_dataset_name_without_hub(monkeypatch):
    monkeypatch.setattr(hub, "hub_answers", lambda endpoint: False)
    with user_error("nobody/no-such-text", "hub does not answer"):
        list(documents("nobody/no-such-text"))


def test_another_text_under_the_same_name_is_refused_unless_it_is_named(tmp_path, model):
    """What was held out might else be what was trained on."""
    source = write_documents(tmp_path / "a.jsonl", [f"Mary gave {word} to John ." for _, word in WORDS[:40]])
    text = Text(source, 6, True, seed=0)
    known = replace(text, digest=text.read(model).digest)
    assert known == text and known.read(model).digest == known.digest
    for texts in (["Mary went home ."] * 40, [f"Mary gave {word} to John ." for _, word in WORDS[:39]]):
        write_documents(tmp_path / "a.jsonl", texts)
        with user_error(source, "holds another text", "--text"):
            known.at(None).read(model)
        assert known.at(source).read(model).digest == text.read(model).digest != known.digest
    assert known.at("storybook").digest == ""
