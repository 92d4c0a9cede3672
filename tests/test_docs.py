"""Pages of documentation that are made from the code are up to date, and the README is short."""

import re
import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_list_of_options_is_that_of_the_settings():
    made = runpy.run_path(str(ROOT / "docs" / "make_options.py"))["page"]()
    assert (ROOT / "docs" / "options.md").read_text() == made, "python docs/make_options.py > docs/options.md"


def test_the_readme_is_read_in_five_minutes():
    words = [word for word in (ROOT / "README.md").read_text().split() if re.search(r"\w", word)]
    assert len(words) < 1200, "what more there is to say goes into docs/"
