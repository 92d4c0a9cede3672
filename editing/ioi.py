"""The IOI experiment from end to end: choose a site and features on one half of the prompts, report on the other."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from editing.tasks.ioi import Corruption, IOITask
from editing.tasks.pairs import OwnScore, own_score
from editing.tradeoff import Curve, PatchExperiment, choose, curve, default_counts, floor
from sae_core.activations import harvest
from sae_core.dictionaries import Dictionary, neurons, pca, random_basis
from sae_core.errors import UserError
from sae_core.models import LanguageModel
from sae_core.seeds import generator_for
from sae_core.sites import Site, Stream


@dataclass(frozen=True)
class IOIConfig:
    """How much to run."""

    selection_prompts: int = 32
    test_prompts: int = 96
    n_greedy: int = 16
    shortlist: int = 32
    random_draws: int = 3
    """Random orders of the features that differ, averaged."""
    seed: int = 0
    prepend_bos: bool = True


@dataclass(frozen=True)
class IOIResult:
    """One corruption at one site."""

    corruption: Corruption
    own: OwnScore
    site: str
    site_kl: dict[str, float]
    """KL on the selection prompts with the 16 features of highest estimate patched, for every site."""
    curves: tuple[Curve, ...]
    floor: dict[str, float]
    shared: tuple[str, ...]
    """What selection and test prompts have in common besides the task."""
    n_selection: int
    n_test: int


def run_ioi(
    model: LanguageModel,
    dictionaries: dict[Site, Dictionary],
    contexts: Int[Tensor, "contexts pos"],
    corruption: Corruption,
    config: IOIConfig,
    *,
    site: Site | None = None,
) -> Iterator[str | IOIResult]:
    """Yield a line of progress before each stage, and the `IOIResult` last.

    `contexts` are those on which PCA is fitted. Without `site`, the residual site is taken at which the
    16 features of highest estimate leave the least KL on the selection prompts.
    """
    task = IOITask.of(model)
    prompts = {
        split: task.pairs(model, corruption, split, n, seed=config.seed, prepend_bos=config.prepend_bos)
        for split, n in (("selection", config.selection_prompts), ("test", config.test_prompts))
    }
    own = own_score(model, prompts["test"])
    yield f"{corruption}: {own.sentence()}"

    sites = [site] if site else [s for s in dictionaries if s.stream in (Stream.RESID_POST, Stream.MLP_OUT)]
    if not sites:
        raise UserError(f"IOI needs a resid_post or mlp_out site; this set has {', '.join(map(str, dictionaries))}")
    if sites[0] not in dictionaries:
        raise UserError(f"no dictionary for {site}; this set has {', '.join(map(str, dictionaries))}")
    yield f"{corruption}: choosing the site"
    experiments = {s: PatchExperiment(model, prompts["selection"], s) for s in sites}
    site_kl = {s: _kl_of_best(experiments[s], dictionaries[s]) for s in sites}
    best = min(sites, key=site_kl.__getitem__)
    selection, test = experiments[best], PatchExperiment(model, prompts["test"], best)

    x = harvest(model, contexts, (best,))[best]
    width = x.shape[-1]
    methods: dict[str, Dictionary] = {
        "dictionary": dictionaries[best],
        "PCA": pca(x),
        "neurons": _to(neurons(width), x),
        "random basis": _to(random_basis(width, generator=generator_for(config.seed, "random basis")), x),
    }
    curves = []
    for name, dictionary in methods.items():
        yield f"{corruption}: {best}, {name}"
        order, forwards = choose(selection, dictionary, n_greedy=config.n_greedy, shortlist=config.shortlist)
        found = curve(test, dictionary, order, default_counts(len(dictionary.directions)), name)
        curves.append(Curve(name, found.points, found.order, forwards))
    yield f"{corruption}: {best}, random subsets"
    curves.append(_random_curve(selection, test, dictionaries[best], config))
    yield IOIResult(
        corruption=corruption,
        own=own,
        site=str(best),
        site_kl={str(s): kl for s, kl in site_kl.items()},
        curves=tuple(curves),
        floor=floor(test, dictionaries[best]),
        shared=task.shared,
        n_selection=len(prompts["selection"]),
        n_test=len(prompts["test"]),
    )


@torch.no_grad()
def _kl_of_best(experiment: PatchExperiment, dictionary: Dictionary, n: int = 16) -> float:
    best = experiment.first_order(dictionary).topk(min(n, len(dictionary.directions))).indices
    change = experiment.differences(dictionary)[..., best] @ dictionary.directions[best]
    return experiment.kl(experiment.logits(change[None]))[0].item()


def _random_curve(
    selection: PatchExperiment, test: PatchExperiment, dictionary: Dictionary, config: IOIConfig
) -> Curve:
    """Mean curve over random orders, those features first that differ on the selection prompts."""
    differs = selection.differences(dictionary).ne(0).any(0).any(0).cpu()
    counts, runs = default_counts(len(differs)), []
    for draw in range(config.random_draws):
        shuffled = torch.randperm(len(differs), generator=generator_for(config.seed, "random subsets", draw))
        order = torch.cat([shuffled[differs[shuffled]], shuffled[~differs[shuffled]]]).tolist()
        runs.append(curve(test, dictionary, order, counts, "random subsets"))
    points = tuple(
        type(same[0])(
            same[0].n_features,
            *(sum(getattr(p, field) for p in same) / len(same) for field in ("kl", "recovered", "edit_size")),
        )
        for same in zip(*(run.points for run in runs), strict=True)
    )
    return Curve("random subsets", points)


def _to(dictionary, x: Tensor):
    return type(dictionary)(dictionary.directions.to(x), dictionary.mean.to(x))
