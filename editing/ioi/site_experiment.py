"""Clean and corrupted runs of prompt pairs at one site, and what patching any set of features there does.

Cost: rows (one prompt under one set) are stacked into forward passes that begin at the edited layer and unembed one
position each.
"""

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from editing.engine.batching import budget_on, measure_rows_that_fit
from editing.engine.resumed_run import ResumedRun, adds_to_residual
from editing.engine.suffix_run import suffix_run
from editing.interventions.add_direction import AddDirection
from editing.ioi.feature_sets import Patching, PatchReadout
from editing.metrics import kl_from_log_probs, logit_difference
from editing.tasks.pairs import Place, PromptPairs, at_end
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.errors import UserError
from sae_core.model.language_model import LanguageModel
from sae_core.outliers import inliers, outlier_norm_of
from sae_core.sites import FeatureId, Site

ENCODED_AT_ONCE = 2**24
"""Codes that are in memory at one time while those that differ are looked for."""


class Answers:
    """What is read where the answer of each prompt is due, beside the clean run."""

    def __init__(self, model: LanguageModel, pairs: PromptPairs, clean_logits: Float[Tensor, "batch vocab"]):
        self.clean: Float[Tensor, "batch vocab"] = clean_logits.log_softmax(-1)
        """The clean run's log probabilities."""
        self.answer, self.foil = pairs.answer.to(model.device), pairs.foil.to(model.device)

    def read(
        self, logits: Float[Tensor, "rows vocab"], prompts: Int[Tensor, "rows"], sizes: Float[Tensor, "rows"]
    ) -> PatchReadout:
        """`[rows]`: what these logits say beside the clean run's; the sizes of the edits are as given."""
        answer, foil = self.answer[prompts], self.foil[prompts]
        patched = logits.log_softmax(-1)
        kl = kl_from_log_probs(self.clean[prompts], patched)
        probability = patched.gather(-1, answer[:, None])[:, 0].exp()
        return PatchReadout(kl, logit_difference(patched, answer, foil), probability, sizes)

    def unedited(self, logits: Float[Tensor, "batch vocab"]) -> PatchReadout:
        """`[batch]`: what is read of a run without any edit."""
        return self.read(logits, torch.arange(len(logits), device=logits.device), logits.new_zeros(len(logits)))


def edited_places(
    model: LanguageModel, pairs: PromptPairs, positions: Sequence[Place] | None
) -> Bool[Tensor, "batch pos"]:
    """The content positions up to the answer; with `positions`, those of them that these name.

    A number counts from the end of each prompt as in Python, -1 being where the answer is read; a role (`IO`, `S1`,
    `S2`, `END`) is a token's place, in each prompt its own. Raises `UserError` for one that is not there.
    """
    if pairs.clean.shape != pairs.corrupted.shape or not len(pairs):
        raise UserError(_misfit(pairs))
    pos = torch.arange(pairs.clean.shape[1])
    mask = model.content(pairs.clean).cpu() & (pos <= pairs.end[:, None])
    if positions is not None:
        places = [pairs.place(position) for position in positions]
        mask &= torch.stack([pos == place[:, None] for place in places] or [torch.zeros_like(mask)]).any(0)
    return mask.to(model.device)


def _misfit(pairs: PromptPairs) -> str:
    if not len(pairs):
        return f"no prompts of {pairs.name}; an experiment needs at least one pair"
    clean, corrupted = (f"{len(rows)} of {rows.shape[-1]} tokens" for rows in (pairs.clean, pairs.corrupted))
    return (
        f"clean and corrupted prompts of {pairs.name} must be alike in number and length; got {clean} and {corrupted}"
    )


def check_dictionary_width(site: Site, dictionary: Dictionary, x: Float[Tensor, "batch pos d"]) -> None:
    """Raise `UserError` for a dictionary of another width than the site's."""
    if dictionary.directions.shape[-1] != x.shape[-1]:
        raise UserError(
            f"these features read activations of width {dictionary.directions.shape[-1]}, those at {site} have width "
            f"{x.shape[-1]}; give the dictionary of this site"
        )


