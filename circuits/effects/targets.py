"""What a circuit explains: one number per example, read from the activation at one position.

A target is a feature's activation, a logit, or the difference of two logits; tokens may differ between examples.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.graph import NodeId, Readout
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.dictionaries.saes import SAE, TopKSAE
from sae_core.model.language_model import LanguageModel
from sae_core.outliers import inliers
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
        """The number of each row, `h` being the activation where it is read and `example` the row's example."""
        ...

    def near(self, h: Float[Tensor, "examples d_in"]) -> "Target":
        """The same target with the same values, cheaper to read near `h`, the activations of the examples."""
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
            return _Contested.of(self.node, self.dictionary, h)
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

    Whether it is need not be computed from all n_latents pre-activations. With pre_j(h) = w_j . (h - b_dec) + b_j,
    no pre-activation moves by more than

        |pre_j(h') - pre_j(h)| = |w_j . (h' - h)| <= L |h' - h|        L = max_j |w_j|

    (Cauchy-Schwarz), and so the k-th largest of the others', `bar`, moves by no more either: an order statistic
    changes at most as much as the numbers do. At h' the latent i is therefore among the k largest if
    pre_i(h') > bar(h) + L |h' - h|, not among them if pre_i(h') < bar(h) - L |h' - h|, and only in between are all
    pre-activations computed.
    """

    node: FeatureId
    dictionary: TopKSAE
    h: Float[Tensor, "examples d_in"]
    bar: Float[Tensor, "examples"]
    """The k-th largest pre-activation of the other latents at `h`; -inf where there are fewer."""
    lipschitz: Float[Tensor, ""]
    """L, the largest norm of an encoder direction."""

    ROUNDING: ClassVar[float] = 1e-4
    """The bound is widened by this share of itself and of |bar|, far more than float32 rounds off."""

    @classmethod
    def of(cls, node: FeatureId, sae: TopKSAE, h: Float[Tensor, "examples d_in"]) -> "_Contested":
        pre = sae.pre(h.detach())
        pre[:, node.index] = -torch.inf
        bar = pre.topk(sae.k).values[:, -1]
        return cls(node, sae, h.detach(), bar, torch.linalg.vector_norm(sae.W_enc, dim=0).max())

    @property
    def site(self) -> Site:
        return self.node.site

    def read(self, h: Float[Tensor, "rows d_in"], example: Int[Tensor, "rows"]) -> Float[Tensor, "rows"]:
        sae, latent, bar = self.dictionary, self.node.index, self.bar[example]
        pre = (h - sae.b_dec) @ sae.W_enc[:, latent] + sae.b_enc[latent]
        moved = torch.linalg.vector_norm((h - self.h[example]).detach(), dim=-1)
        bound = self.lipschitz * moved * (1 + self.ROUNDING) + self.ROUNDING * bar.abs().nan_to_num(posinf=0.0)
        value = torch.where(pre > bar + bound, pre.relu(), torch.zeros_like(pre))
        if isinstance(sae.gain, Tensor):
            value = value * sae.gain[latent]
        if sae.outlier_norm < math.inf:
            value = value * inliers(h, sae.outlier_norm)
        undecided = ((pre - bar).abs() <= bound) & (pre > 0)
        if undecided.any():
            value = value.index_put((undecided.nonzero()[:, 0],), sae.encode(h[undecided])[:, latent])
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
        plus = logits.gather(-1, self.plus.to(h.device)[example, None])[:, 0]
        if self.minus is None:
            return plus
        return plus - logits.gather(-1, self.minus.to(h.device)[example, None])[:, 0]

    def near(self, h: Float[Tensor, "examples d_in"]) -> Target:
        return self

    def only(self, rows: Int[Tensor, "k"]) -> "LogitTarget":
        """The same target for the examples `rows` only."""
        return replace(self, plus=self.plus[rows], minus=None if self.minus is None else self.minus[rows])
