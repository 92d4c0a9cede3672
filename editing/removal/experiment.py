"""Removing a capability by ablating features, and what the removal costs elsewhere.

Capability: AUROC of logit(yes) - logit(no) over balanced prompts whose names and templates were not used
to choose anything; it is gone within 0.05 of 0.5. Damage: KL per token from the unedited model on
held-out text, where that model gives the task's tokens less than 1%. Every method edits the same site at the
same positions, all content tokens: features, chosen greedily and with a strength, under a budget of damage;
LEACE and two projections along the difference of the class means, fitted on the last tokens of every prompt that
is not a test prompt; random features of like density and random directions, scaled to the same mean edit size.
The same is done at every site and at all layers together.

Two figures say what the AUROC alone would hide: the AUROC within single sentences (an edit can leave
leftovers that cancel only across sentences) and the probability of the two answers together, which an edit may
simply have destroyed. Edits are chosen for small differences within sentences as well as over all.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from editing.interventions.compose import Scaled
from editing.interventions.erase import Erasure
from editing.removal.all_layers import at_all_layers
from editing.removal.cached_runs import REMOVABLE, Elsewhere
from editing.removal.capability import Capability, capability_of
from editing.removal.erasers import fit_at
from editing.removal.evaluation import Judge, Judged, Method, Removal
from editing.removal.frontier import Frontier
from editing.removal.random_controls import at_size, mean_of, random_edits
from editing.removal.result import FEWEST_CONTEXTS, RemovalConfig, RemovalResult
from editing.removal.site_and_strength import Choice
from editing.removal.two_class_prompts import model_score
from editing.removal.versus_leace import LeaceComparison
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.errors import UserError
from sae_core.model.language_model import Intervention, LanguageModel
from sae_core.progress import OnProgress, Stages, silent
from sae_core.sites import Site, Stream


def remove_pronouns(
    model: LanguageModel,
    dictionaries: dict[Site, Dictionary],
    contexts: Int[Tensor, "contexts pos"],
    config: RemovalConfig,
    *,
    site: Site | None = None,
    on_progress: OnProgress = silent,
) -> RemovalResult:
    """`remove` for the choice between "she" and "he"."""
    size = {"n_selection": config.selection_prompts, "n_test": config.test_prompts}
    task = capability_of("pronouns", model, **size, seed=config.seed, prepend_bos=config.prepend_bos)
    return remove(model, task, dictionaries, contexts, config, site=site, on_progress=on_progress)


@torch.no_grad()
def remove(
    model: LanguageModel,
    task: Capability,
    dictionaries: dict[Site, Dictionary],
    contexts: Int[Tensor, "contexts pos"],
    config: RemovalConfig,
    *,
    site: Site | None = None,
    on_progress: OnProgress = silent,
) -> RemovalResult:
    """What ablating features leaves of the task and what it costs, beside LEACE and random edits.

    `contexts` are text on which nothing was trained. Without `site`, the one is taken at which ablating
    features ranks best (`Trial.rank`) on the check prompts and the other half of the text. There the
    features are chosen anew, as many, on selection and check prompts together.
    """
    sites = _sites(dictionaries, site)
    stages = Stages(on_progress, _n_stages(sites))
    stages.begin(f"{task.name}: the model's own score on {len(task.test)} prompts")
    own, own_auroc = model_score(model, task.test)
    halves = _halves(contexts[: config.text_contexts])
    choosing, tested = (Elsewhere(model, half, task.due) for half in halves)
    choice = Choice(model, task, dictionaries, choosing, config)
    edits, best = choice.at(sites, stages)
    found = _Measuring(choice, edits, best, tested).run(sites, stages)
    at_best = [removal for removal, _ in found.at[best].values()]
    gone = [m for m in at_best if m.gone]
    return RemovalResult(
        own=own,
        own_auroc=own_auroc,
        site=str(best),
        methods=tuple(at_best),
        elsewhere=tuple(m for s, rest in found.at.items() if s != best for m, _ in rest.values()),
        best=min(gone, key=lambda m: m.damage.value).method if gone else None,
        unedited=found.unedited,
        everywhere=tuple(removal for removal, _ in found.everywhere.values()),
        frontiers=found.frontiers,
        comparisons=found.comparisons(config.seed),
        task=task.name,
        answers=task.answers,
        example=task.example,
        notes=task.notes,
        resampled=task.test.resampling,
        budget=config.budget,
        edits=(edits[best],),
    )


def _halves(contexts: Int[Tensor, "contexts pos"]) -> tuple[Tensor, Tensor]:
    """The text to choose by and the text to report on, one after the other, so that few documents lie in both."""
    if len(contexts) < 2 * FEWEST_CONTEXTS:
        raise UserError(
            f"measuring damage needs at least {2 * FEWEST_CONTEXTS} held-out contexts; there are {len(contexts)}: "
            "give more text"
        )
    return contexts[: len(contexts) // 2], contexts[len(contexts) // 2 :]


def _sites(dictionaries: dict[Site, Dictionary], site: Site | None) -> list[Site]:
    """The site asked for, or all that can be edited."""
    if site and site not in dictionaries:
        raise UserError(f"no dictionary for {site}; this set has {', '.join(map(str, dictionaries))}")
    sites = [site] if site else [s for s in dictionaries if s.stream in REMOVABLE]
    if not sites:
        raise UserError(f"removal needs a resid_post or mlp_out site; this set has {', '.join(map(str, dictionaries))}")
    return sites


def _n_stages(sites: list[Site]) -> int:
    """The model's score; choosing and measuring at each site, choosing again, the frontier; all layers together."""
    return 2 * len(sites) + 3 + (sum(site.stream is Stream.RESID_POST for site in sites) > 1)


