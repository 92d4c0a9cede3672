"""Removing a capability by ablating features, and what the removal does to other text.

The experiment, in order (each line is a file):

    capability          balanced prompts of two classes; capability = AUROC of logit(yes) - logit(no), gone if
                        it is within 0.05 of 0.5
    site_and_strength   at every site a greedy search (feature_search) for features, and a strength, that leave the
                        classes least apart on selection prompts, under a budget of damage (damage_text): KL per token
                        from the unedited model on text where it gives the task's tokens less than 1%
    compared_edits      LEACE and two projections along the difference of the class means, fitted on all prompts that
                        are not for the test; random features of like density and random directions, scaled to the
                        same edit size; all of them at all layers at once as well
    evaluation          every method at every site on test prompts and test text that nothing was chosen or fitted on:
                        AUROC, over all prompts and within single sentences; transfer tasks; probes; damage
    comparisons         AUROC against damage at all strengths; damage of the features beside that of LEACE
    result              the figures, and the outcome in words

Every method edits the same site at the same positions, all content tokens.
Erasers: LEACE (Belrose et al. 2023, "LEACE: Perfect linear concept erasure in closed form"); the comparison is that of
Cunningham et al. 2023, "Sparse autoencoders find highly interpretable features in language models".
"""

from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor

from editing.interventions.compose import Scaled
from editing.interventions.erase import Erasure
from editing.removal.cached_runs import REMOVABLE, ablated_latents
from editing.removal.capability import Capability
from editing.removal.class_scores import model_score
from editing.removal.compared_edits import (
    edits_at_all_layers,
    fit_erasers,
    random_edits,
    scaled_to_sizes,
    tuned_erasers,
)
from editing.removal.comparisons import Frontier, LeaceComparison
from editing.removal.config import FEWEST_CONTEXTS, RemovalConfig
from editing.removal.damage_text import DamageText
from editing.removal.evaluation import Evaluated, Evaluator, Method, mean_over_draws
from editing.removal.resampling import resampling_scheme
from editing.removal.result import RemovalResult
from editing.removal.site_and_strength import EditSearch
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.errors import UserError
from sae_core.model.language_model import Intervention, LanguageModel
from sae_core.outliers import limits_of
from sae_core.progress import OnProgress, Stages, silent
from sae_core.sites import Site, Stream


@torch.no_grad()
def remove(
    model: LanguageModel,
    task: Capability,
    dictionaries: dict[Site, Dictionary],
    contexts: Int[Tensor, "contexts pos"],
    config: RemovalConfig,
    *,
    on_progress: OnProgress = silent,
) -> RemovalResult:
    """What ablating features leaves of the task and what it costs, beside LEACE, projections and random edits.

    `contexts` are text on which nothing was trained; the first half is chosen by, the second reported on.
    Raises `UserError` where there is too little text, no site that can be edited, or no feature within the budget.
    """
    sites = _sites(dictionaries, config.site)
    stages = Stages(on_progress, _n_stages(sites))
    stages.begin(f"{task.name}: the model's own score on {len(task.test)} prompts")
    score, auroc = model_score(model, task.test)
    text_to_choose, text_to_report = (
        DamageText(model, half, task.task_tokens) for half in split_text(contexts[: config.text_contexts])
    )
    search = EditSearch(model, task, dictionaries, text_to_choose, config)
    edits, best = search.at(sites, stages)
    measured = _Measurements(search, edits, best, text_to_report)
    measured.run(sites, stages)
    methods = {site: [e.removal for e in evaluated.values()] for site, evaluated in measured.at.items()}
    gone = [removal for removal in methods[best] if removal.gone]
    return RemovalResult(
        own=score,
        own_auroc=auroc,
        site=str(best),
        methods=tuple(methods[best]),
        elsewhere=tuple(removal for site in methods if site != best for removal in methods[site]),
        best=min(gone, key=lambda removal: removal.damage.value).method if gone else None,
        unedited=measured.unedited.removal,
        everywhere=tuple(evaluated.removal for evaluated in measured.everywhere.values()),
        frontiers=tuple(measured.frontiers),
        comparisons=measured.comparisons(),
        task=task.name,
        answers=task.answers,
        example=task.example,
        notes=task.notes,
        resampled=resampling_scheme(task.test),
        budget=config.budget,
        edits=(edits[best],),
    )


