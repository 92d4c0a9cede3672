"""Greedy search for the features whose ablation brings two classes of prompts together, under a budget of damage."""

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from editing.removal.cached_runs import PromptRuns
from editing.removal.damage_text import DamageText
from editing.removal.two_class_prompts import TwoClassPrompts
from sae_core.dictionaries.dictionary import Dictionary

WORTH = 0.95
"""After the first, a feature must leave at most this share of the gap: smaller gains are mostly noise."""


def choose_features(
    runs: PromptRuns, dictionary: Dictionary, text: DamageText, budget: float, *, shortlist: int, most: int
) -> list[int]:
    """At most `most` features to ablate, the first `n` of which are the search's choice of `n`.

    A first-order estimate of how much each ablation closes the gap between the classes makes a shortlist. Each step
    then ablates, beside the chosen features, each of the candidates, and keeps the one that leaves the smallest
    `standardised_gap`, if it leaves little enough (`WORTH`) and all chosen features together cost at most `budget`
    nats per token of `text`. Candidates with a smaller gap that would cost too much are dropped for good.

    Invariant of every step: `scores` and `gap` are those with exactly `chosen` ablated, whose damage is within the
    budget; `candidates` are the shortlisted features that are neither chosen nor dropped.
    """
    shortlisted = _shortlist(runs, dictionary, shortlist)
    directions = dictionary.directions[shortlisted]  # [k d]
    codes = _codes_of(dictionary, shortlisted, runs.x, runs.mask, runs.codes_at_once)  # [batch pos k]
    text_x, _ = text.runs.at(runs.site)
    text_codes = _codes_of(dictionary, shortlisted, text_x, text.runs.mask, text.runs.codes_at_once)  # [contexts pos k]

    def damage(features: list[int]) -> float:
        return text.kl_of_change(runs.site, -(text_codes[..., features] @ directions[features]))

    scores = runs.scores(torch.zeros_like(runs.x)[None])[0]
    gap = standardised_gap(scores[None], runs.prompts)[0]
    chosen: list[int] = []  # positions in the shortlist, as are the candidates
    candidates = list(range(len(shortlisted)))
    while candidates and len(chosen) < most:
        trials = _scores_with_one_more(runs, codes, directions, chosen, candidates, scores)
        gaps = standardised_gap(trials, runs.prompts)
        enough = (WORTH if chosen else 1.0) * gap
        promising = [i for i in gaps.argsort().tolist() if gaps[i] < enough]
        best = next((i for i in promising if damage([*chosen, candidates[i]]) <= budget), None)
        if best is None:
            break
        chosen.append(candidates[best])
        gap, scores = gaps[best], trials[best]
        leaving = set(promising[: promising.index(best) + 1])  # the best, and those before it that cost too much
        candidates = [feature for i, feature in enumerate(candidates) if i not in leaving]
    return [shortlisted[i] for i in chosen]


def _shortlist(runs: PromptRuns, dictionary: Dictionary, most: int) -> list[int]:
    """The `most` features whose ablation closes the gap most at first order, of those that are active at all.

    With f_j the latent activations and d_j the directions, ablating feature j adds -f_j d_j at every position, which
    lowers  gap = mean of the positive scores - mean of the negative scores  by  sum over prompts and positions of
    f_j (d_j . d gap / dx).
    """
    positive = runs.prompts.positive.to(runs.x.device)
    gradient = runs.gradient(torch.where(positive, 1.0 / positive.sum(), -1.0 / (~positive).sum()))  # [batch pos d]
    closing = runs.x.new_zeros(len(dictionary.directions))
    active, start = torch.zeros_like(closing, dtype=torch.bool), 0
    for codes in codes_in_parts(dictionary, runs.x, runs.mask, runs.codes_at_once):
        closing += (codes * (gradient[start : start + len(codes)] @ dictionary.directions.T)).sum((0, 1))
        active |= codes.flatten(0, 1).any(0)
        start += len(codes)
    return [j for j in closing.topk(min(most, len(closing))).indices.tolist() if active[j]]


def codes_in_parts(
    dictionary: Dictionary, x: Float[Tensor, "batch pos d_in"], mask: Bool[Tensor, "batch pos"], at_once: int
) -> Iterator[Float[Tensor, "part pos n_latents"]]:
    """Latent activations where `mask` is set, zero elsewhere; as many rows at a time as hold `at_once` of them."""
    rows = max(1, at_once // (x.shape[1] * len(dictionary.directions)))
    for part, part_mask in zip(x.split(rows), mask.split(rows), strict=True):
        yield dictionary.encode(part) * part_mask[..., None]


def _codes_of(
    dictionary: Dictionary,
    latents: list[int],
    x: Float[Tensor, "batch pos d_in"],
    mask: Bool[Tensor, "batch pos"],
    at_once: int,
) -> Float[Tensor, "batch pos k"]:
    """The activations of some latents where `mask` is set."""
    return torch.cat([codes[..., latents] for codes in codes_in_parts(dictionary, x, mask, at_once)])


def _scores_with_one_more(
    runs: PromptRuns,
    codes: Float[Tensor, "batch pos k"],
    directions: Float[Tensor, "k d"],
    chosen: list[int],
    candidates: list[int],
    scores: Float[Tensor, "batch"],
) -> Float[Tensor, "candidates batch"]:
    """The scores when, beside the chosen features, each candidate is ablated in turn.

    Row (c, b) is the score of prompt b under the change  -(sum_{j chosen} f_bj d_j + f_bc d_c). Prompts on which a
    candidate is silent keep the `scores` that they have without it, and are not run.
    """
    chosen_part, candidate = codes[..., chosen] @ directions[chosen], torch.tensor(candidates, device=codes.device)
    is_active = codes[..., candidate].ne(0).any(1).T  # [candidates batch]
    trial, prompt = is_active.nonzero(as_tuple=True)

    def change(part: slice) -> Float[Tensor, "part pos d"]:
        latent = candidate[trial[part]]
        candidate_part = codes[prompt[part], :, latent][..., None] * directions[latent][:, None]
        return -(chosen_part[prompt[part]] + candidate_part)

    trials = scores.repeat(len(candidates), 1)
    trials[is_active] = runs.scores_of_rows(prompt, change)
    return trials


def standardised_gap(scores: Float[Tensor, "trials batch"], prompts: TwoClassPrompts) -> Float[Tensor, "trials"]:
    """Mean over groups of |difference of the classes' means|, in pooled standard deviations of all scores.

    Smooth where an AUROC has steps, so that a few dozen prompts can rank candidates by it. Groups of one class only
    do not count; where all are, the classes are compared over all prompts.
    """
    positive, group = prompts.positive.to(scores.device), prompts.group.to(scores.device)
    deviation = ((scores[:, positive].var(-1) + scores[:, ~positive].var(-1)) / 2).sqrt().clamp_min(1e-9)
    differences = []
    for label in group.unique():
        ahead, behind = positive & (group == label), ~positive & (group == label)
        if ahead.any() and behind.any():
            differences.append((scores[:, ahead].mean(-1) - scores[:, behind].mean(-1)).abs())
    if not differences:
        differences = [(scores[:, positive].mean(-1) - scores[:, ~positive].mean(-1)).abs()]
    return torch.stack(differences).mean(0) / deviation
