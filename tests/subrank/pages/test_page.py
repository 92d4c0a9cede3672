"""Pages: what is shown is escaped, complete, and opens without a network."""

import xml.etree.ElementTree as ElementTree
from dataclasses import replace

from circuits.graph import Edge, FeatureGraph, Node
from editing.ioi.curve import Curve, CurvePoint
from editing.ioi.study import IOIResult
from editing.loss_recovered import SpliceCost
from editing.removal.evaluation import Method
from editing.removal.experiment import Removal, RemovalResult
from editing.set_quality import SetQuality
from editing.tasks.ioi import Corruption
from editing.tasks.pairs import OwnScore
from sae_core.estimate import Estimate
from sae_core.evaluation.reconstruction import Quality
from sae_core.sites import FeatureId, Site
from subrank.pages.page import (
    circuit_section,
    dictionaries_section,
    ioi_section,
    removal_section,
    table,
    write_page,
)

NASTY = "<script>alert(1)</script>"
OWN = OwnScore(accuracy=0.5, top1=0.1, logit_difference=0.0, n=64)


def graph() -> FeatureGraph:
    cause, target = FeatureId(Site(0), 1), FeatureId(Site(1), 2)
    nodes = (Node(target, (NASTY,), 0.01), Node(cause, ("&",), 0.01))
    facts = {"targets_asked": 1, "pairs_run": 2, "exhaustive": True}
    return FeatureGraph(target, nodes, (Edge(cause, target, -0.5, 0.1, 3, 16, 0.1),), facts)


def ioi() -> IOIResult:
    spread = {"kl": (0.0, 2.0), "probability": (0.125, 0.25)}
    points = tuple(CurvePoint(n, 1.0 - n, float(n), n / 2, 0.1875, spread) for n in (0, 1))
    curves = tuple(Curve(name, points) for name in ("dictionary", "PCA"))
    floors = {"dictionary": {"nothing": 1.0, "all_latents": 0.1, "all_latents_and_error": 0.0}}
    return IOIResult(Corruption.IO, OWN, "resid_post.1", {"resid_post.1": 0.3}, curves, floors, ("names",), 8, 16)


def removal(*, gone: bool) -> RemovalResult:
    methods = (
        (Method.FEATURES, "resid_post.1", Estimate(0.5 if gone else 0.9), Estimate(0.6), 1.0, Estimate(0.5)),
        (Method.LEACE, "resid_post.1", Estimate(0.8), Estimate(0.8), 1.0, Estimate(0.7)),
    )
    methods = (Removal(*methods[0], Estimate(0.01), 1.0, ("1_2",), 1.2), Removal(*methods[1], Estimate(0.02), 2.0))
    return RemovalResult(OWN, 0.6, "resid_post.1", methods, (), Method.FEATURES if gone else None)


def test_tokens_are_escaped():
    for part in (table((NASTY,), [(NASTY,)]), circuit_section(graph(), None)):
        assert "<script>" not in part and "&lt;script&gt;" in part


def test_every_section_opens_with_the_models_own_score():
    for part in (ioi_section([ioi()]), removal_section(removal(gone=True))):
        assert "does not do this task" in part and part.index("does not do this task") < part.index("<table")
    assert "share their names" in ioi_section([ioi()])


def test_curves_are_tabled_with_the_probability_of_the_answer():
    page = ioi_section([replace(ioi(), positions=("S2", -1))])
    assert "0.188\u00a0(0.12\u2060–\u20600.25)" in page and "1\u00a0(0\u2060–\u20602)" in page
    assert "positions S2, -1" in page and "all positions" in ioi_section([ioi()])


def test_the_best_method_is_marked_only_if_there_is_one():
    assert "class=best" in removal_section(removal(gone=True))
    without = removal_section(removal(gone=False))
    assert "class=best" not in without and "no method removes the capability" in without


def test_a_drawing_is_set_into_the_page_without_its_own_size():
    svg = '<?xml version="1.0"?><svg width="9pt" height="8pt" viewBox="0 0 9 8"><path stroke-width="2"/></svg>'
    part = circuit_section(graph(), svg)
    assert '<svg viewBox="0 0 9 8">' in part and 'stroke-width="2"' in part and "<?xml" not in part


def test_the_dictionaries_are_shown_with_what_they_are_worth():
    site = Site(3)
    worth = SetQuality({site: Quality(0.1, 16.0, 0.0, 100)}, {site: SpliceCost(1.0, 1.1, 3.0)})
    assert "0.950" in dictionaries_section(worth)


def test_a_page_opens_without_a_network(tmp_path):
    write_page(tmp_path / "deep" / "page.html", NASTY, ioi_section([ioi()]), assets=tmp_path)
    page = (tmp_path / "deep" / "page.html").read_text()
    assert '<script src="../plotly.min.js">' in page and (tmp_path / "plotly.min.js").stat().st_size > 10**6
    assert "cdn" not in page and 'src="http' not in page and NASTY not in page
    head = page[page.index("<html") : page.index("<style>")] + "</head></html>"
    ElementTree.fromstring(head.replace('<meta charset="utf-8">', ""))
