"""Pages in a headless Chromium: nothing is cut off, and everything can be read, on light and on dark paper."""

import pytest
from explorer_pages import example, example_cards
from page_looks import look, unreadable
from removal_world import measured

from editing.removal.measurement.evaluation import Method, Removal
from editing.removal.result import RemovalResult
from editing.set_quality import SetQuality
from editing.tasks.score import TaskScore
from sae_core.estimate import Estimate
from subrank.pages.circuit_page import circuit_section
from subrank.pages.demo_cards import circuit_card, removal_card
from subrank.pages.demo_page import demo_page
from subrank.pages.explorer import explore
from subrank.pages.page import write_page
from subrank.pages.removal_page import removal_section

READ = "body, h1, h2, h3, p, td, th, small, a, b, summary, code, pre"
"""What is read on a page."""


@pytest.fixture
def report(tmp_path):
    """A page with the widest table and a drawing."""
    wide = {"auroc": Estimate(0.5, 0.4, 0.6), "within": Estimate(0.6, 0.5, 0.7), "accuracy": Estimate(1.0, 0.9, 1.0)}
    features = Removal(
        Method.FEATURES, "resid_post.1", answer_mass=0.5, damage=Estimate(0.01, 0.005, 0.02), edit_size=1.0,
        features=("1_2",), transfer={"her or his": Estimate(0.9), "a longer form": Estimate(0.8)}, **wide,
    )  # fmt: skip
    score = TaskScore(Estimate(0.99, 0.99, 0.99), 0.98, Estimate(5.0, 5.0, 5.0), 64)
    curves = (measured(Method.FEATURES, (0.0, 1.0, 0.0), (1.0, 0.5, 0.01)).curve,)
    removed = RemovalResult(score, 0.99, "resid_post.1", (features,), (), features, curves=curves)
    facts = {"targets_asked": 1, "pairs_run": 2, "exhaustive": True}
    graph = example()
    graph = type(graph)(graph.target, graph.nodes, graph.edges, facts)
    svg = '<svg width="2000pt" height="80pt" viewBox="0 0 2000 80"><path d="M0,0L2000,80"/></svg>'
    path = tmp_path / "page.html"
    write_page(path, "Removing pronouns", removal_section(removed) + circuit_section(graph, svg))
    (tmp_path / "circuit").mkdir()
    (tmp_path / "circuit" / "circuit.svg").write_text(svg.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"'))
    cards = [circuit_card(tmp_path / "circuit", graph, ["faithfulness 0.35"]), removal_card(removed)]
    demo_page(tmp_path / "index.html", cards, SetQuality({}, {}), 3)
    return path


@pytest.mark.parametrize("width", [1440, 390])
def test_a_page_is_as_wide_as_the_window(page, report, width):
    for path in (report, report.with_name("index.html")):
        look(page, path, width, "light")
        page.run("document.querySelectorAll('details').forEach(e => e.open = true)")
        assert page.run("document.documentElement.scrollWidth") == page.run("innerWidth") == width
        assert page.run("document.querySelector('.plotly-graph-div .main-svg') !== null") and page.errors() == []
        assert page.all("img", "e.naturalWidth > 0 && e.alt !== ''") == [True] * (path.name == "index.html")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_paper(page, report, tmp_path, scheme):
    look(page, report, 1440, scheme)
    dark = page.run("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")
    assert unreadable(page, READ) == []
    look(page, report.with_name("index.html"), 1440, scheme)
    assert unreadable(page, READ) == []
    look(page, explore(tmp_path / "explore", example(), example_cards()), 1440, scheme)
    page.click('.node[data-id="1_1"]')
    page.wait("document.querySelector('#name')")
    assert unreadable(page, "#panel :not(.token), .bar *, .node *, .legend *, .controls *") == []
