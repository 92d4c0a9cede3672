"""Pictures of circuits: everything is in them, whatever the tokens are, with `dot`, without it, and with nothing."""

import os
import re
import shutil
import sys
from dataclasses import replace
from itertools import pairwise
from xml.etree import ElementTree

import pygraphviz
import pytest
from drawn import ODD, edge, svg_text

from circuits.drawing import SUPPORTS, SUPPRESSES, Drawing, dot_source, draw, render
from circuits.features.feature_label import FeatureLabel
from circuits.graph import ErrorTerm, FeatureGraph, Node, Readout
from sae_core.marks import marked
from sae_core.sites import FeatureId, Site

PNG = b"\x89PNG\r\n\x1a\n"


def node(name: str, words=("word", "other")) -> Node:
    return Node(FeatureId.parse(name), 0.01, 24, label=FeatureLabel(" ".join(words), "→ ".join(words), 0.93, 0.1))


def example(words=("word", "other")) -> FeatureGraph:
    names = ("3_7", "2_1", "2_5", "mlp_out.1_0", "0_12")
    edges = (
        edge("2_1", "3_7", 0.8),
        edge("2_5", "3_7", -0.3),
        edge("mlp_out.1_0", "2_1", 0.05),
        edge("0_12", "mlp_out.1_0", -1.2),
    )
    return FeatureGraph(FeatureId.parse("3_7"), tuple(node(name, words) for name in names), edges)


@pytest.fixture
def parsed() -> pygraphviz.AGraph:
    return pygraphviz.AGraph(string=dot_source(example()))


@pytest.fixture
def without_dot(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda *args, **kwargs: None)


@pytest.fixture
def without_graphviz(monkeypatch, without_dot):
    """Neither the program nor the wheel."""
    monkeypatch.setitem(sys.modules, "pygraphviz", None)


@pytest.fixture
def dot_program(monkeypatch, tmp_path):
    """A `dot` on the PATH that shows how it was called, or fails when the text says so."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "dot"
    script.write_text('#!/bin/sh\ntext=$(cat)\ncase "$text" in *fail*) exit 3;; esac\necho "dot $1"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


# ---- DOT -------------------------------------------------------------------------------------------


def test_every_node_and_edge_is_there(parsed):
    graph = example()
    assert {str(n.id) for n in graph.nodes} <= {str(name) for name in parsed.nodes()}
    drawn = {(str(a), str(b)) for a, b in parsed.edges() if not str(a).startswith("row")}
    assert drawn == {(str(e.cause), str(e.target)) for e in graph.edges}


def test_colour_says_the_sign_and_width_the_strength(parsed):
    shown = {}
    for link in example().edges:
        look = parsed.get_edge(str(link.cause), str(link.target)).attr
        assert look["color"].startswith(SUPPORTS if link.effect > 0 else SUPPRESSES)
        assert f"{link.effect:+.2f}" in look["label"]
        shown[abs(link.effect)] = float(look["penwidth"]), int(look["color"][-2:], 16)
    widths, alphas = zip(*(shown[size] for size in sorted(shown)), strict=True)
    for values in (widths, alphas):  # wider and darker the stronger
        assert all(weaker < stronger for weaker, stronger in pairwise(values))


def test_strokes_say_how_sure_an_edge_is():
    """Dashed where random directions do as much, dotted where not all causes were ablated; the legend says so."""
    base = edge("2_1", "3_7", 0.4)
    nodes, target = (node("3_7"), node("2_1")), FeatureId.parse("3_7")
    for change, style, words in (
        ({}, None, ()),
        ({"null": 0.5}, "dashed", ("random directions",)),
        ({"certified": False}, "dotted", ("screen",)),
        ({"null": 0.1}, None, ()),
    ):
        source = dot_source(FeatureGraph(target, nodes, (replace(base, **change),)))
        drawn = pygraphviz.AGraph(string=source)
        assert (drawn.get_edge("2_1", "3_7").attr["style"] or None) == style, change
        assert ("random directions" in source, "screen" in source) == ("random directions" in words, "screen" in words)


def test_logits_and_errors_have_rows_and_shapes():
    logit, error = Readout("she - he"), ErrorTerm(Site(3))
    edges = (
        replace(edge("3_7", "3_7", 0.3), target=logit),
        replace(edge("3_7", "3_7", 0.2), cause=error, target=logit),
    )
    parsed = pygraphviz.AGraph(string=dot_source(FeatureGraph(logit, (Node(logit), Node(error), node("3_7")), edges)))
    assert {(str(a), str(b)) for a, b in parsed.edges() if not str(a).startswith("row")} == {
        ("3_7", "logit she - he"),
        ("error.resid_post.3", "logit she - he"),
    }
    assert parsed.get_node("logit she - he").attr["label"] == "logit: she - he"
    assert parsed.get_node("error.resid_post.3").attr["shape"] == "hexagon"
    assert {"row layer 3", "row logits"} <= set(parsed.nodes())


def test_blue_is_blue_and_red_is_red():
    (r, _, b), (other_r, _, other_b) = (bytes.fromhex(colour[1:]) for colour in (SUPPORTS, SUPPRESSES))
    assert b > 2 * r and other_r > 2 * other_b


def test_the_target_stands_out_and_labels_say_what_is_known(parsed):
    target, others = parsed.get_node("3_7"), [parsed.get_node(n) for n in ("2_1", "0_12")]
    assert all(target.attr["fillcolor"] != other.attr["fillcolor"] for other in others)
    for part in ("3_7", "word", "other", "→", "F1 0.93"):
        assert part in target.attr["label"]


def test_a_target_without_causes_is_a_picture_too():
    graph = FeatureGraph(FeatureId.parse("3_7"), (node("3_7"),), ())
    assert "3_7" in dot_source(graph)
    ElementTree.fromstring(render(dot_source(graph), "svg"))


# ---- pictures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", (*ODD, "x\\", "\\\\", '\\"', "\\L\\E", ":", "a:b:c"), ids=ascii)
def test_the_logit_of_any_token_can_be_a_target(without_dot, word):
    """A token that ends in a backslash used to leave DOT's string open, and no picture was made."""
    logit = Readout(f"{word} - {word}")
    edges = (replace(edge("3_7", "3_7", 0.3), target=logit), replace(edge("2_1", "3_7", -0.3), target=logit))
    source = dot_source(FeatureGraph(logit, (Node(logit), node("3_7"), node("2_1")), edges))
    drawn = pygraphviz.AGraph(string=source)
    names = {str(name) for name in drawn.nodes() if not str(name).startswith(("row", "legend"))}
    assert len(names) == 3 and {str(target) for cause, target in drawn.edges() if cause in ("3_7", "2_1")} <= names
    shown = marked(str(logit).replace("\n", "\\n"))
    assert shown in svg_text(render(source, "svg")).replace("\xa0", " ")


