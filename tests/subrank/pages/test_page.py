"""Pages: what is shown is escaped, complete, and opens without a network."""

import re
import tomllib
from dataclasses import replace
from pathlib import Path

from removal_world import measured

from circuits.graph import Edge, FeatureGraph, Node
from editing.ioi.curve import Curve, PatchingPoint
from editing.ioi.result import IOIResult
from editing.loss_recovered import SpliceCost
from editing.removal.measurement.evaluation import Method, Removal
from editing.removal.result import RemovalResult
from editing.set_quality import SetQuality
from editing.tasks.ioi import Corruption
from editing.tasks.score import TaskScore
from sae_core.estimate import Estimate
from sae_core.evaluation.reconstruction import Quality
from sae_core.sites import FeatureId, Site
from subrank.pages import page as module
from subrank.pages.circuit_page import circuit_section
from subrank.pages.demo_cards import circuit_card, ioi_card, removal_card
from subrank.pages.demo_page import demo_page
from subrank.pages.evaluation_page import dictionaries_section
from subrank.pages.ioi_page import ioi_section
from subrank.pages.page import Cell, Table, fragment, render, write_page
from subrank.pages.removal_page import removal_section

NASTY = "<script>alert(1)</script>"
TEMPLATES = Path(module.__file__).parent / "templates"
ROOT = TEMPLATES.parents[2]
OWN = TaskScore(Estimate(0.5, 0.5, 0.5), 0.1, Estimate(0.0, 0.0, 0.0), 64)


def graph() -> FeatureGraph:
    cause, target = FeatureId(Site(0), 1), FeatureId(Site(1), 2)
    nodes = (Node(target, 0.01, name=NASTY), Node(cause, 0.01, name="&"))
    facts = {"targets_asked": 1, "pairs_run": 2, "exhaustive": True}
    return FeatureGraph(target, nodes, (Edge(cause, target, -0.5, 0.1, 3, 16, 0.1),), facts)


def ioi() -> IOIResult:
    probability = Estimate(0.1875, 0.125, 0.25)
    points = tuple(
        PatchingPoint(n, Estimate(1.0 - n, 0.0, 2.0), Estimate(float(n)), Estimate(n / 2), probability) for n in (0, 1)
    )
    curves = tuple(Curve(name, points) for name in ("dictionary", "PCA"))
    floors = {"dictionary": {"nothing": 1.0, "all_latents": 0.1, "all_latents_and_error": 0.0}}
    return IOIResult(Corruption.IO, OWN, "resid_post.1", {"resid_post.1": 0.3}, curves, floors, ("names",), 8, 16)


def quality() -> SetQuality:
    return SetQuality({Site(3): Quality(0.1, 16.0, 0.0, 100)}, {Site(3): SpliceCost(1.0, 1.1, 3.0)})


def removal(auroc: float) -> RemovalResult:
    """With features that leave this AUROC."""
    row = Removal(
        Method.FEATURES, "resid_post.1", Estimate(auroc), Estimate(0.6), 1.0, Estimate(0.5), Estimate(0.01), 1.0
    )
    curves = (measured(Method.FEATURES, (0.0, 0.99, 0.0), (1.0, auroc, 0.01)).curve,)
    return RemovalResult(OWN, 0.99, "resid_post.1", (row,), (), replace(row, method=Method.NONE), curves=curves)


def test_tokens_are_escaped():
    table = Table((NASTY,), [(NASTY,), (Cell(NASTY, NASTY, link=f'"{NASTY}'),)])
    for part in (render("dictionaries.html", dictionaries=table, outliers=[]), circuit_section(graph(), None)):
        assert "<script>" not in part and "&lt;script&gt;" in part


def test_every_section_opens_with_the_models_own_score():
    for part in (ioi_section([ioi()]), removal_section(removal(0.5))):
        assert "does not do this task" in part and part.index("does not do this task") < part.index("<table")
    assert "share their names" in ioi_section([ioi()])


def test_curves_are_tabled_with_the_probability_of_the_answer():
    page = ioi_section([replace(ioi(), positions=("S2", -1))])
    assert "0.188<small>[0.12, 0.25]</small>" in page and "1<small>[0, 2]</small>" in page
    assert "positions S2, -1" in page and "all positions" in ioi_section([ioi()])


def test_the_method_of_least_damage_is_marked_only_if_one_removes_the_share():
    assert 'class="best"' in removal_section(removal(0.5))
    without = removal_section(removal(0.9))
    assert 'class="best"' not in without and "features never removes 80% of the capability" in without


