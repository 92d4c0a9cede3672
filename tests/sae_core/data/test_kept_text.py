"""The storybook's contexts are drawn once for a set; what is kept is never taken for another text."""

from dataclasses import replace

import pytest
import torch

from sae_core.data import text as text_module
from sae_core.data.kept_text import NAME, read_kept
from sae_core.data.text import Contexts, Text


@pytest.fixture
def text(storybook) -> Text:
    plain = Text("storybook", 16, True, max_tokens=960)
    return replace(plain, digest=plain.read(storybook).digest)


@pytest.fixture
def drawn(monkeypatch) -> list[str]:
    """What documents were asked for."""
    sources, documents = [], text_module.documents
    monkeypatch.setattr(
        text_module, "documents", lambda source, *a, **k: sources.append(source) or documents(source, *a, **k)
    )
    return sources


def same(a: Contexts, b: Contexts) -> bool:
    return torch.equal(a.training, b.training) and torch.equal(a.held_out, b.held_out) and a.digest == b.digest


def test_drawn_once_and_to_the_bit(storybook, text, drawn, tmp_path):
    first = read_kept(text, storybook, tmp_path)
    assert same(first, text.read(storybook)) and len(drawn) == 2  # by the fixture's text, and again as a control
    assert same(read_kept(text, storybook, tmp_path), first) and len(drawn) == 2
    single = replace(text, max_tokens=16, digest=replace(text, max_tokens=16, digest="").read(storybook).digest)
    for _ in range(2):
        assert len(read_kept(single, storybook, tmp_path / "single").all) == 1


def test_of_another_text_or_damaged_it_is_drawn_anew(storybook, text, drawn, tmp_path):
    read_kept(text, storybook, tmp_path)
    longer = replace(text, max_tokens=1600, digest=replace(text, max_tokens=1600, digest="").read(storybook).digest)
    assert same(read_kept(longer, storybook, tmp_path), longer.read(storybook))
    n = len(drawn)
    (tmp_path / NAME).write_bytes((tmp_path / NAME).read_bytes()[:-3])
    assert len(read_kept(longer, storybook, tmp_path).all) == 100 and len(drawn) == n + 1
    read_kept(longer, storybook, tmp_path)
    assert len(drawn) == n + 1


def test_files_are_read_each_time_and_folders_need_not_be_writable(storybook, text, drawn, tmp_path):
    book = tmp_path / "book.txt"
    book.write_text("Once upon a time . " * 200)
    plain = Text(str(book), 16, True, max_tokens=960, seed=0)
    known = replace(plain, digest=plain.read(storybook).digest)
    n = len(drawn)
    for _ in range(2):
        read_kept(known, storybook, tmp_path / "of a file")
    assert len(drawn) == n + 2 and not (tmp_path / "of a file").exists()
    assert same(read_kept(text, storybook, book), text.read(storybook))  # a file is no folder