class PatchExperiment:
    """Clean and corrupted runs of prompt pairs at one site, and the effect of any change of the corrupted one there.

    By default every content position up to the answer is edited; `positions` as in `edited_places`. Raises `UserError`
    for pairs that cannot be aligned.
    """

    def __init__(self, model: LanguageModel, pairs: PromptPairs, site: Site, positions: Sequence[Place] | None = None):
        self.mask: Bool[Tensor, "batch pos"] = edited_places(model, pairs, positions)
        self.model, self.pairs, self.sites, self.site = model, pairs, (site,), site
        with torch.no_grad():
            clean = model.record(pairs.clean, {site, model.sites()[-1]})
            self.resumed = ResumedRun(model, pairs.corrupted, pairs.end, site.layer, [site])
            clean_logits = model.unembed(at_end(clean[model.sites()[-1]], pairs.end))
            self.answers = Answers(model, pairs, clean_logits)
            self.x, self.x_bar = clean[site], self.resumed.recorded[site]
            self.adds = adds_to_residual(model, site)
            self.suffix = suffix_run(model, self.resumed.tokens, self.resumed.end, site.layer) if self.adds else None
            self.clean = self.answers.unedited(clean_logits)
            self.corrupted = self.answers.unedited(self.resumed.logits)

    def __len__(self) -> int:
        return len(self.pairs)

    def patching(self, dictionary: Dictionary) -> "SitePatching":
        """The dictionary's features, to be patched in any set."""
        return SitePatching(self, dictionary)

    def sizes(self, change: Float[Tensor, "rows pos d"], prompts: Int[Tensor, "rows"]) -> Float[Tensor, "rows"]:
        """Mean over a prompt's edited positions of |x' - x_bar|."""
        mask = self.mask[prompts]
        return (change.norm(dim=-1) * mask).sum(-1) / mask.sum(-1).clamp_min(1)

    def run(self, prompts: Int[Tensor, "rows"], change: Float[Tensor, "rows pos d"]) -> Float[Tensor, "rows vocab"]:
        """Logits at the answer of corrupted prompts whose activation is changed, in one forward pass."""
        if self.suffix is not None:
            return self.suffix.logits(prompts, change)
        if self.adds:
            return self.resumed.logits_changed(prompts, change)
        return self.resumed.logits_under(prompts, [AddDirection(self.site, change)])

    def read(self, prompts: Int[Tensor, "rows"], change: Float[Tensor, "rows pos d"]) -> PatchReadout:
        """`[rows]`: what such changes do, in one forward pass."""
        return self.answers.read(self.run(prompts, change), prompts, self.sizes(change, prompts))

    @cached_property
    def gradient(self) -> Float[Tensor, "batch pos d"]:
        """d KL(clean || patched) / dx of each prompt, at the corrupted run."""

        def kl(prompts: Tensor, changes: Sequence[Tensor]) -> Tensor:
            return self.read(prompts, changes[0]).kl

        return gradients(kl, [self.x])[0]


def gradients(
    kl: Callable[[Tensor, list[Tensor]], Tensor], like: Sequence[Float[Tensor, "batch pos _"]]
) -> list[Tensor]:
    """The gradient of every prompt's KL by changes of activations that are as large as those of `like`, at no change.

    As many prompts at a time as memory allows, measured with what a backward pass keeps.
    """
    gradients = [torch.zeros_like(x) for x in like]
    everyone = torch.arange(len(like[0]), device=like[0].device)

    def run(prompts: Tensor) -> tuple[Tensor, ...]:
        changes = [torch.zeros_like(x[prompts]).requires_grad_() for x in like]
        with torch.enable_grad():
            return torch.autograd.grad(kl(prompts, changes).sum(), changes)

    def run_first(rows: int) -> tuple[Tensor, ...]:
        return run(torch.arange(rows, device=everyone.device) % len(everyone))

    for prompts in everyone.split(measure_rows_that_fit(run_first, budget_on(everyone.device))):
        for gradient, part in zip(gradients, run(prompts), strict=True):
            gradient[prompts] = part
    return gradients


