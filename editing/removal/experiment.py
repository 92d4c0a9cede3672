"""Removing a capability by ablating features, and what the removal does to other text.

The experiment, in order (each line is a file of prompts/, edits/ or measurement/):

    capability     balanced prompts of two classes; capability = 2 |AUROC of logit(yes) - logit(no) - 0.5|
    feature_fit    at every site features, and a strength for each, that bring the classes together on selection prompts
                   at little damage (damage_text): KL per token from the unedited model, on text where it gives the
                   task's tokens less than 1%
    erasers        LEACE and two projections along the difference of the class means, each fitted where it works best
    choosing       how many features, which site and which strengths: what removes 80 % on check prompts at least damage
    random_edits   random features of like density and random directions, scaled to the same edit size
    joint_features, erasers    features and erasers at all layers at once
    evaluation     every method at every site on test prompts and test text that nothing was chosen or fitted on: AUROC,
                   over all prompts and within single sentences; transfer tasks; probes; damage
    curve          the same at rising strengths: the damage at 50, 80 and 90 % removed
    comparisons    the damage of the features beside that of every other method
    result         the figures, and the outcome in words

Every method edits the same site at the same positions, all content tokens.
Erasers: LEACE (Belrose et al. 2023, "LEACE: Perfect linear concept erasure in closed form"); the comparison is that of
Cunningham et al. 2023, "Sparse autoencoders find highly interpretable features in language models".
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor

from editing.interventions.compose import Scaled
from editing.interventions.patch import ablate, mean_ablate
from editing.removal.config import FEWEST_CONTEXTS, RemovalConfig
from editing.removal.edits.choosing import Choice, EditSearch
from editing.removal.edits.erasers import FittedEraser, best_erasers, best_scrubbing
from editing.removal.edits.joint_features import joint_features
from editing.removal.edits.random_edits import Resampled, random_edits, scaled_to_sizes
from editing.removal.measurement.cached_runs import REMOVABLE, ablated_latents
from editing.removal.measurement.comparisons import Comparison, compared
from editing.removal.measurement.curve import SHARES, Curve, MeasuredCurve
from editing.removal.measurement.damage_text import DamageText
from editing.removal.measurement.evaluation import Evaluated, Evaluator, Method, Removal, mean_over_draws
from editing.removal.prompts.capability import Capability
from editing.removal.prompts.class_scores import model_score
from editing.removal.prompts.resampling import resampling_scheme
from editing.removal.result import RemovalResult
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.errors import UserError
from sae_core.model.language_model import Intervention, LanguageModel
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
    stages = Stages(on_progress, costs=_costs(model, sites))
    stages.begin(f"{task.name}: the model's own score on {len(task.test)} prompts")
    score, auroc = model_score(model, task.test)
    text_to_choose, text_to_report = (
        DamageText(model, half, task.task_tokens) for half in split_text(contexts[: config.text_contexts])
    )
    search = EditSearch(model, task, dictionaries, text_to_choose, config)
    choices, best = search.at(sites, stages)
    measured = _Measurements(search, choices, best, text_to_report)
    measured.run(sites, stages)
    return RemovalResult(
        own=score,
        own_auroc=auroc,
        site=str(best),
        methods=tuple(measured.rows[best]),
        elsewhere=tuple(row for site, rows in measured.rows.items() if site != best for row in rows),
        unedited=measured.unedited.removal,
        share=min(SHARES, key=lambda share: abs(share - config.share)),
        everywhere=tuple(measured.everywhere),
        curves=tuple(measured.curves),
        comparisons=tuple(measured.comparisons),
        task=task.name,
        answers=task.answers,
        example=task.example,
        notes=task.notes,
        resampled=resampling_scheme(task.test),
        budget=config.budget,
        skipped=tuple(str(site) for site in sites if site not in choices),
        edits=(Scaled(choices[best].edit, choices[best].reach.strength),),
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


def _costs(model: LanguageModel, sites: list[Site]) -> list[float]:
    """What the stages cost, in blocks that each edit runs again: the model's score; choosing, then measuring at each
    site, which take about as long; all layers at once, where both is done."""
    above = [float(model.n_layers - site.layer) for site in sites]
    everywhere = [2.0 * model.n_layers] if _has_several_layers(sites) else []
    return [0.1, *above, *above, *everywhere]


def _has_several_layers(sites: list[Site]) -> bool:
    return sum(site.stream is Stream.RESID_POST for site in sites) > 1


# ---- measuring -------------------------------------------------------------------------------------


class _Measurements:
    """The chosen edits and what they are compared with, on the test prompts and the test text."""

    def __init__(self, search: EditSearch, choices: dict[Site, Choice], best: Site, text: DamageText):
        self.search, self.choices, self.best, self.text = search, choices, best, text
        self.task, self.config = search.task, search.config
        self.evaluator = Evaluator(
            search.model,
            self.task.test,
            text,
            seed=self.config.seed,
            transfers=self.task.transfers,
            halves=self.task.test.halves() if self.task.concept else None,
        )
        unedited = self.evaluator.evaluate([Scaled(choices[best].edit, 0.0)], Method.NONE)
        self.unedited = replace(unedited, removal=replace(unedited.removal, features=(), strengths=(), strength=0.0))
        self.rows: dict[Site, list[Removal]] = {}
        self.everywhere: list[Removal] = []
        self.curves: list[Curve] = []
        self.comparisons: list[Comparison] = []

    def run(self, sites: list[Site], stages: Stages) -> None:
        """Fill the rows, curves and comparisons; a stage for each site, and one for all layers."""
        for site in sites:
            if site in self.choices:
                stages.begin(f"{self.task.name}: measuring at {site}")
                self.rows[site] = self._at(site)
            else:
                stages.begin(f"{self.task.name}: {site} is skipped, no feature supports the task within the budget")
        residual = {site: choice for site, choice in self.choices.items() if site.stream is Stream.RESID_POST}
        if _has_several_layers(sites):
            stages.begin(f"{self.task.name}: all layers at once")
        if len(residual) > 1:
            layers = [site for site in sites if site.stream is Stream.RESID_POST]
            self.everywhere = self._at_all_layers(residual, layers)

    def _at(self, site: Site) -> list[Removal]:
        """All methods at one site; at the chosen one further ways to ablate the features, and several random draws."""
        choice = self.choices[site]
        erasers = best_erasers(self.search, site) if self.task.concept else {}
        curves = {Method.FEATURES: self._curve(Method.FEATURES, [choice.edit], choice.reach.strength)}
        if site == self.best:
            variants = self._variants(site)
            reaches = self.search.reaches_on_check(site, [*variants.values()])
            for (method, edit), reach in zip(variants.items(), reaches, strict=True):
                curves[method] = self._curve(method, [edit], reach.strength)
        for method, eraser in erasers.items():
            curves[method] = self._eraser_curve(method, eraser)
        rows = self._kept(curves)
        draws = self.config.random_draws if site == self.best else 1
        size = rows[0].edit_size  # of the features' edit on the reported text
        drawn = [self._random(site, size, draw) for draw in range(draws)]
        for method in drawn[0]:
            evaluated = [self.evaluator.capability_and_damage([draw[method]], method) for draw in drawn]
            rows.append(mean_over_draws(evaluated).removal)
        return rows

    def _at_all_layers(self, residual: dict[Site, Choice], sites: list[Site]) -> list[Removal]:
        edits, reach = joint_features(self.search, residual)
        curves = {Method.FEATURES: self._curve(Method.FEATURES, edits, reach.strength)}
        if self.task.concept:
            for method, eraser in best_scrubbing(self.search, sites).items():
                curves[method] = self._eraser_curve(method, eraser)
        rows = self._kept(curves)
        sizes = self.text.runs.edited([Scaled(edit, reach.strength) for edit in edits]).sizes
        random = [self._unscaled_random(edit.site) for edit in edits]
        for method in random[0]:
            drawn = scaled_to_sizes([at_site[method] for at_site in random], sizes, self.text.runs)
            rows.append(self.evaluator.capability_and_damage(drawn, method).removal)
        return rows

    def _variants(self, site: Site) -> dict[Method, Intervention]:
        """The features set to zero, to their mean, and to their values on other tokens, all alike."""
        latents, dictionary = ablated_latents(self.choices[site].edit), self.search.dictionaries[site]
        x = self.search.text.runs.at(site).x[self.search.text.runs.mask]
        return {
            Method.PLAIN: ablate(site, dictionary, latents),
            Method.MEAN: mean_ablate(site, dictionary, latents, x),
            Method.RESAMPLED: Resampled(site, dictionary, tuple(latents), x, self.config.seed),
        }

    def _eraser_curve(self, method: Method, eraser: FittedEraser) -> tuple[Evaluated, MeasuredCurve]:
        return self._curve(method, eraser.edits, eraser.reach.strength, place=eraser.place)

    def _curve(
        self, method: Method, edits: Sequence[Intervention], strength: float, *, place: str = ""
    ) -> tuple[Evaluated, MeasuredCurve]:
        """A method at its strength, and its curve."""
        evaluated = self.evaluator.evaluate([Scaled(edit, strength) for edit in edits], method)
        known = {0.0: self.unedited, strength: evaluated}
        return evaluated, MeasuredCurve.of(self.evaluator, edits, known, self.config.strengths, place=place)

    def _kept(self, curves: dict[Method, tuple[Evaluated, MeasuredCurve]]) -> list[Removal]:
        """The rows of the methods, whose curves and comparisons are kept."""
        measured = {method: curve for method, (_, curve) in curves.items()}
        self.curves += [curve.curve for curve in measured.values()]
        self.comparisons += compared(measured)
        return [evaluated.removal for evaluated, _ in curves.values()]

    def _random(self, site: Site, size: float, draw: int) -> dict[Method, Scaled]:
        """Random edits of the size of the features' edit."""
        edits = self._unscaled_random(site, draw)
        return {method: scaled_to_sizes([edit], [size], self.text.runs)[0] for method, edit in edits.items()}

    def _unscaled_random(self, site: Site, draw: int = 0) -> dict[Method, Intervention]:
        latents, dictionary = ablated_latents(self.choices[site].edit), self.search.dictionaries[site]
        return random_edits(site, dictionary, latents, self.search.text.runs, seed=self.config.seed, draw=draw)
