"""Text becomes contexts: nothing is lost but the stated cut, and every mistake is one line."""

import json
import random
import tracemalloc
from itertools import chain, islice, pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import user_error

from sae_core.data.text import Text, documents, held_out, looks_like_file
from sae_core.model import hub
from sae_core.model.language_model import LanguageModel
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


def test_contexts_can_be_read_again(model):
    text = Text("storybook", 32, True, max_tokens=2000)
    first = text.contexts(model)
    assert first.dtype == torch.long and first.shape == (2000 // 32, 32)
    assert torch.equal(first, text.contexts(model))


def test_storybook_text_holds_no_unknown_words_and_no_training_document(model):
    some = list(islice(documents("storybook"), 100))
    unknown = model.tokenizer.unk_token_id
    assert all(unknown not in model.to_ids(document) for document in some)
    rng, grammar = random.Random(0), Grammar()
    trained = {" ".join(token.text for token in grammar.document(rng)[:-1]) for _ in range(100)}
    assert len(set(some) & trained) < 10  # a few shortest ones may be drawn twice
    assert list(islice(documents("storybook"), 100)) == some


# ---- files -----------------------------------------------------------------------------------------


def test_a_txt_file_is_one_document(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("Mary went home .\n\nJohn , too ( für Straße ) .\n", encoding="utf-8")
    assert list(documents(str(path))) == [path.read_text(encoding="utf-8")]


def test_a_jsonl_file_has_a_document_per_line_and_blank_lines_do_not_count(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "Mary \\n went"}\n\n{"text": "John", "more": 1}\n{"text": "  "}\n', encoding="utf-8")
    assert list(documents(str(path))) == ["Mary \n went", "John"]


def test_a_long_txt_file_is_read_in_pieces_that_make_up_the_whole(tmp_path):
    rng, path = random.Random(0), tmp_path / "a.txt"
    words = (word + rng.choice([" ", " ", " ", "  ", "\n", "\n\n", " \n \n\t"]) for _, word in WORDS * 4)
    whole = "".join(words).strip()
    path.write_text(whole, encoding="utf-8")
    pieces = list(documents(str(path), piece=100))
    assert "".join(pieces) == whole and len(pieces) > 20
    assert max(map(len, pieces)) <= 200 and min(map(len, pieces[:-1])) >= 40
    assert all(piece[0].isspace() and not before[-1].isspace() for before, piece in pairwise(pieces))


def test_a_long_txt_file_is_cut_at_blank_lines_where_there_are_some(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(["Mary went home . " * 2 + "He too ."] * 20))
    pieces = list(documents(str(path), piece=100))
    assert len(pieces) > 5
    assert all(piece.startswith("\n\nMary") and before.endswith("He too .") for before, piece in pairwise(pieces))


def test_a_text_without_any_space_is_read_too(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("x" * 1050)
    pieces = list(documents(str(path), piece=100))
    assert "".join(pieces) == "x" * 1050 and max(map(len, pieces)) <= 200


def test_cutting_a_txt_file_changes_no_token(model, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(as_text(some_ids(500)))
    (whole,) = documents(str(path))
    pieces = list(documents(str(path), piece=100))
    assert len(pieces) > 20
    assert [token for piece in pieces for token in model.to_ids(piece)] == model.to_ids(whole) == some_ids(500)


def test_byte_pairs_are_the_same_in_pieces(tmp_path):
    """Tokenizers like GPT-2's join a word to the space before it."""
    from tokenizers import Tokenizer, pre_tokenizers, trainers
    from tokenizers.models import BPE

    rng, path = random.Random(0), tmp_path / "a.txt"
    spaces = [" ", " ", "  ", "\n", "\n\n", "\n\n\n", " \n"]
    whole = "".join(word + rng.choice(spaces) for _, word in WORDS * 3).strip()
    path.write_text(whole)
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator([whole], trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet))
    ids = [tokenizer.encode(piece).ids for piece in documents(str(path), piece=100)]
    assert len(ids) > 20
    assert list(chain(*ids)) == tokenizer.encode(whole).ids
    # control: cuts behind the space would change tokens
    behind = [tokenizer.encode(word + " ").ids for word in whole.split(" ")]
    assert list(chain(*behind)) != tokenizer.encode(whole).ids


def test_no_more_is_read_than_needed(model, tmp_path):
    """What follows is not even UTF-8."""
    good, path = as_text(some_ids(500)), tmp_path / "a.jsonl"
    path.write_bytes((json.dumps({"text": good}) + "\n").encode() * 30 + b"\xff")
    assert len(read(str(path), model, 10, max_tokens=100)) == 10
    with user_error(str(path), "not UTF-8"):
        read(str(path), model, 10, max_tokens=10**6)
    path = tmp_path / "a.txt"
    path.write_bytes(((good + " ") * 30).encode() + b"\xff")
    pieces = documents(str(path), piece=1000)
    assert len(next(pieces)) <= 2000
    with user_error(str(path), "not UTF-8"):
        list(pieces)


class Reader(LanguageModel):
    """A model without network: every document is 500 tokens."""

    name, n_ctx, bos_id = "reader", 64, None

    def __init__(self):
        pass

    def to_ids(self, text: str) -> list[int]:
        return list(range(1000, 1500))


def test_contexts_take_eight_bytes_a_token(tmp_path):
    """Lists of Python's numbers would take forty."""
    source = write_documents(tmp_path / "text.jsonl", ["Mary"] * 400)
    tracemalloc.start()
    try:
        contexts = Text(source, 50, False).contexts(Reader())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert contexts.shape == (4000, 50) and contexts[7, 3] == 1353
    assert peak < 2 * 8 * contexts.numel()


# ---- folders and datasets --------------------------------------------------------------------------


def test_a_folder_is_read_file_by_file_sorted_by_name(model, tmp_path):
    (tmp_path / "b" / "deep").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "c.txt").write_text("Mary")
    (tmp_path / "b" / "z.jsonl").write_text('{"text": "John"}\n{"text": "home"}\n')
    (tmp_path / "b" / "deep" / "a.txt").write_text("went")
    for name in ("empty.txt", "empty.jsonl"):
        (tmp_path / name).write_text("\n")
    for name in ("README.md", "data.json", ".hidden/d.txt", ".e.txt"):
        (tmp_path / name).write_text("not read")
    assert list(documents(str(tmp_path))) == ["went", "John", "home", "Mary"]
    assert read(str(tmp_path), model, 2, prepend_bos=False) == [model.to_ids("went John"), model.to_ids("home Mary")]


def test_a_source_is_kept_as_an_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.txt").write_text("Mary")
    (tmp_path / "storybook").mkdir()
    assert Text("folder", 8, True).source == str(tmp_path / "folder")
    assert Text("a.txt", 8, True).source == str(tmp_path / "a.txt")
    assert Text("storybook", 8, True).source == "storybook"


@pytest.mark.parametrize("form", ["to_parquet", "save_to_disk"])
def test_a_folder_with_a_dataset(tmp_path, form):
    datasets = pytest.importorskip("datasets")
    columns = {"text": ["Mary went home .", " ", "John"], "story": ["a", "b", "c"], "n": [1, 2, 3]}
    rows = datasets.Dataset.from_dict(columns)
    datasets.disable_progress_bars()
    folder = tmp_path / "data"
    folder.mkdir()
    getattr(rows, form)(str(folder / "part.parquet" if form == "to_parquet" else folder))
    (folder / "LICENSE.txt").write_text("free")
    assert list(documents(str(folder))) == ["Mary went home .", "John"]
    assert list(documents(str(folder), "story")) == ["a", "b", "c"]
    with user_error(str(folder), "'body'", "text, story, n"):
        list(documents(str(folder), "body"))
    with user_error(str(folder), "row 0", "'n' is not a string"):
        list(documents(str(folder), "n"))


def test_a_dataset_of_the_hub_streams(monkeypatch):
    """With a stand-in for the library's loader: what it is asked for, and that rows come one by one."""
    datasets = pytest.importorskip("datasets")
    asked, given = [], []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        for i in range(100):
            given.append(i)
            yield {"text": f"story {i}"}

    monkeypatch.setattr(hub, "hub_answers", lambda endpoint: True)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert list(islice(documents("some/stories"), 3)) == ["story 0", "story 1", "story 2"] and len(given) == 3
    next(documents("some/stories:small"))
    streaming = {"split": "train", "streaming": True}
    assert asked == [(("some/stories", None), streaming), (("some/stories", "small"), streaming)]


def test_a_dataset_that_cannot_be_read_says_why_in_one_line(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def load_dataset(*args, **kwargs):
        raise ValueError("Config name is missing.\nPlease pick one among the available configs: ['small', 'large']")

    monkeypatch.setattr(hub, "hub_answers", lambda endpoint: True)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with user_error("some/stories", "Config name is missing", "small"):
        list(documents("some/stories"))


def test_the_text_of_a_jsonl_file_may_have_another_name(model, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"content": "Mary went home .", "text": "John"}\n')
    assert list(documents(str(path), "content")) == ["Mary went home ."]
    assert read(str(path), model, 5, column="content") == [[model.bos_id, *model.to_ids("Mary went home .")]]
    with user_error(str(path), "line 1", '"body"'):
        list(documents(str(path), "body"))


def test_what_looks_like_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus").write_text("Mary")
    for name in ("a.txt", "b/c.jsonl", "./data", "/data", "~/data", "a/b/c", "corpus"):
        assert looks_like_file(name), name
    for name in ("wikitext", "openwebtext", "someone/some-text"):
        assert not looks_like_file(name), name


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
def test_a_real_page_reads(model):
    page = SHARED / "DESIGN.md"
    if not page.is_file():
        pytest.skip("needs ../shared/DESIGN.md, which is not part of the repository")
    contexts = Text(str(page), 32, True).contexts(model)
    assert contexts.shape[1] == 32 and len(contexts) > 50
