"""What training minimises. A recipe makes an untrained dictionary and states its loss; the loop is the same for all.

Units. Activations come scaled so that E|x|^2 = d_in. Losses of reconstruction are either the batch's FVU,
sum |x - x_hat|^2 / sum |x - mean x|^2 (TopK, BatchTopK, Matryoshka, JumpReLU), or, where an L1 penalty
must weigh against it, |x - x_hat|^2 / d_in, averaged over the batch (ReLU, Gated). An L1 coefficient is
in the sum convention: |x - x_hat|^2 + l1 * sum_j f_j per token, of which the loss is the mean over the
batch, divided by d_in. See `l1_of_mean` for the other convention.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_core import checks
from sae_core.dictionaries import sparse
from sae_core.dictionaries.saes import SAE, GatedSAE, JumpReLUSAE, ReLUSAE, TiedSAE, TopKSAE
from sae_core.dictionaries.sparse import Codes
from sae_core.errors import UserError


@dataclass(frozen=True, eq=False)
class Outcome:
    """Loss of one batch, and what progress reports and the count of dead latents need. All on the device."""

    loss: Tensor
    x_hat: Tensor
    """Reconstruction of the scaled activations; gradients pass through it."""
    fvu: Tensor
    """Of this batch, with the batch's own mean."""
    active: Tensor
    """Which latents were active on any token, `[n_latents]` bool."""
    l0: Tensor
    threshold: Tensor | None = None
    """The smallest activation that was kept, where a batch decides that."""


@dataclass(frozen=True, eq=False)
class Moment:
    """What an objective may know besides the batch."""

    dead: Int[Tensor, "n_dead"]
    """Indices of latents that have not been active for long."""
    ramp: float = 1.0
    """Share of the sparsity penalty that is in force, rising from 0 to 1."""
    scratch: sparse.Scratch = field(default_factory=sparse.Scratch)


@runtime_checkable
class Recipe(Protocol):
    """An architecture to train: an untrained dictionary and the loss it minimises."""

    def new(self, d_in: int, n_latents: int, *, generator: torch.Generator) -> SAE:
        """An untrained dictionary."""
        ...

    def loss(self, sae: Any, x: Tensor, moment: Moment) -> Outcome:
        """The loss of a batch `[batch, d_in]`; changes nothing."""
        ...


def l1_of_mean(alpha: float, d_in: int) -> float:
    """The coefficient here for one that weighs a mean over dimensions: mean (x - x_hat)^2 + alpha * sum_j f_j.

    Multiplying that by d_in gives |x - x_hat|^2 + alpha d_in * sum_j f_j. Cunningham et al. 2023 state
    alpha (8.6e-4 at d = 512: 0.44 here); Bricken et al. 2023 and SAELens sum. Both sides in the same units
    of x: for activations scaled by s the equivalent coefficient is s times that of the unscaled ones.
    """
    return alpha * d_in


# ---- choosing the largest -----------------------------------------------------------------------------


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

    def loss(self, sae: TopKSAE, x: Float[Tensor, "batch d_in"], moment: Moment) -> Outcome:
        pre, wide = moment.scratch.pre(x, sae.W_enc, sae.b_enc, sae.b_dec), min(4 * self.k, sae.n_latents)
        if self.multi:
            values, indices = pre.topk(wide, dim=-1)  # the k largest come first
        else:
            values, indices = sparse.top(pre, self.k)
        codes = _encoded(sae, x, Codes.of_rows(indices[:, : self.k], values[:, : self.k], sae.n_latents))
        x_hat = sparse.decode(codes, sae.W_dec) + sae.b_dec
        fvu = _fvu(x, x_hat)
        loss = fvu + self.aux * _auxk(sae, x, pre, x - x_hat, moment.dead) if self.aux else fvu
        if self.multi:
            more = _encoded(sae, x, Codes.of_rows(indices, values, sae.n_latents))
            loss = loss + self.multi * _fvu(x, sparse.decode(more, sae.W_dec) + sae.b_dec)
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

    def loss(self, sae: JumpReLUSAE, x: Float[Tensor, "batch d_in"], moment: Moment) -> Outcome:
        pre = moment.scratch.pre(x, sae.W_enc, sae.b_enc, sae.b_dec)
        codes = _encoded(sae, x, sparse.batch_top(pre, self.k * len(x)))
        x_hat = sparse.decode(codes, sae.W_dec) + sae.b_dec
        fvu = _fvu(x, x_hat)
        loss = fvu + self.aux * _auxk(sae, x, pre, x - x_hat, moment.dead) if self.aux else fvu
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

    def loss(self, sae: JumpReLUSAE, x: Float[Tensor, "batch d_in"], moment: Moment) -> Outcome:
        pre = moment.scratch.pre(x, sae.W_enc, sae.b_enc, sae.b_dec)
        codes = _encoded(sae, x, sparse.batch_top(pre, self.k * len(x)))
        widths, x_hat, parts = self.widths(sae.n_latents), sae.b_dec.expand_as(x), []
        for low, high in zip([0, *widths], widths, strict=False):
            x_hat = x_hat + sparse.decode(codes.between(low, high), sae.W_dec)
            parts.append(_fvu(x, x_hat))
        loss = torch.stack(parts).mean()
        if self.aux:
            loss = loss + self.aux * _auxk(sae, x, pre, x - x_hat, moment.dead)
        return _sparse_outcome(loss, x_hat, parts[-1], codes, _smallest(codes))


