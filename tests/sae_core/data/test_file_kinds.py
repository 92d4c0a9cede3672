"""The same documents come out of every kind of file; what cannot be read is named."""

import codecs
import gzip
import json
from pathlib import Path

import pytest
from tiny import user_error

from sae_core.data.documents import documents
from sae_core.data.file_kinds import KINDS, file_documents, is_text_file
from sae_core.data.text import Text

TEXTS = ["Mary went home .", 'John , "too" ;\n( für Straße )', "42", "NA"]
ROWS = [{"text": text, "n": number} for number, text in enumerate(TEXTS)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def as_csv(separator: str) -> str:
    quoted = ("".join(('"', text.replace('"', '""'), '"')) for text in TEXTS)
    return "".join((f"text{separator}n\n", *(f"{text}{separator}{n}\n" for n, text in enumerate(quoted))))


CONTENTS = {
    ".jsonl": LINES,
    ".ndjson": LINES,
    ".json": json.dumps(ROWS),
    ".csv": as_csv(","),
    ".tsv": as_csv("\t"),
}
JSON = {
    "lines": LINES,
    "strings": json.dumps(TEXTS),
    "columns": json.dumps({"text": TEXTS, "n": [0, 1, 2, 3]}),
    "within": json.dumps({"version": 1, "data": ROWS}),
}


def write(path: Path, content: str, ending: str = "", encoding: str = "utf-8") -> str:
    """Write a file, compressed as its ending says."""
    path, data = path.with_name(path.name + ending), content.encode(encoding)
    if ending == ".gz":
        data = gzip.compress(data[:9]) + gzip.compress(data[9:])  # in two parts, as `cat` makes them
    elif ending == ".zst":
        import pyarrow

        with pyarrow.CompressedOutputStream(str(path), "zstd") as file:
            file.write(data)
        return str(path)
    path.write_bytes(data)
    return str(path)


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", CONTENTS)
def test_every_kind_holds_the_same_documents(tmp_path, kind, ending):
    assert list(documents(write(tmp_path / f"a{kind}", CONTENTS[kind], ending))) == TEXTS


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_plain_text_may_be_compressed(tmp_path, ending):
    assert list(documents(write(tmp_path / "a.txt", TEXTS[1], ending))) == [TEXTS[1]]


@pytest.mark.parametrize("form", JSON)
def test_json_has_rows_in_several_forms(tmp_path, form):
    assert list(documents(write(tmp_path / "a.json", JSON[form]))) == TEXTS


@pytest.mark.parametrize("kind", [".parquet", ".arrow"])
def test_tables_of_datasets(tmp_path, kind):
    import datasets
    import pyarrow

    rows = datasets.Dataset.from_list(ROWS)
    path = tmp_path / f"a{kind}"
    if kind == ".parquet":
        datasets.disable_progress_bars()
        rows.to_parquet(str(path))
    else:
        with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, rows.data.table.schema) as writer:
            writer.write_table(rows.data.table)
    assert list(documents(str(path))) == TEXTS
    with user_error(str(path), "'body'", "text, n"):
        list(documents(str(path), "body"))


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
    ],
)
@pytest.mark.parametrize("kind", [".txt", *CONTENTS])
def test_a_byte_order_mark_is_no_text(tmp_path, kind, mark, encoding):
    """The mark was once the first token of a .txt file, and made the first line of a .jsonl file no JSON."""
    path = tmp_path / f"a{kind}"
    path.write_bytes(mark + CONTENTS.get(kind, TEXTS[1]).encode(encoding))
    assert list(documents(str(path))) == ([TEXTS[1]] if kind == ".txt" else TEXTS)


# ---- tokens ----------------------------------------------------------------------------------------


