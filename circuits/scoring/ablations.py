"""What is outside a circuit, and what it is set to.

At a site with codes c = f(h) and error e = h - x_hat, keeping some latents means

    c'_j = c_j for the latents kept, else their ablated value
    h'   = decode(c') + e',    e' = e where the error term is kept, else its ablated value

(as in Marks et al. 2024, sparse feature circuits). Ablated values are means, or those of another prompt.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.effects.target_prompts import TargetPrompts
from circuits.features.atlas import Examples
from circuits.features.reading import Piece
from circuits.features.survey import Survey
from editing.interventions.masks import Mask, where_inlier
from editing.interventions.patch import codes as codes_of
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.errors import UserError
from sae_core.model.language_model import LanguageModel
from sae_core.outliers import inliers, outlier_norm_of
from sae_core.sites import Site


@dataclass(frozen=True, eq=False)
class KeepOnly:
    """Give every latent but those kept its ablated value, and the error term too unless it is kept.

        c' = ablated + share (c - ablated) where kept, else ablated
        h  ->  decode(c') + error            error ablated
        h  ->  h + (c' - c) D                error kept, exactly h where all latents are

    Read and written at once, so that nothing is encoded twice.
    """

    site: Site
    dictionary: Dictionary
    kept: Bool[Tensor, "#batch n_latents"]
    ablated: Float[Tensor, "#batch #pos n_latents"]
    error: Float[Tensor, "#batch #pos d_in"] | None
    """The ablated error term; None keeps that of the run."""
    mask: Mask = None
    share: float = 1.0
    """How much of what is kept is there; at a single site a point on the straight line from nothing to the circuit."""

    def __call__(self, h: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_in"]:
        c = codes_of(self.site, self.dictionary, h)
        there = c if self.share == 1 else self.ablated + self.share * (c - self.ablated)
        left = torch.where(self.kept[:, None], there, self.ablated)
        if self.error is None:
            return where_inlier(self.dictionary, self.mask, h + (left - c) @ self.dictionary.directions, h)
        return where_inlier(self.dictionary, self.mask, self.dictionary.decode(left) + self.error, h)


# ---- what things outside the circuit are set to ----------------------------------------------------


@runtime_checkable
class AblatedValues(Protocol):
    """The values that latents and error terms take outside the circuit."""

    @property
    def name(self) -> str:
        """Which ablation, over what, in words."""
        ...

    def at(
        self, site: Site, dictionary: Dictionary, prompts: Int[Tensor, "rows"], width: int
    ) -> tuple[Float[Tensor, "#rows #pos n_latents"], Float[Tensor, "#rows #pos d_in"]]:
        """Ablated codes and errors of a site for some of the prompts, their first `width` positions."""
        ...

    def check(self, sites: Iterable[Site], n_prompts: int) -> None:
        """Raise `UserError` unless there are values for these sites and so many prompts."""
        ...


@dataclass(frozen=True, eq=False)
class MeanAblation:
    """The mean code and the mean error of every site over tokens, the same at every position."""

    name: str
    codes: Mapping[Site, Float[Tensor, "_"]]
    error: Mapping[Site, Float[Tensor, "_"]]

    def at(
        self, site: Site, dictionary: Dictionary, prompts: Int[Tensor, "rows"], width: int
    ) -> tuple[Float[Tensor, "#rows #pos n_latents"], Float[Tensor, "#rows #pos d_in"]]:
        return self.codes[site][None, None], self.error[site][None, None]

    def check(self, sites: Iterable[Site], n_prompts: int) -> None:
        _check_sites(self.name, self.codes, sites)

    @classmethod
    def over_text(
        cls, model: LanguageModel, dictionaries: Mapping[Site, Dictionary], contexts: Int[Tensor, "contexts pos"]
    ) -> "MeanAblation":
        """Means over the content tokens of a reference text."""
        counted = model.content(contexts)
        name = f"mean over {int(counted.sum())} tokens of text"
        return cls(name, *_means(model, dictionaries, contexts, counted))

    @classmethod
    def surveyed(cls, survey: Survey, contexts: Int[Tensor, "contexts pos"], sites: Sequence[Site]) -> "MeanAblation":
        """`over_text` of some sites of a survey: no pass over contexts that it has read."""
        codes: dict[Site, Tensor] = {site: torch.zeros((), dtype=torch.float64) for site in sites}
        total, n = dict(codes), dict.fromkeys(sites, 0)

        def add(site: Site, piece: Piece) -> None:
            codes[site] = codes[site] + piece.f.sum((0, 1), dtype=torch.float64)
            total[site] = total[site] + piece.total
            n[site] += piece.n_inliers

        survey.read(contexts, add, sites=sites)
        mean_codes = {site: (codes[site] / max(1, n[site])).float() for site in sites}
        errors = {}
        for site, mean in mean_codes.items():  # the mean of what is decoded is what the mean decodes to
            decoded = survey.dictionaries[site].decode(mean)
            errors[site] = ((total[site] / max(1, n[site])).to(decoded.device) - decoded.double()).float()
        return cls(f"mean over {int(survey.model.content(contexts).sum())} tokens of text", mean_codes, errors)

    @classmethod
    def over_prompts(
        cls, model: LanguageModel, dictionaries: Mapping[Site, Dictionary], prompts: Examples
    ) -> "MeanAblation":
        """Means over the content tokens of the prompts themselves, each up to its end."""
        counted = model.content(prompts.tokens) & _up_to_end(prompts)
        name = f"mean over the tokens of the {len(prompts)} prompts"
        return cls(name, *_means(model, dictionaries, prompts.tokens, counted))


@dataclass(frozen=True, eq=False)
class ResampleAblation:
    """The codes and the error that another prompt has at the same position."""

    name: str
    h: Mapping[Site, Float[Tensor, "prompts pos _"]]
    """Activations of the other prompts."""

    def at(
        self, site: Site, dictionary: Dictionary, prompts: Int[Tensor, "rows"], width: int
    ) -> tuple[Float[Tensor, "#rows #pos n_latents"], Float[Tensor, "#rows #pos d_in"]]:
        distinct, row = prompts.unique(return_inverse=True)
        h = self.h[site][distinct, :width]
        codes = dictionary.encode(h)
        return codes[row], (h - dictionary.decode(codes))[row]

    def check(self, sites: Iterable[Site], n_prompts: int) -> None:
        _check_sites(self.name, self.h, sites)
        n = len(next(iter(self.h.values())))
        if n != n_prompts:
            raise UserError(f"values were resampled for {n} prompts and there are {n_prompts}; make both from the same")

    @classmethod
    @torch.no_grad()
    def paired(
        cls, model: LanguageModel, sites: Iterable[Site], prompts: Examples, corrupted: Int[Tensor, "examples pos"]
    ) -> "ResampleAblation":
        """From each prompt's corrupted counterpart, aligned with it position by position."""
        if corrupted.shape != prompts.tokens.shape:
            raise UserError(
                f"{tuple(prompts.tokens.shape)} tokens of prompts cannot be resampled from "
                f"{tuple(corrupted.shape)} corrupted ones; pairs need equal lengths"
            )
        return cls("resample: the corrupted prompt, same position", model.record(corrupted, sites))

    @classmethod
    @torch.no_grad()
    def shuffled(
        cls, model: LanguageModel, sites: Iterable[Site], prompts: Examples, *, generator: torch.Generator
    ) -> "ResampleAblation":
        """From another of the prompts, drawn from those that are as long or longer.

        The longest, where it is the only one of its length, takes the next longest, and beyond that one's end its last
        position.
        """
        if len(prompts) < 2:
            raise UserError("resampling from other prompts needs at least two; give more prompts or ablate to the mean")
        donors = []
        for i, end in enumerate(prompts.end.tolist()):
            others = prompts.end.clone()
            others[i] = -1
            allowed = (others >= min(end, int(others.max()))).nonzero()[:, 0]
            donors.append(int(allowed[torch.randint(len(allowed), (1,), generator=generator)]))
        place = torch.arange(prompts.tokens.shape[1]).clamp_max(prompts.end[donors][:, None])
        recorded = model.record(prompts.tokens, sites)
        taken = {
            site: h[torch.tensor(donors)[:, None].to(h.device), place.to(h.device)] for site, h in recorded.items()
        }
        return cls("resample: another prompt, same position", taken)


def default_ablation(
    model: LanguageModel,
    dictionaries: Mapping[Site, Dictionary],
    prompts: TargetPrompts,
    contexts: Int[Tensor, "contexts pos"],
) -> AblatedValues:
    """The codes of the prompts' corrupted counterparts, where there are some; else means over `contexts`."""
    if prompts.corrupted is None:
        return MeanAblation.over_text(model, dictionaries, contexts)
    return ResampleAblation.paired(model, dictionaries, prompts.examples, prompts.corrupted)


@torch.no_grad()
def _means(
    model: LanguageModel, dictionaries: Mapping[Site, Dictionary], tokens: Tensor, counted: Tensor, at_once: int = 16
) -> tuple[dict[Site, Tensor], dict[Site, Tensor]]:
    """Mean codes and mean errors over the tokens that count, without each site's outliers."""
    if not counted.any():
        raise UserError("there are no tokens to take means over; give more text")
    codes: dict[Site, Tensor] = {site: torch.zeros((), dtype=torch.float64) for site in dictionaries}
    errors, n = dict(codes), dict.fromkeys(codes, 0)
    for rows, mask in zip(tokens.split(at_once), counted.split(at_once), strict=True):
        for site, h in model.record(rows, dictionaries).items():
            x = h[mask.to(h.device)]
            x = x[inliers(x, outlier_norm_of(dictionaries[site]))]
            n[site] += len(x)
            c = dictionaries[site].encode(x)
            codes[site] = codes[site] + c.double().sum(0)
            errors[site] = errors[site] + (x - dictionaries[site].decode(c)).double().sum(0)
    codes, errors = (
        {site: (total / max(1, n[site])).float() for site, total in sums.items()} for sums in (codes, errors)
    )
    return codes, errors


def _check_sites(name: str, values: Mapping[Site, Tensor], sites: Iterable[Site]) -> None:
    missing = [str(site) for site in sites if site not in values]
    if missing:
        raise UserError(f"the ablation ({name}) has no values for {', '.join(missing)}; make it from all dictionaries")


def _up_to_end(prompts: Examples) -> Bool[Tensor, "examples pos"]:
    return torch.arange(prompts.tokens.shape[1]) <= prompts.end[:, None].cpu()
