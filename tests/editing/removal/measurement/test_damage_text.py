"""Damage to text: what counts, its interval, and memory that does not grow with the text."""

from dataclasses import replace

import pytest
import torch
from comparing import close
from handmade import random_topk
from removal_world import LAST, MIDDLE, holds_its_value, plain_damage
from tiny import user_error

from editing.interventions.add_direction import AddDirection
from editing.interventions.compose import Scaled
from editing.interventions.erase import fit_leace
from editing.interventions.patch import ablate
from editing.metrics import kl_divergence
from editing.removal.edits.feature_fit import AtSite, shortlist
from editing.removal.edits.random_edits import density_on
from editing.removal.measurement.cached_runs import PromptRuns
from editing.removal.measurement.damage_text import DamageText
from editing.tasks.pairs import at_end
from sae_core.data.activations import harvest


def test_edit_size_is_the_mean_over_content_tokens_of_the_text(storybook, text, contexts, components):
    edit = ablate(MIDDLE, components[MIDDLE], [0, 3])
    x = harvest(storybook, contexts[:4], (MIDDLE,))[MIDDLE][None]
    expected = (edit(x) - x).norm(dim=-1).mean().item()
    assert text.damage([edit], 0).edit_size == pytest.approx(expected, rel=1e-4)
    half = text.damage([Scaled(Scaled(edit, 0.25), 2.0)], 0)  # the change of the unscaled edit is kept
    assert half.edit_size == pytest.approx(expected / 2, rel=1e-4)
    assert half.share_changed == text.damage([edit], 0).share_changed == 1.0
    assert text.damage([edit], 0).edit_size == pytest.approx(expected, rel=1e-4)


def test_damage_is_counted_only_where_no_pronoun_is_expected(storybook, task, text, contexts):
    """Control: with the positions at which pronouns are likely it would be another number."""
    runs = PromptRuns.of(storybook, LAST, task.selection)
    edit = fit_leace(LAST, at_end(runs.x, runs.prompts.end), task.selection.positive.long())
    damage = text.kl([edit])
    assert damage == pytest.approx(plain_damage(storybook, contexts[:4], edit)[0], rel=1e-3)
    assert abs(plain_damage(storybook, contexts[:4], edit, limit=2.0)[0] / damage - 1) > 0.02
    assert 0 < int(text.counted.sum()) < int(storybook.content(contexts[:4]).sum())


