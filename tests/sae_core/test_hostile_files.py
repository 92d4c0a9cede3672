"""Hostile files are one line that names them; nothing of them is used."""

import json
import os

import pytest
import torch
from handmade import random_topk
from tiny import user_error

from editing.tasks.user_pairs import read_lines
from sae_core.data.file_kinds import file_documents
from sae_core.data.text import Text
from sae_core.files import parse_json, read_json, read_text, write_tensors
from sae_core.formats.tensor_files import check_numbers
from sae_core.sites import Site
from sae_core.storage import DictionarySet, load_set
from sae_core.training.config import TrainConfig
from subrank.experiments.circuit import lines_of

SITE = Site(0)


@pytest.fixture
def folder(tmp_path):
    saes = {SITE: random_topk(12, 24, 4)}
    DictionarySet("storybook", "config:1 weights:2", Text("storybook", 12, True), saes, TrainConfig()).save(tmp_path)
    return tmp_path


@pytest.mark.parametrize("text", ["[" * 100_000 + "]" * 100_000, "1" * 5_000, '{"a": "\\ud800"}', "{", "", "{'a': 1}"])
def test_what_is_no_json_is_said_with_its_place(text):
    with user_error("here"):
        parse_json(text, "here")
    assert parse_json('{"a": "\\ud83d\\ude00"}', "here") == {"a": "\U0001f600"}  # a whole pair is a character


@pytest.mark.parametrize(
    "read", [read_json, read_text, lines_of, read_lines, lambda path: [*file_documents(path, "", 9)]]
)
def test_pipes_devices_and_folders_are_refused(tmp_path, read):
    """A pipe as --prompts once waited for ever."""
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "device.jsonl").symlink_to("/dev/zero")
    for name in ("pipe", "folder", "device", "nothing"):
        path = tmp_path / f"{name}.jsonl"
        with user_error(str(path)):
            read(path)


@pytest.mark.parametrize("read", [read_lines, lambda path: [*file_documents(path, "text", 9)]])
def test_half_a_character_in_a_line_is_said_with_its_number(tmp_path, read):
    path = tmp_path / "a.jsonl"
    row = {"clean": "a b", "corrupted": "c b", "answer": "x", "foil": "y", "text": "a"}
    path.write_text(json.dumps(row) + '\n{"text": "\\ud800"}\n')
    with user_error(str(path), "line 2", "surrogate"):
        read(path)


SET = json.loads(json.dumps({"model": 3, "fingerprint": None, "text": "x", "sites": "resid_post.0", "training": [1]}))
SET |= {"stream_seed": "1", "origin": [1], "digests": {"resid_post.0": 3}, "outlier_norms": {"resid_post.0": "big"}}
MORE = [{"outlier_norms": {"resid_post.5": 1.0}}, {"outlier_norms": {"resid_post.0": -1.0}}]
MORE += [{"sites": ["resid_post.0"] * 2}]
TEXTS = {"source": 3, "n_ctx": -5, "prepend_bos": [], "max_tokens": 1.5, "exclude": "Mary", "seed": "x", "chat": 1}


@pytest.mark.parametrize(
    "change",
    [{name: value} for name, value in SET.items()] + MORE + [{"text": {name: value}} for name, value in TEXTS.items()],
    ids=str,
)
def test_a_set_with_a_value_of_another_type_or_range(folder, change):
    card = json.loads((folder / "set.json").read_text())
    if isinstance(change.get("text"), dict):
        change = {"text": card["text"] | change["text"]}
    (folder / "set.json").write_text(json.dumps(card | change))
    with user_error(str(folder / "set.json")):
        load_set(folder)


def test_every_flipped_bit_of_a_stored_dictionary_is_found(folder):
    path = folder / str(SITE) / "sae_weights.safetensors"
    content = path.read_bytes()
    for place in range(7, len(content), len(content) // 60):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        with user_error(str(path)):
            load_set(folder)
    path.write_bytes(content)
    load_set(folder)  # control


def test_a_dictionary_of_another_set_or_with_another_card_is_found_and_sets_without_digests_load(folder):
    config, card = folder / str(SITE) / "cfg.json", json.loads((folder / "set.json").read_text())
    before = config.read_text()
    config.write_text(json.dumps(json.loads(before) | {"k": 3}))
    with user_error(str(SITE), "another dictionary"):
        load_set(folder)
    (folder / "set.json").write_text(json.dumps({name: card[name] for name in card if name != "digests"}))
    assert load_set(folder).dictionaries[SITE].k == 3  # as those of earlier versions


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.tensor([1.0, 1e38]), "1e+38"),
        (torch.tensor([1.0, float("nan")]), "NaN"),
        (torch.tensor([-float("inf")]), "infinity"),
        (torch.tensor([1e300], dtype=torch.float64), "infinity"),
        (torch.tensor([1]), "int64"),
        (torch.tensor([1j]), "complex64"),
    ],
)
def test_numbers_that_nothing_can_be_computed_with_are_refused(tensor, words):
    with user_error("W_dec", words):
        check_numbers("W_dec", tensor)
    assert check_numbers("W_dec", torch.tensor([1e10], dtype=torch.float64)).dtype is torch.float32


def test_a_foreign_decoder_of_1e38_is_refused_by_name(folder):
    """Finite, but its square is not: a set of it was complete and gave no numbers."""
    path = folder / str(SITE) / "sae_weights.safetensors"
    sae = random_topk(12, 24, 4)
    tensors = dict(sae.state_dict()) | {"W_dec": torch.full((24, 12), 1e38)}
    write_tensors(path, tensors)
    with user_error(str(path), "W_dec", "1e+38"):
        load_set(folder)