def split_text(contexts: Int[Tensor, "contexts pos"]) -> tuple[Tensor, Tensor]:
    """The text to choose by and the text to report on, one after the other, so that few documents lie in both."""
    if len(contexts) < 2 * FEWEST_CONTEXTS:
        raise UserError(
            f"measuring damage needs at least {2 * FEWEST_CONTEXTS} held-out contexts; there are {len(contexts)}: "
            "give more text"
        )
    return contexts[: len(contexts) // 2], contexts[len(contexts) // 2 :]


def _sites(dictionaries: dict[Site, Dictionary], site: Site | None) -> list[Site]:
    """`site`, or without it all sites that can be edited."""
    if site and site not in dictionaries:
        raise UserError(f"no dictionary for {site}; this set has {', '.join(map(str, dictionaries))}")
    sites = [site] if site else [s for s in dictionaries if s.stream in REMOVABLE]
    if not sites:
        raise UserError(f"removal needs a resid_post or mlp_out site; this set has {', '.join(map(str, dictionaries))}")
    return sites


def _n_stages(sites: list[Site]) -> int:
    """The model's score; choosing and measuring at each site, choosing again, the frontier; all layers at once."""
    return 2 * len(sites) + 3 + _has_several_layers(sites)


def _has_several_layers(sites: list[Site]) -> bool:
    return sum(site.stream is Stream.RESID_POST for site in sites) > 1


# ---- measuring -------------------------------------------------------------------------------------


class _Measurements:
    """The chosen edits and what they are compared with, on the test prompts and the test text."""

    def __init__(self, search: EditSearch, edits: dict[Site, Scaled], best: Site, text: DamageText):
        self.search, self.edits, self.best, self.text = search, edits, best, text
        self.task, self.config = search.task, search.config
        self.erasers: dict[Site, dict[Method, Erasure]] = {site: {} for site in edits}
        if self.task.concept:
            limits = limits_of([search.dictionaries])
            self.erasers = fit_erasers(search.model, list(edits), self.task.fitting, limits)
        self.evaluator = Evaluator(
            search.model,
            self.task.test,
            text,
            seed=self.config.seed,
            transfers=self.task.transfers,
            halves=self.task.test.halves() if self.task.concept else None,
        )
        unedited = self.evaluator.evaluate([Scaled(edits[best].edit, 0.0)], Method.NONE)
        self.unedited = replace(unedited, removal=replace(unedited.removal, features=(), strength=0.0))
        self.at: dict[Site, dict[Method, Evaluated]] = {}
        self.everywhere: dict[Method, Evaluated] = {}
        self.frontiers: list[Frontier] = []

    def run(self, sites: list[Site], stages: Stages) -> None:
        """Fill `at`, `everywhere` and `frontiers`; a stage for each site, for the frontier and for all layers."""
        for site in sites:
            if site in self.edits:
                stages.begin(f"{self.task.name}: measuring at {site}")
                self.at[site] = self._at_best(stages) if site == self.best else self._at(site)
            else:
                stages.begin(f"{self.task.name}: {site} is skipped, no feature supports the task within the budget")
        residual = {site: edit for site, edit in self.edits.items() if site.stream is Stream.RESID_POST}
        if _has_several_layers(sites):
            stages.begin(f"{self.task.name}: all layers at once")
        if len(residual) > 1:
            self.everywhere = self._at_all_layers(residual)

    def comparisons(self) -> tuple[LeaceComparison, ...]:
        """Features beside LEACE, site by site and then at all layers at once, wherever there are both."""
        rows = [*(self.at[site] for site in sorted(self.at)), self.everywhere]
        both = [row for row in rows if Method.FEATURES in row and Method.LEACE in row]
        return tuple(LeaceComparison.of(row[Method.FEATURES], row[Method.LEACE], self.config.seed) for row in both)

    def _at(self, site: Site) -> dict[Method, Evaluated]:
        """Features and erasers, and random edits without transfer tasks and probes."""
        evaluated = self._evaluated({Method.FEATURES: self.edits[site], **self.erasers[site]})
        # scaled to the size that the features' edit has on the reported text
        for method, edit in self._random(site, evaluated[Method.FEATURES].removal.edit_size).items():
            evaluated[method] = mean_over_draws([self.evaluator.capability_and_damage([edit], method)])
        return evaluated

    def _at_best(self, stages: Stages) -> dict[Method, Evaluated]:
        """Features and erasers also at strength 1 and with a strength; several random draws; and all frontiers."""
        site = self.best
        edits: dict[Method, Intervention] = {Method.FEATURES: self.edits[site], **self.erasers[site]}
        evaluated = self._evaluated(edits)
        variants: dict[Method, Intervention] = {Method.PLAIN: self.edits[site].edit}
        if self.task.concept:
            variants |= tuned_erasers(self.search, site, self.erasers[site])
        evaluated |= self._evaluated(variants)
        # the frontier of a random method is that of its first draw: a mean over draws has no single edit to scale
        size, curves = evaluated[Method.FEATURES].removal.edit_size, dict(evaluated)
        draws = [self._random(site, size, draw) for draw in range(self.config.random_draws)]
        for method in draws[0]:
            drawn = [self.evaluator.evaluate([draw[method]], method) for draw in draws]
            evaluated[method], curves[method] = mean_over_draws(drawn), drawn[0]
        stages.begin(f"{self.task.name}: weaker and stronger edits at {site}")
        self._add_frontiers({method: [edit] for method, edit in (edits | draws[0]).items()}, curves)
        return evaluated

    def _at_all_layers(self, residual: dict[Site, Scaled]) -> dict[Method, Evaluated]:
        methods = edits_at_all_layers(self.search, residual, self.text.runs)
        evaluated = {method: self.evaluator.evaluate(edits, method) for method, edits in methods.items()}
        drawn = [method for method in (Method.FEATURES, Method.LEACE) if method in methods]
        self._add_frontiers({method: methods[method] for method in drawn}, evaluated)
        return evaluated

    def _evaluated(self, edits: dict[Method, Intervention]) -> dict[Method, Evaluated]:
        return {method: self.evaluator.evaluate([edit], method) for method, edit in edits.items()}

    def _random(self, site: Site, size: float, draw: int = 0) -> dict[Method, Scaled]:
        """Random edits of the size of the features' edit."""
        latents, dictionary = ablated_latents(self.edits[site]), self.search.dictionaries[site]
        edits = random_edits(site, dictionary, latents, self.search.text.runs, seed=self.config.seed, draw=draw)
        return {method: scaled_to_sizes([edit], [size], self.text.runs)[0] for method, edit in edits.items()}

    def _add_frontiers(self, edits: dict[Method, list[Intervention]], evaluated: dict[Method, Evaluated]) -> None:
        """A curve for each method; at strengths 0 and 1 it has been evaluated already."""
        for method, parts in edits.items():
            known = {0.0: self.unedited, 1.0: evaluated[method]}
            self.frontiers.append(Frontier.of(self.evaluator, method, parts, self.config.strengths, known))