@pytest.mark.parametrize("word", ODD, ids=ascii)
def test_any_token_can_be_drawn(without_dot, word):
    text = svg_text(render(dot_source(example((word, f"x{word}y"))), "svg"))
    shown = marked(word.replace("\n", "\\n"))
    assert shown in text.replace("\xa0", " ")


def test_all_odd_tokens_at_once(without_dot):
    text = svg_text(render(dot_source(example(ODD)), "svg"))
    assert len(re.findall("F1 0.93", text)) == 5


def test_long_tokens_are_cut(without_dot):
    text = svg_text(render(dot_source(example(("Donaudampfschifffahrtsgesellschaftskapitän", "Mütze"))), "svg"))
    assert "Donaudampfschifffahrtsgesellschaftskapi…" in text and "Mütze" not in text


def test_without_dot_the_wheel_draws(without_dot, tmp_path):
    drawing = draw(dot_source(example()), tmp_path)
    assert drawing == Drawing(tuple(tmp_path / f"circuit.{kind}" for kind in ("dot", "svg", "png", "pdf")))
    assert (tmp_path / "circuit.dot").read_text() == dot_source(example())
    assert "3_7" in svg_text((tmp_path / "circuit.svg").read_bytes())
    assert (tmp_path / "circuit.png").read_bytes().startswith(PNG)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["circuit.dot", "circuit.pdf", "circuit.png", "circuit.svg"]


def test_the_dot_program_is_preferred(dot_program, tmp_path):
    assert render("digraph {}", "svg") == b"dot -Tsvg\n"
    assert [p.name for p in draw(dot_source(example()), tmp_path, "other").paths] == [
        "other.dot",
        "other.svg",
        "other.png",
        "other.pdf",
    ]


def test_with_neither_the_dot_file_stays(without_graphviz, tmp_path):
    """The DOT file and one line of text: no picture, nothing half-written."""
    drawing = draw(dot_source(example()), tmp_path)
    assert drawing.paths == (tmp_path / "circuit.dot",) and drawing.paths[0].read_text() == dot_source(example())
    assert "\n" not in drawing.problem and str(drawing.paths[0]) in drawing.problem
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["circuit.dot"]


def test_a_dot_program_that_fails_is_no_crash(dot_program, tmp_path):
    drawing = draw(dot_source(example(("fail",))), tmp_path)
    assert drawing.paths == (tmp_path / "circuit.dot",) and "exit status 3" in drawing.problem


def test_a_failed_drawing_leaves_an_earlier_picture_alone(without_graphviz, tmp_path):
    (tmp_path / "circuit.svg").write_bytes(b"earlier")
    draw(dot_source(example()), tmp_path)
    assert (tmp_path / "circuit.svg").read_bytes() == b"earlier"
