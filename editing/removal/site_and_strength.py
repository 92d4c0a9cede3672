"""Which features of which site to ablate, and how strongly: a choice that never sees the test prompts."""

from collections.abc import Sequence
from dataclasses import dataclass

from editing.interventions.compose import Scaled
from editing.interventions.erase import Erasure
from editing.interventions.patch import ablate
from editing.removal.cached_runs import Elsewhere, Ground
from editing.removal.capability import Capability
from editing.removal.erasers import TUNED, fit_at
from editing.removal.evaluation import Method
from editing.removal.feature_search import choose_features, meeting_strength
from editing.removal.result import RemovalConfig
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.errors import UserError
from sae_core.model.language_model import LanguageModel
from sae_core.progress import Stages
from sae_core.sites import Site


@dataclass(frozen=True, eq=False)
class Trial:
    """An ablation that could be chosen, its strength fixed on the selection prompts."""

    edit: Scaled
    left: float
    """How far the classes are told apart on the check prompts (`Contrast.told_apart`)."""
    damage: float
    """Nats per token on the text for choosing."""

    def rank(self) -> tuple[int, float]:
        """Smaller is better: what is left, in steps of 0.15; then the damage.

        Finer differences are noise: the check prompts hold ten names of each class.
        """
        return int(self.left / 0.15), self.damage


@dataclass(frozen=True, eq=False)
class Choice:
    """What features and strengths are chosen from and by."""

    model: LanguageModel
    task: Capability
    dictionaries: dict[Site, Dictionary]
    text: Elsewhere
    """Where damage is measured while choosing."""
    config: RemovalConfig

    def at(self, sites: Sequence[Site], stages: Stages) -> tuple[dict[Site, Scaled], Site]:
        """The features' edit at every site that has one, and the site of the best.

        Raises `UserError` where no site has one. Begins a stage for each site and one more.
        """
        found: dict[Site, Trial] = {}
        for site in sites:
            stages.begin(f"{self.task.name}: choosing features at {site}")
            if tried := self._tried(site):
                found[site] = min(tried, key=Trial.rank)
        if not found:
            raise UserError(
                f"no feature at any site supports the task ({self.task.name}) within the budget of "
                f"{self.config.budget:g} nats per token; give more training, another site or a larger budget"
            )
        best = min(found, key=lambda site: found[site].rank())
        edits = {site: trial.edit for site, trial in found.items()}
        stages.begin(f"{self.task.name}: choosing again at {best}, on all but the test prompts")
        return edits | {best: self._again(best, edits[best])}, best

    def _tried(self, site: Site) -> list[Trial]:
        """The first 1, 2, 4, 8, ... of the features found on the selection prompts, each with the strength at which
        the classes meet there."""
        ground = Ground.of(self.model, site, self.task.selection)
        check = ground.on(self.task.check)
        found = self._features(ground, self.config.greedy_prompts)
        trials = []
        for size in sorted({min(2**i, len(found)) for i in range(8)} - {0}):
            scaled, damage = self._strengthened(ground, found[:size])
            left = check.prompts.told_apart(check.scores(check.change(scaled)[None]).cpu()).item()
            trials.append(Trial(scaled, left, damage))
        return trials

    def _again(self, site: Site, edit: Scaled) -> Scaled:
        """As many features, chosen on selection and check prompts together."""
        ground = Ground.of(self.model, site, self.task.choosing)
        found = self._features(ground, 2 * self.config.greedy_prompts)
        return self._strengthened(ground, found[: len(edit.edit.latents)])[0] if found else edit

    def _features(self, ground: Ground, n: int) -> list[int]:
        most = {"shortlist": self.config.shortlist, "most": self.config.max_features}
        return choose_features(ground.first(n), self.dictionaries[ground.site], self.text, self.config.budget, **most)

    def _strengthened(self, ground: Ground, features: list[int]) -> tuple[Scaled, float]:
        """The ablation with its strength, and its damage."""
        edit = ablate(ground.site, self.dictionaries[ground.site], features)
        strength, damage = meeting_strength(ground, edit, self.text, self.config.budget)
        return Scaled(edit, strength), damage

    def tuned(self, site: Site, erasers: dict[Method, Erasure]) -> dict[Method, Scaled]:
        """The erasers with a strength, read off where they are fitted on half the names, on the other half.

        On the prompts that an eraser was fitted on, the classes meet at strength 1 by construction.
        """
        ground = Ground.of(self.model, site, self.task.check)
        halves = fit_at(self.model, [site], self.task.tuning)[site]
        budget = self.config.budget
        return {
            TUNED[method]: Scaled(eraser, meeting_strength(ground, halves[method], self.text, budget)[0])
            for method, eraser in erasers.items()
        }
