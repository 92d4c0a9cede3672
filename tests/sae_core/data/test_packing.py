"""What shares a context with what; contexts that are filled up with padding hold what each document has alone."""

import json

import pytest
import torch
from tiny import user_error

from sae_core.data.reading import padding_of
from sae_core.data.text import Text
from sae_core.sites import Site

TEXTS = ["Mary went home", "John too", "he and she went home and home"]


@pytest.fixture
def model(tiny_models):
    return tiny_models["llama"]


@pytest.fixture
def source(tmp_path) -> str:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return str(path)


def test_without_packing_every_piece_has_a_context(model, source):
    bos, fill = model.bos_id, padding_of(model)
    ids = [model.to_ids(text) for text in TEXTS]
    pieces = [ids[0], ids[1], ids[2][:4], ids[2][4:]]
    contexts = Text(source, 5, True, pack=False).contexts(model)
    assert contexts.tolist() == [[bos, *piece, *[fill] * (4 - len(piece))] for piece in pieces]
    assert model.content(contexts).sum() == sum(map(len, ids))  # padding is no text


def test_activations_are_those_of_the_document_alone(model, source):
    site, alone = Site(2), torch.tensor([[model.bos_id, *model.to_ids(TEXTS[1])]])
    expected = model.record(alone, [site])[site][0]
    apart, packed = (Text(source, 8, True, pack=pack).contexts(model) for pack in (False, True))
    row = model.record(apart[1:2], [site])[site][0, : len(expected)]
    assert torch.allclose(row, expected, atol=1e-5)
    # control: in a context with another document before it
    start = packed[0].tolist().index(alone[0, 1].item()) - 1
    within = model.record(packed[:1], [site])[site][0, start:][: len(expected)]
    assert packed[0, start : start + len(expected)].tolist() == alone[0].tolist()
    assert not torch.allclose(within, expected, atol=1e-2)


def test_documents_are_held_out_whole_also_without_packing(model, tmp_path):
    path = tmp_path / "b.jsonl"
    path.write_text(
        "".join(json.dumps({"text": f"{word} went"}) + "\n" for word in ("Mary", "John", "he", "she", "and"))
    )
    contexts = Text(str(path), 6, False, seed=0, pack=False).read(model)
    training, held = (set(part[:, 0].tolist()) for part in (contexts.training, contexts.held_out))
    assert len(training) + len(held) == 5 and held and not training & held


def test_a_model_without_a_special_token_cannot_fill_up(model, source):
    from copy import copy

    bare = copy(model)
    bare.special_ids = frozenset()
    with user_error("--no-pack"):
        Text(source, 5, True, pack=False).contexts(bare)
