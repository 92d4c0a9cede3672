"""Exports: others' readers get back what went in, and every fault of the graph JSON is found."""

import copy
import json
from dataclasses import replace

import networkx
import pytest
from graph_json import faults
from hypothesis import given
from hypothesis import strategies as st

from circuits.exports import cantor, neuronpedia, node_link
from circuits.features.feature_label import FeatureLabel
from circuits.graph import Edge, ErrorTerm, FeatureGraph, Node, Readout
from circuits.shown_prompt import Prompt
from sae_core.errors import UserError
from sae_core.sites import FeatureId, Site, Stream

TOKENS = ("<bos>", " Anna", " said", " she")
LOGIT = Readout("she - he")


def feature(name: str) -> FeatureId:
    return FeatureId.parse(name)


def edge(cause, target, effect: float) -> Edge:
    return Edge(cause, target, effect, 0.01, 3, 4, 0.1)


def diamond() -> FeatureGraph:
    """0_1 reaches the logit by 1_2 (strongly) and by 1_3; an error term adds a little."""
    low, strong, weak, error = feature("0_1"), feature("1_2"), feature("1_3"), ErrorTerm(Site(1))
    edges = (
        edge(strong, LOGIT, 0.6),
        edge(weak, LOGIT, -0.3),
        edge(error, LOGIT, 0.1),
        edge(low, strong, 0.5),
        edge(low, weak, 0.25),
    )
    label = FeatureLabel('before " she"', '→ " she"', 0.9, 0.1)
    nodes = (Node(LOGIT), Node(strong, 0.01, label=label), Node(weak, 0.01), Node(error), Node(low, name="Anna"))
    return FeatureGraph(LOGIT, nodes, edges, {"examples": 4, "nested": {"not": "shown"}})


def prompt(**changes) -> Prompt:
    activations = {
        feature("0_1"): [0.0, 3.0, 0.0, 1.0],
        feature("1_2"): [0.0, 0.0, 1.0, 2.0],
        feature("1_3"): [0.0] * 4,
    }
    return Prompt(**({"tokens": TOKENS, "activations": activations, "outputs": {LOGIT: (42, 0.25)}} | changes))


def exported(**changes) -> dict:
    return neuronpedia(diamond(), prompt(**changes), slug="own-1", scan="storybook")


# ---- networkx --------------------------------------------------------------------------------------


def test_networkx_reads_the_graph_back():
    graph = diamond()
    value = json.loads(json.dumps(node_link(graph), allow_nan=False))
    loaded = networkx.node_link_graph(value, edges="edges")
    assert loaded.is_directed() and loaded.graph["target"] == str(LOGIT)
    assert set(loaded.nodes) == {str(node.id) for node in graph.nodes}
    assert {(a, b): data["effect"] for a, b, data in loaded.edges(data=True)} == {
        (str(e.cause), str(e.target)): e.effect for e in graph.edges
    }
    assert loaded.nodes["1_2"]["label"]["f1"] == 0.9 and loaded.edges["1_2", str(LOGIT)]["n_examples"] == 4


# ---- circuit-tracer and Neuronpedia ----------------------------------------------------------------


def test_the_export_has_no_fault():
    value = exported()
    assert not list(faults(json.loads(json.dumps(value, allow_nan=False))))
    by_id = {node["node_id"]: node for node in value["nodes"]}
    assert set(by_id) == {"3_42_3", "1_2_3", "1_-1_3", "0_1_1"}  # 1_3 is silent on this prompt
    assert by_id["0_1_1"]["feature"] == 2 and by_id["0_1_1"]["activation"] == 3 and by_id["0_1_1"]["clerp"] == "Anna"
    assert by_id["3_42_3"]["clerp"] == 'Output "she - he" (p=0.250)' and by_id["3_42_3"]["is_target_logit"]
    assert by_id["1_-1_3"]["feature"] == -1 and by_id["1_-1_3"]["feature_type"] == "mlp reconstruction error"
    assert value["qParams"]["clickedId"] == "3_42_3" and value["metadata"]["prompt"] == "<bos> Anna said she"
    assert {(x["source"], x["target"]): x["weight"] for x in value["links"]} == {
        ("1_2_3", "3_42_3"): 0.6,
        ("1_-1_3", "3_42_3"): 0.1,
        ("0_1_1", "1_2_3"): 0.5,
    }
    assert value["metadata"]["generation_settings"]["examples"] == 4
    assert "nested" not in value["metadata"]["generation_settings"]


