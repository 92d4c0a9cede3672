"""The IOI curve: every point against full forwards from the formula, its two ends, and its intervals."""

import math
from dataclasses import replace

import pytest
import torch
from comparing import close
from handmade import complete_basis, random_topk
from plain_patching import EVERY_SITE, RESID, plain_kl, random_pairs, reference_readout
from planted import unchecked

from editing.ioi.curve import PatchingPoint, curve_counts, floor, summary, trace, trace_pairs
from editing.ioi.feature_selection import SelectionConfig, attribution, orders_of_pairs
from editing.ioi.site_experiment import PatchExperiment
from editing.metrics import interval, resampled
from editing.tasks.pairs import PromptPairs
from sae_core.dictionaries.baselines import pca


@pytest.fixture
def experiment(tiny) -> PatchExperiment:
    return PatchExperiment(tiny, random_pairs(tiny), RESID)


@pytest.fixture(scope="module")
def neox(tiny_models) -> PatchExperiment:
    return PatchExperiment(tiny_models["neox"], random_pairs(tiny_models["neox"]), RESID)


def curve(experiment: PatchExperiment, dictionary, order, counts) -> tuple[PatchingPoint, ...]:
    """The points of a curve."""
    measured, weights = trace(experiment.patching(dictionary), order, counts), resampled(experiment.pairs.groups, 0)
    return summary(experiment.clean, experiment.corrupted, measured, weights)


@pytest.mark.slow
@EVERY_SITE
def test_every_point_is_that_of_the_formula_by_full_forwards(tiny, site):
    experiment = PatchExperiment(tiny, random_pairs(tiny), site)
    order = torch.randperm(48, generator=torch.Generator().manual_seed(0)).tolist()
    sae, counts = random_topk(experiment.x.shape[-1]), [0, 1, 7, 48]
    readout = torch.stack(trace(experiment.patching(sae), order, counts).readout, -1)
    for row, count in enumerate(counts):
        close(readout[row], reference_readout(experiment, sae, order[:count]).double(), 2e-4)
    assert (readout[0] - readout[3]).abs().max() > 1e-3  # control


def test_the_curve_begins_at_the_corrupted_run(experiment):
    start = curve(experiment, random_topk(32), range(48), [0, 5])[0]
    assert start.n_features == start.recovered.value == start.edit_size.value == 0
    assert (start.recovered.low, start.recovered.high) == pytest.approx((0, 0), abs=1e-9)
    assert start.kl.low <= start.kl.value <= start.kl.high
    assert start.kl.value == pytest.approx(plain_kl(experiment.answers.clean, experiment.resumed.logits), rel=1e-4)
    assert start.kl.value > 0.1


def test_a_complete_basis_ends_at_the_clean_run(experiment):
    for dictionary in (complete_basis(32), pca(experiment.x.flatten(0, 1)[:27])):
        end = curve(experiment, dictionary, range(32), [0, 16, 32])[-1]
        assert end.kl.value == pytest.approx(0, abs=1e-4) and end.recovered.value == pytest.approx(1, abs=1e-3)
        sizes = (experiment.x - experiment.x_bar).norm(dim=-1)
        whole = sum(size[mask].mean().item() for size, mask in zip(sizes, experiment.mask, strict=True)) / 3
        assert end.edit_size.value == pytest.approx(whole, rel=1e-4)


def test_a_sparse_dictionary_ends_at_the_floor(experiment):
    sae = random_topk(32)
    end = curve(experiment, sae, range(48), [0, 10, 48])[-1]
    below = floor(experiment.patching(sae))
    assert end.kl.value == pytest.approx(below["all_latents"], rel=1e-4)
    assert below["nothing"] == pytest.approx(plain_kl(experiment.answers.clean, experiment.resumed.logits), rel=1e-4)
    assert below["all_latents_and_error"] == pytest.approx(0, abs=1e-4)
    assert below["all_latents"] > 0.05  # control: without the error it is not the clean run


def test_points_are_means_over_prompts(neox):
    sae, latents = random_topk(32), list(range(10, 40))
    point, rows = curve(neox, sae, latents, [30])[0], reference_readout(neox, sae, latents)
    assert point.kl.value == pytest.approx(rows[:, 0].mean().item(), rel=1e-3)
    differences = (rows[:, 1], neox.clean.logit_difference, neox.corrupted.logit_difference)
    patched, clean, corrupted = (difference.mean().item() for difference in differences)
    assert point.recovered.value == pytest.approx((patched - corrupted) / (clean - corrupted), rel=1e-3, abs=1e-4)
    assert point.probability.value == pytest.approx(rows[:, 2].mean().item(), rel=1e-3)
    assert point.edit_size.value == pytest.approx(rows[:, 3].mean().item(), rel=1e-3)


