"""Erasers: fitted where they should be, and taken where they are best."""

from dataclasses import replace

import pytest
import torch
from comparing import close
from removal_world import CONFIG, LAST, MIDDLE

from editing.interventions.erase import fit_leace
from editing.removal.edits.choosing import EditSearch
from editing.removal.edits.erasers import ERASERS, Place, best_erasers, fit_erasers, fit_layer_by_layer
from editing.removal.measurement.cached_runs import PromptRuns, up_to_end
from editing.removal.measurement.evaluation import Method
from editing.tasks.pairs import at_end
from sae_core.sites import Site


def test_places_are_the_tokens_they_say(task):
    prompts = task.selection.first(8)
    for row in range(8):
        end, name = int(prompts.end[row]), [i for i, here in enumerate(prompts.concept[row]) if here]
        rows = {place: place.rows(prompts)[row].nonzero()[:, 0].tolist() for place in Place}
        assert rows[Place.ENDS] == [end] and rows[Place.MENTIONS] == name and len(name) == 2
        assert rows[Place.ONWARD] == [*range(name[0], end + 1)]
    tokens = prompts.tokens[prompts.concept].view(8, 2)
    assert torch.equal(tokens[:, 0], tokens[:, 1])  # one name, twice


def test_an_eraser_is_fitted_on_the_tokens_of_its_place(storybook, task):
    """Every token labelled as its prompt; recorded and gathered one by one."""
    prompts = task.fitting.first(40)
    x = storybook.record(prompts.tokens, [MIDDLE])[MIDDLE]
    fitted = fit_erasers(storybook, MIDDLE, prompts)
    for place in Place:
        where = place.rows(prompts).nonzero().tolist()
        rows, labels = torch.stack([x[i, j] for i, j in where]), torch.stack([prompts.positive[i] for i, _ in where])
        for method, fit in ERASERS.items():
            slow, fast = fit(MIDDLE, rows, labels), fitted[method, place]
            close(fast.left @ fast.right, slow.left @ slow.right, 1e-3)
    apart = fitted[Method.MEANS, Place.ENDS], fitted[Method.MEANS, Place.MENTIONS]  # control
    assert (apart[0].left @ apart[0].right - apart[1].left @ apart[1].right).abs().max() > 1e-2


@pytest.mark.slow
def test_the_place_is_the_best_on_prompts_that_it_was_not_fitted_on(storybook, task, text, components):
    search = EditSearch(storybook, task, components, text, CONFIG)
    check = PromptRuns.of(storybook, MIDDLE, task.check)
    tuning = fit_erasers(storybook, MIDDLE, task.tuning.first(CONFIG.eraser_prompts))
    for method, best in best_erasers(search, MIDDLE).items():
        costs = {place: search.reach(check, tuning[method, place]).cost() for place in Place}
        assert costs[best.place] == min(costs.values()) and best.reach.cost() == costs[best.place]


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
    alone = fit_erasers(storybook, Site(4), prompts)[Method.MEANS, Place.ENDS]  # control
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