def test_groups_open_as_supernodes_of_what_the_prompt_shows():
    """Its viewers show what is pinned, and name a group by its first entry; a group of one is no group."""
    value = exported(activations={})
    assert value["qParams"]["supernodes"] == []
    assert set(value["qParams"]["pinnedIds"]) == {node["node_id"] for node in value["nodes"]}
    graph = diamond()
    named = replace(graph, nodes=tuple(replace(node, name="pronoun" * (node.layer == 1)) for node in graph.nodes))
    value = neuronpedia(named, prompt(activations={}), slug="x", scan="m")
    assert value["qParams"]["supernodes"] == [["pronoun (layer 1)", "1_3_3", "1_2_3"]]
    assert not list(faults(value))
    silent = neuronpedia(named, prompt(), slug="x", scan="m")["qParams"]
    assert silent["supernodes"] == [] and set(silent["pinnedIds"]) == {"3_42_3", "1_2_3", "1_-1_3", "0_1_1"}


def test_influence_is_cumulative_over_all_paths():
    """By hand: into the logit 0.6, 0.3, 0.1; all of 1_2 and 1_3 comes from 0_1, which so has 0.9."""
    value = exported(activations={})
    influence = {node["node_id"]: node["influence"] for node in value["nodes"]}
    shares = [0.9 / 1.9, 0.6 / 1.9, 0.3 / 1.9, 0.1 / 1.9]
    expected = dict(zip(("0_1_3", "1_2_3", "1_3_3", "1_-1_3"), (sum(shares[: i + 1]) for i in range(4)), strict=True))
    assert influence == pytest.approx(expected | {"3_42_3": 0.0})


def test_effects_on_the_prompt_and_names_are_used():
    pair = (feature("0_1"), feature("1_2"))
    value = neuronpedia(
        diamond(), prompt(), slug="x", scan="m", effects={pair: -0.125}, names={"0_1": "a name", str(LOGIT): "b"}
    )
    assert next(x["weight"] for x in value["links"] if x["source"] == "0_1_1") == -0.125
    assert next(n["clerp"] for n in value["nodes"] if n["node_id"] == "0_1_1") == "a name"
    assert "(p=" in value["nodes"][0]["clerp"]


def test_streams_of_a_layer_do_not_share_ids():
    nodes = [FeatureId(Site(0, stream), 7) for stream in (Stream.ATTN_OUT, Stream.MLP_OUT, Stream.RESID_POST)]
    graph = FeatureGraph(nodes[-1], tuple(map(Node, nodes)), (edge(nodes[0], nodes[2], 1.0),))
    value = neuronpedia(graph, Prompt(TOKENS), slug="x", scan="m")
    assert [node["node_id"] for node in value["nodes"]] == ["0_7_3", "1_7_3", "2_7_3"]
    assert value["metadata"]["generation_settings"]["layers"]["1"] == "mlp_out.0"


def test_a_silent_target_is_shown_all_the_same():
    graph = FeatureGraph(feature("1_2"), (Node(feature("1_2")), Node(feature("0_1"))), ())
    value = neuronpedia(graph, Prompt(TOKENS, {feature("1_2"): [0.0] * 4}), slug="x", scan="m")
    assert value["qParams"]["clickedId"] == "1_2_3"


def test_a_prompt_that_cannot_be_shown_is_refused():
    with pytest.raises(UserError, match="at least 2 tokens"):
        Prompt(("x",))
    with pytest.raises(UserError, match="3 activations on a prompt of 4"):
        prompt(activations={feature("0_1"): [1.0] * 3})
    with pytest.raises(UserError, match="file name"):
        neuronpedia(diamond(), prompt(), slug="../x", scan="m")
    two = FeatureGraph(LOGIT, (Node(LOGIT), Node(Readout("she"))), ())
    with pytest.raises(UserError, match="have one token"):
        neuronpedia(two, prompt(outputs={LOGIT: (42, 0.25), Readout("she"): (42, 0.25)}), slug="x", scan="m")


@given(st.integers(0, 200), st.integers(0, 50_000), st.integers(0, 200), st.integers(0, 50_000))
def test_cantor_numbers_are_one_to_one(a, b, c, d):
    assert (cantor(a, b) == cantor(c, d)) == ((a, b) == (c, d))


def test_cantor_numbers_are_those_of_published_graphs():
    assert [cantor(0, 6200), cantor(0, 35), cantor(3, 373), cantor(25, 3029)] == [19229300, 665, 71249, 4668014]


