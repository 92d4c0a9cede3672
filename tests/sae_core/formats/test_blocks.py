"""A dictionary in blocks is the dictionary in one file; each block is a dictionary, too."""

import json
from functools import partial

import pytest
import torch
from random_saes import every_autoencoder
from tiny import user_error

from sae_core.data.text import Text
from sae_core.dictionaries.kinds import describe
from sae_core.errors import UserError
from sae_core.formats.blocks import BLOCKS, WEIGHTS, write_dictionary
from sae_core.formats.readers import load_foreign
from sae_core.formats.sae_lens import to_sae_lens
from sae_core.sites import Site
from sae_core.storage import DictionarySet, load_set

EVERY = every_autoencoder()


@pytest.mark.parametrize("name", EVERY)
def test_blocks_read_back_as_the_file_does(name, tmp_path):
    tensors, card = to_sae_lens(EVERY[name], {"hook_name": "blocks.0.hook_resid_post"})
    size = sum(tensor.nbytes for tensor in tensors.values())
    write_dictionary(tmp_path / "one", tensors, card)
    write_dictionary(tmp_path / "several", tensors, card, size // 3)
    blocks = sorted((tmp_path / "several").glob("block-*"))
    assert len(blocks) > 3 and not (tmp_path / "several" / WEIGHTS).exists()
    whole, parts = (load_foreign(tmp_path / folder).dictionary for folder in ("one", "several"))
    (facts, values), (other_facts, other_values) = describe(whole), describe(parts)
    assert facts == other_facts and values.keys() == other_values.keys()
    assert all(torch.equal(value, other_values[key]) for key, value in values.items())
    x = torch.randn(5, whole.d_in, generator=torch.Generator().manual_seed(0))
    if name in ("relu", "jumprelu", "gated"):  # those of TopK compete, and normalisations have codes of their own
        codes = [load_foreign(block).dictionary.encode(x) for block in blocks]
        torch.testing.assert_close(torch.cat(codes, -1), whole.encode(x))


def test_a_set_in_blocks_is_known_again(tmp_path, monkeypatch):
    monkeypatch.setattr("sae_core.storage.write_dictionary", partial(write_dictionary, largest=1000))
    dictionary = next(iter(EVERY.values()))
    DictionarySet("model", "fingerprint", Text("storybook", 12, True), {Site(0): dictionary}).save(tmp_path / "set")
    folder = tmp_path / "set" / str(Site(0))
    assert (folder / BLOCKS).exists()
    loaded = load_set(tmp_path / "set").at(Site(0))
    assert all(torch.equal(x, describe(loaded)[1][name]) for name, x in describe(dictionary)[1].items())
    names = json.loads((folder / BLOCKS).read_text())["blocks"]
    (folder / BLOCKS).write_text(json.dumps({"blocks": names[:-1]}))
    with user_error("d_sae"):
        load_set(tmp_path / "set")
    (folder / BLOCKS).write_text(json.dumps({"blocks": [*names[1:], names[0]]}))
    with pytest.raises(UserError, match="another dictionary"):
        load_set(tmp_path / "set")
    (folder / BLOCKS).write_text("{}")
    with user_error("it lists no blocks"):
        load_set(tmp_path / "set")
