"""Several sites patched jointly, as one experiment: features of all of them in one set.

At each site c_bar and x_bar are those of the run as it is already patched upstream, so that changes do not add up as
they do at one site, and every row encodes its activations anew as it comes by.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from editing.engine.batching import budget_on, measure_rows_that_fit
from editing.engine.resumed_run import ResumedRun
from editing.interventions.add_direction import AddDirection
from editing.interventions.edit_size import MeasuredEdit
from editing.interventions.masks import where
from editing.interventions.patch import ActivationPatch
from editing.ioi.feature_sets import KL, Patching
from editing.ioi.site_experiment import Answers, check_features, edited_places, gradients
from editing.tasks.pairs import Place, PromptPairs, at_end
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.errors import UserError
from sae_core.model.language_model import Intervention, LanguageModel
from sae_core.sites import FeatureId, Site


@dataclass(frozen=True, eq=False)
class RowPatch:
    """A feature patch with a set of its own for every row: h -> h + sum_i in_i (target_i - f_i(h)) d_i."""

    site: Site
    dictionary: Dictionary
    target: Float[Tensor, "rows pos n_latents"]
    chosen: Float[Tensor, "rows n_latents"]
    """1 for the latents that are patched, 0 for the others."""
    mask: Bool[Tensor, "rows pos"]

    def __call__(self, h: Float[Tensor, "rows pos d"]) -> Float[Tensor, "rows pos d"]:
        used = self.chosen.any(0).nonzero()[:, 0]
        change = (self.target[..., used] - self.dictionary.encode(h)[..., used]) * self.chosen[:, None, used]
        return where(self.mask, h + change @ self.dictionary.directions[used], h)


class JointExperiment:
    """Clean and corrupted runs of prompt pairs, to be patched at several sites at once.

    `positions` as in `edited_places`, the same at every site.
    """

    def __init__(
        self, model: LanguageModel, pairs: PromptPairs, sites: Sequence[Site], positions: Sequence[Place] | None = None
    ):
        if not sites:
            raise UserError("no site to patch; give at least one")
        self.mask: Bool[Tensor, "batch pos"] = edited_places(model, pairs, positions)
        self.model, self.pairs, self.sites = model, pairs, tuple(sorted(set(sites)))
        last = model.sites()[-1]
        with torch.no_grad():
            clean = model.record(pairs.clean, {*self.sites, last})
            self.resumed = ResumedRun(model, pairs.corrupted, pairs.end, self.sites[0].layer, self.sites)
            clean_logits = model.unembed(at_end(clean[last], pairs.end))
            self.answers = Answers(model, pairs, clean_logits)
            self.x = {site: clean[site] for site in self.sites}
            self.x_bar = {site: self.resumed.recorded[site] for site in self.sites}
            self.clean: Float[Tensor, "batch 4"] = self.answers.unedited(clean_logits)
            self.corrupted: Float[Tensor, "batch 4"] = self.answers.unedited(self.resumed.logits)

    def __len__(self) -> int:
        return len(self.pairs)

    def patching(self, dictionaries: Mapping[Site, Dictionary]) -> "JointPatching":
        """The features of a dictionary for each site, to be patched in any set."""
        return JointPatching(self, dictionaries)

    def read(self, prompts: Int[Tensor, "rows"], edits: Sequence[Intervention]) -> Float[Tensor, "rows 4"]:
        """What edits of these rows do, in one forward pass; their sizes are added up."""
        measured = [MeasuredEdit(edit) for edit in edits]
        logits, counted = self.resumed.logits_under(prompts, measured), self.mask[prompts]
        sizes = sum((edit.sizes(counted) for edit in measured), logits.new_zeros(len(prompts)))
        return self.answers.read(logits, prompts, sizes)


class JointPatching(Patching):
    """The features of several sites, site after site; a set has a 1 for every feature that is in, else 0."""

    def __init__(self, experiment: JointExperiment, dictionaries: Mapping[Site, Dictionary]):
        self.experiment, self.corrupted = experiment, experiment.corrupted
        self.dictionaries = {site: dictionaries[site] for site in experiment.sites}
        for site, dictionary in self.dictionaries.items():
            check_features(site, dictionary, experiment.x[site])
        self.sizes = [len(dictionary.directions) for dictionary in self.dictionaries.values()]
        self.target = {site: own.encode(experiment.x[site]) for site, own in self.dictionaries.items()}
        self.differs = torch.cat([self._differs(site) for site in experiment.sites], 1)
        self.at_once = measure_rows_that_fit(self._one_pass, budget_on(self.corrupted.device))

    def _one_pass(self, rows: int) -> None:
        """A pass of so many rows with all features in, and the sets that wait for it."""
        prompts = torch.arange(rows, device=self.corrupted.device) % len(self.corrupted)
        waiting = torch.ones_like(self.none()[prompts])
        self.read(prompts, torch.cat([waiting]))

    def _differs(self, site: Site) -> Bool[Tensor, "batch n_latents"]:
        """Anywhere where patches below can wake a latent; else where c is not c_bar."""
        others = (other for other in self.experiment.sites if other != site)
        if any(self.experiment.model.feeds(other, site) for other in others):
            return torch.ones(self.target[site][:, 0].shape, dtype=torch.bool, device=self.corrupted.device)
        return (self._difference(site) != 0).any(1)

    def _difference(self, site: Site) -> Float[Tensor, "batch pos n_latents"]:
        """c - c_bar of the run that is not patched below, zero where nothing is edited."""
        c_bar = self.dictionaries[site].encode(self.experiment.x_bar[site])
        return (self.target[site] - c_bar) * self.experiment.mask[..., None]

    def feature(self, number: int) -> FeatureId:
        for site, n_latents in zip(self.dictionaries, self.sizes, strict=True):
            if number < n_latents:
                return FeatureId(site, number)
            number -= n_latents
        raise IndexError(f"the sites have {sum(self.sizes)} features together")

    def none(self) -> Float[Tensor, "batch n_features"]:
        return self.corrupted.new_zeros(len(self.experiment), sum(self.sizes))

    def several(self, features: Int[Tensor, "k"], prompts: Int[Tensor, "rows"]) -> Float[Tensor, "rows n_features"]:
        chosen = self.corrupted.new_zeros(len(prompts), sum(self.sizes))
        chosen[:, features] = 1
        return chosen

    def read(self, prompts: Int[Tensor, "rows"], sets: Float[Tensor, "rows n_features"]) -> Float[Tensor, "rows 4"]:
        parts = zip(self.dictionaries.items(), sets.split(self.sizes, 1), strict=True)
        mask = self.experiment.mask[prompts]
        edits = [
            RowPatch(site, dictionary, self.target[site][prompts], chosen, mask)
            for (site, dictionary), chosen in parts
            if chosen.any()
        ]
        return self.experiment.read(prompts, edits)

    def first_order(self) -> Float[Tensor, "n_features"]:
        experiment = self.experiment

        def kl(prompts: Tensor, changes: Sequence[Tensor]) -> Tensor:
            edits = [AddDirection(site, change) for site, change in zip(experiment.sites, changes, strict=True)]
            return experiment.read(prompts, edits)[:, KL]

        along = gradients(kl, list(experiment.x.values()))
        parts = zip(self.dictionaries.items(), along, strict=True)
        each = [(self._difference(site) * (own @ d.directions.T)).sum((0, 1)) for (site, d), own in parts]
        return -torch.cat(each) / len(experiment)

    def whole(self) -> Float[Tensor, "batch 4"]:
        """What is read with every site's activation patched to the clean run's."""
        found = []
        for prompts in torch.arange(len(self.experiment), device=self.corrupted.device).split(self.at_once):
            given = {site: x[prompts] for site, x in self.experiment.x.items()}
            mask = self.experiment.mask[prompts]
            with torch.no_grad():
                edits = [ActivationPatch(site, x, mask) for site, x in given.items()]
                found.append(self.experiment.read(prompts, edits))
        return torch.cat(found)
