"""A set for the command lines and functions that are tried."""

from pathlib import Path

import pytest
from handmade import random_topk

from sae_core.data.text import Text
from sae_core.storage import DictionarySet


@pytest.fixture(scope="session")
def small_set(storybook, tmp_path_factory) -> Path:
    """Random dictionaries at two sites of storybook."""
    folder = tmp_path_factory.mktemp("fuzzed")
    dictionaries = {site: random_topk(128, 64, 8, seed=site.layer) for site in storybook.sites()[-2:]}
    DictionarySet(
        "storybook", storybook.fingerprint(), Text("storybook", 64, True, max_tokens=8_000), dictionaries
    ).save(folder)
    return folder
