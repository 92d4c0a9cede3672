"""Recipes that keep the largest latents: TopK, BatchTopK, Matryoshka. Their loss is an FVU; see `recipe.py`."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sae_core import checks
from sae_core.dictionaries import sparse
from sae_core.dictionaries.codes import Codes
from sae_core.dictionaries.saes import SAE, JumpReLUSAE, TopKSAE
from sae_core.errors import UserError
from sae_core.sharding import choice
from sae_core.training.recipe import LossContext, Outcome, batch_fvu, check_k, sparse_outcome, squares_around_mean


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
        ranks, answered = context.ranks, context.ranks.answered(x)
        ks = (self.k, 4 * self.k) if self.multi else (self.k,)
        several = choice.top(ranks, context.pieces(sae, x), *ks)
        codes = _encoded(sae, x, several[0], context)
        x_hat = ranks.summed(sparse.decode(codes, sae.W_dec, context.deferred)) + sae.b_dec
        whole = squares_around_mean(answered, ranks)
        fvu = batch_fvu(answered, x_hat, ranks, whole)
        loss = fvu + self.aux * _auxk(sae, x, answered - x_hat, context) if self.aux else fvu
        if self.multi:
            more = _encoded(sae, x, several[1], context)
            x_hat_more = ranks.summed(sparse.decode(more, sae.W_dec)) + sae.b_dec
            loss = loss + self.multi * batch_fvu(answered, x_hat_more, ranks, whole)
        return sparse_outcome(loss, x_hat, fvu, codes, ranks=ranks)


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
        ranks, answered = context.ranks, context.ranks.answered(x)
        chosen = choice.batch_top(ranks, context.pieces(sae, x), self.k * len(x) * ranks.replicas)
        codes = _encoded(sae, x, chosen, context)
        x_hat = ranks.summed(sparse.decode(codes, sae.W_dec, context.deferred)) + sae.b_dec
        fvu = batch_fvu(answered, x_hat, ranks)
        loss = fvu + self.aux * _auxk(sae, x, answered - x_hat, context) if self.aux else fvu
        return sparse_outcome(loss, x_hat, fvu, codes, ranks.smallest(_smallest(codes)), ranks)


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
        ranks, answered = context.ranks, context.ranks.answered(x)
        n_latents = context.n_latents or sae.n_latents
        chosen = choice.batch_top(ranks, context.pieces(sae, x), self.k * len(x) * ranks.replicas)
        codes = _encoded(sae, x, chosen, context)
        first, widths = ranks.latents(n_latents).start, self.widths(n_latents)
        apart = codes.split_at([width - first for width in widths[:-1]])
        decoded = sparse.decode(apart, sae.W_dec, context.deferred).unflatten(0, (len(x), len(widths)))
        x_hat, parts, whole = sae.b_dec.expand_as(answered), [], squares_around_mean(answered, ranks)
        for part in ranks.summed(decoded).unbind(1):
            x_hat = x_hat + part
            parts.append(batch_fvu(answered, x_hat, ranks, whole))
        loss = torch.stack(parts).mean()
        if self.aux:
            loss = loss + self.aux * _auxk(sae, x, answered - x_hat, context)
        return sparse_outcome(loss, x_hat, parts[-1], codes, ranks.smallest(_smallest(codes)), ranks)


# ---- parts -----------------------------------------------------------------------------------------


def _encoded(sae: SAE, x: Tensor, codes: Codes, context: LossContext) -> Codes:
    """The chosen latents once more, exactly and differentiably: relu((x - b_dec) W_enc + b_enc) of these alone."""
    codes = codes.with_values(codes.values.to(x.dtype))
    codes = sparse.encode(codes, x, sae.W_enc, sae.b_enc, sae.b_dec, context.deferred)
    return codes.with_values(codes.values.relu())


def _auxk(sae: SAE, x: Tensor, error: Tensor, context: LossContext) -> Tensor:
    """Share of the error that the largest dead latents fail to explain; 0 where none is dead.

    sum |e - e_hat|^2 / sum |e - mean e|^2 with e held fixed and e_hat decoded without bias. Its gradient reaches
    encoder and decoder of dead latents and, through the encoder's input, `b_dec`. Since d_in / 2 of them are active on
    every token, these are products of matrices over all that are dead.
    """
    dead, ranks, n_dead = context.dead, context.ranks, len(context.dead) + context.dead_elsewhere
    if not n_dead:
        return error.new_zeros(())
    W_enc, W_dec = context.deferred.rows_at(dead) if context.deferred else (sae.W_enc.T[dead], sae.W_dec[dead])
    dtype, most = context.scratch.dtype or x.dtype, max(1, x.shape[-1] // 2)
    f = (((x - sae.b_dec).to(dtype) @ W_enc.T.to(dtype)).to(x.dtype) + sae.b_enc[dead]).relu()
    if n_dead > most:
        (chosen,) = choice.top(ranks, [f.detach()], most)
        f = f * chosen.positive()
    target = error.detach()
    missed = ranks.total((ranks.summed((f.to(dtype) @ W_dec.to(dtype)).to(x.dtype)) - target).square().sum())
    return (missed / squares_around_mean(target, ranks)).nan_to_num()


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