def test_a_drawing_is_set_into_the_page_without_its_own_size():
    svg = '<?xml version="1.0"?><svg width="9pt" height="8pt" viewBox="0 0 9 8"><path stroke-width="2"/></svg>'
    part = circuit_section(graph(), svg)
    assert '<svg viewBox="0 0 9 8">' in part and 'stroke-width="2"' in part and "<?xml" not in part


def test_the_dictionaries_are_shown_with_what_they_are_worth():
    assert "0.950" in dictionaries_section(quality())


def test_a_page_opens_without_a_network(tmp_path):
    write_page(tmp_path / "deep" / "page.html", NASTY, ioi_section([ioi()]), assets=tmp_path)
    page = (tmp_path / "deep" / "page.html").read_text()
    assert '<script src="../plotly.min.js">' in page and (tmp_path / "plotly.min.js").stat().st_size > 10**6
    assert "cdn" not in page and 'src="http' not in page and NASTY not in page
    assert '<meta name="viewport"' in page and "prefers-color-scheme: dark" in page and "@media print" in page


def test_a_body_of_plain_text_is_not_markup(tmp_path):
    write_page(tmp_path / "page.html", "Title", NASTY)
    assert NASTY not in (tmp_path / "page.html").read_text()


def test_a_fragment_has_tables_and_style_but_no_script():
    closing = "</figure><script>alert(1)</script>"
    curves = tuple(replace(curve, name=closing) for curve in ioi().curves)
    html = fragment(ioi_section([replace(ioi(), curves=curves, floors={closing: ioi().floors["dictionary"]})]))
    assert "<table" in html and ".subrank" in html and 'class="subrank"' in html
    assert "<script" not in html and "plotly" not in html and len(html) < 40_000


def test_every_selector_of_the_style_sheet_is_scoped():
    """A fragment may stand beside other styles."""
    sheet = re.sub(r"/\*.*?\*/", "", (TEMPLATES / "style.css").read_text(), flags=re.DOTALL)
    selectors = re.findall(r"([^{};]+)\{[^{}]*\}", re.sub(r"@(media|page)[^{]*\{", "", sheet))
    assert len(selectors) > 40
    for selector in (part.strip() for group in selectors for part in group.split(",")):
        assert selector.startswith((".subrank", "html:has(> body.subrank)")), selector


def test_every_file_of_the_pages_is_part_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["subrank.pages"]
    packaged = {path for pattern in patterns for path in TEMPLATES.parent.glob(pattern)}
    files = {path for path in TEMPLATES.parent.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert files <= packaged and len(files) > 20


def demo(folder: Path) -> str:
    """The index of planted results beside an explorer and a drawing, as text."""
    (folder / "circuit" / "explore").mkdir(parents=True)
    (folder / "circuit" / "explore" / "index.html").write_text("")
    (folder / "circuit" / "circuit.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 9 9'/>")
    known = [f"faithfulness 0.3461 of 0.9712 {NASTY}", "12 nodes at resid_post.3, mlp_out.2_17: 21.87 in all"]
    cards = [ioi_card([ioi()]), circuit_card(folder / "circuit", graph(), known), removal_card(removal(0.5))]
    demo_page(folder / "index.html", cards, quality(), 1.25)
    return (folder / "index.html").read_text()


def test_the_demo_opens_with_pictures_links_to_what_is_there_and_folds_tables(tmp_path):
    page = demo(tmp_path)
    explorer = "circuit/explore/index.html"
    assert set(re.findall(r'href="([^"]+)"', page)) == {explorer, f"{explorer}#view=features"}
    assert 'src="circuit/circuit.svg" alt="The circuit of 1_2' in page and NASTY not in page
    assert page.count('role="img" aria-label="') == 2 and "in 1.2 minutes" in page
    outside = re.sub(r"<details>.*?</details>", "", page, flags=re.DOTALL)
    assert "<table" in page and "<table" not in outside
    words = re.sub(r"<[^>]*>", " ", re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL)).split()
    assert 150 < len(words) < 900
    assert "0.35 of 0.97" in page and "resid_post.3, mlp_out.2_17: 22 in all" in page  # ids are no decimals


def test_the_note_says_how_many_random_directions_were_used():
    part = circuit_section(replace(graph(), facts=graph().facts | {"random_directions": 200}), None)
    assert "200 random directions" in part and "1,000" not in part