# ---- penalties ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReLU:
    """ReLU with an L1 penalty, untied (Bricken et al. 2023) or tied (Cunningham et al. 2023, section 2).

    loss = mean over the batch of (|x - x_hat|^2 + l1 * sum_j f_j) / d_in.
    """

    l1: float = 2.0
    tied: bool = False

    def __post_init__(self):
        checks.weight("the L1 coefficient", self.l1)

    def new(self, d_in: int, n_latents: int, *, generator: torch.Generator) -> ReLUSAE:
        return (TiedSAE if self.tied else ReLUSAE)(d_in, n_latents, generator=generator)

    def loss(self, sae: ReLUSAE, x: Float[Tensor, "batch d_in"], moment: Moment) -> Outcome:
        f = sae.encode(x)
        x_hat = sae.decode(f)
        loss = _squares(x, x_hat) + moment.ramp * self.l1 * f.sum(-1).mean() / x.shape[-1]
        return _dense_outcome(loss, x, x_hat, f)


@dataclass(frozen=True)
class JumpReLU:
    """A learned threshold per latent, and a penalty on L0 itself (Rajamanoharan et al. 2024b, sections 3 and 5).

    loss = FVU + l0 * (L0 / k - 1)^2, the second term by a rectangular kernel of width `bandwidth` around
    the threshold, through which alone thresholds learn of L0.
    """

    k: int = 16
    l0: float = 0.1
    bandwidth: float = 1.0

    def __post_init__(self):
        checks.whole("k", self.k, 1)
        checks.weight("the weight of L0", self.l0)
        checks.positive("the bandwidth", self.bandwidth)

    def new(self, d_in: int, n_latents: int, *, generator: torch.Generator) -> JumpReLUSAE:
        _fits(self.k, n_latents)
        sae = JumpReLUSAE(d_in, n_latents, generator=generator)
        # unit directions against activations of unit variance: about 4k latents lie above this at the start
        tail = min(0.5, 4 * self.k / n_latents)
        sae.threshold.data.fill_(-torch.special.ndtri(torch.tensor(tail)).item())
        return sae

    def loss(self, sae: JumpReLUSAE, x: Float[Tensor, "batch d_in"], moment: Moment) -> Outcome:
        f, on = _JumpReLU.apply(sae.pre(x), sae.threshold.clamp_min(0), self.bandwidth)
        x_hat = sae.decode(f)
        fvu, l0 = _fvu(x, x_hat), on.sum(-1).mean()
        loss = fvu + moment.ramp * self.l0 * (l0 / self.k - 1).square()
        return _dense_outcome(loss, x, x_hat, f)


@dataclass(frozen=True)
class Gated:
    """Gates learn from an L1 penalty and an auxiliary reconstruction (Rajamanoharan et al. 2024a, section 3.2).

    loss = mean over the batch of (|x - x_hat|^2 + l1 * sum_j relu(gate_j) + |x - x_hat_aux|^2) / d_in,
    where x_hat_aux decodes relu(gate) with the decoder held fixed.
    """

    l1: float = 2.0

    def __post_init__(self):
        checks.weight("the L1 coefficient", self.l1)

    def new(self, d_in: int, n_latents: int, *, generator: torch.Generator) -> GatedSAE:
        return GatedSAE(d_in, n_latents, generator=generator)

    def loss(self, sae: GatedSAE, x: Float[Tensor, "batch d_in"], moment: Moment) -> Outcome:
        pre = sae.pre(x)
        f, gate = sae.activate(pre), (pre + sae.b_gate).relu()
        x_hat, x_hat_aux = sae.decode(f), gate @ sae.W_dec.detach() + sae.b_dec.detach()
        penalty = moment.ramp * self.l1 * gate.sum(-1).mean() / x.shape[-1]
        return _dense_outcome(_squares(x, x_hat) + penalty + _squares(x, x_hat_aux), x, x_hat, f)