def test_intervals_resample_groups(tiny_models):
    """Every number's interval is the quantiles of its own formula, written out for every resample of the groups."""
    model, sae = tiny_models["neox"], random_topk(32)
    pairs = random_pairs(model)
    for groups in ([0, 0, 0], [0, 1, 1]):
        experiment = PatchExperiment(model, replace(pairs, groups=torch.tensor(groups)), RESID)
        (point,), rows = (
            curve(experiment, sae, range(48), [30]),
            reference_readout(experiment, sae, list(range(30))).double(),
        )
        weights = resampled(groups, 0)
        clean, corrupted = (weights @ run.logit_difference.double() for run in (experiment.clean, experiment.corrupted))
        kl, patched, probability, size = (weights @ rows).T
        drawn = {"kl": kl, "recovered": (patched - corrupted) / (clean - corrupted), "probability": probability}
        for name, values in (drawn | {"edit_size": size}).items():
            estimate = getattr(point, name)
            assert [estimate.low, estimate.high] == pytest.approx(interval(values).tolist(), rel=1e-2, abs=1e-3)
    assert not torch.equal(*(resampled(groups, 0) for groups in ([0, 0, 0], [0, 1, 1])))


def test_recovered_has_no_value_where_the_runs_do_not_differ(tiny_models):
    model = tiny_models["neox"]
    pairs = random_pairs(model)
    (point,) = curve(PatchExperiment(model, replace(pairs, foil=pairs.answer), RESID), random_topk(32), range(48), [9])
    assert math.isnan(point.recovered.value) and point.kl.value > 0


def test_adding_features_never_changes_earlier_points(neox):
    sae, order = random_topk(32), list(range(48))
    short = curve(neox, sae, order, [0, 1, 4])
    for point, expected in zip(curve(neox, sae, order, [0, 1, 4, 30, 48]), short, strict=False):
        assert point.kl.value == pytest.approx(expected.kl.value, rel=1e-5)
        assert point.recovered.value == pytest.approx(expected.recovered.value, rel=1e-5)
        assert point.edit_size == expected.edit_size
    jump = curve(neox, sae, order, [4])[0]
    assert jump.kl.value == pytest.approx(short[2].kl.value, rel=1e-4)
    assert jump.edit_size.value == pytest.approx(short[2].edit_size.value)


def test_curve_counts_rise_from_none_to_all():
    for n in (1, 5, 16, 17, 100, 512, 20_000):
        counts = curve_counts(n)
        assert counts[0] == 0 and counts[-1] == n and counts == sorted(set(counts))
        assert [c for c in counts if c <= 16] == list(range(min(n, 16) + 1))


# ---- an order for each pair ------------------------------------------------------------------------


def only_pair(pairs: PromptPairs, number: int) -> PromptPairs:
    per_pair = {name: getattr(pairs, name)[number : number + 1] for name in ("clean", "corrupted", "answer", "foil")}
    return replace(pairs, **per_pair, **{n: getattr(pairs, n)[number : number + 1] for n in ("rival", "end", "groups")})


@pytest.mark.slow
@EVERY_SITE
def test_with_an_order_for_each_pair_every_pair_reads_as_if_it_were_alone(tiny, site):
    """Row by row the trace of that pair's own order; and its order is the one that attribution finds on it alone."""
    pairs, counts = random_pairs(tiny), [0, 1, 3, 48]
    together = PatchExperiment(tiny, pairs, site)
    sae = random_topk(together.x.shape[-1])
    patching = together.patching(sae)
    orders = orders_of_pairs(patching)
    measured = torch.stack(trace_pairs(patching, orders, counts).readout, -1)
    for number in range(len(pairs)):
        with unchecked():  # what is together has its shapes checked
            alone = PatchExperiment(tiny, only_pair(pairs, number), site).patching(sae)
            order = attribution(alone, SelectionConfig(), seed=0).order
            expected = torch.stack(trace(alone, order, counts).readout, -1)[:, 0]
        active = int(alone.differs.sum())
        assert orders[number, :active].tolist()[:3] == list(order[:active])[:3]
        close(measured[:, number], expected, 2e-4)
    general = torch.stack(trace(patching, orders[0].tolist(), counts).readout, -1)
    assert (measured[1] - general[1]).abs().max() > 1e-4  # control: with the first pair's order the others differ


def test_the_estimate_over_all_prompts_is_the_mean_of_each(experiment):
    patching = experiment.patching(random_topk(32))
    assert torch.allclose(patching.first_order(), patching.estimates().mean(0))
    assert patching.estimates().shape == patching.differs.shape
