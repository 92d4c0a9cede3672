"""What one verb has read of the text no other reads again."""

import shutil
from dataclasses import replace

import pytest

import subrank as sr
from circuits.features.atlas import atlas_of
from circuits.features.catalogue import read_catalogue
from sae_core.model.language_model import LanguageModel
from subrank.saes import SURVEY


@pytest.fixture
def reads(monkeypatch) -> list[int]:
    """Contexts of every forward pass."""
    rows, record = [], LanguageModel.record
    monkeypatch.setattr(LanguageModel, "record", lambda model, x, sites: rows.append(len(x)) or record(model, x, sites))
    return rows


@pytest.fixture
def folder(storybook_set, tmp_path):
    return shutil.copytree(storybook_set, tmp_path / "set", ignore=shutil.ignore_patterns(SURVEY))


def test_cards_are_made_of_what_the_search_has_read(storybook, folder, reads):
    """As `subrank circuit` and then `subrank features` read a set's text, with no more contexts."""
    contexts = sr.load(folder).read(storybook)
    n_held = len(contexts.held_out)
    atlas_of(sr.load(folder).survey(storybook), contexts.all[: n_held + 32])
    assert sum(reads) == n_held + 32 and list((folder / SURVEY).iterdir())
    reads.clear()
    catalogue = read_catalogue(sr.load(folder).survey(storybook), contexts.training[:32], contexts.held_out[:8])
    assert catalogue.tally.n_tokens and catalogue.tally.atlas.mean_final.any() and not reads
    read_catalogue(sr.load(folder).survey(storybook), contexts.training[:40], contexts.held_out[:8])
    assert sum(reads) == 8  # control: those that are new


def test_examples_of_a_second_feature_cost_no_pass(storybook, folder, reads):
    saes = replace(sr.load(folder), folder=None, bound=storybook)
    first = saes.top_examples("3_1", contexts=40)
    n = sum(reads)
    second = saes.top_examples("5_2", contexts=40)
    assert n == 36 == sum(reads) and first.feature != second.feature
    assert not (folder / SURVEY).exists()  # a set that was not loaded is known in memory only
    other = replace(saes)
    other.top_examples("5_2", contexts=40)
    assert sum(reads) == 2 * n  # control


def test_other_weights_are_no_longer_what_was_read(storybook, folder, reads):
    saes = replace(sr.load(folder), folder=None, bound=storybook)
    saes.top_examples("3_1", contexts=20)
    n = sum(reads)
    next(iter(saes.dictionaries.values())).b_dec.data += 0.1
    saes.top_examples("3_1", contexts=20)
    assert sum(reads) == 2 * n