# ---- the check: every fault is found ---------------------------------------------------------------

SPOILED = {
    "no metadata": (lambda v: v.pop("metadata"), "'metadata' is a required"),
    "no scan": (lambda v: v["metadata"].pop("scan"), "'scan' is a required"),
    "no link type": (lambda v: v["qParams"].pop("linkType"), "'linkType' is a required"),
    "nodes no list": (lambda v: v.update(nodes={}), "not of type 'array'"),
    "prompt tokens": (lambda v: v["metadata"].update(prompt_tokens=[1, 2, 3, 4]), "not of type 'string'"),
    "one token": (lambda v: v["metadata"].update(prompt_tokens=["x"]), "fewer than 2"),
    "slug": (lambda v: v["metadata"].update(slug="a/b"), "file name"),
    "no clerp": (lambda v: v["nodes"][1].pop("clerp"), "'clerp' is a required"),
    "position": (lambda v: v["nodes"][1].update(ctx_idx="3"), "not of type 'integer'"),
    "bool as number": (lambda v: v["nodes"][1].update(ctx_idx=True), "not of type 'integer'"),
    "not a number": (lambda v: v["nodes"][1].update(influence=float("nan")), "JSON cannot hold"),
    "no influence": (lambda v: v["nodes"][1].update(influence=None), "hides"),
    "influence key": (lambda v: v["nodes"][1].pop("influence"), "'influence' is a required"),
    "influence too large": (lambda v: v["nodes"][1].update(influence=1.5), "cumulative"),
    "outside": (lambda v: v["nodes"][1].update(ctx_idx=9, node_id="1_2_9"), "token 9 of 4"),
    "id": (lambda v: v["nodes"][1].update(node_id="1_2"), "no id"),
    "id of another layer": (lambda v: v["nodes"][1].update(layer="2"), "layer 2"),
    "not the pair": (lambda v: v["nodes"][1].update(feature=2), "Cantor"),
    "js id": (lambda v: v["nodes"][1].update(jsNodeId="0_0-0"), "jsNodeId"),
    "error id": (lambda v: v["nodes"][2].update(node_id="1_-2_3"), "error term"),
    "output without p": (lambda v: v["nodes"][0].update(clerp="she"), "the viewer stops"),
    "output id": (lambda v: v["nodes"][0].update(feature=7), "output"),
    "kind": (lambda v: v["nodes"][1].update(feature_type="residual"), "is not one of"),
    "twice": (lambda v: v["nodes"].append(v["nodes"][1]), "2 nodes"),
    "link to nowhere": (lambda v: v["links"][0].update(source="9_9_9"), "no node"),
    "weight": (lambda v: v["links"][0].update(weight="1"), "not of type 'number'"),
    "pinned": (lambda v: v["qParams"].update(pinnedIds=["9_9_9"]), "pinned"),
    "supernode": (lambda v: v["qParams"].update(supernodes=[["name", "9_9_9"]]), "not pinned"),
    "clicked": (lambda v: v["qParams"].update(clickedId="9_9_9"), "clickedId"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_every_fault_is_found(name):
    spoil, word = SPOILED[name]
    value = copy.deepcopy(exported())
    assert not list(faults(value))
    spoil(value)
    listed = list(faults(value))
    assert any(word in fault for fault in listed) and all("\n" not in fault for fault in listed), listed


def test_a_feature_at_most_tokens_would_be_deleted():
    """Two thirds of 3 tokens are 2: a feature at 2 of them stays, one at 3 goes."""
    value = exported(tokens=TOKENS[:3], activations={}, outputs={})
    first = next(node for node in value["nodes"] if node["node_id"] == "0_1_2")
    for position, bad in ((1, False), (0, True)):
        value["nodes"].append(first | {"node_id": f"0_1_{position}", "ctx_idx": position})
        assert any("delete" in fault for fault in faults(value)) == bad


def test_the_older_id_of_an_error_and_tokens_are_known():
    value = exported()
    value["nodes"][2].update(node_id="0_1_3", jsNodeId="1_3-0")
    value["links"], value["qParams"]["pinnedIds"] = [], []
    node = value["nodes"][0] | {"node_id": "E_9_0", "layer": "E", "ctx_idx": 0, "feature_type": "embedding"}
    value["nodes"].append(node | {"jsNodeId": "E_9-0", "feature": 0, "clerp": ""})
    assert not list(faults(value))
