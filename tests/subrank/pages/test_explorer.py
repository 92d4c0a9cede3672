"""The explorer's folder: what is written into it, and that the page finds it there."""

import json
import os
import re
import subprocess
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from explorer_pages import HOSTILE, card, edge, example, example_cards, node

from circuits.graph import ErrorTerm, FeatureGraph, Node, Readout
from sae_core.errors import UserError
from sae_core.partial import partial_folder
from sae_core.sites import FeatureId, Site, Stream
from subrank.pages import explorer as module
from subrank.pages.explorer import BYTES, CARDS, EXAMPLES, Captions, explore, graph_value
from subrank.pages.names import read_names, write_names

VIEWER = Path(module.__file__).parent / "viewer"
TEMPLATE = VIEWER.parent / "templates" / "explorer.html"


def read(folder: Path, name: str) -> Any:
    """What a chunk of data holds."""
    text = (folder / "data" / f"{name}.js").read_text(encoding="ascii")
    head = f'subrank.add("{name}",\n'
    assert text.startswith(head) and text.endswith("\n);\n")
    return json.loads(text.removeprefix(head).removesuffix("\n);\n"))


# ---- the files -------------------------------------------------------------------------------------


def test_every_card_is_in_the_chunk_that_the_page_looks_in(tmp_path):
    n = 2 * CARDS + 10
    explore(tmp_path / "own", None, (card(f"0_{i}", f"label {i}") for i in range(n)))
    features = read(tmp_path / "own", "graph")["features"]
    assert features["n"] == n and features["starts"] == [0, CARDS, 2 * CARDS] and features["lists"] == 1
    chunks = [read(tmp_path / "own", f"features-{i:03}") for i in range(3)]
    assert [c["id"] for chunk in chunks for c in chunk] == [f"0_{i}" for i in range(n)]
    assert read(tmp_path / "own", "list-000")[7] == ["0_7", "label 7", 0.01, [" she"]]
    assert chunks[0][7] == card("0_7", "label 7")


