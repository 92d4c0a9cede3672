"""The explorer's picture in a headless Chromium: where boxes and arrows stand, their look, and that it keeps up."""

import json
from itertools import pairwise

import pytest
from explorer_pages import counted, edge, example, example_cards, large, node, slide

from circuits.graph import FeatureGraph
from subrank.pages.explorer import explore, graph_value


def test_colour_width_and_dashes_say_what_the_edges_are(page, tmp_path):
    page.open(explore(tmp_path / "own", example(), []))
    drawn = "(s => [s.stroke, parseFloat(s.strokeWidth), Number(e.style.opacity), s.strokeDasharray])"
    ends = "`${e.dataset.cause}>${e.dataset.target}`"
    look = dict(page.all(".arrows .edge", f"[{ends}, {drawn}(getComputedStyle(e.firstChild))]"))
    by_size = sorted((e for e in example().edges if e.solid), key=lambda e: abs(e.effect))
    shown = [look[f"{e.cause}>{e.target}"] for e in by_size]
    for place in (1, 2):
        values = [style[place] for style in shown]
        assert values == sorted(values) and len(set(values)) == len(values)
    assert {style[0] for e, style in zip(by_size, shown, strict=True) if e.effect > 0} == {"rgb(27, 79, 156)"}
    assert look["1_2>2_1"][0] == "rgb(179, 38, 30)"
    assert look["0_2>1_1"][3] != "none" and all(style[3] == "none" for style in shown)


def test_tokens_are_shaded_by_their_activation(page, tmp_path):
    page.open(explore(tmp_path / "own", example(), example_cards()))
    page.click('.node[data-id="0_1"]')
    page.wait("document.querySelector('.example')")
    first = "details[open] .example:nth-of-type(1) .token"
    warm = page.all(first, "[e.textContent, Number(e.style.getPropertyValue('--warm'))]")
    assert warm == [[" Then", 0], [" word0_1", 1], [".", 0.25]]
    colours = page.all(first, "getComputedStyle(e).backgroundColor")
    assert len(set(colours)) == 3


@pytest.mark.parametrize(("per_row", "n_rows"), [(3, 5), (6, 6), (40, 6), (1, 1)])
def test_boxes_do_not_overlap_and_arrows_rise(page, tmp_path, per_row, n_rows):
    graph = large(per_row, n_rows, seed=per_row)
    path = explore(tmp_path / "own", graph, [])
    page.open(path)
    picture = page.run(
        "(() => { const g = GRAPH; const made = subrank.layout.arrange(g.nodes, g.edges, g.rows.length, 0.9);"
        "return {places: Object.fromEntries(made.places), routes: made.routes, size: subrank.layout.SIZE} })()".replace(
            "GRAPH", json.dumps(graph_value(graph, {}, {}))
        )
    )
    width, height = picture["size"]["width"], picture["size"]["height"]
    places = [(p["x"], p["y"]) for p in picture["places"].values()]
    for i, (x, y) in enumerate(places):
        assert all(abs(x - a) >= width or abs(y - b) >= height for a, b in places[:i])
    for link, route in zip(graph.edges, picture["routes"], strict=True):
        start, end = picture["places"][str(link.cause)], picture["places"][str(link.target)]
        assert route[0]["y"] == start["y"] and route[-1]["y"] == end["y"] + height
        assert all(a["y"] >= b["y"] for a, b in pairwise(route))
        assert abs(route[0]["x"] - start["x"]) < width / 2 and abs(route[-1]["x"] - end["x"]) < width / 2


def test_order_leaves_no_crossing_that_need_not_be(page, tmp_path):
    """Two ladders given crosswise."""
    edges = tuple(edge(f"{layer}_{i}", f"{layer + 1}_{(i + layer) % 2}", 0.5) for layer in range(4) for i in (0, 1))
    names = [f"{layer}_{i}" for layer in range(5) for i in (0, 1)]
    page.open(explore(tmp_path / "own", FeatureGraph(edges[-1].target, tuple(map(node, names)), edges), []))
    xs = dict(page.all(".node", "[e.dataset.id, e.getBoundingClientRect().x]"))
    assert len({round(x) for x in xs.values()}) == 2
    assert all(round(xs[str(e.cause)]) == round(xs[str(e.target)]) for e in edges)


def test_a_tidy_picture_has_only_what_leads_to_the_target(page, tmp_path):
    """0_2 is strong for 1_2, which is weak for the target: at 0.5 both go, and 1_1 stays."""
    graph = example()
    page.open(explore(tmp_path / "own", graph, []))
    page.press("t")
    slide(page, 790)  # |effect| >= 0.499
    shown = page.run("[...document.querySelectorAll('.node')].filter(n => !n.hidden).map(n => n.dataset.id)")
    assert sorted(shown) == ["1_1", "2_1"] and counted(page) == 1
    page.press("t")
    assert counted(page) == 2 and page.run("[...document.querySelectorAll('.node')].every(n => !n.hidden)")
    assert page.errors() == []
