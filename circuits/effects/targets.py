"""What a circuit explains: one number per example, read from the activation at one position.

A target is a feature's activation, or a logit or a difference of two, each example with tokens of its own.
"""

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.graph import NodeId, Readout
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.dictionaries.saes import SAE, TopKSAE
from sae_core.model.language_model import LanguageModel
from sae_core.sites import FeatureId, Site


@runtime_checkable
class Target(Protocol):
    """Where a number is read, and how."""

    @property
    def node(self) -> NodeId:
        """Its name in a graph."""
        ...

    @property
    def site(self) -> Site:
        """The activation that it is read from."""
        ...

    def read(self, h: Float[Tensor, "rows d_in"], example: Int[Tensor, "rows"]) -> Float[Tensor, "rows"]:
        """The number from each row's activation at its own position; `example` says whose row it is."""
        ...

    def near(self, h: Float[Tensor, "examples d_in"]) -> "Target":
        """The same target, quicker to read where activations are near those of the examples."""
        ...


@dataclass(frozen=True, eq=False)
class FeatureTarget:
    """The activation of a latent."""

    node: FeatureId
    dictionary: Dictionary

    @property
    def site(self) -> Site:
        return self.node.site

    def read(self, h: Float[Tensor, "rows d_in"], example: Int[Tensor, "rows"]) -> Float[Tensor, "rows"]:
        return self.dictionary.encode(h)[:, self.node.index]

    def near(self, h: Float[Tensor, "examples d_in"]) -> Target:
        if isinstance(self.dictionary, TopKSAE):
            return _Contested.of(self, h)
        if isinstance(self.dictionary, SAE):
            return _Alone(self.node, self.dictionary.only([self.node.index]))
        return self


@dataclass(frozen=True, eq=False)
class _Alone:
    """A latent whose activation does not depend on the others: only it is computed."""

    node: FeatureId
    single: SAE

    @property
    def site(self) -> Site:
        return self.node.site

    def read(self, h: Float[Tensor, "rows d_in"], example: Int[Tensor, "rows"]) -> Float[Tensor, "rows"]:
        return self.single.encode(h)[:, 0]

    def near(self, h: Float[Tensor, "examples d_in"]) -> Target:
        return self


@dataclass(frozen=True, eq=False)
class _Contested:
    """A latent of a TopK dictionary, which is active only if it is among the k largest.

    The pre-activation of no other latent moves by more than |h' - h| times the largest norm of an encoder row.
    Where that decides whether k others are larger, only the latent's own is computed; else all are.
    """

    node: FeatureId
    dictionary: TopKSAE
    h: Float[Tensor, "examples d_in"]
    bar: Float[Tensor, "examples"]
    """The k-th largest pre-activation of the others at `h`."""
    widest: Float[Tensor, ""]

    @classmethod
    def of(cls, target: FeatureTarget, h: Float[Tensor, "examples d_in"]) -> "_Contested":
        sae, own = target.dictionary, target.node.index
        pre = sae.pre(h.detach())
        pre[:, own] = -torch.inf
        bar = pre.topk(sae.k).values[:, -1]
        return cls(target.node, sae, h.detach(), bar, torch.linalg.vector_norm(sae.W_enc, dim=0).max())

    @property
    def site(self) -> Site:
        return self.node.site

    def read(self, h: Float[Tensor, "rows d_in"], example: Int[Tensor, "rows"]) -> Float[Tensor, "rows"]:
        sae, own = self.dictionary, self.node.index
        pre = (h - sae.b_dec) @ sae.W_enc[:, own] + sae.b_enc[own]
        bar = self.bar[example]
        moved = torch.linalg.vector_norm((h - self.h[example]).detach(), dim=-1)
        room = self.widest * moved * (1 + 1e-4) + 1e-4 * bar.abs().nan_to_num(posinf=0.0)  # more than rounding takes
        value = torch.where(pre > bar + room, pre.relu(), torch.zeros_like(pre))
        if sae.gain is not None:
            value = value * sae.gain[own]
        unsure = ((pre - bar).abs() <= room) & (pre > 0)
        if unsure.any():
            value = value.index_put((unsure.nonzero()[:, 0],), sae.encode(h[unsure])[:, own])
        return value

    def near(self, h: Float[Tensor, "examples d_in"]) -> Target:
        return self


@dataclass(frozen=True, eq=False)
class LogitTarget:
    """The logit of a token, or its difference from that of another: logit(plus) - logit(minus)."""

    node: Readout
    model: LanguageModel
    plus: Int[Tensor, "examples"]
    minus: Int[Tensor, "examples"] | None = None

    @property
    def site(self) -> Site:
        return self.model.sites()[-1]

    def read(self, h: Float[Tensor, "rows d_in"], example: Int[Tensor, "rows"]) -> Float[Tensor, "rows"]:
        logits = self.model.unembed(h)
        found = logits.gather(-1, self.plus.to(h.device)[example, None])[:, 0]
        if self.minus is None:
            return found
        return found - logits.gather(-1, self.minus.to(h.device)[example, None])[:, 0]

    def near(self, h: Float[Tensor, "examples d_in"]) -> Target:
        return self

    def some(self, rows: Int[Tensor, "k"]) -> "LogitTarget":
        """The same target for some of the examples."""
        return replace(self, plus=self.plus[rows], minus=None if self.minus is None else self.minus[rows])
