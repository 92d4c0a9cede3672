"""Dictionaries that do not fit into memory together are opened one at a time, and are the same."""

import pytest
import torch
from planted import unchecked
from random_saes import every_autoencoder
from tiny import user_error

from sae_core.data.text import Text
from sae_core.dictionaries.kinds import describe
from sae_core.dictionaries.opened import Opened
from sae_core.sites import Site
from sae_core.storage import DictionarySet, load_set


@pytest.fixture
def folder(tmp_path):
    dictionaries = {Site(layer): sae for layer, sae in enumerate([*every_autoencoder().values()][:4])}
    DictionarySet("model", "fingerprint", Text("storybook", 12, True), dictionaries).save(tmp_path)
    return tmp_path


def test_one_is_open_at_a_time_and_is_the_one_that_was_saved(folder):
    eager, lazy = load_set(folder), load_set(folder, room=1)
    assert isinstance(lazy.dictionaries, Opened) and not isinstance(eager.dictionaries, Opened)
    assert lazy.sites == eager.sites
    for site, dictionary in lazy.dictionaries.items():
        assert list(lazy.dictionaries._kept) == [site]
        values = describe(dictionary)[1]
        assert all(torch.equal(x, values[name]) for name, x in describe(eager.at(site))[1].items())
        assert dictionary.outlier_norm == eager.at(site).outlier_norm
    with user_error("no dictionary for"), unchecked():
        lazy.at(Site(9))


def test_what_fits_is_kept_and_the_one_used_longest_ago_goes(folder):
    size = sum(x.nbytes for x in describe(load_set(folder).at(Site(0)))[1].values())
    dictionaries = load_set(folder, room=int(2.9 * size)).dictionaries
    first = dictionaries[Site(0)]
    _ = dictionaries[Site(1)]
    assert dictionaries[Site(0)] is first
    _ = dictionaries[Site(2)]
    assert list(dictionaries._kept) == [Site(0), Site(2)]


def test_a_damaged_one_is_said_as_it_is_opened(folder):
    lazy = load_set(folder, room=1)
    (folder / str(Site(1)) / "sae_weights.safetensors").write_bytes(b"nothing")
    _ = lazy.at(Site(0))
    with user_error("damaged"):
        lazy.at(Site(1))