def tokenised(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_rows_that_are_tokenised_are_read_as_tokens(tiny_models, tmp_path):
    """Contexts are those of the text that the tokens stand for; padding is no text."""
    model = tiny_models["gpt2"]
    texts = ["Mary went home .", "John too"]
    ids = [model.to_ids(text) for text in texts]
    plain = tokenised(tmp_path / "text.jsonl", [{"text": text} for text in texts])
    rows = [{"input_ids": [*row, 0, 0], "attention_mask": [1] * len(row) + [0, 0]} for row in ids]
    contexts = Text(tokenised(tmp_path / "ids.jsonl", rows), 4, True).contexts(model)
    assert contexts.tolist() == Text(plain, 4, True).contexts(model).tolist()
    other = tokenised(tmp_path / "other.jsonl", [{"tokens": row} for row in ids])
    assert Text(other, 4, True, column="tokens").contexts(model).tolist() == contexts.tolist()


def test_text_is_preferred_to_tokens(tmp_path):
    path = tokenised(tmp_path / "a.jsonl", [{"text": "Mary", "input_ids": [3]}])
    assert list(documents(path)) == ["Mary"] and list(documents(path, "input_ids")) == [[3]]


@pytest.mark.parametrize("ids", [[2, 10**6], [-1, 2]])
def test_tokens_of_another_model_are_refused(tiny_models, tmp_path, ids):
    model = tiny_models["gpt2"]
    with user_error("token id", str(max(ids, key=abs)), str(model.n_vocab), "another model"):
        Text(tokenised(tmp_path / "a.jsonl", [{"input_ids": ids}]), 2, False).contexts(model)


# ---- mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CONTENTS)
def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path, kind):
    with user_error(f"a{kind}", "'body'", "text, n"):
        list(documents(write(tmp_path / f"a{kind}", CONTENTS[kind]), "body"))


@pytest.mark.parametrize("name", ["a.pdf", "a.zip", "a.docx", "a.txt.xz", "a.PDF"])
def test_a_file_of_no_kind_that_is_read_is_refused(tmp_path, name):
    with user_error(name, "cannot be read", ".jsonl", ".zst"):
        list(documents(write(tmp_path / name, "Mary went home .")))


def test_binary_data_under_any_name_are_refused(tmp_path):
    with user_error("a.data", "binary"):
        list(documents(write(tmp_path / "a.data", "Mary\0went")))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.txt.zst", "a.parquet", "a.arrow"])
def test_a_damaged_file_is_named(tmp_path, name):
    with user_error(name, "could not be read"):
        list(documents(write(tmp_path / name, "Mary went home .")))


def test_a_file_that_is_cut_off_is_named(tmp_path):
    path = Path(write(tmp_path / "a.txt", TEXTS[1] * 99, ".gz"))
    path.write_bytes(path.read_bytes()[:-20])
    with user_error(path.name, "could not be read"):
        list(documents(str(path)))


def test_a_table_that_is_none(tmp_path):
    with user_error("a.csv", "no table", "line 3"):
        list(documents(write(tmp_path / "a.csv", "text\nMary\nJohn,too,many\n")))


def test_a_table_with_more_cells_than_names_is_refused(tmp_path):
    """Read all the same, its first column would become row names and every text the one beside it."""
    with user_error("a.csv", "more cells", "quote"):
        list(documents(write(tmp_path / "a.csv", "text,label\nHello, world,1\nGood, bye,0\n")))
    assert list(documents(write(tmp_path / "b.csv", 'text,label\n"Hello, world",1\n'))) == ["Hello, world"]


@pytest.mark.parametrize("content", ["[]", "{}", '{"text": []}', "3", "[3]", '{"body": "Mary"}', "[[1, 2]]"])
def test_json_without_documents(tmp_path, content):
    with user_error("a.json"):
        list(documents(write(tmp_path / "a.json", content)))


def test_endings():
    assert all(is_text_file(f"a{kind}{packed}") for kind in KINDS for packed in ("", ".gz", ".zst"))
    assert not any(is_text_file(name) for name in ("a", "a.gz", "a.json.xz", "wikitext", "a.pdf"))


def test_a_missing_file_is_no_empty_one(tmp_path):
    with user_error("no text at", "a.csv", ".parquet"):
        next(file_documents(tmp_path / "a.csv", "text", 100))


def test_a_mask_of_another_length_is_refused(tmp_path):
    """Read all the same, the text would end where the mask does."""
    rows = tokenised(tmp_path / "ids.jsonl", [{"input_ids": [1, 2, 3], "attention_mask": [1, 0]}])
    with user_error("ids.jsonl", "2 entries of attention_mask", "3 token ids"):
        list(documents(rows))
