"""Dashboards for Neuronpedia: the form is SAEDashboard's, and every number is that of a plain computation."""

import json

import pytest
import torch
from random_cards import SITES, codes

from circuits.features.atlas import direct_effect
from circuits.features.dashboards import N_BINS, activation_counts, write_dashboards
from editing.interventions.add_direction import written

BATCH_KEYS = "model_id layer sae_set sae_id_suffix features".split()
TABLES = (
    "neuron_alignment_indices neuron_alignment_values neuron_alignment_l1 correlated_neurons_indices "
    "correlated_neurons_l1 correlated_neurons_pearson correlated_features_indices correlated_features_l1 "
    "correlated_features_pearson decoder_weights_dist vector"
).split()
FEATURE_KEYS = (
    "feature_index neg_str neg_values pos_str pos_values frac_nonzero freq_hist_data_bar_values "
    "freq_hist_data_bar_heights logits_hist_data_bar_heights logits_hist_data_bar_values n_prompts_total "
    "n_tokens_in_prompt dataset activations"
).split()
"""What SAEDashboard's `NeuronpediaDashboardFeature` has, and its export to Neuronpedia reads."""
EXAMPLE_KEYS = "bin_min bin_max bin_contains tokens values qualifying_token_index".split()


@pytest.fixture(scope="module")
def dashboards(catalogue, tmp_path_factory) -> dict:
    """Every dashboard, by site and latent."""
    folder = tmp_path_factory.mktemp("neuronpedia")
    write_dashboards(folder, catalogue, "words.txt", batch=20)
    features = {}
    for site in SITES:
        files = sorted((folder / str(site)).glob("batch-*.json"), key=lambda file: int(file.stem.split("-")[1]))
        assert [file.name for file in files] == [f"batch-{number}.json" for number in range(len(files))]
        for file in files:
            batch = json.loads(file.read_text())
            assert [*batch] == BATCH_KEYS and 0 < len(batch["features"]) <= 20
            assert (batch["layer"], batch["sae_set"]) == (site.layer, f"{site.stream}-48".replace("_", "-"))
            features |= {(site, feature["feature_index"]): feature for feature in batch["features"]}
        skipped = json.loads((folder / str(site) / "skipped_indexes.json").read_text())
        alive = [index for at, index in features if at == site]
        assert alive == catalogue.alive(site) and sorted(alive + skipped["skipped_indexes"]) == [*range(48)]
    return features


def test_the_form_is_that_of_saedashboard(dashboards, catalogue):
    for feature in dashboards.values():
        assert feature.keys() == {*FEATURE_KEYS, *TABLES} and not any(feature[name] for name in TABLES)
        assert (feature["n_prompts_total"], feature["n_tokens_in_prompt"]) == (*catalogue.training.shape,)
        assert feature["dataset"] == "words.txt" and feature["activations"]
        for kind in ("freq", "logits"):
            bars = [feature[f"{kind}_hist_data_bar_{each}"] for each in ("values", "heights")]
            assert len(bars[0]) == len(bars[1]) == N_BINS and bars[0] == sorted(bars[0])
        for example in feature["activations"]:
            assert [*example] == EXAMPLE_KEYS and len(example["tokens"]) == len(example["values"])


def test_activations_are_those_of_the_dictionary(dashboards, catalogue):
    for site in SITES:
        f = codes(catalogue, site)
        n_tokens = int(catalogue.model.content(catalogue.training).sum())
        for index in catalogue.alive(site):
            feature, values = dashboards[site, index], f[..., index][f[..., index] != 0]
            assert feature["frac_nonzero"] == pytest.approx(len(values) / n_tokens)
            largest = values.max().item()
            edges = torch.linspace(0, largest, N_BINS + 1)
            heights = torch.tensor(feature["freq_hist_data_bar_heights"])
            plain = torch.histc(values, N_BINS, 0, largest).long()
            assert heights.sum() == len(values) and (heights - plain).abs().sum() <= 2  # on an edge, rounding decides
            centres = torch.tensor(feature["freq_hist_data_bar_values"])
            assert torch.allclose(centres, (edges[1:] + edges[:-1]) / 2, rtol=1e-3)
            peaks = [example["values"][example["qualifying_token_index"]] for example in feature["activations"]]
            assert peaks == sorted(peaks, reverse=True) and peaks[0] == pytest.approx(largest, rel=1e-3)
            assert all(example["bin_max"] == pytest.approx(largest) for example in feature["activations"])


def test_logits_are_the_direct_effects(dashboards, catalogue):
    names = catalogue.names
    for site in SITES:
        for index in catalogue.alive(site)[:5]:
            feature, latent = dashboards[site, index], torch.tensor([index])
            direction = written(catalogue.model, site, catalogue.dictionaries[site].directions[latent])
            change = direct_effect(catalogue.model, catalogue.tally.atlas, site, direction, latent)[0]
            order = change.argsort(descending=True)
            assert feature["pos_values"] == pytest.approx(change[order[:10]].tolist(), rel=1e-3, abs=1e-6)
            assert feature["neg_values"] == pytest.approx(change[order.flip(0)[:10]].tolist(), rel=1e-3, abs=1e-6)
            assert feature["pos_str"][0] == names[int(order[0])] and feature["neg_str"][0] == names[int(order[-1])]
            assert sum(feature["logits_hist_data_bar_heights"]) == len(names) == len(change)


def test_counts_of_a_latent_that_is_never_active_are_zero(catalogue):
    """Control: all counts are of what is active."""
    counts = activation_counts(catalogue)
    for site in SITES:
        active = catalogue.tally.sites[site].active
        assert torch.equal(counts[site].sum(1), active) and active.sum() > 0
