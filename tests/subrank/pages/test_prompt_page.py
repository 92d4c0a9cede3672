"""The page of a prompt: every token is text, every cell leads to its features, edges stand between their cells."""

import re
from dataclasses import replace

import pytest
from chromium import BOX
from explorer_pages import HOSTILE
from page_looks import look, unreadable

from circuits.features.feature_label import FeatureLabel
from circuits.prompt_view.placement import PlacedCircuit, PlacedEdge
from circuits.prompt_view.prompt_features import ActiveFeature, Cell, Likely, PromptFeatures, PromptToken
from sae_core.sites import FeatureId, Site
from subrank.pages.page import write_page
from subrank.pages.prompt_page import prompt_section

SITES = (Site(0), Site(1))


def view_of(texts, *, outlier: int | None = None, silent: int | None = None) -> PromptFeatures:
    """A prompt whose first token is special; two features at each other token and site."""
    tokens = []
    for position, text in enumerate(texts):
        likely = (Likely(text, 0.9), Likely(" ", 0.002))
        tokens.append(PromptToken(text, not position, 0.5 if position else None, likely, texts[-1]))
    cells = []
    for site in SITES:
        for position in range(1, len(texts)):
            features = tuple(ActiveFeature(FeatureId(site, n), 2.0 - n, 0.5, -0.25, 1.5, 0.1) for n in (0, 1))
            none = position in (outlier, silent)
            n_active = 0 if none else 2
            cell = Cell(site, position, n_active, 4.0, 0.3, 0.0, position == outlier, () if none else features)
            cells.append(cell)
    return PromptFeatures(tuple(tokens), tuple(cells), "logit of ' she' less the mean of all", 3.0, 0.9)


def circuit() -> PlacedCircuit:
    a, b = FeatureId(Site(0), 1), FeatureId(Site(1), 0)
    edges = (PlacedEdge(a, 1, b, 2, 0.5), PlacedEdge(b, 2, None, 3, -0.2))
    return PlacedCircuit("logit: she", 3, {a: (1, 2), b: (2, 3)}, edges, 2)


def test_what_tokens_and_labels_say_is_text():
    texts = ["<|endoftext|>", *HOSTILE]
    labels = {FeatureId(Site(0), 0): FeatureLabel("</div><script>boom=1</script>", "→ <b>", 0.9, 0.1)}
    html = str(prompt_section(view_of(texts), labels, circuit()))
    assert "<script" not in html and "<img" not in html and '<b>"' not in html
    assert "&lt;script&gt;boom=1&lt;/script&gt;" in html and "\u202e" not in html and "[U+202E]" in html
    assert "&lt;/div&gt;" in html


def test_every_cell_leads_to_what_is_listed():
    html = str(prompt_section(view_of(["<s>", " Mary", " went", " to"]), {}, None))
    links, places = (re.findall(pattern, html) for pattern in (r'href="#([^"]+)"', r'id="([^"]+)"'))
    assert {*links} <= {*places} and len(places) == len({*places}) == 4 + 2 * 3
    assert "␣Mary" in html and "underlined" not in html and "<path" not in html


def test_tokens_that_are_not_read_say_so():
    html = str(prompt_section(view_of(["<s>", " Mary", " went"], outlier=1, silent=2), {}, None))
    assert html.count("massive norm: not read") == 2 and html.count("nothing active") == 2
    assert "at some site: 1." in html and "A special token" in html
    only_special = str(prompt_section(replace(view_of(["<s>"]), cells=()), {}, None))
    assert "A special token" in only_special


@pytest.fixture
def written(tmp_path):
    view = view_of(["<s>", *(f" word{n}" for n in range(11))])
    labels = {FeatureId(Site(0), 0): FeatureLabel("inside ( …", '→ ")" 8/8', 0.93, 0.1)}
    path = tmp_path / "prompt.html"
    write_page(path, "The features of a prompt", prompt_section(view, labels, circuit()))
    return path


@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (390, "dark")])
def test_the_grid_scrolls_within_its_pane_and_is_readable(page, written, width, scheme):
    look(page, written, width, scheme)
    assert page.run("document.documentElement.scrollWidth") == page.run("innerWidth") == width
    assert page.run("(g => g.scrollWidth > g.clientWidth)(document.querySelector('.grid'))")
    assert unreadable(page, "p, td, th, .grid a div, small, b, h2") == [] and page.errors() == []


def test_a_cell_opens_its_token_by_click_and_by_key(page, written):
    look(page, written, 1440, "light")
    shown = "[...document.querySelectorAll('.at')].filter(e => e.getClientRects().length).map(e => e.id).join()"
    assert page.run(shown) == "at-11"
    page.click('.grid a[href="#at-2-resid_post.0"]')
    page.wait(f"{shown} === 'at-2'")
    assert page.run("document.querySelector(':target td').textContent") == "0_0"
    page.run("document.querySelector('.grid tfoot a[href=\"#at-3\"]').focus()")
    page.press("Enter")
    page.wait(f"{shown} === 'at-3'")


def test_edges_begin_and_end_in_their_cells(page, written):
    look(page, written, 1440, "light")
    path = "document.querySelectorAll('.grid path')[0]"
    ends = page.run(
        f"(p => [0, p.getTotalLength()].map(l => p.getPointAtLength(l)).map(q => q.matrixTransform(p.getScreenCTM()))"
        f".map(q => [q.x, q.y]))({path})"
    )
    for (x, y), name in zip(ends, ("#at-1-resid_post.0", "#at-2-resid_post.1"), strict=True):
        left, top, width, height = page.run(f"(e => {BOX})(document.querySelector('.grid a[href=\"{name}\"]'))")
        assert left <= x <= left + width and top <= y <= top + height
