"""The metrics of sets of dictionaries on one text, which the model reads once for all of them.

What is chosen (the latent of a probe, a threshold, a rule) is chosen on training contexts, and every number is of
held-out ones. Tokens of massive norm, by the strictest limit of a site's dictionaries, are left out.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from sae_core.data.text import Contexts
from sae_core.dictionaries.baselines import Basis, pca
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.dictionaries.saes import SAE
from sae_core.estimate import Estimate
from sae_core.model.language_model import LanguageModel
from sae_core.outliers import limits_of
from sae_core.progress import OnProgress, Stages, duration, silent
from sae_core.seeds import generator_for
from sae_core.sites import Site
from subrank.settings.studies import MetricSettings
from subrank.studies.metrics.codes import read_at
from subrank.studies.metrics.effects import ABLATED, ablation_sparsity
from subrank.studies.metrics.loss import Ladder, Losses, read_ladder, spliced_losses
from subrank.studies.metrics.measured import Measured, ReadAt, SetMetrics
from subrank.studies.metrics.patterns import explained
from subrank.studies.metrics.probe import Probed, mean_loss
from subrank.studies.metrics.reading import Reading, read_sites
from subrank.studies.metrics.refinement import refined
from subrank.studies.metrics.tasks import Asked, Questions, knows_grammar, of_characters, of_grammar, of_labels
from subrank.studies.relations.splitting_step import mean_estimate
from subrank.studies.sample import drawn

SPLICED, REFINED = 48, 512
"""Contexts on which reconstructions are spliced in, and tokens whose codes are refined, at most."""
LEAST_ACTIVE = 8
"""Training tokens on which a latent that is drawn is active, at least; and on one held out."""
_ROWS = 512

Numbers = dict[str, Measured]


@dataclass(frozen=True, eq=False)
class Coded:
    """What a dictionary's codes are on training and held-out tokens."""

    active: Int[Tensor, "2 n_latents"]
    """Tokens of each text on which a latent is active."""
    training_l0: float
    l0: Estimate
    fvu: Estimate
    """Of held-out tokens, as `l0`."""
    components: int
    """As many principal components as latents are active on a held-out token."""

    def drawn(self, n: int, seed: int, purpose: str) -> Int[Tensor, "k"]:
        """At most `n` latents that are active often enough."""
        alive = ((self.active[0] >= LEAST_ACTIVE) & (self.active[1] > 0)).nonzero()[:, 0]
        return alive[torch.randperm(len(alive), generator=generator_for(seed, purpose))[:n].to(alive.device)]


@dataclass(frozen=True, eq=False)
class Bench:
    """What all dictionaries of a site are measured with."""

    model: LanguageModel
    site: Site
    training: Reading
    held: Reading
    limit: float
    basis: Basis
    """A complete PCA of the training tokens."""
    questions: list[Asked]
    ladder: Ladder | None
    settings: MetricSettings


def check_files(model: LanguageModel, settings: MetricSettings) -> None:
    """Raise `UserError` for a file of labels or a ladder that is none, before anything slow."""
    if settings.ladder:
        read_ladder(settings.ladder)
    if settings.labels:
        of_labels(model, settings.labels)


def set_metrics(
    model: LanguageModel,
    sets: Mapping[str, Mapping[Site, Dictionary]],
    contexts: Contexts,
    settings: MetricSettings,
    on_progress: OnProgress = silent,
) -> dict[str, dict[Site, SetMetrics]]:
    """Every metric of every dictionary, by the name of its set and its site; `measured.py` says what they are."""
    sites = sorted({site for dictionaries in sets.values() for site in dictionaries})
    stages = Stages(on_progress, 1 + sum(map(len, sets.values())) + len(sites))
    stages.begin("reading the text for the metrics")
    metrics: dict[str, dict[Site, SetMetrics]] = {name: {} for name in sets}
    left, last = sum(map(len, sets.values())), ""
    for bench in benches(model, sites, limits_of(sets.values()), contexts, settings):
        site = bench.site
        here = {name: dictionaries[site] for name, dictionaries in sets.items() if site in dictionaries}
        stages.begin(f"splicing {len(here)} dictionaries into {site}")
        codes = {name: coded(dictionary, bench) for name, dictionary in here.items()}
        losses = _losses(bench, here, codes)
        for name, dictionary in here.items():
            stages.begin(f"metrics of {name} at {site}{last}")
            begun, left = time.perf_counter(), left - 1
            metrics[name][site] = measured(bench, name, dictionary, codes[name], losses)
            last = f", about {duration(left * (time.perf_counter() - begun))} left"
    return metrics


