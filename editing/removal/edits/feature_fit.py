"""How strongly to ablate which features, so that two classes of prompts come together at little damage.

    x' = x - sum_j a_j f_j(x) d_j,      0 <= a_j <= 3    (the whole is then scaled once more, `choosing.py`)

    minimise over a     mean_g (gap_g(a) / gap)^2  +  10 a^T G a  +  0.0001 |a|^2

gap_g is the mean score of the positive prompts of a group g minus that of the negative, gap the mean of their absolute
values unedited, and a^T G a / 2 the damage to other text at second order (`DamageText.second_order`). The gaps are
linearised where the last step ended (Gauss-Newton), so that every step is a bounded least-squares problem, solved
exactly. Features are added one by one, each time the one with which the linearised problem has the least minimum
(orthogonal matching pursuit).

The weight 10 was tried on storybook beside 1 and 100: best at resid_post.1, as good as any at resid_post.2. Strengths
below 0 are not allowed: they would amplify features of the other class.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from editing.interventions.patch import FeaturePatch
from editing.removal.measurement.cached_runs import PromptRuns, up_to_end
from editing.removal.prompts.class_scores import scores_of
from editing.removal.prompts.two_class_prompts import TwoClassPrompts
from editing.tasks.pairs import at_end
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.model.language_model import LanguageModel

DAMAGE, RIDGE = 10.0, 1e-4
"""Weights of a^T G a and of |a|^2."""
MOST = 3.0
"""The largest strength."""
STEPS = 4
"""Of Gauss and Newton, once the features are chosen."""
FAINT = 0.01
"""A feature of a smaller strength is left out."""


@runtime_checkable
class Ablations(Protocol):
    """Some features that can be ablated at strengths `a`, and what that makes of the scores of prompts."""

    @property
    def prompts(self) -> TwoClassPrompts: ...

    def linearised(self, a: Float[Tensor, "n"]) -> tuple[Float[Tensor, "batch"], Float[Tensor, "batch n"]]:
        """The scores at `a`, and their derivatives by each strength."""
        ...


@dataclass(frozen=True, eq=False)
class AtSite:
    """Features of one site; the prompts are run from there on.

    The change is -sum_j a_j f_j d_j, hence  d score / d a_j = - sum over positions of f_j (d_j . d score / dx).
    """

    runs: PromptRuns
    codes: Float[Tensor, "batch pos n"]
    directions: Float[Tensor, "n d"]

    @classmethod
    def of(cls, runs: PromptRuns, dictionary: Dictionary, latents: list[int]) -> "AtSite":
        codes = codes_in_parts(dictionary, runs.x, runs.mask, runs.codes_at_once)
        return cls(runs, torch.cat([part[..., latents] for part in codes]), dictionary.directions[latents])

    @property
    def prompts(self) -> TwoClassPrompts:
        return self.runs.prompts

    def linearised(self, a: Float[Tensor, "n"]) -> tuple[Float[Tensor, "batch"], Float[Tensor, "batch n"]]:
        scores, gradient = self.runs.scores_and_gradients(-(self.codes * a.to(self.codes)) @ self.directions)
        return scores, -(self.codes * (gradient @ self.directions.T)).sum(1)


@dataclass(frozen=True, eq=False)
class AtSites:
    """Features of several sites, ablated together; codes at the upper sites see what was ablated below."""

    model: LanguageModel
    prompts: TwoClassPrompts
    edits: Sequence[FeaturePatch]
    """The ablations, site by site."""

    def linearised(self, a: Float[Tensor, "n"]) -> tuple[Float[Tensor, "batch"], Float[Tensor, "batch n"]]:
        prompts, mask, last = self.prompts, up_to_end(self.model, self.prompts), self.model.sites()[-1]
        with torch.enable_grad():
            # a copy of the strengths for each prompt: the gradient of the sum then holds every prompt's own
            copies = a.to(self.edits[0].dictionary.directions).repeat(len(prompts), 1).requires_grad_()
            with self.model.hooks(*with_strengths(self.edits, copies[:, None], mask)):
                final = self.model.record(prompts.tokens, [last])[last]
            scores = scores_of(prompts, self.model.unembed(at_end(final, prompts.end)))
            total = scores.sum()
        return scores.detach(), torch.autograd.grad(total, copies)[0]


def with_strengths(
    edits: Sequence[FeaturePatch], strengths: Float[Tensor, "*batch n"], mask: Bool[Tensor, "batch pos"] | None = None
) -> list[FeaturePatch]:
    """The ablations with these strengths, listed as the edits and their latents are."""
    parts = strengths.split([len(edit.latents) for edit in edits], dim=-1)
    return [
        FeaturePatch(edit.site, edit.dictionary, edit.latents, edit.target, mask, part)
        for edit, part in zip(edits, parts, strict=True)
    ]


@dataclass(frozen=True, eq=False)
class Fitted:
    """Which of the features are ablated, and how strongly."""

    columns: list[int]
    strengths: Float[Tensor, "k"]


def fit_features(problem: Ablations, gram: Float[Tensor, "n n"], sizes: Sequence[int]) -> list[Fitted]:
    """The best ablations of at most so many features, for each of `sizes`, ascending; fewer where no more help.

    Invariant: `a` are the strengths of all features, zero where they are not `chosen`.
    """
    objective = _Objective.at(problem, gram)
    chosen: list[int] = []
    a = torch.zeros(len(gram), dtype=torch.float64)
    fits = []
    for size in sizes:
        while len(chosen) < size:
            gaps, slopes = objective.linearised(problem, a)
            trials = {j: objective.solved([*chosen, j], gaps, slopes, a) for j in range(len(gram)) if j not in chosen}
            if not trials:
                break
            best = min(trials, key=lambda j: trials[j][1])
            chosen.append(best)
            a = a + 0.7 * (trials[best][0] - a)  # the problem is not linear: a part of the way
        a = refined(problem, objective, chosen, a)
        kept = [j for j in chosen if a[j] > FAINT]
        if kept and (not fits or kept != fits[-1].columns):
            fits.append(Fitted(kept, a[kept].float()))
    return fits


def fit_strengths(problem: Ablations, gram: Float[Tensor, "n n"], start: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """The strengths of all features, from those at the `start`."""
    return refined(problem, _Objective.at(problem, gram), range(len(gram)), start.double()).float()


def refined(
    problem: Ablations, objective: "_Objective", chosen: Sequence[int], a: Float[Tensor, "n"]
) -> Float[Tensor, "n"]:
    """The best of the strengths that a few steps of Gauss and Newton come by."""
    best, least = a, np.inf
    for step in range(STEPS + 1):
        gaps, slopes = objective.linearised(problem, a)
        if (value := objective.value(gaps, a)) < least:
            best, least = a, value
        if step < STEPS:
            a = a + 0.7 * (objective.solved(chosen, gaps, slopes, a)[0] - a)
    return best


@dataclass(frozen=True, eq=False)
class _Objective:
    """mean_g (gap_g(a) / gap)^2 + DAMAGE a^T G a + RIDGE |a|^2."""

    gram: Float[Tensor, "n n"]
    gap: float

    @classmethod
    def at(cls, problem: Ablations, gram: Float[Tensor, "n n"]) -> "_Objective":
        scores, _ = problem.linearised(torch.zeros(len(gram)))
        return cls(gram, _gaps(problem.prompts, scores).abs().mean().clamp_min(1e-9).item())

    def linearised(self, problem: Ablations, a: Tensor) -> tuple[Tensor, Tensor]:
        """The groups' gaps at `a` and their slopes, in units of the unedited gap."""
        scores, slopes = problem.linearised(a.float())
        return _gaps(problem.prompts, scores) / self.gap, _gaps(problem.prompts, slopes) / self.gap

    def value(self, gaps: Tensor, a: Tensor) -> float:
        return (gaps.pow(2).mean() + DAMAGE * a @ self.gram @ a + RIDGE * a @ a).item()

    def solved(self, chosen: Sequence[int], gaps: Tensor, slopes: Tensor, a: Tensor) -> tuple[Tensor, float]:
        """The minimum over the strengths of the chosen, the gaps being linear around `a`; and its value."""
        from scipy.optimize import lsq_linear  # slow to import

        chosen = list(chosen)
        values, vectors = torch.linalg.eigh(self.gram[chosen][:, chosen])
        root = vectors * values.clamp_min(0).sqrt()
        n_gaps = len(gaps) ** 0.5
        rows = torch.cat(
            [slopes[:, chosen] / n_gaps, DAMAGE**0.5 * root.T, RIDGE**0.5 * torch.eye(len(chosen)).double()]
        )
        wanted = torch.zeros(len(rows), dtype=torch.float64)
        wanted[: len(gaps)] = (slopes @ a - gaps) / n_gaps
        solution = lsq_linear(rows.numpy(), wanted.numpy(), bounds=(0.0, MOST))
        strengths = torch.zeros_like(a)
        strengths[chosen] = torch.from_numpy(solution.x)
        return strengths, 2 * solution.cost


