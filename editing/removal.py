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

from collections.abc import Iterator

import torch
from jaxtyping import Int
from torch import Tensor

from editing.candidates import choose_features, meeting_strength
from editing.capability import Capability, capability, own
from editing.comparison import Comparison
from editing.erase import Erasure
from editing.erasers import fit_at
from editing.everywhere import at_all_layers
from editing.frontier import Frontier, frontier
from editing.ground import Elsewhere, Ground, Harm
from editing.judging import Judge, Removal
from editing.patch import ablate
from editing.removal_result import RemovalConfig, RemovalResult
from editing.rivals import equal_random, mean_of
from editing.scaled import Scaled
from sae_core.dictionaries import Dictionary
from sae_core.errors import UserError
from sae_core.models import Intervention, LanguageModel
from sae_core.sites import Site, Stream

PROBING = 192
"""Prompts on which probes are fitted."""


def remove_pronouns(
    model: LanguageModel,
    dictionaries: dict[Site, Dictionary],
    contexts: Int[Tensor, "contexts pos"],
    config: RemovalConfig,
    *,
    site: Site | None = None,
) -> Iterator[str | RemovalResult]:
    """`remove` for the choice between "she" and "he"."""
    size = {"n_selection": config.selection_prompts, "n_test": config.test_prompts}
    task = capability("pronouns", model, **size, seed=config.seed, prepend_bos=config.prepend_bos)
    yield from remove(model, task, dictionaries, contexts, config, site=site)


@torch.no_grad()
def remove(
    model: LanguageModel,
    task: Capability,
    dictionaries: dict[Site, Dictionary],
    contexts: Int[Tensor, "contexts pos"],
    config: RemovalConfig,
    *,
    site: Site | None = None,
) -> Iterator[str | RemovalResult]:
    """Yield a line of progress before each stage, and the `RemovalResult` last.

    `contexts` are text on which nothing was trained. Without `site`, the one is taken at which ablating
    features ranks best (`Removal.rank`) on the check prompts and the other half of the text. There the
    features are chosen anew, as many, on selection and check prompts together.
    """
    own_score, own_auroc = own(model, task)
    yield f"{task.name}: {own_score.sentence()}; AUROC {own_auroc:.3f}"
    contexts = contexts[: config.text_contexts]
    if len(contexts) < 2:
        raise UserError("measuring damage needs at least two held-out contexts; give more text")
    choosing, tested = (Elsewhere(model, half, task.due) for half in (contexts[0::2], contexts[1::2]))
    sites = _sites(dictionaries, site)

    edits: dict[Site, Scaled] = {}
    trial: dict[Site, Removal] = {}
    check = Judge(model, task.check, choosing, seed=config.seed)
    for s in sites:
        yield f"{task.name}: choosing features at {s}"
        found = _choose_edit(Ground(model, s, task.selection), check, dictionaries[s], config)
        if found is None:
            yield f"{task.name}: no feature at {s} supports them within the budget"
        else:
            edits[s], trial[s] = found
    if not edits:
        raise UserError(
            f"no feature at any site supports the task ({task.name}) within the budget of {config.budget:g} nats per "
            "token; give more training, another site or a larger budget"
        )
    best_site = min(edits, key=lambda s: trial[s].rank())

    yield f"{task.name}: choosing again at {best_site}, on all but the test prompts"
    ground = Ground(model, best_site, task.choosing)
    found = _choose(ground.first(2 * config.greedy_prompts), dictionaries[best_site], choosing, config)
    if found:
        edit = ablate(best_site, dictionaries[best_site], found[: len(edits[best_site].edit.latents)])
        edits[best_site] = Scaled(edit, meeting_strength(ground, edit, choosing, config.budget))

    erasers = fit_at(model, list(edits), task.fitting)
    probing = task.fitting.first(PROBING)
    judge = Judge(model, task.test, tested, seed=config.seed, transfer=task.transfer, probing=probing)
    judged: dict[Site, dict[str, tuple[Removal, Harm]]] = {}
    frontiers: list[Frontier] = []
    for s, edit in edits.items():
        yield f"{task.name}: measuring at {s}"
        own_edits: dict[str, Intervention] = {"features": edit, **erasers[s]}
        judged[s] = {name: judge.judge([one], name) for name, one in own_edits.items()}
        if s == best_site:
            judged[s]["features, plain ablation"] = judge.judge([edit.edit], "features, plain ablation")
            for name, tuned in _tuned(model, s, erasers[s], task, choosing, config).items():
                judged[s][name] = judge.judge([tuned], name)
        size, draws = judged[s]["features"][0].edit_size, config.random_draws if s == best_site else 1
        randoms = equal_random(
            s, dictionaries[s], edit.edit.latents.tolist(), size, choosing, tested, draws, config.seed
        )
        for name, drawn in randoms.items():
            judged[s][name] = mean_of([judge.judge([one], name) for one in drawn])
            own_edits[name] = drawn[0]
        if s == best_site:
            yield f"{task.name}: from no edit to twice each edit at {s}"
            frontiers += [frontier(judge, name, [one], config.strengths) for name, one in own_edits.items()]

    everywhere: dict[str, tuple[Removal, Harm]] = {}
    stacked = {s: edit for s, edit in edits.items() if s.stream is Stream.RESID_POST}
    if len(stacked) > 1:
        yield f"{task.name}: all layers at once"
        methods = at_all_layers(model, task, stacked, dictionaries, choosing, tested, config.budget, config.seed)
        everywhere = {name: judge.judge(own_edits, name) for name, own_edits in methods.items()}
        frontiers += [frontier(judge, name, methods[name], config.strengths) for name in ("features", "LEACE")]
    pairs = [judged[s] for s in sorted(judged)] + ([everywhere] if everywhere else [])
    at_best = [removal for removal, _ in judged[best_site].values()]
    gone = [m for m in at_best if m.gone]
    yield RemovalResult(
        own=own_score,
        own_auroc=own_auroc,
        site=str(best_site),
        methods=tuple(at_best),
        elsewhere=tuple(m for s, rest in judged.items() if s != best_site for m, _ in rest.values()),
        best=min(gone, key=lambda m: m.damage).method if gone else None,
        everywhere=tuple(removal for removal, _ in everywhere.values()),
        frontiers=tuple(frontiers),
        comparisons=tuple(Comparison.of(rows["features"], rows["LEACE"], config.seed) for rows in pairs),
        task=task.name,
        answers=task.answers,
        example=task.example,
        transfer=task.transfer_note,
        budget=config.budget,
        edits=(edits[best_site],),
    )