def benches(
    model: LanguageModel,
    sites: list[Site],
    limits: Mapping[Site, float],
    contexts: Contexts,
    settings: MetricSettings,
) -> list[Bench]:
    """The texts and questions, read at all sites."""
    ladder = read_ladder(settings.ladder) if settings.ladder else None
    labelled = [of_labels(model, settings.labels)] if settings.labels else []
    both = contexts.training_apart, contexts.held_out
    parts = [drawn(each, settings.contexts, settings.seed) for each in both]
    splits = [(of_characters(model, parts[0]), of_characters(model, parts[1])), *labelled]
    if knows_grammar(model):
        splits.append(of_grammar(model, settings.contexts, parts[0].shape[1], settings.seed))

    def read(questions: Questions) -> dict[Site, Reading]:
        return read_sites(model, questions.tokens, limits, sites)

    readings = [(read(training), read(held)) for training, held in splits]
    every = []
    for site in sites:
        here = [(training[site], held[site]) for training, held in readings]
        basis = pca(here[0][0].rows.x)
        questions = [Asked.of(split, pair, basis) for split, pair in zip(splits, here, strict=True)]
        known = [each for each in questions if each]
        every.append(Bench(model, site, *here[0], limits[site], basis, known, ladder, settings))
    return every


@torch.no_grad()
def coded(dictionary: Dictionary, bench: Bench) -> Coded:
    """The codes of both texts, summed up."""
    active, l0 = torch.zeros(2, len(dictionary.directions), dtype=torch.long).to(bench.held.h.device), []
    x_hat: list[Tensor] = []
    for counts, reading in zip(active, (bench.training, bench.held), strict=True):
        per_token, x_hat = [], []
        for few in reading.rows.x.split(_ROWS):
            f = dictionary.encode(few)
            counts += (f != 0).sum(0)
            per_token.append((f != 0).sum(-1))
            x_hat.append(dictionary.decode(f))
        l0.append(torch.cat(per_token).double())
    rows, width = bench.held.rows, len(bench.basis.directions)
    components = max(1, min(round(l0[1].mean().item()), width))
    return Coded(active, l0[0].mean().item(), rows.mean(l0[1]), rows.fvu(torch.cat(x_hat)), components)


def _losses(bench: Bench, here: Mapping[str, Dictionary], codes: Mapping[str, Coded]) -> Losses:
    """The losses with each dictionary spliced in, and with each PCA that is as large as one of them is active."""
    bases = {_pca(each.components): _truncated(bench.basis, each.components) for each in codes.values()}
    few = bench.held.tokens[:SPLICED]
    return spliced_losses(bench.model, bench.site, {**here, **bases}, few, bench.limit)


def measured(bench: Bench, name: str, dictionary: Dictionary, codes: Coded, losses: Losses) -> SetMetrics:
    """Every metric of one dictionary."""
    probed = [each.of_dictionary(dictionary) for each in bench.questions]
    tasks = [task for each, best in zip(bench.questions, probed, strict=True) for task in each.tasks(best)]
    by_threshold, curve = _other_k(bench, dictionary, codes)
    numbers = {
        **_reconstruction(bench, name, codes, losses),
        **_probe_loss(bench, probed),
        **_explanations(bench, dictionary, codes),
        **_effects(bench, dictionary, codes),
        **by_threshold,
        **_refinement(bench, dictionary),
    }
    return SetMetrics(
        n_latents=len(dictionary.directions),
        l0=codes.l0,
        dead=(codes.active.sum(0) == 0).double().mean().item(),
        numbers=numbers,
        tasks=tuple(tasks),
        curve=curve,
    )


