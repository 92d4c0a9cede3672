"""No document is trained on and measured on, whatever the seed, the context and how much is read."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import user_error

from sae_core.data.text import MOST_HELD, Text, share_of
from sae_core.model.language_model import LanguageModel


class Reader(LanguageModel):
    """A model without network, whose tokens are numbers in the text."""

    name, n_ctx, n_vocab, bos_id = "reader", 64, 10**6, None

    def __init__(self, bos_id: int | None = None):
        self.bos_id = bos_id

    def all_ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [[int(word) for word in text.split()] for text in texts]


def numbered(lengths: list[int]) -> list[str]:
    """Documents of these lengths; a token is 100 times the number of its document, plus its place."""
    return [" ".join(str(100 * (number + 1) + place) for place in range(n)) for number, n in enumerate(lengths)]


def write(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def documents_in(contexts: torch.Tensor) -> set[int]:
    return set((contexts[contexts > 0] // 100).tolist())


LENGTHS = st.lists(st.integers(1, 60), min_size=2, max_size=120)
FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FEW
@given(LENGTHS, st.integers(2, 12), st.sampled_from([None, 0]), st.integers(0, 5), st.integers(24, 2000))
def test_no_document_is_on_both_sides(tmp_path, lengths, n_ctx, bos_id, seed, amount):
    text = Text(write(tmp_path / "a.jsonl", numbered(lengths)), n_ctx, True, amount, seed=seed)
    try:
        contexts = text.read(Reader(bos_id))
    except ValueError as error:
        assert "fewer than one context" in str(error)
        return
    training, held = documents_in(contexts.training), documents_in(contexts.held_out)
    assert training and held
    assert contexts.note or not training & held
    first, other = (documents_in(part) for part in contexts.apart(3, min(3, len(contexts.held_out))))
    assert contexts.by_document is not bool(contexts.note) and not (contexts.by_document and first & other)
    assert contexts.all.numel() <= max(amount, n_ctx)
    assert len(contexts.held_out) <= max(1, amount // n_ctx // 10)
    if not contexts.note:
        assert torch.equal(contexts.all, torch.cat([contexts.held_out, contexts.training]))


@pytest.fixture
def corpus(tmp_path) -> str:
    rng = random.Random(0)
    return write(tmp_path / "corpus.jsonl", numbered([rng.randint(1, 60) for _ in range(2000)]))


def test_nothing_held_out_by_one_run_is_trained_on_by_another(corpus):
    """Other seeds, contexts and amounts; with BOS and without it."""
    model = Reader(0)
    ways = [(8, True, 10**6, 0), (8, True, 20_000, 1), (24, False, 10**6, 2), (8, True, 9_000, 0)]
    runs = [Text(corpus, n_ctx, bos, amount, seed=seed).read(model) for n_ctx, bos, amount, seed in ways]
    held = set().union(*(documents_in(run.held_out) for run in runs))
    training = set().union(*(documents_in(run.training) for run in runs))
    assert len(held) > 100 and len(training) > 1500 and not held & training
    # control: the first tenth of the contexts, in two orders of the documents
    orders = [torch.cat([run.training, run.held_out]) for run in runs[:2]]
    assert documents_in(orders[0][:256]) & documents_in(orders[1][256:])


def test_about_a_tenth_of_the_documents_is_held_out(corpus):
    whole = Text(corpus, 8, False, 10**6, seed=0).read(Reader())
    assert len(whole.held_out) == MOST_HELD
    shares = [share_of(Reader().to_ids(text)) for text in numbered([9] * 5000)]
    assert 0.08 < sum(share < 0.1 for share in shares) / len(shares) < 0.12


def test_equal_documents_lie_on_one_side(tmp_path):
    texts = numbered([12] * 40)
    contexts = Text(write(tmp_path / "a.jsonl", texts * 3), 4, False, seed=0).read(Reader())
    assert not documents_in(contexts.training) & documents_in(contexts.held_out)
    assert documents_in(contexts.training) | documents_in(contexts.held_out) == set(range(1, 41))


def test_documents_of_all_files_are_trained_on_and_held_out(tmp_path):
    """They were read file by file, so that all of the held-out text was of the first one."""
    texts = numbered([20] * 400)
    for number in range(4):
        write(tmp_path / f"{number}.jsonl", texts[100 * number :][:100])
    contexts = Text(str(tmp_path), 10, False, 4000, seed=0).read(Reader())
    for part in (contexts.training[:100], contexts.held_out):
        assert {(number - 1) // 100 for number in documents_in(part)} == {0, 1, 2, 3}
    before = Text(str(tmp_path), 10, False, 4000).read(Reader())
    assert max(documents_in(before.held_out)) <= 100


def test_seeds_are_orders(corpus):
    first, again, other = (Text(corpus, 8, False, 5000, seed=seed).contexts(Reader()) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_long_plain_text_is_many_documents(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(numbered([60] * 50)))
    contexts = Text(str(path), 8, False, seed=0).read(Reader())
    training, held = (set(part.flatten().tolist()) for part in (contexts.training, contexts.held_out))
    assert not contexts.note and held and not training & held
    assert len(contexts.training) > 250


def test_two_documents_are_one_for_each_side(tmp_path):
    contexts = Text(write(tmp_path / "a.jsonl", numbered([40, 40])), 10, False, seed=0).read(Reader())
    assert len(documents_in(contexts.training)) == len(documents_in(contexts.held_out)) == 1
    assert len(contexts.training) == 4 and not contexts.note


def test_a_single_document_is_cut_and_that_is_said(tmp_path):
    contexts = Text(write(tmp_path / "a.jsonl", numbered([60])), 6, False, seed=0).read(Reader())
    assert len(contexts.held_out) == 1 and len(contexts.training) == 9
    assert "no document could be held out" in contexts.note


def test_a_text_of_the_time_before_seeds_reads_as_it_did(tmp_path):
    """By the first rule: documents in order, the first tenth of the contexts held out, a BOS of their own kept."""
    texts = numbered([30] * 20)
    texts[3] = "0 " + texts[3]
    source = write(tmp_path / "a.jsonl", texts)
    pieces = [[0, *ids[i : i + 9]] for ids in map(Reader().to_ids, texts) for i in range(0, len(ids), 9)]
    rows, row = [], []
    for piece in pieces:
        row = row + piece
        if len(row) >= 10:
            rows, row = [*rows, row[:10]], []
    contexts = Text(source, 10, True).read(Reader(0))
    assert contexts.all.tolist() == rows
    assert (
        contexts.held_out.tolist() == rows[: len(rows) // 10] and contexts.training.tolist() == rows[len(rows) // 10 :]
    )


def test_without_documents_held_out_neighbours_are_searched_and_scored(storybook):
    contexts = Text("storybook", 16, False, 16 * 40).read(storybook)
    searched, scored = contexts.apart(10, 5)
    assert torch.equal(torch.cat([searched, scored]), contexts.all[:15])


def test_where_too_few_are_held_out_the_last_of_training_fill_up(tmp_path):
    """Once a circuit on a small text was not scored at all: a tenth of it holds too few contexts."""
    contexts = Text(write(tmp_path / "a.jsonl", numbered([7] * 400)), 10, True, 10 * 200, seed=0).read(Reader(0))
    n_held, n = len(contexts.held_out), len(contexts.training)
    assert contexts.by_document and 0 < n_held < 30
    searched, scored = contexts.apart(50, 30)
    assert torch.equal(searched, contexts.training[:50]) and torch.equal(scored[:n_held], contexts.held_out)
    assert torch.equal(scored[n_held:], contexts.training[n - 30 + n_held :]) and len(scored) == 30
    assert not documents_in(searched) & documents_in(scored)
    searched, scored = contexts.apart(n, 10**6)  # nothing is left to fill up with
    assert len(searched) == n and torch.equal(scored, contexts.held_out)
    searched, scored = contexts.apart(n - 4, 10**6)
    assert len(scored) == n_held + 4


def test_a_document_that_begins_with_bos_gets_no_second_one(tmp_path):
    texts = ["0 101 102 103", "201 202 203"]
    contexts = Text(write(tmp_path / "a.jsonl", texts), 4, True, seed=0).contexts(Reader(0))
    assert sorted(contexts.tolist()) == [[0, 101, 102, 103], [0, 201, 202, 203]]


def test_the_storybook_has_no_seed():
    assert Text("storybook", 8, True, seed=3) == Text("storybook", 8, True)


def test_another_source_is_held_out_by_document_and_the_same_one_is_left_as_it_is(corpus):
    old = Text(corpus, 8, True)
    assert old.at(None) == old.at(corpus) == old
    assert Text("storybook", 8, True).at(corpus) == Text(corpus, 8, True, seed=0)
    assert Text("storybook", 8, True, seed=0).at("storybook").seed is None


def test_which_texts_share_what_is_held_out(corpus):
    old, new = Text(corpus, 8, True), Text(corpus, 8, True, seed=0)
    assert new.shares(Text(corpus, 8, True, 500, seed=7)) and old.shares(Text(corpus, 8, True, 500))
    assert not new.shares(old) and not old.shares(new) and not new.shares(Text(corpus, 9, True, seed=0))


def test_text_without_a_context(tmp_path):
    with user_error("3 tokens", "context of 8"):
        Text(write(tmp_path / "a.jsonl", numbered([3])), 8, False, seed=0).read(Reader())


def test_of_few_documents_as_few_are_held_out_as_fill_a_context(tmp_path):
    """Twenty of three tokens, at ten per context: four documents, unless the tenth below the share is as many."""
    contexts = Text(write(tmp_path / "a.jsonl", numbered([3] * 20)), 10, False, seed=0).read(Reader())
    assert len(documents_in(contexts.held_out)) == 4 and len(contexts.training) >= 4 and not contexts.note