RECIPES: Mapping[str, type] = {
    "topk": TopK,
    "batchtopk": BatchTopK,
    "matryoshka": Matryoshka,
    "jumprelu": JumpReLU,
    "gated": Gated,
    "relu": ReLU,
}
"""By the names that files and the command line use."""


def recipe_to_json(recipe: Recipe) -> dict[str, Any]:
    """A recipe as plain values; `recipe_from_json` is the inverse."""
    kind = next(name for name, own in RECIPES.items() if type(recipe) is own)
    return {"kind": kind, **asdict(recipe)}


def recipe_from_json(value: Mapping[str, Any]) -> Recipe:
    """The recipe that these values describe; raises `UserError` for a kind or an option there is not."""
    options = dict(value)
    kind = options.pop("kind", None)
    if kind not in RECIPES:
        raise UserError(f"no kind of dictionary {kind!r}; there are {', '.join(RECIPES)}")
    try:
        return RECIPES[kind](**options)
    except TypeError as error:
        raise UserError(f"a {kind} dictionary has no such option: {str(error).split('__init__() ')[-1]}") from error


# ---- parts --------------------------------------------------------------------------------------------


def _fvu(x: Tensor, x_hat: Tensor) -> Tensor:
    return (x - x_hat).square().sum() / (x - x.mean(0)).square().sum()


def _squares(x: Tensor, x_hat: Tensor) -> Tensor:
    return (x - x_hat).square().sum(-1).mean() / x.shape[-1]


def _encoded(sae: SAE, x: Tensor, codes: Codes) -> Codes:
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


def _fits(k: int, n_latents: int) -> None:
    if not 1 <= k <= n_latents:
        raise UserError(f"k must lie between 1 and the number of latents, {n_latents}; got k={k}")


def _one_threshold(k: int, d_in: int, n_latents: int, generator: torch.Generator) -> JumpReLUSAE:
    _fits(k, n_latents)
    sae = JumpReLUSAE(d_in, n_latents, generator=generator, encoder=0.1)
    sae.threshold.requires_grad_(False)
    return sae


def _smallest(codes: Codes) -> Tensor:
    none = codes.values.new_full((1,), torch.inf)
    return torch.cat([codes.values.detach(), none]).min()


def _sparse_outcome(loss: Tensor, x_hat: Tensor, fvu: Tensor, codes: Codes, threshold: Tensor | None = None) -> Outcome:
    on = (codes.values.detach() > 0).to(x_hat.dtype)
    active = on.new_zeros(codes.n_latents).index_add_(0, codes.indices, on) > 0
    return Outcome(loss, x_hat, fvu.detach(), active, on.sum() / len(x_hat), threshold)


def _dense_outcome(loss: Tensor, x: Tensor, x_hat: Tensor, f: Tensor) -> Outcome:
    active = f.detach() != 0
    return Outcome(loss, x_hat, _fvu(x, x_hat).detach(), active.any(0), active.sum(-1).to(x.dtype).mean())


class _JumpReLU(torch.autograd.Function):
    """(pre * on, on) with on = [pre > threshold], and the threshold's gradients by a rectangular kernel.

    With K = [|pre - threshold| <= bandwidth / 2]: d(pre * on)/d threshold = -threshold / bandwidth * K,
    d on / d threshold = -K / bandwidth (Rajamanoharan et al. 2024b, equations 11 and 12).
    """

    @staticmethod
    def forward(ctx, pre, threshold, bandwidth):
        on = pre > threshold
        ctx.save_for_backward(pre, threshold, on)
        ctx.bandwidth = bandwidth
        return pre * on, on.to(pre.dtype)

    @staticmethod
    def backward(ctx, d_f, d_on):
        pre, threshold, on = ctx.saved_tensors
        near = (pre - threshold).abs() <= ctx.bandwidth / 2
        d_threshold = -((threshold * d_f + d_on) * near).sum(0) / ctx.bandwidth
        return d_f * on, d_threshold, None
