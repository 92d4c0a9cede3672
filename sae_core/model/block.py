"""One block of a language model in parts, for whoever needs less of it than all.

    a  = attention(ln1(x))                     q, k, v: linear in ln1(x); o: linear in what the heads return
    h  = x + a + mlp(ln2(x))       parallel    (Pythia)
    h  = (x + a) + mlp(ln2(x + a)) sequential  (GPT-2, Llama)

The parts are the model's own modules. What they cannot say (norms after attention or MLP, capped scores,
windows) is not described here: compare with the model's own pass before relying on it.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sae_core.model.language_model import LanguageModel
from sae_core.sites import Site, Stream


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
    """Heads of keys and values; each serves n_heads / n_groups queries."""
    parallel: bool
    centred: bool
    """Whether ln1 takes the mean out (LayerNorm) or not (RMSNorm)."""
    eps: float
    rotation: tuple[Float[Tensor, "pos turned"], Float[Tensor, "pos turned"]] | None
    """Cosines and sines of the rotary embedding; None where positions are not told by rotation."""

    @property
    def gain(self) -> Float[Tensor, "d_model"]:
        return self.ln1.weight

    @property
    def offset(self) -> Float[Tensor, "d_model"]:
        bias = getattr(self.ln1, "bias", None)
        return torch.zeros_like(self.gain) if bias is None else bias

    def linear(self, module: nn.Module, x: Float[Tensor, "rows d"]) -> Float[Tensor, "rows out"]:
        """What a module with a bias makes of `x`, without the bias."""
        return module(x[:, None])[:, 0] - module(torch.zeros_like(x[:1, None]))[:, 0]

    def queries(self, x: Float[Tensor, "rows d_model"], position: Int[Tensor, "rows"]) -> Float[Tensor, "rows heads d"]:
        """Rotated queries of residuals."""
        return self.turned(self.q(self.ln1(x[:, None]))[:, 0].unflatten(-1, (self.n_heads, -1)), position)

    def turned(self, x: Float[Tensor, "rows heads d"], position: Int[Tensor, "rows"]) -> Float[Tensor, "rows heads d"]:
        """Rotated by the angle of their positions (Su et al. 2021, in the halves of the Hugging Face models)."""
        if self.rotation is None:
            return x
        cos, sin = (part[position][:, None] for part in self.rotation)
        turning, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
        one, other = turning.chunk(2, -1)
        return torch.cat([turning * cos + torch.cat([-other, one], -1) * sin, rest], -1)

    def mlp_out(self, seen: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows d_model"]:
        """The MLP's output where it sees the residual `seen`: x in parallel blocks, x + a in sequential ones."""
        return self.mlp(self.ln2(seen[:, None]))[:, 0]


@torch.no_grad()
def block_of(model: LanguageModel, layer: int, n_pos: int) -> Block | None:
    """A block's parts, for up to `n_pos` positions; None if the block is not made of these parts."""
    if model.bridge is None:  # a model made by hand
        return None
    config, block = model.bridge.cfg, model.bridge.blocks[layer]
    parts = {name: getattr(block, name, None) for name in ("ln1", "ln2", "attn", "mlp")}
    linear = {name: getattr(parts["attn"], name, None) for name in "qkvo"}
    if any(part is None for part in (*parts.values(), *linear.values())) or not hasattr(parts["ln1"], "weight"):
        return None
    seen = {}
    handle = parts["attn"].register_forward_pre_hook(lambda _, args, given: seen.update(given), with_kwargs=True)
    try:
        model.record(torch.zeros(1, n_pos, dtype=torch.long), [Site(layer, Stream.ATTN_OUT)])
    finally:
        handle.remove()
    angles = seen.get("position_embeddings")
    return Block(
        parts["ln1"],
        parts["ln2"],
        *linear.values(),
        parts["mlp"],
        n_heads=config.n_heads,
        n_groups=config.n_key_value_heads or config.n_heads,
        parallel=bool(getattr(config, "parallel_attn_mlp", False)),
        centred=config.normalization_type == "LN",
        eps=config.eps,
        rotation=(angles[0][0], angles[1][0]) if angles is not None else None,
    )
