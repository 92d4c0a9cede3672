"""Which features to ablate at which site, and how strongly; nothing here sees the test prompts or the test text.

Features are ablated with a strength, x' = x - s sum_j f_j d_j. At s = 1 they are set to zero, and what the encoder
misses of them stays in the reconstruction error; as an AUROC does not depend on scale, that rest can still tell the
classes apart, and s > 1 pushes against it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from scipy.interpolate import PchipInterpolator
from torch import Tensor

from editing.interventions.compose import Scaled
from editing.interventions.patch import ablate
from editing.removal.cached_runs import PromptRuns, ablated_latents
from editing.removal.capability import Capability
from editing.removal.class_scores import auroc_distance
from editing.removal.config import RemovalConfig
from editing.removal.damage_text import DamageText
from editing.removal.feature_search import choose_features
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.errors import UserError
from sae_core.model.language_model import Intervention, LanguageModel
from sae_core.progress import Stages
from sae_core.sites import Site

GRID = tuple(round(0.5 + 0.05 * step, 2) for step in range(51))
"""Strengths from which one is chosen."""
FIRST_STRENGTHS = (0.5, 1.0, 1.5, 2.0, 3.0)
REFINEMENTS = 4


@dataclass(frozen=True, eq=False)
class Candidate:
    """An ablation that could be chosen, its strength fixed on the selection prompts."""

    edit: Scaled
    distance: float
    """How far it leaves the classes apart on the check prompts (`auroc_distance`)."""
    damage: float
    """Nats per token on the text for choosing."""

    def rank(self) -> tuple[int, float]:
        """Smaller is better: the distance in steps of 0.15, then the damage.

        Finer differences of the distance are noise: the check prompts hold some ten names of each class.
        """
        return int(self.distance / 0.15), self.damage


@dataclass(frozen=True, eq=False)
class EditSearch:
    """All that features and strengths are chosen from and by."""

    model: LanguageModel
    task: Capability
    dictionaries: dict[Site, Dictionary]
    text: DamageText
    """Text on which damage is measured while choosing."""
    config: RemovalConfig

    def at(self, sites: Sequence[Site], stages: Stages) -> tuple[dict[Site, Scaled], Site]:
        """The best ablation at every site that has one, and the best of those sites.

        At the best site the features are then chosen again, as many, on selection and check prompts together.
        Begins a stage for each site and one more. Raises `UserError` where no site has an ablation.
        """
        best_at: dict[Site, Candidate] = {}
        for site in sites:
            stages.begin(f"{self.task.name}: choosing features at {site}")
            if candidates := self._candidates(site):
                best_at[site] = min(candidates, key=Candidate.rank)
        if not best_at:
            raise UserError(
                f"no feature at any site supports the task ({self.task.name}) within the budget of "
                f"{self.config.budget:g} nats per token; train the dictionaries longer, or give another site or a "
                "larger budget"
            )
        best = min(best_at, key=lambda site: best_at[site].rank())
        edits = {site: candidate.edit for site, candidate in best_at.items()}
        stages.begin(f"{self.task.name}: choosing again at {best}, on all but the test prompts")
        return edits | {best: self._chosen_again(best, edits[best])}, best

    def _candidates(self, site: Site) -> list[Candidate]:
        """The first 1, 2, 4, 8, ... features of the search on the selection prompts, each with its strength."""
        runs = PromptRuns.of(self.model, site, self.task.selection)
        check = runs.on(self.task.check)
        features = self._features(runs, self.config.greedy_prompts)
        candidates = []
        for n in sorted({min(2**i, len(features)) for i in range(8)} - {0}):
            edit, damage = self._with_strength(runs, features[:n])
            distance = auroc_distance(check.prompts, check.scores(check.change(edit)[None]).cpu()).item()
            candidates.append(Candidate(edit, distance, damage))
        return candidates

    def _chosen_again(self, site: Site, edit: Scaled) -> Scaled:
        """As many features as `edit` ablates, chosen on selection and check prompts; `edit` where there are none."""
        runs = PromptRuns.of(self.model, site, self.task.choosing)
        features = self._features(runs, 2 * self.config.greedy_prompts)
        return self._with_strength(runs, features[: len(ablated_latents(edit))])[0] if features else edit

    def _features(self, runs: PromptRuns, n_prompts: int) -> list[int]:
        config, dictionary = self.config, self.dictionaries[runs.site]
        limits = {"shortlist": config.shortlist, "most": config.max_features}
        return choose_features(runs.first(n_prompts), dictionary, self.text, config.budget, **limits)

    def _with_strength(self, runs: PromptRuns, features: list[int]) -> tuple[Scaled, float]:
        """The ablation with its strength, and its damage."""
        edit = ablate(runs.site, self.dictionaries[runs.site], features)
        strength, damage = best_strength(runs, edit, self.text, self.config.budget)
        return Scaled(edit, strength), damage


def best_strength(runs: PromptRuns, edit: Intervention, text: DamageText, budget: float) -> tuple[float, float]:
    """The strength between 0.5 and 3 that leaves the classes least apart, lowered to the budget; and its damage.

    Scores are smooth in the strength: they are run at five strengths and interpolated between them, and run where the
    interpolation is best, until that strength has been run already. So what is returned was never only interpolated.
    """
    change = runs.change(edit)
    scores: dict[float, Tensor] = {}

    def run(strengths: Sequence[float]) -> None:
        scores.update(zip(strengths, runs.scores_at(torch.tensor(strengths), change).cpu(), strict=True))

    run(FIRST_STRENGTHS)
    for _ in range(REFINEMENTS):
        known = sorted(scores)
        curve = PchipInterpolator(known, torch.stack([scores[strength] for strength in known]).numpy())
        best = GRID[int(auroc_distance(runs.prompts, torch.from_numpy(curve(GRID))).argmin())]
        if best in scores:
            break
        run([best])
    distances = auroc_distance(runs.prompts, torch.stack([*scores.values()]))
    return affordable_strength([edit], [*scores][int(distances.argmin())], text, budget)


def affordable_strength(
    edits: Sequence[Intervention], strength: float, text: DamageText, budget: float
) -> tuple[float, float]:
    """`strength`, or a hundredth of it below the one at which the edits' damage meets the budget; and its damage.

    A damage grows with the square of a small edit, so that its root is nearly a straight line in the strength.
    """

    def root_damage(share: float) -> float:
        return sqrt(max(0.0, text.kl([Scaled(edit, share * strength) for edit in edits])))

    share, root = largest_affordable(root_damage, sqrt(budget))
    return strength * share, root**2


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
