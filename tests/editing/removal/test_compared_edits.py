"""Erasers and random edits: fitted where they should be, and of the size that they should have."""

from dataclasses import replace

import pytest
import torch
from comparing import close
from editing.removal.compared_edits import ERASERS, fit_erasers, fit_layer_by_layer, scaled_to_sizes
from handmade import random_topk
from removal_world import LAST

from editing.interventions.erase import fit_leace
from editing.interventions.patch import ablate
from editing.removal.cached_runs import PromptRuns, up_to_end
from editing.removal.evaluation import Method
from editing.tasks.pairs import at_end
from sae_core.sites import Site


def test_erasers_at_every_layer_are_each_fitted_on_the_run_below(storybook, task):
    """A slow reference: hooks on, recorded anew for each layer."""
    prompts, sites = task.fitting.first(64), [Site(1), Site(2), Site(4)]
    mask, slow = up_to_end(storybook, prompts), []
    for site in sites:
        with torch.no_grad(), storybook.hooks(*(replace(erasure, mask=mask) for erasure in slow)):
            x = storybook.record(prompts.tokens, [site])[site]
        slow.append(ERASERS[Method.MEANS](site, at_end(x, prompts.end), prompts.positive))
    fast = fit_layer_by_layer(storybook, sites, prompts, ERASERS[Method.MEANS])
    for a, b in zip(fast, slow, strict=True):
        assert a.site == b.site
        close((a.left @ a.right), (b.left @ b.right), 1e-3)
    alone = fit_erasers(storybook, [Site(4)], prompts)[Site(4)][Method.MEANS]  # control
    assert (alone.left @ alone.right - slow[2].left @ slow[2].right).abs().max() > 1e-2


def test_leace_erases_the_class_from_the_last_tokens_it_was_fitted_on(storybook, task):
    from sklearn.linear_model import LogisticRegression

    runs, labels = PromptRuns.of(storybook, LAST, task.selection), task.selection.positive.long()
    x = at_end(runs.x, runs.prompts.end)

    def accuracy(x: torch.Tensor) -> float:
        regression = LogisticRegression(max_iter=1000).fit(x.double().numpy(), labels.numpy())
        return regression.score(x.double().numpy(), labels.numpy())

    erased = fit_leace(LAST, x, labels)(x[:, None])[:, 0]
    gap = erased[labels == 1].mean(0) - erased[labels == 0].mean(0)
    assert gap.norm() < 1e-3 * (x[labels == 1].mean(0) - x[labels == 0].mean(0)).norm()
    assert accuracy(x) == 1 and accuracy(erased) <= 0.55


def test_scaled_edits_have_their_sizes_in_the_run_that_has_them_all(storybook, text):
    """Once each was scaled on the unedited run, and all together were larger than the features' edits."""
    edits = [ablate(Site(layer), random_topk(128, seed=layer), range(30)) for layer in (0, 2, 5)]
    sizes = (8.0, 1.3, 2.9)
    together = scaled_to_sizes(edits, sizes, text.runs)
    assert text.runs.edited(together).sizes == pytest.approx(sizes, rel=1e-3)
    alone = [scaled_to_sizes([edit], [size], text.runs)[0] for edit, size in zip(edits, sizes, strict=True)]
    assert text.runs.edited(alone).sizes != pytest.approx(sizes, rel=0.02)  # control
