"""What an edit is charged with equals what full forwards give; probes find what is there; draws are averaged."""

from dataclasses import astuple, replace

import pytest
import torch
from comparing import close
from removal_world import CONFIG, LAST, MIDDLE, MLP, evaluated, holds_its_value, plain_damage, plain_scores

from editing.interventions.compose import Scaled
from editing.interventions.patch import ablate, clamp
from editing.metrics import auroc
from editing.removal.edits.erasers import Place, fit_erasers
from editing.removal.measurement.cached_runs import PromptRuns
from editing.removal.measurement.evaluation import Evaluator, Method, mean_over_draws, probe_scores
from editing.removal.prompts.capability import capability_of
from editing.tasks.pairs import at_end
from sae_core.dictionaries.baselines import Basis
from sae_core.estimate import Estimate


@pytest.mark.slow
def test_an_edit_of_strength_zero_changes_nothing_exactly(storybook, evaluator, task, components, site):
    edit = ablate(site, components[site], list(range(40)))
    none, scores = evaluator.evaluate([Scaled(edit, 0.0)], Method.NONE).removal, plain_scores(storybook, task.test)
    assert none.edit_size == 0
    for estimate in (none.damage, none.rise):
        assert astuple(estimate) == pytest.approx((0, 0, 0), abs=1e-9)
    assert none.auroc.value == auroc(scores, task.test.positive) == none.accuracy.value == 1.0 == none.left
    read = [*none.transfer.values(), none.probe, none.probe_last]
    assert {estimate.value for estimate in read} == {1.0}
    edited = evaluator.evaluate([edit], Method.FEATURES).removal  # control
    assert edited.edit_size > 0.1 and edited.damage.value > 1e-4


@pytest.mark.slow
def test_capability_and_damage_equal_those_of_full_forwards(storybook, evaluator, task, contexts, components, site):
    edit = ablate(site, components[site], [0, 1, 2, *range(5, 40)])
    removal, scores = evaluator.evaluate([edit], Method.FEATURES).removal, plain_scores(storybook, task.test, edit)
    here = PromptRuns.of(storybook, site, task.test)
    close(here.scores(here.change(edit)[None])[0], scores, 1e-4)
    assert removal.auroc.value == pytest.approx(auroc(scores, task.test.positive), abs=0.01)
    assert removal.accuracy.value == pytest.approx(
        ((scores > 0) == task.test.positive).double().mean().item(), abs=0.04
    )
    kl, rise = plain_damage(storybook, contexts[:4], edit)
    assert removal.damage.value == pytest.approx(kl, rel=1e-3) and kl > 1e-4
    assert removal.rise.value == pytest.approx(rise, rel=1e-3, abs=1e-5)
    prefix = "3" if site == MIDDLE else "mlp_out.1"
    assert removal.features[:2] == (f"{prefix}_0", f"{prefix}_1")


@pytest.mark.slow
def test_transfer_equals_that_of_full_forwards(storybook, evaluator, task, components):
    edit = ablate(MIDDLE, components[MIDDLE], [1, *range(5, 60)])
    removal = evaluator.evaluate([edit], Method.FEATURES).removal
    assert [*removal.transfer] == [*task.transfers] and len(task.transfers) == 2
    for name, prompts in task.transfers.items():
        area = auroc(plain_scores(storybook, prompts, edit), prompts.positive)
        assert removal.transfer[name].value == pytest.approx(area, abs=0.02) and area < 0.99
        assert holds_its_value(removal.transfer[name])


@pytest.mark.slow
def test_edits_at_several_layers_run_together(storybook, evaluator, task, contexts, components):
    edits = [ablate(site, components[site], list(range(30))) for site in (MLP, MIDDLE)]
    removal = evaluator.capability_and_damage(edits, Method.FEATURES).removal
    scores = plain_scores(storybook, task.test, *edits)
    assert removal.auroc.value == pytest.approx(auroc(scores, task.test.positive), abs=0.01)
    assert removal.damage.value == pytest.approx(plain_damage(storybook, contexts[:4], *edits)[0], rel=1e-3)
    alone = [evaluator.capability_and_damage([edit], Method.FEATURES).removal for edit in edits]
    assert removal.edit_size > max(removal_alone.edit_size for removal_alone in alone) and removal.site == "all layers"


def test_a_probe_finds_what_is_there_and_nothing_that_is_not():
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 2 == 0
    x = torch.randn(400, 12, generator=g)
    x[:, 3] += 3 * torch.cat([labels, labels])
    assert auroc(probe_scores(x[:200], labels, x[200:]), labels) > 0.95
    x[:, 3] = torch.randn(400, generator=g)
    assert abs(auroc(probe_scores(x[:200], labels, x[200:]), labels) - 0.5) < 0.12


@pytest.mark.slow
def test_a_probe_is_not_fitted_where_the_eraser_was(storybook, task, text):
    """An eraser fitted on six names of each class leaves other names as readable as they were.

    Once, the probe was fitted on the eraser's prompts, on which the classes have equal means, and found nothing.
    """
    everyone = capability_of("pronouns", storybook, replace(CONFIG, test_prompts=128)).test
    evaluator = Evaluator(storybook, everyone, text, seed=0, halves=everyone.halves())
    few = task.fitting.rows(torch.isin(task.fitting.name, task.fitting.name.unique()[:12]))
    fitted = fit_erasers(storybook, MIDDLE, few)
    for method, eraser in ((method, eraser) for (method, place), eraser in fitted.items() if place is Place.ENDS):
        removal = evaluator.evaluate([eraser], method).removal
        assert removal.probe.value > 0.8 and removal.probe.low > 0.6
        x = at_end(PromptRuns.of(storybook, MIDDLE, few).x, few.end)[:, None]
        scores = probe_scores(eraser(x)[:, 0], few.positive, eraser(x)[:, 0])
        assert auroc(scores, few.positive) < 0.8  # control: the same kind of probe, on the eraser's prompts


def test_a_probe_reads_the_last_of_the_edited_sites(storybook, evaluator, components, monkeypatch):
    """Once it read the one before, where the last block was edited too."""
    seen = []
    monkeypatch.setattr(evaluator, "_probe", lambda ends, halves: (seen.append(ends), Estimate(0.5))[1])
    edits = [
        clamp(site, Basis(torch.eye(128)[:1], torch.zeros(128)), [0], 100.0 + site.layer) for site in (MIDDLE, LAST)
    ]
    evaluator.evaluate(edits, Method.FEATURES)
    assert len(seen) == 1 and (seen[0][:, 0] == 105).all()
    seen.clear()
    evaluator.evaluate(edits[:1], Method.FEATURES)
    assert sorted(bool((ends[:, 0] == 103).all()) for ends in seen) == [False, True]


def test_random_draws_on_either_side_of_chance_do_not_make_chance():
    """AUROCs of 0.05 and 0.95 average to 0.5; the damage was once the first draw's."""
    draws = [evaluated(Method.RANDOM_FEATURES, area, [kl, 2 * kl]) for area, kl in ((0.05, 1.0), (0.95, 3.0))]
    mean = mean_over_draws(draws)
    assert mean.removal.auroc == Estimate(0.5, 0.05, 0.95) and mean.removal.draws == (0.05, 0.95)
    assert mean.removal.left == pytest.approx(0.9) and mean.removal.damage.value == mean.damage.kl.value == 3.0
    assert mean_over_draws(draws[:1]).removal.draws == () and mean_over_draws(draws[:1]).removal.left == 0.9