# ---- measuring -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Measured:
    """What was measured on the test prompts and the test text, by site and over all layers."""

    unedited: Removal
    at: dict[Site, dict[Method, Judged]]
    everywhere: dict[Method, Judged]
    frontiers: tuple[Frontier, ...]

    def comparisons(self, seed: int) -> tuple[LeaceComparison, ...]:
        """Features beside LEACE, site by site and then at all layers, wherever there are both."""
        rows = [*(self.at[site] for site in sorted(self.at)), self.everywhere]
        both = [row for row in rows if Method.FEATURES in row and Method.LEACE in row]
        return tuple(LeaceComparison.of(row[Method.FEATURES], row[Method.LEACE], seed) for row in both)


class _Measuring:
    """The chosen edits and their rivals on the test prompts and the test text."""

    def __init__(self, choice: Choice, edits: dict[Site, Scaled], best: Site, tested: Elsewhere):
        self.choice, self.edits, self.best, self.tested = choice, edits, best, tested
        self.model, self.task, self.config = choice.model, choice.task, choice.config
        self.erasers: dict[Site, dict[Method, Erasure]] = {site: {} for site in edits}
        if self.task.concept:
            self.erasers = fit_at(self.model, list(edits), self.task.fitting)
        self.judge = Judge(
            self.model,
            self.task.test,
            tested,
            seed=self.config.seed,
            transfers=self.task.transfers,
            halves=self.task.test.halves() if self.task.concept else None,
        )
        nothing = Scaled(edits[best].edit, 0.0)
        self.unedited: Judged = self.judge.judge([nothing], Method.NONE)

    def run(self, sites: list[Site], stages: Stages) -> _Measured:
        """Everything there is to measure; the sites are those at which features were looked for."""
        at: dict[Site, dict[Method, Judged]] = {}
        frontiers: list[Frontier] = []
        for site in sites:
            if site not in self.edits:
                stages.begin(f"{self.task.name}: {site} is skipped, no feature supports the task within the budget")
                continue
            stages.begin(f"{self.task.name}: measuring at {site}")
            edit = self.edits[site]
            plain: dict[Method, Intervention] = {Method.FEATURES: edit, **self.erasers[site]}
            at[site] = {method: self.judge.judge([one], method) for method, one in plain.items()}
            if site == self.best:
                at[site] |= self._only_at_best()
            random = self._random(site, at[site][Method.FEATURES][0].edit_size)
            judge = self.judge.judge if site == self.best else self.judge.brief
            draws = {method: [judge([one], method) for one in own] for method, own in random.items()}
            at[site] |= {method: mean_of(own) for method, own in draws.items()}
            if site == self.best:
                stages.begin(f"{self.task.name}: weaker and stronger edits at {site}")
                curves = {method: [one] for method, one in plain.items()} | {m: own[:1] for m, own in random.items()}
                frontiers += self._frontiers(curves, at[site] | {method: own[0] for method, own in draws.items()})
        everywhere: dict[Method, Judged] = {}
        stacked = {site: edit for site, edit in self.edits.items() if site.stream is Stream.RESID_POST}
        if len(stacked) > 1:
            stages.begin(f"{self.task.name}: all layers at once")
            methods = self._at_all_layers(stacked)
            everywhere = {method: self.judge.judge(edits, method) for method, edits in methods.items()}
            few = {method: methods[method] for method in (Method.FEATURES, Method.LEACE) if method in methods}
            frontiers += self._frontiers(few, everywhere)
        unedited = replace(self.unedited[0], features=(), strength=0.0)
        return _Measured(unedited, at, everywhere, tuple(frontiers))

    def _only_at_best(self) -> dict[Method, Judged]:
        """Features at strength 1, and the erasers with a strength."""
        rivals: dict[Method, Intervention] = {Method.PLAIN: self.edits[self.best].edit}
        if self.task.concept:
            rivals |= self.choice.tuned(self.best, self.erasers[self.best])
        return {method: self.judge.judge([edit], method) for method, edit in rivals.items()}

    def _random(self, site: Site, size: float) -> dict[Method, list[Scaled]]:
        """Random edits of the size of the features' edit; several draws at the chosen site."""
        chosen, dictionary = self.edits[site].edit.latents.tolist(), self.choice.dictionaries[site]
        drawn: dict[Method, list[Scaled]] = {}
        for draw in range(self.config.random_draws if site == self.best else 1):
            own = random_edits(site, dictionary, chosen, self.choice.text, seed=self.config.seed, draw=draw)
            for method, edit in own.items():
                drawn.setdefault(method, []).extend(at_size([edit], [size], self.tested.runs))
        return drawn

    def _at_all_layers(self, stacked: dict[Site, Scaled]) -> dict[Method, list[Intervention]]:
        config, dictionaries = self.config, self.choice.dictionaries
        return at_all_layers(
            self.model, self.task, stacked, dictionaries, self.choice.text, self.tested, config.budget, config.seed
        )

    def _frontiers(self, edits: dict[Method, list[Intervention]], judged: dict[Method, Judged]) -> list[Frontier]:
        """One curve to a method; at strengths 0 and 1 it has been judged already."""
        return [
            Frontier.of(self.judge, method, own, self.config.strengths, known={0.0: self.unedited, 1.0: judged[method]})
            for method, own in edits.items()
        ]
