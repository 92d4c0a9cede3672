"""The evaluation's page: everything measured is on it, escaped, and JSON says the same."""

import json
import math

import pytest
import torch
from handmade import random_topk
from tiny import random_tokens

from editing.loss_recovered import Hurt, Loss, SpliceReport, splice_reports
from editing.set_evaluation import Densities, DictionaryReport, Evaluation, evaluation_of
from sae_core.errors import UserError
from sae_core.evaluation.profiles import profiles
from sae_core.evaluation.reconstruction import Part
from sae_core.evaluation.similarity import compare
from sae_core.sites import Site, Stream
from subrank.pages.evaluation_figures import frontier_figure, site_figure
from subrank.pages.evaluation_page import evaluation_page
from subrank.pages.page import write_page

NASTY = "<script>alert(1)</script>"
SITES = (Site(0), Site(1, Stream.MLP_OUT))


def evaluate(model, sets) -> Evaluation:
    contexts = random_tokens(60, 6, 20)
    contexts[:, 0] = model.bos_id
    measured = profiles(model, sets, contexts)
    means = {site: profile.mean for by_site in measured.values() for site, profile in by_site.items()}
    spliced = splice_reports(model, sets, means, contexts[:4], worst=2)
    alike = compare(sets, generator=torch.Generator().manual_seed(0))
    return evaluation_of(measured, spliced, alike, text=NASTY, contexts=6, contexts_spliced=4)


@pytest.fixture(scope="module")
def several(tiny_models) -> Evaluation:
    """Three sets, one of them named to do harm, one at one site only."""
    sets = {
        NASTY: {site: random_topk(32) for site in SITES},
        "sparse": {site: random_topk(32, 48, 2, seed=4) for site in SITES},
        "large": {SITES[0]: random_topk(32, 96, 6, seed=9)},
    }
    return evaluate(tiny_models["gpt2"], sets)


@pytest.fixture(scope="module")
def alone(tiny_models) -> Evaluation:
    return evaluate(tiny_models["gpt2"], {"only": {site: random_topk(32) for site in SITES}})


def test_the_page_shows_every_set_at_every_site_and_nothing_unescaped(several, tmp_path):
    body = evaluation_page(several)
    write_page(tmp_path / "evaluate.html", "Evaluation", body)
    page = (tmp_path / "evaluate.html").read_text(encoding="utf-8")
    assert NASTY not in page and "&lt;script&gt;" in page
    assert body.count("plotly-graph-div") == 1 + len(SITES)
    for reports in several.sets.values():
        for site, report in reports.items():
            assert f"<h2>{site}</h2>" in body
            assert f"<td>{report.fvu:.3f}</td>" in body and f"<td>{report.splice.spliced.kl:.4f}</td>" in body
    assert body.count("<summary>") == 5  # two sets at both sites, one at one
    assert body.count("Are the sets alike?") == 2


def test_a_set_alone_has_no_comparison_and_an_overview_of_its_sites(alone):
    body = evaluation_page(alone)
    assert "alike" not in body and body.count("plotly-graph-div") == len(SITES)
    assert "<h2>only</h2>" in body and all(f"<td>{site}</td>" in body for site in SITES)


def test_json_holds_every_number_of_the_page(several):
    value = json.loads(json.dumps(several.to_json(), allow_nan=False))
    assert value["contexts"] == 6 and value["tokens"] == 6 * 19 and value["contexts_spliced"] == 4
    row = value["sets"]["sparse"]["resid_post.0"]
    report = several.sets["sparse"][SITES[0]]
    assert (row["fvu"], row["l0"], row["n_latents"]) == (report.fvu, report.l0, 48)
    assert row["splice"]["spliced"]["kl"] == report.splice.spliced.kl and len(row["splice"]["worst"]) == 2
    assert row["splice"]["loss_recovered"] == report.splice.recovered
    assert [part["name"] for part in row["by_position"]] == ["1-3", "4-15", "16-63"]
    assert {(pair["a"], pair["b"]) for pair in value["similarity"]["resid_post.0"]} == {
        (NASTY, "sparse"),
        (NASTY, "large"),
        ("sparse", "large"),
    }


def test_json_reads_back(several):
    value = json.loads(json.dumps(several.to_json(), allow_nan=False))
    again = Evaluation.from_json(value)
    assert again.to_json() == value and again.lines() == several.lines() and again.similarity == several.similarity
    with pytest.raises(UserError, match="Evaluation"):
        Evaluation.from_json({"text": "a text"})


def test_one_line_per_set_and_site(several):
    lines = several.lines()
    assert len(lines) == 5 and all("\n" not in line for line in lines)
    assert lines[0].startswith(f"resid_post.0 {NASTY}: FVU ")


def test_the_frontier_joins_sets_of_one_size_by_rising_l0(several):
    traces = [trace for trace in frontier_figure(several).data if trace.xaxis == "x"]
    assert [(trace.name, len(trace.x)) for trace in traces] == [
        ("resid_post.0", 2),
        ("resid_post.0", 1),
        ("mlp_out.1", 2),
    ]
    assert all(list(trace.x) == sorted(trace.x) for trace in traces)
    assert [trace.showlegend for trace in traces] == [True, False, True]
    report = several.sets["sparse"][SITES[0]]
    assert (traces[0].x[0], traces[0].y[0]) == (report.l0, report.fvu)


def test_the_densities_drawn_are_all_living_latents(several):
    figure = site_figure(several, SITES[0])
    for name, trace in zip(several.at(SITES[0]), (t for t in figure.data if t.xaxis == "x"), strict=True):
        assert sum(trace.y) == several.sets[name][SITES[0]].n_alive and trace.line.shape == "hv"


def by_hand(tokens: tuple[str, ...], rise: tuple[float | None, ...]) -> Evaluation:
    nan = math.nan
    hurt = Hurt(context=3, position=1, perplexity=2.0, perplexity_spliced=math.inf, tokens=tokens, rise=rise)
    part = (Part("1-3", 4, nan, 0.0),)
    loss = Loss(1e4, 1e4)
    splice = SpliceReport(4, loss, loss, loss, loss, (hurt,))
    densities = Densities((-1.0, 0.0), (0,))
    report = DictionaryReport(nan, 0.0, 1.0, 4, 3, 0, nan, nan, densities, (), part, part, splice)
    return Evaluation("text", 1, 4, 1, {"a": {Site(0): report}}, {})


def test_tokens_are_coloured_by_their_rise_and_escaped():
    tokens = ("<b>", " red", " blue&", "\n")
    body = evaluation_page(by_hand(tokens, (None, 8.0, -2.0, 0.0)))
    assert '<span class="special">&lt;b&gt;</span>' in body and "<b>context 3</b>" in body
    assert '<span class="up" style="--strength:1.00" title="+8.00 nats"> red</span>' in body
    assert '<span class="down" style="--strength:0.50" title="-2.00 nats"> blue&amp;</span>' in body
    assert "<span>↵</span>" in body


def test_tokens_without_spaces_of_their_own_are_set_apart():
    assert "one</span> <span" in evaluation_page(by_hand(("one", "two"), (None, 1.0)))
    assert "one</span><span" in evaluation_page(by_hand(("one", " two"), (None, 1.0)))


def test_what_has_no_value_is_shown_and_saved_all_the_same():
    evaluation = by_hand(("one", "two"), (None, 1.0))
    assert json.loads(json.dumps(evaluation.to_json(), allow_nan=False))["sets"]["a"]["resid_post.0"]["fvu"] is None
    assert "nan" in evaluation.lines()[0] and "inf" in evaluation_page(evaluation)