def _gaps(prompts: TwoClassPrompts, values: Float[Tensor, "batch *n"]) -> Float[Tensor, "groups *n"]:
    """Mean over the positive prompts minus mean over the negative, group by group."""
    values, positive = values.double().cpu(), prompts.positive
    groups = prompts.groups_of_both_classes()
    return torch.stack([values[group & positive].mean(0) - values[group & ~positive].mean(0) for group in groups])


def shortlist(runs: PromptRuns, dictionary: Dictionary, most: int) -> list[int]:
    """The `most` features whose ablation closes the gap between the classes most at first order.

    With f_j the latent activations and d_j the directions, ablating feature j lowers  gap = mean of the positive scores
    - mean of the negative scores  by  sum over prompts and positions of w f_j (d_j . d score / dx),  w = 1 / n_positive
    or -1 / n_negative, to first order. Features that do not close it are left out.
    """
    positive = runs.prompts.positive.to(runs.x.device)
    scores, gradients = runs.scores_and_gradients(torch.zeros_like(runs.x))
    weights = torch.where(positive, 1.0 / positive.sum(), -1.0 / (~positive).sum())
    gap = (weights * scores).sum().sign()
    closing, start = runs.x.new_zeros(len(dictionary.directions)), 0
    for codes in codes_in_parts(dictionary, runs.x, runs.mask, runs.codes_at_once):
        gradient = (gap * weights[:, None, None] * gradients)[start : start + len(codes)]
        closing += (codes * (gradient @ dictionary.directions.T)).sum((0, 1))
        start += len(codes)
    return [j for j in closing.topk(min(most, len(closing))).indices.tolist() if closing[j] > 0]


def codes_in_parts(
    dictionary: Dictionary, x: Float[Tensor, "batch pos d_in"], mask: Bool[Tensor, "batch pos"], at_once: int
) -> Iterator[Float[Tensor, "part pos n_latents"]]:
    """Latent activations where `mask` is set, zero elsewhere; as many rows at a time as hold `at_once` of them."""
    rows = max(1, at_once // (x.shape[1] * len(dictionary.directions)))
    for part, part_mask in zip(x.split(rows), mask.split(rows), strict=True):
        yield dictionary.encode(part) * part_mask[..., None]
