"""All metrics of sets at once: what an exact dictionary must have and a random one must not, and plain values."""

import json

import pytest
import torch
import torch.nn.functional as F
from handmade import normal
from planted import unchecked
from tiny import user_error

from sae_core.codec import from_plain, to_plain
from sae_core.data.text import Contexts, Text
from sae_core.dictionaries.saes import ReLUSAE
from sae_core.sites import Site
from subrank.settings.studies import MetricSettings
from subrank.studies.metrics.measured import METRICS, SetMetrics
from subrank.studies.metrics.measuring import benches, check_files, set_metrics

SITE = Site(3)
pytestmark = pytest.mark.slow


def reading(directions: torch.Tensor) -> ReLUSAE:
    """A dictionary that reads along its directions."""
    sae = ReLUSAE(directions.shape[1], len(directions), generator=torch.Generator())
    with torch.no_grad():
        sae.W_dec.copy_(F.normalize(directions, dim=-1))
        sae.W_enc.copy_(sae.W_dec.T)
    return sae.requires_grad_(False)


@pytest.fixture(scope="module")
def contexts(storybook):
    return Text("storybook", 32, True, 32 * 400).read(storybook)


def test_what_is_chosen_on_shares_no_document_with_what_is_held_out(storybook):
    rows = torch.cat([torch.zeros(12, 1, dtype=torch.long), 1 + torch.arange(12 * 7).view(12, 7)], 1)
    for by_document in (False, True):
        contexts = Contexts(rows[4:], rows[:4], by_document=by_document)
        (bench,) = benches(storybook, [SITE], {SITE: torch.inf}, contexts, MetricSettings(contexts=8))
        assert {*bench.held.tokens[:, 1].tolist()} == {*rows[:4, 1].tolist()}
        assert {*bench.training.tokens[:, 1].tolist()} == {*rows[4 if by_document else 5 :, 1].tolist()}


@pytest.fixture(scope="module")
def metrics(storybook, contexts, tmp_path_factory):
    """Of every coordinate and its opposite, which is exact, and of random directions."""
    eye = torch.eye(storybook.d_model)
    sets = {"exact": {SITE: reading(torch.cat([eye, -eye]))}, "random": {SITE: reading(normal(64, storybook.d_model))}}
    ladder = tmp_path_factory.mktemp("ladder") / "ladder.json"
    ladder.write_text(json.dumps([{"loss": 20.0, "compute": 1.0}, {"loss": 0.01, "compute": 1e6}]))
    settings = MetricSettings(contexts=20, explained=2, ablated=4, read_at=(2, 8), ladder=ladder)
    stages = []
    with unchecked():
        measured = set_metrics(storybook, sets, contexts, settings, stages.append)
    assert [progress.done for progress in stages] == [0, 1, 2, 3] and stages[0].total == 4
    return {name: by_site[SITE] for name, by_site in measured.items()}


def test_an_exact_dictionary_loses_nothing_and_a_random_one_does(metrics):
    exact, random = (metrics[name].numbers for name in ("exact", "random"))
    assert [*exact] == [name for name in METRICS if name in exact] and {*exact} == {*METRICS}
    near = {"fvu": 0, "loss_rise": 0, "recovered": 1, "compute": 1, "refined_fvu": 0, "refined_shift": 0}
    for name, value in near.items():
        assert exact[name].value.value == pytest.approx(value, abs=2e-3), name
        assert abs(random[name].value.value - value) > 0.02, name
    assert metrics["exact"].l0.value == pytest.approx(128, abs=1) and metrics["exact"].dead < 0.1


def test_every_number_stands_beside_its_controls(metrics):
    for measured in metrics.values():
        assert all(each.controls for each in measured.numbers.values())
        probes = measured.numbers["probe_loss"]
        assert probes.value.value < probes.controls["labels alone"].value
        assert len(measured.tasks) > 4 and [each.k for each in measured.curve] == [2, 8]
    probes = metrics["exact"].numbers["probe_loss"]  # whose latents are the coordinates
    assert probes.value == probes.controls["best coordinate"]


def test_they_are_plain_values_and_back(metrics):
    for measured in metrics.values():
        assert from_plain(SetMetrics, json.loads(json.dumps(to_plain(measured)))) == measured


@pytest.mark.parametrize("setting", ["ladder", "labels"])
def test_a_file_that_is_none_is_refused_before_anything_is_read(setting, storybook, tmp_path):
    with user_error("nowhere.json"):
        check_files(storybook, MetricSettings(**{setting: tmp_path / "nowhere.json"}))
