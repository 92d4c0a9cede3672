"""Recipes that keep the largest latents: TopK, BatchTopK, Matryoshka. Their loss is an FVU; see `recipe.py`."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sae_core import checks
from sae_core.dictionaries import sparse
from sae_core.dictionaries.saes import SAE, JumpReLUSAE, TopKSAE
from sae_core.dictionaries.sparse import Codes
from sae_core.errors import UserError
from sae_core.training.recipe import LossContext, Outcome, batch_fvu, check_k


@dataclass(frozen=True)
class TopK:
    """TopK with AuxK and, where `multi` is not 0, Multi-TopK (Gao et al. 2024, appendices A.2 and D.2).

    loss = FVU + aux * FVU of the error by the largest d_in / 2 dead latents + multi * FVU at 4k.
    The paper's weight for the last is 1/8. Gradients of all terms reach the encoder.
    """

    k: int = 16
    aux: float = 1 / 32
    multi: float = 0.0

    def __post_init__(self):
        checks.whole("k", self.k, 1)
        checks.weight("the weight of AuxK", self.aux)
        checks.weight("the weight of Multi-TopK", self.multi)

    def new(self, d_in: int, n_latents: int, *, generator: torch.Generator) -> TopKSAE:
        return TopKSAE(d_in, n_latents, self.k, generator=generator)

    def loss(self, sae: TopKSAE, x: Float[Tensor, "batch d_in"], context: LossContext) -> Outcome:
        pre, wide = context.scratch.pre(x, sae.W_enc, sae.b_enc, sae.b_dec), min(4 * self.k, sae.n_latents)
        if self.multi:
            values, indices = pre.topk(wide, dim=-1)  # the k largest come first
        else:
            values, indices = sparse.top(pre, self.k)
        codes = _encoded(sae, x, Codes.of_rows(indices[:, : self.k], values[:, : self.k], sae.n_latents))
        x_hat = sparse.decode(codes, sae.W_dec) + sae.b_dec
        fvu = batch_fvu(x, x_hat)
        loss = fvu + self.aux * _auxk(sae, x, pre, x - x_hat, context.dead) if self.aux else fvu
        if self.multi:
            more = _encoded(sae, x, Codes.of_rows(indices, values, sae.n_latents))
            loss = loss + self.multi * batch_fvu(x, sparse.decode(more, sae.W_dec) + sae.b_dec)
        return _sparse_outcome(loss, x_hat, fvu, codes)


@dataclass(frozen=True)
class BatchTopK:
    """The k * batch largest of the batch (Bussmann et al. 2024); afterwards a `JumpReLUSAE` of one threshold.

    loss = FVU + aux * AuxK, as for TopK.
    """

    k: int = 16
    aux: float = 1 / 32

    def __post_init__(self):
        checks.whole("k", self.k, 1)
        checks.weight("the weight of AuxK", self.aux)

    def new(self, d_in: int, n_latents: int, *, generator: torch.Generator) -> JumpReLUSAE:
        return _one_threshold(self.k, d_in, n_latents, generator)

    def loss(self, sae: JumpReLUSAE, x: Float[Tensor, "batch d_in"], context: LossContext) -> Outcome:
        pre = context.scratch.pre(x, sae.W_enc, sae.b_enc, sae.b_dec)
        codes = _encoded(sae, x, sparse.batch_top(pre, self.k * len(x)))
        x_hat = sparse.decode(codes, sae.W_dec) + sae.b_dec
        fvu = batch_fvu(x, x_hat)
        loss = fvu + self.aux * _auxk(sae, x, pre, x - x_hat, context.dead) if self.aux else fvu
        return _sparse_outcome(loss, x_hat, fvu, codes, _smallest(codes))


@dataclass(frozen=True)
class Matryoshka:
    """BatchTopK whose first latents must reconstruct on their own (Bussmann et al. 2025, section 3).

    loss = mean over prefixes of the FVU with the codes of that prefix alone + aux * AuxK. The choice of
    active latents is made once, over all of them. Prefixes are shares of the latents, the last being all.
    """

    k: int = 16
    prefixes: Sequence[float] = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
    aux: float = 1 / 32

    def __post_init__(self):
        checks.whole("k", self.k, 1)
        checks.weight("the weight of AuxK", self.aux)
        for share in self.prefixes:
            checks.weight("a prefix", share)
        object.__setattr__(self, "prefixes", tuple(self.prefixes))
        rising = list(self.prefixes) == sorted({0.0, *self.prefixes})[1:]
        if not rising or self.prefixes[-1:] != (1,):
            raise UserError(f"prefixes must rise from above 0 to 1; got {self.prefixes}")

    def new(self, d_in: int, n_latents: int, *, generator: torch.Generator) -> JumpReLUSAE:
        return _one_threshold(self.k, d_in, n_latents, generator)

    def widths(self, n_latents: int) -> list[int]:
        """How many latents each prefix has."""
        return sorted({max(1, round(share * n_latents)) for share in self.prefixes})

    def loss(self, sae: JumpReLUSAE, x: Float[Tensor, "batch d_in"], context: LossContext) -> Outcome:
        pre = context.scratch.pre(x, sae.W_enc, sae.b_enc, sae.b_dec)
        codes = _encoded(sae, x, sparse.batch_top(pre, self.k * len(x)))
        widths, x_hat, parts = self.widths(sae.n_latents), sae.b_dec.expand_as(x), []
        for low, high in zip([0, *widths], widths, strict=False):
            x_hat = x_hat + sparse.decode(codes.between(low, high), sae.W_dec)
            parts.append(batch_fvu(x, x_hat))
        loss = torch.stack(parts).mean()
        if self.aux:
            loss = loss + self.aux * _auxk(sae, x, pre, x - x_hat, context.dead)
        return _sparse_outcome(loss, x_hat, parts[-1], codes, _smallest(codes))


# ---- parts -----------------------------------------------------------------------------------------


def _encoded(sae: SAE, x: Tensor, codes: Codes) -> Codes:
    """The chosen latents once more, exactly and differentiably: relu((x - b_dec) W_enc + b_enc) of these alone."""
    codes = codes.with_values(codes.values.to(x.dtype))
    codes = sparse.encode(codes, x, sae.W_enc, sae.b_enc, sae.b_dec)
    return codes.with_values(codes.values.relu())


def _auxk(sae: SAE, x: Tensor, pre: Tensor, error: Tensor, dead: Tensor) -> Tensor:
    """Share of the error that the largest dead latents fail to explain; 0 where none is dead.

    sum |e - e_hat|^2 / sum |e - mean e|^2 with e held fixed and e_hat decoded without bias. Its gradient
    reaches encoder and decoder of dead latents and, through the encoder's input, `b_dec`.
    """
    if not len(dead):
        return error.new_zeros(())
    values, place = sparse.top(pre.index_select(1, dead), min(len(dead), max(1, x.shape[-1] // 2)))
    codes = _encoded(sae, x, Codes.of_rows(dead[place], values, sae.n_latents))
    target = error.detach()
    missed = (sparse.decode(codes, sae.W_dec) - target).square().sum() / (target - target.mean(0)).square().sum()
    return missed.nan_to_num()


def _one_threshold(k: int, d_in: int, n_latents: int, generator: torch.Generator) -> JumpReLUSAE:
    """Untrained; its threshold is not learnt, but set from what batches keep."""
    check_k(k, n_latents)
    sae = JumpReLUSAE(d_in, n_latents, generator=generator, encoder=0.1)
    sae.threshold.requires_grad_(False)
    return sae


def _smallest(codes: Codes) -> Tensor:
    """The smallest activation that the batch kept; infinite where it kept none."""
    none = codes.values.new_full((1,), torch.inf)
    return torch.cat([codes.values.detach(), none]).min()


def _sparse_outcome(loss: Tensor, x_hat: Tensor, fvu: Tensor, codes: Codes, threshold: Tensor | None = None) -> Outcome:
    on = (codes.values.detach() > 0).to(x_hat.dtype)
    active = on.new_zeros(codes.n_latents).index_add_(0, codes.indices, on) > 0
    return Outcome(loss, x_hat, fvu.detach(), active, on.sum() / len(x_hat), threshold)
