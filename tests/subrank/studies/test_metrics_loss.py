"""Downstream loss equals that of `evaluate`, and compute is read off a ladder, within it."""

import json
import math

import pytest
import torch
from handmade import Circuit, Zero, complete_basis
from tiny import user_error

from editing.loss_recovered import splice_costs
from sae_core.sites import Site
from subrank.studies.metrics.loss import Rung, equivalent_compute, read_ladder, spliced_losses

SITE = Site(1)
LADDER = [Rung(1 + 8 * compute**-0.2, compute) for compute in (10.0**power for power in range(2, 9))]


def test_the_loss_is_that_of_evaluate_and_an_exact_dictionary_costs_nothing():
    circuit = Circuit()
    tokens = circuit.contexts()
    named = {"exact": complete_basis(12), "circuit": circuit.dictionaries[SITE], "nothing": Zero(12)}
    losses = spliced_losses(circuit.model, SITE, named, tokens, math.inf)
    for name, dictionary in named.items():
        cost = splice_costs(circuit.model, {SITE: dictionary}, tokens)[SITE]
        assert losses.rise(name).value == pytest.approx(cost.spliced - cost.original, abs=1e-6)
        assert losses.recovered(name).value == pytest.approx(cost.recovered, abs=1e-5)
    assert losses.recovered("exact").value == pytest.approx(1, abs=1e-5)
    assert losses.recovered("nothing").value == pytest.approx(0, abs=1e-5)
    assert losses.rise("nothing").excludes(0.0) and abs(losses.rise("exact").value) < 1e-5  # control


def test_compute_is_exact_at_the_rungs_falls_with_the_loss_and_is_not_known_outside():
    for rung in LADDER:
        assert equivalent_compute(rung.loss, LADDER) == pytest.approx(rung.compute)
    between = [equivalent_compute(1 + 8 * compute**-0.2, LADDER) for compute in (3e3, 3e4, 3e5)]
    assert between == sorted(between)
    assert between == pytest.approx([3e3, 3e4, 3e5], rel=0.15)
    assert math.isnan(equivalent_compute(9.0, LADDER)) and math.isnan(equivalent_compute(1.0, LADDER))


def test_a_ladder_is_read_in_any_order_and_refused_where_more_compute_helps_nobody(tmp_path):
    path = tmp_path / "ladder.json"
    path.write_text(json.dumps([{"loss": rung.loss, "compute": rung.compute} for rung in LADDER[::-1]]))
    assert read_ladder(path) == LADDER
    for rungs in ([{"loss": 3, "compute": 1}], [{"loss": 3, "compute": 1}, {"loss": 4, "compute": 2}], [{"loss": 3}]):
        path.write_text(json.dumps(rungs))
        with user_error("ladder.json"):
            read_ladder(path)


def test_the_share_of_compute_of_an_exact_dictionary_is_all_of_it():
    circuit = Circuit()
    losses = spliced_losses(circuit.model, SITE, {"exact": complete_basis(12)}, circuit.contexts(), math.inf)
    whole = (losses.original.sum() / losses.scored.sum()).item()
    ladder = [Rung(whole + 1, 1.0), Rung(whole - 1, 100.0)]
    assert losses.compute("exact", ladder).value == pytest.approx(1, abs=1e-4)
    assert math.isnan(losses.compute("exact", LADDER[-2:]).value)  # outside
    assert torch.isfinite(losses.original).all()
