"""Which edit to make at which site, and how strongly; nothing here sees the test prompts or the test text.

Edits are compared by what they take to remove a given share of the capability (`RemovalConfig.share`): the strength at
which check prompts, on which nothing was fitted, lose it, and the damage there to the text for choosing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

import torch
from torch import Tensor

from editing.interventions.compose import Scaled
from editing.interventions.patch import FeaturePatch, ablate
from editing.removal.config import RemovalConfig
from editing.removal.edits.feature_fit import AtSite, Fitted, fit_features, shortlist, with_strengths
from editing.removal.edits.strengths import EditAtStrengths, Reach, best_edit
from editing.removal.measurement.cached_runs import PromptRuns, TokenRuns, up_to_end
from editing.removal.measurement.damage_text import DamageText
from editing.removal.prompts.capability import Capability
from editing.removal.prompts.class_scores import scores_of
from editing.removal.prompts.two_class_prompts import TwoClassPrompts
from editing.tasks.pairs import at_end
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.errors import UserError
from sae_core.model.language_model import Intervention, LanguageModel
from sae_core.progress import Stages
from sae_core.sites import Site

SIZES = (1, 2, 4, 8, 16, 32, 64)
"""Numbers of features that are tried."""
LEAST = 0.05
"""Features that remove less of the capability than this have not been found."""


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
        tried = [self.at_strengths(check, set_to_zero(edit) if plain else edit) for edit, plain in candidates]
        best = best_edit(tried, budget, least=LEAST)
        if best is None:
            return None
        number, reach = best
        edit, plain = candidates[number]
        again = runs.on(self.task.choosing.first(2 * self.config.fit_prompts))
        edit = (self._fits(again, [len(edit.latents)], finals) or [edit])[-1]
        edit = set_to_zero(edit) if plain else edit
        strength = self.reach(runs.on(self.task.choosing), edit, budget).strength
        return Choice(edit, replace(reach, strength=strength))

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

    def at_strengths(self, runs: PromptRuns, edit: Intervention) -> EditAtStrengths:
        """An edit of one site, on its prompts and the text for choosing."""
        change = runs.change(edit)
        return EditAtStrengths(
            runs.prompts,
            lambda strengths: runs.scores_at(torch.tensor(strengths), change),
            lambda strength: self.text.kl([Scaled(edit, strength)]),
            self.config.share,
        )

    def reach(self, runs: PromptRuns, edit: Intervention, budget: float = inf) -> Reach:
        """Of an edit at one site, whose strength is lowered to the budget (nats per token on the text for choosing)."""
        return self.at_strengths(runs, edit).reach(budget)

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

        return EditAtStrengths(prompts, scores, damage, self.config.share).reach(budget)


def _ablation(site: Site, dictionary: Dictionary, latents: list[int], fitted: Fitted) -> FeaturePatch:
    edit = ablate(site, dictionary, [latents[column] for column in fitted.columns])
    return with_strengths([edit], fitted.strengths.to(dictionary.directions))[0]


def set_to_zero(edit: FeaturePatch) -> FeaturePatch:
    """The same features, each at strength 1."""
    return replace(edit, strengths=torch.ones(len(edit.latents)).to(edit.target))
