"""Which edit to make at which site, and how strongly; nothing here sees the test prompts or the test text.

Edits are compared by what they take to remove a given share of the capability (`RemovalConfig.share`): the strength at
which check prompts, on which nothing was fitted, lose it, and the damage there to the text for choosing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf, sqrt

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from editing.interventions.compose import Scaled
from editing.interventions.patch import FeaturePatch, ablate
from editing.metrics import aurocs
from editing.removal.cached_runs import PromptRuns, TokenRuns, up_to_end
from editing.removal.capability import Capability
from editing.removal.class_scores import left_within, scores_of
from editing.removal.config import RemovalConfig
from editing.removal.curve import strength_needed
from editing.removal.damage_text import DamageText
from editing.removal.feature_fit import AtSite, Fitted, fit_features, shortlist, with_strengths
from editing.removal.two_class_prompts import TwoClassPrompts
from editing.tasks.pairs import at_end
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.errors import UserError
from sae_core.model.language_model import Intervention, LanguageModel
from sae_core.progress import Stages
from sae_core.sites import Site

GRID = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0)
"""Strengths at which an edit is tried first; then where a straight line between two of them says."""
REFINEMENTS = 3
SIZES = (1, 2, 4, 8, 16, 32, 64)
"""Numbers of features that are tried."""
LEAST = 0.05
"""Features that remove less of the capability than this have not been found."""


@dataclass(frozen=True)
class Reach:
    """What an edit does to prompts and text for choosing at the strength that is best for it."""

    strength: float
    """The least that removes the wanted share; where none does, the one that removes most."""
    removed: float
    """Share of the capability."""
    damage: float
    """Nats per token."""
    reached: bool
    within: float
    """Capability left within single sentences (`left_within`)."""

    def cost(self) -> tuple[bool, float]:
        """Smaller is better: less damage among those that remove the share, else more removed."""
        return not self.reached, self.damage if self.reached else -self.removed

    def rank(self) -> tuple[bool, int, float]:
        """The same for features, of which more is asked.

        Before the damage comes what is left within sentences, in steps of 0.25 (finer ones are noise): an edit can turn
        the answers of some sentences round and leave the others, which cancels over all prompts and removes nothing.
        """
        fails, cost = self.cost()
        return fails, int(self.within / 0.25), cost


@dataclass(frozen=True, eq=False)
class Choice:
    """The features' edit at a site; `reach` is that of as many features fitted without the check prompts, on these.

    But for its strength, which is the edit's own, by selection and check prompts together.
    """

    edit: FeaturePatch
    reach: Reach


@dataclass(frozen=True, eq=False)
class EditSearch:
    """All that edits and strengths are chosen from and by."""

    model: LanguageModel
    task: Capability
    dictionaries: dict[Site, Dictionary]
    text: DamageText
    """Text on which damage is measured while choosing."""
    config: RemovalConfig

    def at(self, sites: Sequence[Site], stages: Stages) -> tuple[dict[Site, Choice], Site]:
        """The features' edit at every site that has one, and the best of those sites.

        Begins a stage for each site. Raises `UserError` where no site has an edit.
        """
        choices: dict[Site, Choice] = {}
        for site in sites:
            stages.begin(f"{self.task.name}: choosing features at {site}")
            if choice := self._choice(site):
                choices[site] = choice
        if not choices:
            raise UserError(
                f"no feature at any site supports the task ({self.task.name}) within the budget of "
                f"{self.config.budget:g} nats per token; train the dictionaries longer, or give another site or a "
                "larger budget"
            )
        return choices, min(choices, key=lambda site: choices[site].reach.rank())

    def _choice(self, site: Site) -> Choice | None:
        """The number of features that is best on the check prompts, fitted again on selection and check prompts.

        Set to zero or at their fitted strengths, whichever is better; at the strength of the whole that is best on both
        together. `reach` is that on the check prompts.
        """
        budget = self.config.budget
        runs = PromptRuns.of(self.model, site, self.task.selection).first(self.config.fit_prompts)
        check = runs.on(self.task.check)
        finals: dict[int, Tensor] = {}
        candidates = [(edit, plain) for edit in self._fits(runs, SIZES, finals) for plain in (False, True)]
        reaches = [self.reach(check, set_to_zero(edit) if plain else edit, budget) for edit, plain in candidates]
        usable = [i for i, reach in enumerate(reaches) if reach.removed >= LEAST]
        if not usable:
            return None
        best = min(usable, key=lambda i: reaches[i].rank())
        edit, plain = candidates[best]
        again = runs.on(self.task.choosing.first(2 * self.config.fit_prompts))
        edit = (self._fits(again, [len(edit.latents)], finals) or [edit])[-1]
        edit = set_to_zero(edit) if plain else edit
        strength = self.reach(runs.on(self.task.choosing), edit, budget).strength
        return Choice(edit, replace(reaches[best], strength=strength))

    def _fits(self, runs: PromptRuns, sizes: Sequence[int], finals: dict[int, Tensor]) -> list[FeaturePatch]:
        """The best ablations of these numbers of features.

        `finals` hold the text for choosing as the ablation of a single latent leaves it, and get those that are new.
        """
        dictionary, site = self.dictionaries[runs.site], runs.site
        latents = shortlist(runs, dictionary, self.config.shortlist)
        if not latents:
            return []
        for latent in latents:
            if latent not in finals:
                finals[latent] = self.text.final_under([ablate(site, dictionary, [latent])])
        gram = self.text.second_order([finals[latent] for latent in latents])
        most = min(self.config.max_features, len(latents))
        sizes = sorted({min(size, most) for size in sizes})
        fits = fit_features(AtSite.of(runs, dictionary, latents), gram, sizes)
        return [_ablation(site, dictionary, latents, fitted) for fitted in fits]

    def reach(self, runs: PromptRuns, edit: Intervention, budget: float = inf) -> Reach:
        """Of an edit at one site, whose strength is lowered to the budget (nats per token on the text for choosing)."""
        change = runs.change(edit)
        unedited = runs.scores(torch.zeros_like(change)[None])[0]
        return self._reach(
            runs.prompts,
            unedited,
            lambda strengths: runs.scores_at(torch.tensor(strengths), change),
            lambda strength: self.text.kl([Scaled(edit, strength)]),
            budget,
        )

    def reaches_on_check(self, site: Site, edits: Sequence[Intervention]) -> list[Reach]:
        """Of several edits of one site on the check prompts, within the budget."""
        check = PromptRuns.of(self.model, site, self.task.check)
        return [self.reach(check, edit, self.config.budget) for edit in edits]

    def reach_together(self, prompts: TwoClassPrompts, edits: Sequence[Intervention], budget: float = inf) -> Reach:
        """Of edits at several sites, scaled together."""
        runs = TokenRuns(self.model, prompts.tokens, up_to_end(self.model, prompts))

        def scores(strengths: Sequence[float]) -> Tensor:
            finals = (runs.edited([Scaled(edit, strength) for edit in edits]).final for strength in strengths)
            ends = [self.model.unembed(at_end(final, prompts.end)) for final in finals]
            return torch.stack([scores_of(prompts, logits) for logits in ends])

        def damage(strength: float) -> float:
            return self.text.kl([Scaled(edit, strength) for edit in edits])

        return self._reach(prompts, scores([0.0])[0], scores, damage, budget)

    def _reach(
        self,
        prompts: TwoClassPrompts,
        unedited: Float[Tensor, "batch"],
        scores: Callable[[Sequence[float]], Float[Tensor, "strengths batch"]],
        damage: Callable[[float], float],
        budget: float,
    ) -> Reach:
        areas = {0.0: _areas(prompts, unedited[None])[0]}

        def removed(strength: float) -> float:
            return 1 - abs(areas[strength] - 0.5) / max(abs(areas[0.0] - 0.5), 1e-9)

        for strengths in (GRID[:4], GRID[4:]):  # what is wanted is the least that removes enough
            areas |= zip(strengths, _areas(prompts, scores(strengths)), strict=True)
            if any(removed(strength) >= self.config.share for strength in strengths):
                break
        for _ in range(REFINEMENTS):
            order = sorted(areas)
            strength = strength_needed(np.array(order), np.array([[areas[s]] for s in order]), self.config.share)[0]
            strength = round(float(strength), 4)
            if not np.isfinite(strength) or strength in areas:
                break
            areas[strength] = _areas(prompts, scores([strength]))[0]
        enough = [s for s in sorted(areas) if s and removed(s) >= self.config.share]
        strength = enough[0] if enough else max((s for s in areas if s), key=removed)
        affordable, cost = affordable_share(lambda share: damage(share * strength), budget)
        if affordable < 1:
            strength = round(strength * affordable, 4)
            areas[strength] = _areas(prompts, scores([strength]))[0]
        within = left_within(prompts, scores([strength]).cpu()).item()
        return Reach(strength, removed(strength), cost, bool(enough) and affordable == 1, within)


def _areas(prompts: TwoClassPrompts, scores: Float[Tensor, "strengths batch"]) -> list[float]:
    return aurocs(scores, prompts.positive).tolist()


def _ablation(site: Site, dictionary: Dictionary, latents: list[int], fitted: Fitted) -> FeaturePatch:
    edit = ablate(site, dictionary, [latents[column] for column in fitted.columns])
    return with_strengths([edit], fitted.strengths.to(dictionary.directions))[0]


def set_to_zero(edit: FeaturePatch) -> FeaturePatch:
    """The same features, each at strength 1."""
    return replace(edit, strengths=torch.ones(len(edit.latents)).to(edit.target))


def affordable_share(damage: Callable[[float], float], budget: float) -> tuple[float, float]:
    """The largest share of an edit, to a hundredth, whose damage is within the budget; and its damage.

    A damage grows with the square of a small edit, so that its root is nearly a straight line in the share.
    """
    share, root = largest_affordable(lambda share: sqrt(max(0.0, damage(share))), sqrt(budget))
    return share, root**2


def largest_affordable(cost: Callable[[float], float], most: float, *, within: float = 0.01) -> tuple[float, float]:
    """The largest share in [0, 1] whose cost is at most `most`, at most `within` too small; and its cost.

    The cost of 0 is taken to be 0. Invariant: cost(low) <= most < cost(high). A straight line between the two says
    where to look next, a little below where it meets `most`; scipy's root finders may end on either side of the root.
    """
    low, high, low_cost, high_cost = 0.0, 1.0, 0.0, cost(1.0)
    if high_cost <= most:
        return high, high_cost
    while high - low > within:
        margin = 0.1 * (high - low)
        guess = low + (high - low) * (most - low_cost) / (high_cost - low_cost) - within / 3
        share = min(max(guess, low + margin), high - margin)
        share_cost = cost(share)
        if share_cost > most:
            high, high_cost = share, share_cost
        else:
            low, low_cost = share, share_cost
    return low, low_cost