def _sites(dictionaries: dict[Site, Dictionary], site: Site | None) -> list[Site]:
    """The site asked for, or all that can be edited."""
    if site and site not in dictionaries:
        raise UserError(f"no dictionary for {site}; this set has {', '.join(map(str, dictionaries))}")
    sites = [site] if site else [s for s in dictionaries if s.stream in (Stream.RESID_POST, Stream.MLP_OUT)]
    if not sites:
        raise UserError(f"removal needs a resid_post or mlp_out site; this set has {', '.join(map(str, dictionaries))}")
    return sites


def _tuned(
    model: LanguageModel,
    site: Site,
    erasers: dict[str, Erasure],
    task: Capability,
    choosing: Elsewhere,
    config: RemovalConfig,
) -> dict[str, Scaled]:
    """The erasers with a strength. It is read off where they are fitted on half the names, on the other half.

    On the prompts that an eraser was fitted on, the classes meet at strength 1 by construction.
    """
    ground, halves = Ground(model, site, task.check), fit_at(model, [site], task.tuning)[site]
    strengths = {name: meeting_strength(ground, half, choosing, config.budget) for name, half in halves.items()}
    return {f"{name}, tuned": Scaled(eraser, strengths[name]) for name, eraser in erasers.items()}


def _choose(ground: Ground, dictionary: Dictionary, elsewhere: Elsewhere, config: RemovalConfig) -> list[int]:
    most = {"shortlist": config.shortlist, "most": config.max_features}
    return choose_features(ground, dictionary, elsewhere, config.budget, **most)


def _choose_edit(
    ground: Ground, check: Judge, dictionary: Dictionary, config: RemovalConfig
) -> tuple[Scaled, Removal] | None:
    """The edit that ranks best on the check prompts, and its figures there; None if no feature helps.

    Tried are the first 1, 2, 4, 8, ... of the features that `choose_features` finds on the selection
    prompts, each with the strength at which the classes meet there.
    """
    found = _choose(ground.first(config.greedy_prompts), dictionary, check.elsewhere, config)
    trials = []
    for size in sorted({min(2**i, len(found)) for i in range(8)} - {0}):
        edit = ablate(ground.site, dictionary, found[:size])
        scaled = Scaled(edit, meeting_strength(ground, edit, check.elsewhere, config.budget))
        trials.append((scaled, check.brief([scaled], "features")[0]))
    return min(trials, key=lambda trial: trial[1].rank(), default=None)
