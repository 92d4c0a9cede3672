"""What `ioi --check` computes again of two experiments drawn at random, a pair of prompts at a time.

    h -> h + sum_{i in F} (c_i - c_i(h)) f_i    at the edited positions, c_i being the latent's code in the clean run

in the corrupted run, F the first features of a curve as its result names them; at several sites all at once. Read where
the answer is due: KL(clean || patched) = sum p (log p - log p'), and beside it the mean of |h' - h| over the edited
positions. And for F with nothing in it, with all latents, and at most `CURVES` curves, those that name their features.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool
from torch import Tensor

from editing.ioi.curve import Curve
from editing.ioi.result import IOIResult
from editing.ioi.study import IOIStudy
from editing.tasks.pairs import PromptPairs
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.model.language_model import LanguageModel
from sae_core.sites import FeatureId, Site
from subrank.checking.plain_runs import Formula, activations, kl, limit_of, log_probs, mean
from subrank.checking.recomputed import Recomputed, drawn

EXPERIMENTS, CURVES, COUNTS = 2, 3, (1, 16)
"""Of a run, of each experiment, and numbers of features of each curve."""


@dataclass(frozen=True, eq=False)
class _PatchCheck:
    """Latents to be patched, what is reported of them, and what is read of each pair."""

    what: str
    dictionaries: Mapping[Site, Dictionary]
    latents: Mapping[Site, Sequence[int]]
    reported_kl: float
    reported_size: float | None = None
    kl: list[Tensor] = field(default_factory=list)
    size: list[float] = field(default_factory=list)

    def numbers(self) -> list[Recomputed]:
        """The means over pairs."""
        numbers = [Recomputed(f"KL, {self.what}", self.reported_kl, mean(self.kl))]
        if self.reported_size is not None:
            numbers.append(Recomputed(f"edit size, {self.what}", self.reported_size, mean(self.size)))
        return numbers


def recomputed(study: IOIStudy, results: Sequence[IOIResult], seed: int) -> list[Recomputed]:
    """KL and edit sizes of a few points of a few curves, and the floors."""
    chosen = drawn(results, EXPERIMENTS, seed)
    return [number for result in chosen for number in _of_experiment(study, result, seed)]


def _of_experiment(study: IOIStudy, result: IOIResult, seed: int) -> list[Recomputed]:
    sites = [Site.parse(name) for name in result.site.split(" + ")]
    methods = study.sets | study.baselines.at(sites)
    at = f"{result.corruption} at {result.site}"
    checks: list[_PatchCheck] = []
    for name, floors in result.floors.items():
        every = {site: range(len(study.sets[name][site].directions)) for site in sites}
        for floor, latents in {"nothing": {}, "all_latents": every}.items():
            checks.append(_PatchCheck(f"{at}, {name}, {floor}", study.sets[name], latents, floors[floor]))
    curves = [curve for curve in result.curves if curve.order and (len(sites) == 1 or "_" in curve.order[0])]
    for curve in drawn(curves, CURVES, seed, at):
        for point in curve.points:
            if point.n_features in COUNTS and point.n_features <= len(curve.order):
                what = f"{at}, {curve.name} by {curve.selection}, {point.n_features} features"
                latents = _named(curve, sites, point.n_features)
                checks.append(_PatchCheck(what, methods[curve.name], latents, point.kl.value, point.edit_size.value))
    pairs = study.prompts(result.corruption).test
    _run(study.model, pairs, _edited(study.model, pairs, result.positions), checks)
    return [number for check in checks for number in check.numbers()]


def _named(curve: Curve, sites: Sequence[Site], n: int) -> dict[Site, list[int]]:
    """The first `n` features of a curve by site: `5_17`, or of a baseline `PCA 17`, at several sites `PCA 5_17`."""
    latents: dict[Site, list[int]] = {}
    for name in curve.order[:n]:
        last = name.rpartition(" ")[2]
        feature = FeatureId(sites[0], int(last)) if last.isdigit() else FeatureId.parse(last)
        latents.setdefault(feature.site, []).append(feature.index)
    return latents


def _edited(model: LanguageModel, pairs: PromptPairs, positions: Sequence | None) -> Bool[Tensor, "batch pos"]:
    """The content tokens up to the answer, and of them those that `positions` name."""
    place = torch.arange(pairs.clean.shape[1])
    mask = model.content(pairs.clean) & (place <= pairs.end[:, None])
    if positions is None:
        return mask
    return mask & torch.stack([place == pairs.place(each)[:, None] for each in positions]).any(0)


@torch.no_grad()
def _run(
    model: LanguageModel, pairs: PromptPairs, edited: Bool[Tensor, "batch pos"], checks: Sequence[_PatchCheck]
) -> None:
    """Run every check on every pair, and note what is read."""
    sites = {site for check in checks for site in check.latents}
    for row, end in enumerate(pairs.end.tolist()):
        clean, corrupted, places = pairs.clean[row, : end + 1], pairs.corrupted[row, : end + 1], edited[row, : end + 1]
        x, x_bar = (activations(model, tokens, sites) for tokens in (clean, corrupted))
        wanted = log_probs(model, clean)[-1]
        for check in checks:
            edits = [_patch(check, site, places, x[site], x_bar[site]) for site in check.latents]
            check.kl.append(kl(wanted, log_probs(model, corrupted, *edits)[-1]))
            # at one site outliers are edited places that nothing moves, at several they are none
            n = [int((edit.mask if len(sites) > 1 else places).sum()) for edit in edits]
            check.size.append(math.fsum(float(e.moved[0].sum()) / max(1, of) for e, of in zip(edits, n, strict=True)))


def _patch(check: _PatchCheck, site: Site, mask: Bool[Tensor, "pos"], x: Tensor, x_bar: Tensor) -> Formula:
    """h -> h + sum_i (c_i(x) - c_i(h)) f_i over the check's latents, where neither run has an outlier."""
    dictionary, index = check.dictionaries[site], list(check.latents[site])
    for run in (x, x_bar):
        mask = mask & ~(run.norm(dim=-1) > limit_of(dictionary)).cpu()
    codes, directions = dictionary.encode(x)[:, index], dictionary.directions[index]

    def patched(h: Tensor) -> Tensor:
        return h + (codes - dictionary.encode(h)[:, index]) @ directions

    return Formula(site, patched, mask, limit_of(dictionary))
