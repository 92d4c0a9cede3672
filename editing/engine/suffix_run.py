"""The blocks above a layer, run only where a change of its residual can show.

What is before the first changed position stays as it was: its keys and values are those of the unedited run. In the
last block only the prompts' ends are asked for, so that the other positions give it their keys and values and no more.

A prompt's positions are counted from its end here, so that all prompts of a pass end in one column; T columns in all.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_core.model.block import Block, block_of
from sae_core.model.language_model import LanguageModel

WIDTHS = 4
"""Rows are run together whose numbers of columns to run lie within so many of each other."""
ALIKE = 1e-4
"""Share of the largest logit by which the model's own pass may differ."""
TRIED = 8
"""Prompts on which that is tried."""
HELD = 2**31
"""Bytes that keys and values of the unedited run may take."""


class Tail:
    """Prompts run once, and the last blocks as parts: logits at the ends when the residual below them is changed.

    `residuals` are those before each of the blocks.
    """

    def __init__(
        self,
        model: LanguageModel,
        blocks: list[Block],
        end: Int[Tensor, "batch"],
        residuals: list[Float[Tensor, "batch pos d_model"]],
    ):
        self.model, self.blocks = model, blocks
        self.n = int(end.max()) + 1
        place = end[:, None] - torch.arange(self.n - 1, -1, -1, device=end.device)
        self.real: Bool[Tensor, "batch T"] = place >= 0
        self.place: Int[Tensor, "batch T"] = place.clamp_min(0)
        self.after, *_ = aligned = [self._aligned(x, self.place) for x in residuals]
        self.unedited = [self._keys_values(block, x, self.place) for block, x in zip(blocks, aligned, strict=True)]

    def logits(
        self, prompts: Int[Tensor, "rows"], change: Float[Tensor, "rows pos d_model"]
    ) -> Float[Tensor, "rows vocab"]:
        """Logits at the ends of the prompts; rows whose changes begin at about the same column are run together."""
        change = self._aligned(change, self.place[prompts])
        if change.requires_grad:
            return self._run(prompts, change)
        changed = change.ne(0).any(-1) & self.real[prompts]
        width = torch.where(changed.any(1), self.n - changed.int().argmax(1), 1)
        bucket, found = (width + WIDTHS - 1) // WIDTHS, None
        for one in bucket.unique().tolist():
            rows = (bucket == one).nonzero()[:, 0]
            some = self._run(prompts[rows], change[rows, -min(self.n, one * WIDTHS) :])
            found = some.new_empty(len(prompts), some.shape[-1]) if found is None else found
            found[rows] = some
        return found

    def _run(self, prompts: Int[Tensor, "rows"], change: Float[Tensor, "rows width d_model"]) -> Tensor:
        """The last columns of each prompt, as many as `change` has, up through all blocks."""
        width = change.shape[1]
        place, real = self.place[prompts][:, -width:], self.real[prompts]
        x = self.after[prompts][:, -width:] + change
        column = torch.arange(self.n, device=x.device)
        own = column[-width:, None]
        seen = real[:, None] & (column <= own) | (column == own)  # before a prompt's begin a column sees itself alone
        for block, (keys, values) in zip(self.blocks, self.unedited, strict=True):
            k, v = self._keys_values(block, x, place)
            k, v = (torch.cat([of[prompts][:, :-width], new], 1) for of, new in ((keys, k), (values, v)))
            if block is self.blocks[-1]:
                x, place, seen = x[:, -1:], place[:, -1:], seen[:, -1:]
            x = self._block(block, x, k, v, place, seen)
        return self.model.unembed(x[:, -1])

    @staticmethod
    def _block(block: Block, x: Tensor, k: Tensor, v: Tensor, place: Tensor, seen: Tensor) -> Tensor:
        """A block's output at the columns of `x`, where keys and values are there for all columns."""
        q = _turned(block, block.q(block.ln1(x)), block.n_heads, place)
        k, v = (part.repeat_interleave(block.n_heads // block.n_groups, 2).transpose(1, 2) for part in (k, v))
        heads = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, attn_mask=seen[:, None])
        a = block.o(heads.transpose(1, 2).flatten(2))
        return x + a + block.mlp(block.ln2(x if block.parallel else x + a))

    @staticmethod
    def _keys_values(
        block: Block, x: Float[Tensor, "rows width d_model"], place: Int[Tensor, "rows width"]
    ) -> tuple[Float[Tensor, "rows width groups d"], Float[Tensor, "rows width groups d"]]:
        """Rotated keys, and values."""
        normed = block.ln1(x)
        values = block.v(normed).unflatten(-1, (block.n_groups, -1))
        return _turned(block, block.k(normed), block.n_groups, place), values

    @staticmethod
    def _aligned(x: Float[Tensor, "rows pos d"], place: Int[Tensor, "rows T"]) -> Float[Tensor, "rows T d"]:
        return x.gather(1, place[..., None].expand(-1, -1, x.shape[-1]))


def _turned(
    block: Block, x: Float[Tensor, "rows width d"], n_heads: int, place: Int[Tensor, "rows width"]
) -> Float[Tensor, "rows width heads d_head"]:
    """Queries or keys by head, rotated by their positions."""
    by_head = x.unflatten(-1, (n_heads, -1))
    return block.turned(by_head.flatten(0, 1), place.flatten()).unflatten(0, place.shape)


@torch.no_grad()
def tail_of(
    model: LanguageModel, tokens: Int[Tensor, "batch pos"], end: Int[Tensor, "batch"], layer: int
) -> Tail | None:
    """The blocks above `layer` for these prompts; None where there is no short way.

    That is: no block above, blocks that are not made of these parts, half precision, more prompts than keys and values
    may be held of, or blocks that do more than their parts say. The last is tried on a few prompts: all positions
    changed, the model's own pass must agree.
    """
    above = range(layer + 1, model.n_layers)
    blocks = [block_of(model, number, tokens.shape[1]) for number in above]
    if not blocks or any(block is None or block.gain.dtype is not torch.float32 for block in blocks):
        return None
    if 2 * len(blocks) * tokens.numel() * model.d_model * torch.float32.itemsize > HELD:
        return None
    residuals = [*model.record(tokens, model.sites()[layer:-1]).values()]
    tail, prompts = Tail(model, blocks, end, residuals), torch.arange(min(TRIED, len(end)), device=end.device)
    after = residuals[0]
    change = after[prompts].flip(0, 1) - after.mean()
    final = model.final(after[prompts] + change, layer)[prompts, end[prompts]]
    expected, found = model.unembed(final), tail.logits(prompts, change)
    return tail if (found - expected).abs().max() <= ALIKE * expected.abs().max() else None
