"""The story picture: what is in it is in the graph, whatever the tokens and names are."""

import re
from dataclasses import replace
from xml.etree import ElementTree

import pygraphviz
import pytest
from drawn import ODD, edge, svg_text

from circuits.drawing import SUPPORTS, SUPPRESSES, render
from circuits.features.feature_label import FeatureLabel
from circuits.graph import ErrorTerm, FeatureGraph, Node, Readout, parse_node
from circuits.groups import story_of
from circuits.shown_prompt import Prompt
from circuits.story import LETTERS, story_source
from sae_core.marks import marked
from sae_core.sites import Site

LOGIT = Readout("she - he")


def labelled(name: str, context: str, output: str = "") -> Node:
    return Node(parse_node(name), label=FeatureLabel(context, output))


def brackets(word: str = "(") -> FeatureGraph:
    """Two features that hold a bracket open, two that see it, one error term."""
    nodes = (
        labelled("2_0", "before )", "→ )"),
        labelled("1_1", f"inside {word}"),
        labelled("1_2", f"inside {word}"),
        labelled("0_1", f"on {word}"),
        Node(ErrorTerm(Site(0))),
    )
    edges = (edge("1_1", "2_0", 0.5), edge("1_2", "2_0", 0.25), edge("0_1", "1_1", 0.25), edge("0_1", "1_2", -0.5))
    return FeatureGraph(nodes[0].id, nodes, (*edges, replace(edges[0], cause=ErrorTerm(Site(0)), effect=0.125)))


def text() -> Prompt:
    shades = {"2_0": (0.0, 0.0, 4.0), "1_1": (0.0, 1.0, 2.0), "1_2": (0.0, 1.0, 0.0), "0_1": (0.0, 3.0, 0.0)}
    return Prompt((" f", " (", " x"), {parse_node(name): values for name, values in shades.items()}, after=(" )",))


def words(source: str) -> str:
    return svg_text(render(source, "svg")).replace("\xa0", " ")


def test_boxes_and_arrows_are_those_of_the_groups():
    drawn = pygraphviz.AGraph(string=story_source(brackets()))
    story = story_of(brackets())
    names = {group: f"box {number}" for number, group in enumerate(story.groups)}
    assert set(drawn.nodes()) == set(names.values()) and len(drawn.edges()) == len(story.edges) == 3
    for each in story.edges:
        look = drawn.get_edge(names[each.cause], names[each.target]).attr
        assert f"{each.effect:+.2f}" in look["label"] and (f"({each.n_edges})" in look["label"]) == (each.n_edges > 1)
        assert look["color"].startswith(SUPPORTS if each.effect > 0 else SUPPRESSES)
    shown = words(story_source(brackets()))
    for part in ("before )", "→ )", "inside (", "2 in layer 1", "1_2, 1_1", "+0.75 (2)", "-0.25 (2)", "error terms"):
        assert part in shown


def test_tokens_are_shaded_by_what_the_boxes_add_up_to():
    """By hand: the target at its token alone; the pair, 2 and 2, alike at two tokens; what follows has no shade."""
    source = story_source(brackets(), text())
    grid = ElementTree.fromstring(re.search(r"label=<(<table.*</table>)>", source, re.S)[1].replace("&#160;", " "))
    rows = [row for row in grid.iter("tr") if len(row) > 1]
    shades = [[cell.get("bgcolor") for cell in row] for row in rows]
    white, full = "#ffffff", "#f28c1e"
    assert shades[0] == [None, white, white, full, None]
    assert shades[1:] == [[None, white, full, full], [None, white, full, white]]
    assert ["".join(cell.itertext()) for cell in rows[0]] == ["before ) (layer 2)", " f", " (", " x", " )"]


def test_the_example_is_cut_before_and_never_behind():
    long = Prompt(tuple(f" word{i}" for i in range(99)), {parse_node("2_0"): (1.0,) * 99})
    shown = words(story_source(brackets(), long))
    assert "word98" in shown and "word80" not in shown and len(re.findall("word", shown)) <= LETTERS // 7 + 1
    one = Prompt((" a", " " + "long" * 40), {})
    assert "longlong" in words(story_source(brackets(), one))


def test_the_caption_says_what_is_not_shown_and_how_good_it_is():
    many = [labelled(f"1_{i}", f"label {i}") for i in range(20)]
    graph = replace(
        brackets(),
        nodes=(brackets().nodes[0], *many),
        edges=tuple(edge(str(node.id), "2_0", 0.01 * (i + 1)) for i, node in enumerate(many)),
    )
    shown = words(story_source(graph, quality=("faithfulness 0.34",)))
    assert "8 of 21 nodes" in shown and "57% of the influence" in shown and "13 weaker boxes" in shown  # 119 of 210
    assert "faithfulness 0.34" in shown and "not shown" not in words(story_source(brackets()))


def test_a_readout_is_told_too_and_so_is_a_target_without_causes():
    nodes = (Node(LOGIT), labelled("1_1", "on she"))
    graph = FeatureGraph(LOGIT, nodes, (replace(edge("1_1", "1_1", 0.5), target=LOGIT),))
    shown = words(story_source(graph, Prompt((" a", " b"), {parse_node("1_1"): (0.0, 1.0)})))
    assert shown.count("logit: she - he") == 2 and "on she" in shown  # its box, and the head of its row
    assert "on she" in words(story_source(FeatureGraph(nodes[1].id, nodes[1:], ()), text()))


@pytest.mark.parametrize("word", (*ODD, "x\\", ":", "\t", "<br/>", "]]", "\ud800"), ids=ascii)
def test_any_token_and_any_name_can_be_told(word):
    """In a label, a name, an output, the example and the caption."""
    graph, prompt = brackets(word), replace(text(), tokens=(f" {word}", word, " x"), after=(word,))
    nodes = (replace(graph.nodes[0], name=word, label=FeatureLabel("", word)), *graph.nodes[1:])
    shown = words(story_source(replace(graph, nodes=nodes), prompt, (word,)))
    if word.strip():
        assert f"inside {marked(word)}" in shown and f" {marked(word)}\n" in shown
