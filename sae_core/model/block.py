"""The arithmetic of one transformer block, in parts, for work that needs less of it than all.

    q, k, v = W_Q ln1(x), W_K ln1(x), W_V ln1(x)     by head; q and k rotated by their positions (RoPE)
    a  = W_O concat_heads(softmax(q k^T / sqrt(d_head)) v)
    x' = x + a + mlp(ln2(x))       parallel    (Pythia)
    x' = (x + a) + mlp(ln2(x + a)) sequential  (GPT-2, Llama)

Grouped heads: query head number g * n_heads / n_groups + j reads the keys and values of group g.

The parts are the model's own modules. What they cannot say (norms after attention or MLP, capped scores, windows) is
not described here: before relying on parts, compare what they compute with the model's own pass, by `agrees`.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sae_core.model.language_model import LanguageModel
from sae_core.sites import Site, Stream

TOLERANCE = 1e-4
"""Largest difference, as a share of the largest value, with which parts count as the model's own computation."""


def agrees(computed: Float[Tensor, "*shape"], expected: Float[Tensor, "*shape"]) -> bool:
    """Whether parts compute what the model computes: max |computed - expected| <= TOLERANCE max |expected|."""
    return bool((computed - expected).abs().max() <= TOLERANCE * expected.abs().max())


