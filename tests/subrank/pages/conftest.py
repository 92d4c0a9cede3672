"""A browser for the tests of pages; they are skipped on a machine that has none."""

import pytest
from chromium import CHROMIUM, Page, chromium


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    if not CHROMIUM:
        pytest.skip("no Chromium on this machine")
    with chromium(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture
def page(browser) -> Page:
    """A new tab of a browser that remembers nothing."""
    tab = browser.page()
    tab.send("Storage.clearDataForOrigin", origin="file://", storageTypes="all")
    return tab
