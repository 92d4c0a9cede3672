"""Pages of documentation that are made from the code are up to date."""

import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_list_of_options_is_that_of_the_settings():
    made = runpy.run_path(str(ROOT / "docs" / "make_options.py"))["page"]()
    assert (ROOT / "docs" / "options.md").read_text() == made, "python docs/make_options.py > docs/options.md"
