"""Several sites patched jointly, as one experiment: features of all of them in one set.

At each site c_bar and x_bar are those of the run as it is already patched upstream, so that changes do not add up as
they do at one site, and every row encodes its activations anew as it comes by.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from editing.engine.resumed_run import ResumedRun
from editing.interventions.add_direction import AddDirection
from editing.interventions.edit_size import MeasuredEdit
from editing.interventions.masks import where_inlier
from editing.interventions.patch import ActivationPatch
from editing.ioi.feature_sets import Patching, PatchReadout
from editing.ioi.site_experiment import Answers, check_dictionary_width, edited_places, gradients
from editing.tasks.pairs import Place, PromptPairs, at_end
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.errors import UserError
from sae_core.model.language_model import Intervention, LanguageModel
from sae_core.outliers import inliers, outlier_norm_of
from sae_core.sites import FeatureId, Site


@dataclass(frozen=True, eq=False)
class RowPatch:
    """A feature patch with another set for every row: h -> h + sum_i chosen_i (target_i - f_i(h)) d_i."""

    site: Site
    dictionary: Dictionary
    target: Float[Tensor, "rows pos n_latents"]
    chosen: Float[Tensor, "rows n_latents"]
    """1 for the latents that are patched, 0 for the others."""
    mask: Bool[Tensor, "rows pos"]

    def __call__(self, h: Float[Tensor, "rows pos d"]) -> Float[Tensor, "rows pos d"]:
        used = self.chosen.any(0).nonzero()[:, 0]
        change = (self.target[..., used] - self.dictionary.encode(h)[..., used]) * self.chosen[:, None, used]
        return where_inlier(self.dictionary, self.mask, h + change @ self.dictionary.directions[used], h)


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
            self.clean = self.answers.unedited(clean_logits)
            self.corrupted = self.answers.unedited(self.resumed.logits)

    def __len__(self) -> int:
        return len(self.pairs)

    def patching(self, dictionaries: Mapping[Site, Dictionary]) -> "JointPatching":
        """The features of a dictionary for each site, to be patched in any set."""
        return JointPatching(self, dictionaries)

    def read(self, prompts: Int[Tensor, "rows"], edits: Sequence[Intervention]) -> PatchReadout:
        """`[rows]`: what edits of these rows do, in one forward pass; their sizes are added up."""
        measured = [MeasuredEdit(edit) for edit in edits]
        logits, counted = self.resumed.logits_under(prompts, measured), self.mask[prompts]
        sizes = sum((edit.sizes(counted) for edit in measured), logits.new_zeros(len(prompts)))
        return self.answers.read(logits, prompts, sizes)


class JointPatching(Patching):
    """The features of several sites, site after site; a set has a 1 for every feature in it, else 0."""

    def __init__(self, experiment: JointExperiment, dictionaries: Mapping[Site, Dictionary]):
        self.experiment, self.corrupted = experiment, experiment.corrupted
        self.dictionaries = {site: dictionaries[site] for site in experiment.sites}
        for site, dictionary in self.dictionaries.items():
            check_dictionary_width(site, dictionary, experiment.x[site])
        self.sizes = [len(dictionary.directions) for dictionary in self.dictionaries.values()]
        self.target = {site: d.encode(experiment.x[site]) for site, d in self.dictionaries.items()}
        self.mask = {site: self._edited(site) for site in experiment.sites}
        self.differs = torch.cat([self._differs(site) for site in experiment.sites], 1)
        self.at_once = self._measure_rows()

    def _edited(self, site: Site) -> Bool[Tensor, "batch pos"]:
        """The positions that are edited, less those at which either run has an outlier."""
        limit, experiment = outlier_norm_of(self.dictionaries[site]), self.experiment
        return experiment.mask & inliers(experiment.x[site], limit) & inliers(experiment.x_bar[site], limit)

    def _differs(self, site: Site) -> Bool[Tensor, "batch n_latents"]:
        """Anywhere where patches below can wake a latent; else where c is not c_bar."""
        others = (other for other in self.experiment.sites if other != site)
        if any(self.experiment.model.feeds(other, site) for other in others):
            return torch.ones(self.target[site][:, 0].shape, dtype=torch.bool, device=self.corrupted.kl.device)
        return (self._difference(site) != 0).any(1)

    def _difference(self, site: Site) -> Float[Tensor, "batch pos n_latents"]:
        """c - c_bar of the run that is not patched below; zero at positions that are not edited."""
        c_bar = self.dictionaries[site].encode(self.experiment.x_bar[site])
        return (self.target[site] - c_bar) * self.mask[site][..., None]

    def feature(self, number: int) -> FeatureId:
        for site, n_latents in zip(self.dictionaries, self.sizes, strict=True):
            if number < n_latents:
                return FeatureId(site, number)
            number -= n_latents
        raise IndexError(f"the sites have {sum(self.sizes)} features together")

    def empty_sets(self, n: int) -> Float[Tensor, "n n_features"]:
        return self.corrupted.kl.new_zeros(n, sum(self.sizes))

    def contributions(
        self, features: Int[Tensor, "k"], prompts: Int[Tensor, "rows"]
    ) -> Float[Tensor, "rows n_features"]:
        members = self.empty_sets(len(prompts))
        members[:, features] = 1
        return members

    def read(self, prompts: Int[Tensor, "rows"], sets: Float[Tensor, "rows n_features"]) -> PatchReadout:
        parts = zip(self.dictionaries.items(), sets.split(self.sizes, 1), strict=True)
        edits = [
            RowPatch(site, dictionary, self.target[site][prompts], chosen, self.mask[site][prompts])
            for (site, dictionary), chosen in parts
            if chosen.any()
        ]
        return self.experiment.read(prompts, edits)

    def estimates(self) -> Float[Tensor, "batch n_features"]:
        experiment = self.experiment

        def kl(prompts: Tensor, changes: Sequence[Tensor]) -> Tensor:
            edits = [AddDirection(site, change) for site, change in zip(experiment.sites, changes, strict=True)]
            return experiment.read(prompts, edits).kl

        # At each site: estimate_bk = -sum_p (c - c_bar)[b, p, k] (dKL_b/dx[b, p] . f_k), x and c_bar
        # those of the corrupted run. A change there moves the codes above too; of that the gradient knows already.
        by_site = gradients(kl, list(experiment.x.values()))
        sites = zip(self.dictionaries.items(), by_site, strict=True)
        sums = [(self._difference(site) * (g @ d.directions.T)).sum(1) for (site, d), g in sites]
        return -torch.cat(sums, -1)

    @torch.no_grad()
    def activation_patched(self) -> PatchReadout:
        experiment, parts = self.experiment, []
        for prompts in torch.arange(len(experiment), device=self.corrupted.kl.device).split(self.at_once):
            mask = experiment.mask[prompts]
            edits = [ActivationPatch(site, x[prompts], mask) for site, x in experiment.x.items()]
            parts.append(experiment.read(prompts, edits))
        return PatchReadout.joined(parts)
