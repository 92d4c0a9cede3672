"""Dictionaries for the tests of the command."""

from pathlib import Path

import pytest
from handmade import random_topk

from sae_core.data.text import Text
from sae_core.storage import DictionarySet


@pytest.fixture(scope="session")
def untrained_set(storybook, tmp_path_factory) -> Path:
    """Random dictionaries for every layer of storybook: enough where nothing depends on what they explain."""
    folder = tmp_path_factory.mktemp("untrained")
    text = Text("storybook", 64, True, max_tokens=8_000)
    dictionaries = {site: random_topk(128, 512, 16, seed=site.layer) for site in storybook.sites()}
    DictionarySet(storybook.name, storybook.fingerprint(), text, dictionaries).save(folder)
    return folder
