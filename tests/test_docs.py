"""Pages of documentation that are made from the code are up to date, and the README is short."""

import builtins
import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from subrank.settings.studies import STUDIES

ROOT = Path(__file__).resolve().parents[1]


def test_the_list_of_options_is_that_of_the_settings():
    generated = runpy.run_path(str(ROOT / "docs" / "make_options.py"))["page"]()
    assert (ROOT / "docs" / "options.md").read_text() == generated, "python docs/make_options.py > docs/options.md"


def test_the_readme_is_read_in_five_minutes():
    words = [word for word in (ROOT / "README.md").read_text().split() if re.search(r"\w", word)]
    assert len(words) < 1200, "what more there is to say goes into docs/"


# ---- the site --------------------------------------------------------------------------------------

SCRIPT = '''"""Add two numbers: `python examples/00_add.py`.

A sum has two parts.
"""

from pathlib import Path

# One and one, with `+`,
# make two.
total = 1 + 1
print(total)
# no prose: it stands below code

# A picture, and a figure.
Path("picture.svg").write_text("<svg/>")
Figure()
assert total == 2
'''
PAGE = """---
hide: [toc]
---

# Add two numbers

A sum has two parts.

```python
from pathlib import Path
```

One and one, with `+`,
make two.

```python
total = 1 + 1
print(total)
# no prose: it stands below code
```

``` { .text .output }
2
```

A picture, and a figure.

```python
Path("picture.svg").write_text("<svg/>")
Figure()
assert total == 2
```

"""


class Figure:
    """What a plotly figure is asked for."""

    layout = SimpleNamespace(height=300)

    def write_html(self, path, **_):
        Path(path).write_text("a figure")


def docs(script: str) -> dict:
    """What a script in docs/ defines."""
    return runpy.run_path(str(ROOT / "docs" / f"{script}.py"))


def test_a_tutorial_is_the_script_with_what_it_prints_and_draws(tmp_path, monkeypatch):
    script, folder, runs_in = tmp_path / "00_add.py", tmp_path / "pages", tmp_path / "runs"
    script.write_text(SCRIPT)
    runs_in.mkdir()
    (folder / "files").mkdir(parents=True)
    monkeypatch.chdir(runs_in)
    monkeypatch.setattr(builtins, "Figure", Figure, raising=False)
    page = docs("make_tutorials")["page"](script, folder)
    assert page.startswith(PAGE)
    figure, drawing, last = page.removeprefix(PAGE).strip().split("\n\n")
    assert 'src="files/00_add_1.html"' in figure and 'height="320"' in figure
    assert (folder / "files" / "00_add_1.html").read_text() == "a figure"
    assert "files/00_add_2.svg" in drawing and (folder / "files" / "00_add_2.svg").read_text() == "<svg/>"
    assert "python examples/00_add.py" in last


def test_a_script_that_fails_makes_no_page(tmp_path):
    script = tmp_path / "00_fail.py"
    script.write_text('"""Fail: `python examples/00_fail.py`."""\n\nassert 1 + 1 == 3\n')
    with pytest.raises(AssertionError):
        docs("make_tutorials")["page"](script, tmp_path)


def places(nav) -> list[str]:
    """The files that a navigation names, in its order."""
    if isinstance(nav, str):
        return [nav]
    return [place for part in (nav.values() if isinstance(nav, dict) else nav) for place in places(part)]


def test_every_example_and_every_guide_has_its_place_in_the_site():
    site, read = docs("make_site"), docs("make_tutorials")["read_script"]
    scripts = sorted((ROOT / "examples").glob("*.py"))
    listed = places(site["navigation"]([path.stem for path in scripts]))
    made = {name for name, _ in site["pages"]()} | {f"examples/{path.stem}.md" for path in scripts}
    guides = {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}
    assert len(listed) == len(set(listed)) and made | guides <= set(listed)
    assert all((ROOT / place).is_file() for place in set(listed) - made)
    studied = [place for place in listed if place.endswith(tuple(f"_{name.replace('-', '_')}.md" for name in STUDIES))]
    assert len(studied) == len(STUDIES)
    for path in scripts:
        script = read(path.read_text())
        assert script.title and f"examples/{path.name}" in script.call and script.cells


def test_what_a_page_loads_from_elsewhere_is_found(tmp_path):
    elsewhere = docs("check_offline")["elsewhere"]
    page, sheet = tmp_path / "page.html", tmp_path / "sheet.css"
    page.write_text(
        '<a href="https://a.org">a link</a><script src="mine.js"></script><img src="data:image/png;base64,AA==">'
        '<script src="https://b.org/x.js"></script><link rel="stylesheet" href="//c.org/x.css">'
        '<img srcset="mine.png 1x, https://g.org/y.png 2x"><link imagesrcset="https://h.org/z.png">'
        '<style>@font-face {src: url("http://d.org/x.woff")}</style><p>url(https://e.org)</p>'
    )
    sheet.write_text("@import 'https://f.org/x.css'; b {background: url(mine.png)}")
    loaded = [
        "https://b.org/x.js",
        "//c.org/x.css",
        "https://g.org/y.png",
        "https://h.org/z.png",
        "http://d.org/x.woff",
    ]
    assert elsewhere(page) == loaded
    assert elsewhere(sheet) == ["https://f.org/x.css"]