def _pca(components: int) -> str:
    return f"PCA, {components} components"


def _truncated(basis: Basis, components: int) -> Basis:
    return Basis(basis.directions[:components], basis.mean)


def _reconstruction(bench: Bench, name: str, codes: Coded, losses: Losses) -> Numbers:
    rows, k = bench.held.rows, codes.components
    control, basis = _pca(k), _truncated(bench.basis, k)
    numbers = {
        "fvu": Measured(codes.fvu, {control: rows.fvu(basis.decode(basis.encode(rows.x)))}),
        "loss_rise": Measured(losses.rise(name), {control: losses.rise(control)}),
        "recovered": Measured(losses.recovered(name), {control: losses.recovered(control)}),
    }
    if bench.ladder:
        both = [losses.compute(each, bench.ladder) for each in (name, control)]
        numbers["compute"] = Measured(both[0], {control: both[1]})
    return numbers


def _probe_loss(bench: Bench, probed: list[Probed]) -> Numbers:
    if not probed:
        return {}
    alone = torch.tensor([loss for each in bench.questions for loss in each.labels_alone])
    controls = {
        "best principal component": mean_loss([each.component for each in bench.questions]),
        "best coordinate": mean_loss([each.channel for each in bench.questions]),
        "labels alone": Estimate(alone.mean().item()),
    }
    return {"probe_loss": Measured(mean_loss(probed), controls)}


def _explanations(bench: Bench, dictionary: Dictionary, codes: Coded) -> Numbers:
    seed = bench.settings.seed
    latents = codes.drawn(bench.settings.explained, seed, "explained")
    if len(latents) < 2:
        return {}
    result = explained(bench.model, bench.site, dictionary, (bench.training, bench.held), latents, seed)
    numbers = {}
    for name in ("precision", "recall"):
        value, control = (
            mean_estimate(torch.tensor([getattr(score, name) for score in scores]), seed)
            for scores in (result.scores, result.controls)
        )
        numbers[name] = Measured(value, {"another latent's rule": control})
    return numbers


def _effects(bench: Bench, dictionary: Dictionary, codes: Coded) -> Numbers:
    seed = bench.settings.seed
    latents = codes.drawn(bench.settings.ablated, seed, "ablated")
    if not len(latents):
        return {}
    chance = generator_for(seed, "effects", bench.site)
    sparsity = ablation_sparsity(bench.model, bench.site, dictionary, bench.held, latents, chance)
    means = {name: mean_estimate(values[~values.isnan()], seed) for name, values in sparsity.items()}
    return {"effect_sparsity": Measured(means.pop(ABLATED), means)}


def _other_k(bench: Bench, dictionary: Dictionary, codes: Coded) -> tuple[Numbers, tuple[ReadAt, ...]]:
    if not isinstance(dictionary, SAE):
        return {}, ()
    k = [each for each in bench.settings.read_at if each <= dictionary.n_latents // 2]
    *curve, usual = read_at(dictionary, bench.training.rows, bench.held.rows, [*k, max(1, round(codes.training_l0))])
    return {"threshold_fvu": Measured(usual.threshold_fvu, {"as many of each token": usual.fvu})}, tuple(curve)


@torch.no_grad()
def _refinement(bench: Bench, dictionary: Dictionary) -> Numbers:
    rows = bench.held.rows.thinned(REFINED)
    f = dictionary.encode(rows.x)
    chance = generator_for(bench.settings.seed, "refinement", bench.site)
    others = f[:, torch.randperm(f.shape[1], generator=chance)]

    best, again, other = (
        refined(dictionary, x, codes) for x, codes in ((rows.x, f), (dictionary.decode(f), f), (rows.x, others))
    )

    def shift(codes: Tensor) -> Estimate:
        return rows.ratio((codes - f).sum(-1), f.clamp_min(0).sum(-1))

    def fvu(codes: Tensor) -> Estimate:
        return rows.fvu(dictionary.decode(codes))

    return {
        "refined_fvu": Measured(fvu(best), {"as encoded": fvu(f), "as many other latents": fvu(other)}),
        "refined_shift": Measured(shift(best), {"of its own reconstruction": shift(again)}),
    }
