"""How well a dictionary explains activations. Measuring changes nothing."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_core.dictionaries import Dictionary
from sae_core.models import LanguageModel
from sae_core.sites import Site


def fvu(x: Float[Tensor, "batch d_in"], x_hat: Float[Tensor, "batch d_in"]) -> float:
    """Fraction of variance unexplained: sum |x - x_hat|^2 / sum |x - mean x|^2, over all tokens and dimensions."""
    wide = x.double()
    return ((wide - x_hat.double()).pow(2).sum() / (wide - wide.mean(0)).pow(2).sum()).item()


def l0(f: Float[Tensor, "batch n_latents"]) -> float:
    """Mean number of active latents per token."""
    return (f != 0).sum(-1).double().mean().item()


@dataclass(frozen=True)
class Quality:
    """A dictionary on a text."""

    fvu: float
    l0: float
    dead: float
    """Share of latents that are not active on any of `n_tokens`."""
    n_tokens: int


@torch.no_grad()
def quality(
    model: LanguageModel,
    dictionaries: dict[Site, Dictionary],
    contexts: Int[Tensor, "contexts pos"],
    *,
    at_once: int = 32,
) -> dict[Site, Quality]:
    """FVU, L0 and dead share of each dictionary on the content tokens of `contexts`, in one pass.

    Sums run in float64, so that the split into chunks does not show.
    """
    sums = {site: _Sums(len(d.directions), d.directions.shape[-1]) for site, d in dictionaries.items()}
    for chunk in contexts.split(at_once):
        content = model.content(chunk).to(model.device)
        for site, h in model.record(chunk, dictionaries).items():
            x = h[content]
            f = dictionaries[site].encode(x)
            sums[site].add(x, f, dictionaries[site].decode(f))
    return {site: total.quality() for site, total in sums.items()}


class _Sums:
    """Running sums from which `Quality` follows."""

    def __init__(self, n_latents: int, d_in: int):
        self.n = self.active = 0
        self.error = self.square = 0.0
        self.x = torch.zeros(d_in, dtype=torch.float64)
        self.fired = torch.zeros(n_latents, dtype=torch.bool)

    def add(self, x: Tensor, f: Tensor, x_hat: Tensor) -> None:
        wide = x.double().cpu()
        self.n += len(x)
        self.active += int((f != 0).sum())
        self.error += (wide - x_hat.double().cpu()).pow(2).sum().item()
        self.square += wide.pow(2).sum().item()
        self.x += wide.sum(0)
        self.fired |= (f != 0).any(0).cpu()

    def quality(self) -> Quality:
        variance = self.square - (self.x.pow(2).sum() / self.n).item()
        dead = 1 - self.fired.double().mean().item()
        return Quality(fvu=self.error / variance, l0=self.active / self.n, dead=dead, n_tokens=self.n)