@dataclass(frozen=True, eq=False)
class Block:
    """The modules of one block and what ties them together."""

    ln1: nn.Module
    ln2: nn.Module
    q: nn.Module
    k: nn.Module
    v: nn.Module
    o: nn.Module
    mlp: nn.Module
    n_heads: int
    n_groups: int
    """Heads of keys and values; each serves n_heads / n_groups heads of queries."""
    parallel: bool
    centred: bool
    """Whether ln1 takes the mean out (LayerNorm) or not (RMSNorm)."""
    eps: float
    rotation: tuple[Float[Tensor, "n_pos rotated"], Float[Tensor, "n_pos rotated"]] | None
    """Cosines and sines of the rotary embedding; None where queries and keys are not rotated."""

    # ---- attention -------------------------------------------------------------------------------

    def queries(
        self, x: Float[Tensor, "rows pos d_model"], position: Int[Tensor, "rows pos"]
    ) -> Float[Tensor, "rows pos heads d_head"]:
        """Rotated queries of residuals."""
        return self.rotated(_by_head(self.q(self.ln1(x)), self.n_heads), position)

    def keys_values(
        self, x: Float[Tensor, "rows pos d_model"], position: Int[Tensor, "rows pos"]
    ) -> tuple[Float[Tensor, "rows pos groups d_head"], Float[Tensor, "rows pos groups d_head"]]:
        """Rotated keys, and values, of residuals."""
        normed = self.ln1(x)
        keys, values = (_by_head(project(normed), self.n_groups) for project in (self.k, self.v))
        return self.rotated(keys, position), values

    def rotated(
        self, x: Float[Tensor, "*rows heads d_head"], position: Int[Tensor, "*rows"]
    ) -> Float[Tensor, "*rows heads d_head"]:
        """Queries or keys, rotated by the angles of their positions.

        Su et al. 2021, in the halves of the Hugging Face models: coordinate i is paired with i + rotated / 2.
        """
        if self.rotation is None:
            return x
        cos, sin = (part[position][..., None, :] for part in self.rotation)
        rotating, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
        first, second = rotating.chunk(2, -1)
        return torch.cat([rotating * cos + torch.cat([-second, first], -1) * sin, rest], -1)

    def attend(
        self,
        q: Float[Tensor, "rows pos heads d_head"],
        k: Float[Tensor, "rows keys groups d_head"],
        v: Float[Tensor, "rows keys groups d_head"],
        seen: Bool[Tensor, "rows pos keys"],
    ) -> Float[Tensor, "rows pos d_model"]:
        """What attention writes where every row has keys and values of its own; `seen` says which a position reads.

        In one fused step, as the model does it. Where all rows share the keys of one run and overwrite a few, the
        fused step would need a copy of them to each row: `scores`, `mixed` and `attn_out` are the same in parts.
        """
        k, v = (part.repeat_interleave(self.n_heads // self.n_groups, 2).transpose(1, 2) for part in (k, v))
        heads = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, attn_mask=seen[:, None])
        return self.attn_out(heads.transpose(1, 2).unflatten(2, (self.n_groups, -1)))

    def scores(
        self, q: Float[Tensor, "rows pos heads d_head"], k: Float[Tensor, "#rows keys groups d_head"]
    ) -> Float[Tensor, "rows groups served pos keys"]:
        """q k^T / sqrt(d_head), by group and the heads that it serves; one row of keys serves all rows of queries."""
        q = q.unflatten(2, (self.n_groups, -1)) * q.shape[-1] ** -0.5
        return torch.einsum("rcgqd,rpgd->rgqcp", q, k)

    def mixed(
        self, pattern: Float[Tensor, "rows groups served pos keys"], v: Float[Tensor, "#rows keys groups d_head"]
    ) -> Float[Tensor, "rows pos groups served d_head"]:
        """What the heads read: the values under the attention pattern."""
        return torch.einsum("rgqcp,rpgd->rcgqd", pattern, v)

    def attn_out(self, heads: Float[Tensor, "rows pos groups served d_head"]) -> Float[Tensor, "rows pos d_model"]:
        """What attention writes, from what its heads read."""
        return self.o(heads.flatten(2))

    # ---- MLP and sum -----------------------------------------------------------------------------

    def mlp_out(self, x: Float[Tensor, "rows pos d_model"]) -> Float[Tensor, "rows pos d_model"]:
        """The MLP's output where its norm reads the residual `x`: before attention if parallel, else after it."""
        return self.mlp(self.ln2(x))

    def resid_post(
        self, x: Float[Tensor, "rows pos d_model"], a: Float[Tensor, "rows pos d_model"]
    ) -> Float[Tensor, "rows pos d_model"]:
        """The residual after the block, from that before it and what attention writes."""
        return x + a + self.mlp_out(x if self.parallel else x + a)

    # ---- ln1 and what follows it as linear maps ----------------------------------------------------

    @property
    def gain(self) -> Float[Tensor, "d_model"]:
        """Of ln1(x) = gain (x - mean x) / s + offset; RMSNorm takes no mean out."""
        return cast(Tensor, self.ln1.weight)

    @property
    def offset(self) -> Float[Tensor, "d_model"]:
        """Of ln1, see `gain`; zero where it has none."""
        bias = getattr(self.ln1, "bias", None)
        return torch.zeros_like(self.gain) if bias is None else bias

    def linear(self, project: nn.Module, x: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows groups d_head"]:
        """W x by head, without the bias; `project` is `k` or `v`."""
        return self.affine(project, x) - self.affine(project, torch.zeros_like(x[:1]))

    def affine(self, project: nn.Module, x: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows groups d_head"]:
        """W x + b by head; `project` is `k` or `v`."""
        return _by_head(project(x[:, None])[:, 0], self.n_groups)


def _by_head(x: Float[Tensor, "*shape d"], n_heads: int) -> Float[Tensor, "*shape heads d_head"]:
    return x.unflatten(-1, (n_heads, -1))


@torch.no_grad()
def block_of(model: LanguageModel, layer: int, n_pos: int) -> Block | None:
    """A block's parts, for up to `n_pos` positions; None if the block is not made of these parts."""
    config, block = model.bridge.cfg, model.bridge.blocks[layer]
    parts: dict[str, Any] = {name: getattr(block, name, None) for name in ("ln1", "ln2", "attn", "mlp")}
    linear: dict[str, Any] = {name: getattr(parts["attn"], name, None) for name in "qkvo"}
    if any(part is None for part in (*parts.values(), *linear.values())) or not hasattr(parts["ln1"], "weight"):
        return None
    if not _stands_alone(parts["mlp"], torch.zeros(1, 1, model.d_model, device=model.device, dtype=model.dtype)):
        return None
    return Block(
        ln1=parts["ln1"],
        ln2=parts["ln2"],
        mlp=parts["mlp"],
        **linear,
        n_heads=config.n_heads,
        n_groups=config.n_key_value_heads or config.n_heads,
        parallel=bool(getattr(config, "parallel_attn_mlp", False)),
        centred=config.normalization_type == "LN",
        eps=config.eps,
        rotation=_rotation(model, layer, n_pos),
    )


def _stands_alone(mlp: nn.Module, x: Float[Tensor, "rows pos d_model"]) -> bool:
    """Whether the MLP is a module that reads nothing but its input: BLOOM's also takes the residual, OPT has none."""
    try:
        return mlp(x).shape == x.shape
    except (RuntimeError, TypeError):
        return False


def _rotation(model: LanguageModel, layer: int, n_pos: int) -> tuple[Tensor, Tensor] | None:
    """The cosines and sines that the attention of `layer` gets for the first positions, read off a short pass."""
    received = {}
    attention = model.bridge.blocks[layer].attn
    handle = attention.register_forward_pre_hook(lambda _, args, kwargs: received.update(kwargs), with_kwargs=True)
    try:
        model.record(torch.zeros(1, n_pos, dtype=torch.long), [Site(layer, Stream.ATTN_OUT)])
    finally:
        handle.remove()
    angles = received.get("position_embeddings")
    return None if angles is None else (angles[0][0], angles[1][0])