class SitePatching(Patching):
    """The features of one site's dictionary; a set is the change of the activation that they make together."""

    def __init__(self, experiment: PatchExperiment, dictionary: Dictionary):
        check_dictionary_width(experiment.site, dictionary, experiment.x)
        self.experiment, self.directions = experiment, dictionary.directions
        self.corrupted = experiment.corrupted
        self._difference, self._row = _differences(experiment, dictionary)
        self.differs = torch.zeros(len(experiment), len(self.directions), dtype=torch.bool, device=experiment.x.device)
        self.differs[:, self._row >= 0] = self._difference.ne(0).any(-1).T
        self.at_once = self._measure_rows()

    def feature(self, number: int) -> FeatureId:
        return FeatureId(self.experiment.site, number)

    def empty_sets(self, n: int) -> Float[Tensor, "n pos d"]:
        return self.experiment.x.new_zeros(n, *self.experiment.x.shape[1:])

    def contributions(self, features: Int[Tensor, "k"], prompts: Int[Tensor, "rows"]) -> Float[Tensor, "rows pos d"]:
        features = features[self._row[features] >= 0]
        change = self._difference[self._row[features]][:, prompts]
        return torch.einsum("krp,kd->rpd", change, self.directions[features])

    def read(self, prompts: Int[Tensor, "rows"], sets: Float[Tensor, "rows pos d"]) -> PatchReadout:
        return self.experiment.read(prompts, sets)

    def estimates(self) -> Float[Tensor, "batch n_features"]:
        # estimate_bk = -sum_p (c - c_bar)[k, b, p] (dKL_b/dx[b, p] . f_k); zero where nothing differs
        differing = self._row >= 0
        along = torch.einsum("bpd,kd->kbp", self.experiment.gradient, self.directions[differing])
        estimate = torch.zeros(len(self.experiment), len(self.directions), device=along.device)
        estimate[:, differing] = -(along * self._difference).sum(2).T
        return estimate

    def activation_patched(self) -> PatchReadout:
        experiment = self.experiment
        everyone = torch.arange(len(experiment), device=experiment.x.device)
        change = (experiment.x - experiment.x_bar) * experiment.mask[..., None]
        return self.table([(everyone, change)]).each(lambda x: x[0])


def _differences(
    experiment: PatchExperiment, dictionary: Dictionary
) -> tuple[Float[Tensor, "n_different batch pos"], Int[Tensor, "n_latents"]]:
    """c - c_bar at the edited positions, zero elsewhere, of the latents for which it is anything, and their rows.

    Zero, too, where either run has an outlier: no latent speaks of it. The row of a latent that differs nowhere is -1.
    Prompts are encoded a few at a time.
    """
    x, x_bar, mask, limit = experiment.x, experiment.x_bar, experiment.mask, outlier_norm_of(dictionary)
    n_latents, places, latents, values = len(dictionary.directions), [], [], []
    for rows in torch.arange(len(x), device=x.device).split(max(1, ENCODED_AT_ONCE // (x.shape[1] * n_latents))):
        kept = mask[rows] & inliers(x[rows], limit) & inliers(x_bar[rows], limit)
        difference = (dictionary.encode(x[rows]) - dictionary.encode(x_bar[rows])) * kept[..., None]
        row, pos, latent = difference.nonzero(as_tuple=True)
        values.append(difference[row, pos, latent])
        places.append(torch.stack([rows[row], pos]))
        latents.append(latent)
    different, number = torch.cat(latents).unique(return_inverse=True)
    dense = x.new_zeros(len(different), *x.shape[:2])
    dense[number, *torch.cat(places, 1)] = torch.cat(values)
    row_of = torch.full((n_latents,), -1, device=x.device)
    row_of[different] = torch.arange(len(different), device=x.device)
    return dense, row_of
