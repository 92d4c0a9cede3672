"""What is said beforehand: counts are those of the passes that run, and a verb says them before it begins."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from planted import unchecked
from random_saes import random_sae
from tiny import random_tokens

from circuits.discovery.edges import EdgeConfig, SearchMode
from circuits.discovery.target_causes import DiscoveryConfig, Reach
from editing.ioi.config import IOIConfig
from editing.loss_recovered import splice_costs, splice_reports
from sae_core.evaluation.profiles import profiles, quality
from sae_core.model.language_model import LanguageModel
from sae_core.model.speed import Speed, Work, measured_speed
from sae_core.sites import Site
from subrank.experiments.cost import (
    Doses,
    Scoring,
    announce,
    circuit_parts,
    evaluate_parts,
    feature_parts,
    ioi_parts,
    quality_parts,
    steer_parts,
)

SITES = (Site(0), Site(2))


@pytest.fixture
def model(tiny_models) -> LanguageModel:
    return tiny_models["neox"]


@pytest.fixture
def passes(monkeypatch) -> Counter:
    """Tokens through one block each, and positions that are unembedded, as the models of a test run them."""
    counted: Counter = Counter()
    record, unembed = LanguageModel._record, LanguageModel.unembed

    def counting(self, sites, inputs, **options):
        sites = [*sites]
        top, start = max(site.layer for site in sites) + 1, options.get("start_at_layer", 0)
        counted["blocks"] += inputs.shape[0] * inputs.shape[1] * (top - start)
        return record(self, sites, inputs, **options)

    def unembedding(self, h):
        counted["logits"] += h[..., 0].numel()
        return unembed(self, h)

    monkeypatch.setattr(LanguageModel, "_record", counting)
    monkeypatch.setattr(LanguageModel, "unembed", unembedding)
    return counted


def total(parts) -> Work:
    return sum(parts.values(), Work())


def test_measuring_a_set_runs_what_is_counted(model, passes):
    saes = {site: random_sae(d_in=32) for site in SITES}
    contexts = random_tokens(model.n_vocab, 70, 30)
    with unchecked():
        quality(model, saes, contexts)
        splice_costs(model, saes, contexts[:64])
    counted = total(quality_parts(model, SITES, 70, 30))
    assert counted.blocks == pytest.approx(passes["blocks"], rel=0.1)
    assert counted.logits == pytest.approx(passes["logits"], rel=0.1)


def test_evaluating_runs_what_is_counted(model, passes):
    sets = {"a": {site: random_sae(d_in=32) for site in SITES}, "b": {SITES[0]: random_sae(d_in=32, seed=1)}}
    contexts = random_tokens(model.n_vocab, 40, 30)
    with unchecked():
        profiles(model, sets, contexts)
        splice_reports(model, sets, {site: torch.zeros(32) for site in SITES}, contexts[:16])
    counted = total(evaluate_parts(model, sets, 40, 16, 30))
    assert counted.blocks == pytest.approx(passes["blocks"], rel=0.1)
    assert counted.logits == pytest.approx(passes["logits"], rel=0.1)


def test_more_work_counts_more(model):
    sets = {"a": {site: random_sae(d_in=32) for site in SITES}}
    contexts = random_tokens(model.n_vocab, 20, 30)

    def of_ioi(**changes) -> float:
        return total(ioi_parts(model, sets, IOIConfig(**changes), contexts, [SITES])).blocks

    usual = of_ioi()
    assert of_ioi(selectors=("attribution", "greedy")) > of_ioi(selectors=("attribution",))
    assert of_ioi(test_prompts=192) > 1.5 * usual > 1.5 * of_ioi(baselines=())
    cards = [total(feature_parts(model, sets["a"], 100, n, 30)).blocks for n in (0, 1, 2)]
    assert cards[2] - cards[1] == cards[1] - cards[0] > 0 and cards[0] == 100 * 30 * 3  # the text is read once
    doses = [total(steer_parts(model, 1, 10, Doses(n, 5, 4, 2), 30)) for n in (1, 6)]
    assert doses[0].blocks < doses[1].blocks and doses[0].steps == 10 and doses[1].steps == 35


def test_the_most_a_circuit_costs_follows_its_settings(model):
    saes = {site: random_sae(d_in=32) for site in SITES}
    scoring = Scoring(contexts=100, cover=2, draws=0, n_random=0, has_cards=False)

    def search(**changes) -> float:
        return [*circuit_parts(model, saes, DiscoveryConfig(**changes), scoring, 30).values()][1].blocks

    usual = search()
    assert search(max_targets=30) == 2 * usual == search(n_examples=32) > 0
    assert search(reach=Reach.ALL) > usual > search(edges=EdgeConfig(search=SearchMode.FIRST_ORDER)) > 0

    def rest(**changes) -> list[float]:
        read, _, scored, cards = circuit_parts(model, saes, DiscoveryConfig(), replace(scoring, **changes), 30).values()
        return [read.blocks, scored.blocks, cards.blocks]

    assert rest(cover=0) == [100 * 30 * 3, 0, 0]  # only the text is read
    assert rest(contexts=200, cover=0) == [200 * 30 * 3, 0, 0]
    assert rest(cover=0, draws=2)[1] > 0 and rest(n_random=20)[1] > rest()[1] and rest(has_cards=True)[2] > 0


def test_work_adds_up_and_has_its_price():
    work = Work(1, 2) + Work(3, 4, 5, 6) * 2
    assert work == Work(7, 10, 10, 12)
    assert Speed(1.0, 0.1, 0.01, 10.0).seconds(work) == pytest.approx(7 + 1 + 0.1 + 120)


def test_the_line_names_the_parts_and_a_duration(model):
    sets, lines = {"a": {SITES[0]: random_sae(d_in=32)}}, []
    with unchecked():
        speed = measured_speed(model, sets["a"].values())
        announce(
            model, sets, {"one thing": Work(), "another": Work(120 / speed.block)}, lambda p: lines.append(p.stage)
        )
    assert min(speed.block, speed.logits, speed.code, speed.step) > 0
    assert lines[0].startswith("about ") and lines[0].endswith(": one thing; another")
