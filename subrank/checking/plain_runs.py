"""The plain reference: the language model run on one text at a time, from its tokens to its logits, edited by hooks.

Nothing is resumed, batched, padded or kept from one run to the next; what is read of logits is in float64. Edits are
written out where they are used, as functions of the activation at one site.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_core.dictionaries.dictionary import Dictionary
from sae_core.model.language_model import LanguageModel
from sae_core.sites import Site


@dataclass(frozen=True, eq=False)
class Formula:
    """An edit of the one text that is run: h -> change(h), at the positions of `mask` that are no outliers."""

    site: Site
    change: Callable[[Float[Tensor, "pos d_in"]], Float[Tensor, "pos d_in"]]
    mask: Bool[Tensor, "pos"]
    outlier_norm: float = math.inf
    moved: list[Float[Tensor, "pos"]] = field(default_factory=list)
    """|h' - h| at every position, a tensor to a run."""

    def __call__(self, h: Float[Tensor, "1 pos d_in"]) -> Float[Tensor, "1 pos d_in"]:
        written = self.mask.to(h.device) & ~(h[0].norm(dim=-1) > self.outlier_norm)
        changed = torch.where(written[:, None], self.change(h[0]), h[0])
        self.moved.append((changed - h[0]).double().norm(dim=-1).cpu())
        return changed[None]


@torch.no_grad()
def log_probs(model: LanguageModel, tokens: Int[Tensor, "pos"], *edits: Formula) -> Float[Tensor, "pos vocab"]:
    """Log probabilities of the next token at every position, in float64."""
    return logits(model, tokens, *edits).log_softmax(-1)


@torch.no_grad()
def logits(model: LanguageModel, tokens: Int[Tensor, "pos"], *edits: Formula) -> Float[Tensor, "pos vocab"]:
    """Logits at every position, in float64."""
    with model.hooks(*edits):
        return model.logits(tokens[None])[0].double().cpu()


@torch.no_grad()
def activations(
    model: LanguageModel, tokens: Int[Tensor, "pos"], sites: Iterable[Site], *edits: Formula
) -> dict[Site, Float[Tensor, "pos _"]]:
    """The activations at some sites, in the precision that dictionaries read."""
    with model.hooks(*edits):
        return {site: h[0] for site, h in model.record(tokens[None], sites).items()}


def kl(before: Float[Tensor, "*batch vocab"], after: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch"]:
    """KL(before || after) = sum p (log p - log q), nats, from log probabilities."""
    return (before.exp() * (before - after)).sum(-1)


def limit_of(dictionary: Dictionary) -> float:
    """The norm beyond which tokens are outliers to a dictionary; infinite where none are."""
    return getattr(dictionary, "outlier_norm", math.inf)


def mean(values: Iterable[float | Tensor]) -> float:
    """The mean of some numbers, in float64 and in their order; NaN of none."""
    numbers = [float(value) for value in values]
    return math.fsum(numbers) / len(numbers) if numbers else math.nan