def test_large_cards_make_small_chunks(tmp_path):
    text = "long" * (BYTES // 56)
    explore(tmp_path / "own", None, (card(f"0_{i}", text) for i in range(8)))
    assert read(tmp_path / "own", "graph")["features"]["starts"] == [0, 3, 6]
    assert all((tmp_path / "own" / "data" / f"features-{i:03}.js").stat().st_size < 1.01 * BYTES for i in range(3))


def test_cards_stream_through(tmp_path):
    """No more of them are alive at once than a chunk holds."""

    class Card(dict):
        pass

    alive: weakref.WeakSet[Card] = weakref.WeakSet()
    most = 0

    def stream():
        nonlocal most
        for i in range(3 * CARDS):
            streamed = Card(card(f"0_{i}"))
            streamed.__class__.__hash__ = object.__hash__
            alive.add(streamed)
            most = max(most, len(alive))
            yield streamed

    explore(tmp_path / "own", None, stream())
    assert 0 < most <= CARDS + 1


def test_data_are_ascii_and_close_no_script(tmp_path):
    cards = [card(f"0_{i}", word, word) for i, word in enumerate(HOSTILE)]
    nodes = tuple(node(f"0_{i}", word) for i, word in enumerate(HOSTILE))
    page = explore(tmp_path / "own", FeatureGraph(nodes[0].id, nodes, ()), cards, captions=Captions(HOSTILE[0]))
    for path in (tmp_path / "own" / "data").iterdir():
        text = path.read_text(encoding="ascii")
        assert "<" not in text and ">" not in text
    assert read(tmp_path / "own", "features-000") == cards  # and nothing is lost by it
    assert [n["label"] for n in read(tmp_path / "own", "graph")["graph"]["nodes"]] == [
        word or "unclear" for word in HOSTILE
    ]
    assert HOSTILE[0] not in page.read_text() and "&lt;script&gt;" in page.read_text()


def test_numbers_that_json_cannot_hold_are_null(tmp_path):
    graph = FeatureGraph(
        FeatureId.parse("1_1"), (node("1_1"), node("0_1")), (edge("0_1", "1_1", 0.5, error=float("nan")),)
    )
    explore(tmp_path / "own", graph, [card("0_1", mean_active=float("nan"))])
    assert read(tmp_path / "own", "features-000")[0]["mean_active"] is None
    assert read(tmp_path / "own", "graph")["graph"]["edges"][0]["error"] is None


def test_rows_rise_from_the_input_to_the_output():
    names = ("1_0", "mlp_out.0_3", "attn_out.0_3", "0_4", "mlp_out.1_2")
    nodes = [Node(Readout("a - b")), *map(node, names), Node(ErrorTerm(Site(1, Stream.MLP_OUT)))]
    value = graph_value(FeatureGraph(nodes[0].id, tuple(nodes), ()), {}, {})
    assert value["rows"] == [
        "layer 0 attn_out",
        "layer 0 mlp_out",
        "layer 0 resid_post",
        "layer 1 mlp_out",
        "layer 1 resid_post",
        "output",
    ]
    assert [n["row"] for n in value["nodes"]] == [5, 4, 1, 0, 2, 3, 3]
    assert [n["kind"] for n in value["nodes"]] == ["output", *["feature"] * 5, "error"]
    assert graph_value(example(), {}, {})["rows"] == ["layer 0", "layer 1", "layer 2"]


def test_examples_of_edges_are_where_the_edges_say(tmp_path):
    causes = [f"0_{i}" for i in range(2 * EXAMPLES + 2)]
    edges = tuple(edge(cause, "1_1", 0.5) for cause in causes)
    graph = FeatureGraph(edges[0].target, (node("1_1"), *map(node, causes)), edges)
    shown = {
        (e.cause, e.target): [{"tokens": [str(e)], "cause": [1.0], "target": [0.12345678], "end": 0, "drop": 0.5}]
        for e in graph.edges[1:]
    }
    explore(tmp_path / "own", graph, [], edge_examples=shown)
    edges = read(tmp_path / "own", "graph")["graph"]["edges"]
    assert [e["examples"] for e in edges] == [None, *EXAMPLES * [0], *EXAMPLES * [1], 2]
    chunks = [read(tmp_path / "own", f"edges-{number:03}") for number in range(3)]
    for shown_edge, value in zip(graph.edges[1:], edges[1:], strict=True):
        (entry,) = [x for x in chunks[value["examples"]] if x["cause"] == value["cause"]]
        assert entry["target"] == value["target"]
        assert entry["examples"][0]["tokens"] == [str(shown_edge)] and entry["examples"][0]["target"] == [0.1235]


@pytest.mark.parametrize(
    ("cards", "changes", "word"),
    [
        ([card("0_1"), card("0_1")], {}, "two cards"),
        ([{"density": 0.1}], {}, "no id"),
        ([], {"edge_examples": {(FeatureId.parse("0_1"), FeatureId.parse("0_2")): []}}, "0_1 -> 0_2"),
        ([], {"captions": Captions(names={"bracket": "x"})}, "no node"),
    ],
)
def test_bad_input_is_refused_and_leaves_the_earlier_page(tmp_path, cards, changes, word):
    page = explore(tmp_path / "own", example(), example_cards())
    before = {path: path.read_bytes() for path in (tmp_path / "own").rglob("*.*")}
    with pytest.raises(UserError, match=word):
        explore(tmp_path / "own", example(), cards, **changes)
    assert {path: path.read_bytes() for path in (tmp_path / "own").rglob("*.*")} == before
    assert [path.name for path in tmp_path.iterdir()] == ["own"] and page.is_file()


def test_an_earlier_page_is_replaced_and_other_files_are_not(tmp_path):
    explore(tmp_path / "own", None, (card(f"0_{i}") for i in range(CARDS + 1)))
    write_names(tmp_path / "own" / "names.json", {"0_1": "kept"})
    explore(tmp_path / "own", None, [card("0_1")])
    assert not (tmp_path / "own" / "data" / "features-001.js").exists()
    assert read_names(tmp_path / "own" / "names.json") == {"0_1": "kept"}
    ended = subprocess.Popen(["true"])
    ended.wait()
    left = partial_folder(tmp_path / "own")  # by a process that was killed
    left.rename(left.with_name(left.name.replace(f"-{os.getpid()}-", f"-{ended.pid}-")))
    explore(tmp_path / "own", None, [card("0_1")])
    (tmp_path / "own" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="other files"):
        explore(tmp_path / "own", None, [card("0_1")])
    assert (tmp_path / "own" / "thesis.txt").read_text() == "mine"
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="other files"):
        explore(tmp_path / "file", None, [])


def test_a_run_is_known_by_its_graph(tmp_path):
    graph = example()
    other = replace(graph, edges=graph.edges[1:])
    runs = []
    again = replace(graph, facts={"seconds": 9})  # found once more
    for i, (circuit, title) in enumerate([(graph, "a"), (again, "b"), (other, "a"), (None, "a")]):
        explore(tmp_path / str(i), circuit, example_cards(), captions=Captions(title))
        runs.append(read(tmp_path / str(i), "graph")["run"])
    assert runs[0] == runs[1] and len(set(runs)) == 3


def test_the_pages_own_files_write_no_markup_and_ask_no_network():
    for path in (*VIEWER.iterdir(), TEMPLATE):
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function|https?:|//cdn|@import", text
        ), path
    linked = set(re.findall(r'(?:src|href)="([^":]+)"', TEMPLATE.read_text()))
    assert linked == {path.name for path in VIEWER.iterdir()}
