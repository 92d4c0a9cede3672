"""Text from files, folders and data sets."""

import json
import random
import tracemalloc
from collections.abc import Sequence
from itertools import chain, islice, pairwise
from pathlib import Path

import pytest
from tiny import user_error

from sae_core.data.documents import check_column, documents, looks_like_file
from sae_core.data.text import Text
from sae_core.model import hub
from sae_core.model.language_model import LanguageModel
from sae_core.storybook.grammar import vocabulary


@pytest.fixture
def model(tiny_models):
    return tiny_models["gpt2"]


def write_documents(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return str(path)


def read(source: str, model, n_ctx: int, *, prepend_bos: bool = True, **rest) -> list[list[int]]:
    return Text(source, n_ctx, prepend_bos, **rest).contexts(model).tolist()


WORDS = [(i, word) for i, word in enumerate(vocabulary()) if word.isalpha()]


def some_ids(n: int, first: int = 0) -> list[int]:
    """Ids of `n` different words."""
    return [i for i, _ in WORDS[first : first + n]]


def as_text(ids: list[int]) -> str:
    return " ".join(dict(WORDS)[i] for i in ids)


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

    def all_ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(range(1000, 1500)) for _ in texts]


def test_contexts_take_eight_bytes_a_token(tmp_path):
    """Lists of Python's numbers would take forty."""
    source = write_documents(tmp_path / "text.jsonl", ["Mary " * 500] * 400)
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
    requests, received = [], []

    def load_dataset(*args, **kwargs):
        requests.append((args, kwargs))
        for i in range(100):
            received.append(i)
            yield {"text": f"story {i}"}

    monkeypatch.setattr(hub, "hub_answers", lambda endpoint: True)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert list(islice(documents("some/stories"), 3)) == ["story 0", "story 1", "story 2"] and len(received) == 3
    next(documents("some/stories:small"))
    streaming = {"split": "train", "streaming": True}
    assert requests == [(("some/stories", None), streaming), (("some/stories", "small"), streaming)]


def test_a_dataset_of_the_hub_is_shuffled_through_a_buffer_its_files_too(monkeypatch):
    datasets = pytest.importorskip("datasets")
    orders = []

    class Streamed:
        def shuffle(self, seed: int, buffer_size: int):
            orders.append((seed, buffer_size))
            return ({"text": f"story {i}"} for i in range(100))

    monkeypatch.setattr(hub, "hub_answers", lambda endpoint: True)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: Streamed())
    first, again, other = (list(documents("some/stories", seed=seed)) for seed in (0, 0, 1))
    in_order = [f"story {i}" for i in range(100)]
    assert first == again != other and sorted(first) == sorted(other) == sorted(in_order) and first != in_order
    assert orders[0] == orders[1] != orders[2] and {size for _, size in orders} == {
        1
    }  # the library shuffles files only


@pytest.mark.parametrize("form", ["one", "parts"])
def test_a_saved_dataset_is_shuffled(tmp_path, form):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    texts = [f"story {i}" for i in range(50)]
    rows = datasets.Dataset.from_dict({"text": texts})
    saved = datasets.DatasetDict({"train": rows, "test": rows.select([0])}) if form == "parts" else rows
    saved.save_to_disk(str(tmp_path / "data"))
    shuffled = list(documents(str(tmp_path / "data"), seed=0))
    assert shuffled != texts and sorted(shuffled) == sorted(texts) == sorted(documents(str(tmp_path / "data")))


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
    with user_error(str(path), "line 1", "'body'", "content, text"):
        list(documents(str(path), "body"))


def test_a_column_is_refused_where_nothing_has_columns(tmp_path):
    """It was ignored: who gave --column with a plain text learned nothing of it."""
    for name in ("a.txt", "b.md", "c.txt.gz", "rows/d.csv", "texts/e.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text\nMary\n")
    for source in ("storybook", *(str(tmp_path / name) for name in ("a.txt", "b.md", "c.txt.gz", "texts"))):
        with user_error("--column", source, "leave it out"):
            check_column(source, "story")
        check_column(source, "text")
    for source in (tmp_path / "rows", tmp_path / "rows" / "d.csv", tmp_path, "someone/stories"):
        check_column(str(source), "story")


def test_what_looks_like_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus").write_text("Mary")
    for name in ("a.txt", "b/c.jsonl", "./data", "/data", "~/data", "a/b/c", "corpus"):
        assert looks_like_file(name), name
    for name in ("wikitext", "openwebtext", "someone/some-text"):
        assert not looks_like_file(name), name