@pytest.mark.slow
def test_logits_and_codes_of_text_are_made_a_few_at_a_time(storybook, task, text, contexts, monkeypatch):
    """Memory is bounded by numbers of logits and of codes, and the figures do not depend on them."""
    sae, logits, codes = random_topk(128), [], []
    edit = ablate(MIDDLE, sae, list(range(30)))
    whole, density = text.damage([edit], 0), density_on(sae, MIDDLE, text.runs)
    unembed, encode = storybook.unembed, type(sae).encode
    monkeypatch.setattr(storybook, "unembed", lambda h: (logits.append(h.numel() // h.shape[-1]), unembed(h))[1])
    monkeypatch.setattr(type(sae), "encode", lambda self, x: (codes.append(x.shape[:-1].numel()), encode(self, x))[1])
    limits = {"logits_at_once": 20 * storybook.n_vocab, "codes_at_once": 48 * len(sae.directions)}
    few = DamageText(storybook, contexts[:4], task.task_tokens, **limits)
    damage = few.damage([edit], 0)
    assert damage.kl.value == pytest.approx(whole.kl.value, rel=1e-5)
    assert damage.rise.value == pytest.approx(whole.rise.value, rel=1e-4)
    assert max(logits) <= 20 and len(logits) > 10 and codes == [48] * 4
    both = few.runs.edited([Scaled(edit, 0.5), ablate(LAST, sae, [3])]).sizes
    assert max(codes) == 48 and both[0] == pytest.approx(damage.edit_size / 2, rel=1e-4)
    alone = few.damage([ablate(MIDDLE, sae, [3])], 0)
    assert alone.share_changed == pytest.approx(density[3].item())
    assert 0 < alone.share_changed < damage.share_changed
    codes.clear()
    assert torch.equal(density_on(sae, MIDDLE, few.runs), density) and codes == [48] * 4
    runs = PromptRuns.of(storybook, MIDDLE, task.selection.first(8))
    few_runs = replace(runs, codes_at_once=limits["codes_at_once"])
    codes.clear()
    change, chosen = few_runs.change(edit), shortlist(few_runs, sae, 4)
    problem = AtSite.of(few_runs, sae, chosen)
    assert max(codes) <= 48
    close(change, runs.change(edit))
    assert chosen == shortlist(runs, sae, 4)
    close(problem.codes, AtSite.of(runs, sae, chosen).codes)
    edits = [ablate(MIDDLE, sae, [latent]) for latent in chosen]
    logits.clear()
    close(second_order(few, edits), second_order(text, edits), 1e-6)


def test_the_damage_of_text_lies_in_its_interval(text, components):
    damage = text.damage([ablate(MIDDLE, components[MIDDLE], list(range(60)))], 0)
    assert holds_its_value(damage.kl) and holds_its_value(damage.rise) and damage.kl.low < damage.kl.high
    assert len(damage.resamples) == 1000 and damage.kl.low < sum(damage.resamples) / 1000 < damage.kl.high


def test_small_edits_do_the_damage_of_second_order(text, components):
    """KL(unedited || edits at strengths a) -> a^T G a / 2, also for edits that work against each other."""
    whole, small = ablate(MIDDLE, components[MIDDLE], [2, 5, 7]), 0.03
    edits = [
        replace(ablate(MIDDLE, components[MIDDLE], [j]), strengths=torch.tensor([small]))
        for j in whole.latents.tolist()
    ]
    gram = second_order(text, edits)
    close(gram, gram.T, 1e-12)
    for a in ([1.0, 0.0, 0.0], [1.0, 1.0, 1.0], [2.0, 1.0, -1.0]):
        together = replace(whole, strengths=small * torch.tensor(a))
        expected = (torch.tensor(a).double() @ gram @ torch.tensor(a).double() / 2).item()
        assert text.kl([together]) == pytest.approx(expected, rel=0.05)
    assert text.kl([whole]) != pytest.approx(gram.sum().item() / 2 / small**2, rel=0.05)  # control: a large edit


def test_text_that_is_all_about_the_task_is_refused(storybook, contexts):
    with user_error("everywhere"):
        DamageText(storybook, contexts[:1], range(storybook.n_vocab))


def test_contexts_that_an_edit_leaves_alone_are_not_run_and_count_as_unharmed(text, components, monkeypatch):
    """The same damage as that of the whole text run with a hook, and of rows only those that change are run."""
    change, run = torch.zeros_like(text.runs.at(MIDDLE).x), []
    change[1, 4:] = 0.3 * components[MIDDLE].directions[2]
    final = text.model.final
    monkeypatch.setattr(text.model, "final", lambda h, layer: run.append(len(h)) or final(h, layer))
    damage = text.kl_of_change(MIDDLE, change)
    assert run == [1] and damage > 0
    with torch.no_grad():
        clean = text.model.logits(text.tokens)
        with text.model.hooks(AddDirection(MIDDLE, change)):
            edited = text.model.logits(text.tokens)
    assert damage == pytest.approx(kl_divergence(clean, edited)[text.counted].mean().item(), rel=1e-3)
    assert text.kl([Scaled(ablate(MIDDLE, components[MIDDLE], [2]), 0.0)]) == 0.0  # nothing changes
    assert run == [1]  # and nothing is run


def second_order(text: DamageText, edits: list) -> torch.Tensor:
    """G of edits, each run alone."""
    return text.second_order([text.final_under([edit]) for edit in edits])
