"""The blocks above a layer, run only where a change of its residual can show.

What is before the first changed position stays as it was: its keys and values are those of the unedited run. In the
last block only the prompts' ends are read, so that the other positions give it their keys and values and no more.
The arithmetic of a block is that of `sae_core/model/block.py`.

A prompt's positions are counted from its end here, so that all prompts of a pass end in one column; T columns in all.
"""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_core.model.block import Block, agrees, block_of
from sae_core.model.language_model import LanguageModel
from sae_core.sites import Site

WIDTHS = 4
"""Rows are run together whose numbers of columns to run lie within so many of each other."""
N_CHECKED = 8
"""Prompts on which the parts are compared with the model's own pass."""
HELD = 2**31
"""Bytes that keys and values of the unedited run may take."""


class SuffixRun:
    """Prompts run once, and some blocks as parts: what comes out at the ends when the residual below them is changed.

    That is the logits, where the blocks are the last ones. `residuals` are those before each of the blocks.
    """

    def __init__(
        self,
        model: LanguageModel,
        blocks: list[Block],
        end: Int[Tensor, "batch"],
        residuals: list[Float[Tensor, "batch pos d_model"]],
    ):
        self.model, self.blocks = model, blocks
        self.n_columns = int(end.max()) + 1
        position = end[:, None] - torch.arange(self.n_columns - 1, -1, -1, device=end.device)
        self.inside: Bool[Tensor, "batch T"] = position >= 0
        """Which columns hold a token of the prompt; those before hold copies of its first."""
        self.position: Int[Tensor, "batch T"] = position.clamp_min(0)
        self.x, *_ = aligned = [_aligned(x, self.position) for x in residuals]
        """The residual below the blocks."""
        self.unedited = [block.keys_values(x, self.position) for block, x in zip(blocks, aligned, strict=True)]

    def logits(
        self, prompts: Int[Tensor, "rows"], change: Float[Tensor, "rows pos d_model"]
    ) -> Float[Tensor, "rows vocab"]:
        """Logits at the ends of the prompts; rows whose changes begin at about the same column are run together."""
        change = _aligned(change, self.position[prompts])
        if change.requires_grad:
            return self.model.unembed(self._run(prompts, change))
        return self._in_buckets(prompts, change, self.model.unembed)

    def ends(
        self, prompts: Int[Tensor, "rows"], change: Float[Tensor, "rows pos d_model"]
    ) -> Float[Tensor, "rows d_model"]:
        """The residual behind the blocks at the ends of the prompts."""
        change = _aligned(change, self.position[prompts])
        if change.requires_grad:  # of columns before every prompt's beginning there is no gradient
            return self._run(prompts, change[:, -int(self.inside[prompts].sum(1).max()) :])
        return self._in_buckets(prompts, change, lambda x: x)

    def _in_buckets(
        self,
        prompts: Int[Tensor, "rows"],
        change: Float[Tensor, "rows T d_model"],
        read: Callable[[Tensor], Tensor],
    ) -> Float[Tensor, "rows d"]:
        """What is read at the ends; rows whose changes begin at about the same column are run together."""
        changed = change.ne(0).any(-1) & self.inside[prompts]
        width = torch.where(changed.any(1), self.n_columns - changed.int().argmax(1), 1)
        bucket = (width + WIDTHS - 1) // WIDTHS
        parts, places = [read(change[:0, -1])], [prompts[:0]]
        for number in bucket.unique().tolist():
            rows = (bucket == number).nonzero()[:, 0]
            parts.append(read(self._run(prompts[rows], change[rows, -min(self.n_columns, number * WIDTHS) :])))
            places.append(rows)
        return torch.cat(parts)[torch.cat(places).argsort()]

    def _run(
        self, prompts: Int[Tensor, "rows"], change: Float[Tensor, "rows width d_model"]
    ) -> Float[Tensor, "rows d_model"]:
        """The last `width` columns of each prompt up through all blocks, read at their ends.

        Keys and values [rows, T, groups, d_head] are the unedited run's in the first T - width columns, and new in the
        rest; a column sees the prompt's columns up to its own, and one before the prompt's beginning itself alone.
        """
        width = change.shape[1]
        position, inside = self.position[prompts][:, -width:], self.inside[prompts]
        x = self.x[prompts][:, -width:] + change
        column = torch.arange(self.n_columns, device=x.device)
        here = column[-width:, None]
        seen = inside[:, None] & (column <= here) | (column == here)
        for block, unedited in zip(self.blocks, self.unedited, strict=True):
            new = block.keys_values(x, position)
            k, v = (torch.cat([old[prompts][:, :-width], part], 1) for old, part in zip(unedited, new, strict=True))
            if block is self.blocks[-1]:
                x, position, seen = x[:, -1:], position[:, -1:], seen[:, -1:]
            x = block.resid_post(x, block.attend(block.queries(x, position), k, v, seen))
        return x[:, -1]


def _aligned(x: Float[Tensor, "rows pos d"], position: Int[Tensor, "rows T"]) -> Float[Tensor, "rows T d"]:
    """By column what is given by position."""
    return x.gather(1, position[..., None].expand(-1, -1, x.shape[-1]))


@torch.no_grad()
def suffix_run(
    model: LanguageModel,
    tokens: Int[Tensor, "batch pos"],
    end: Int[Tensor, "batch"],
    layer: int,
    *,
    to: int | None = None,
    recorded: Mapping[Site, Float[Tensor, "batch pos d_model"]] | None = None,
    held: int = HELD,
) -> SuffixRun | None:
    """The blocks above `layer` up to the block `to`, the last by default, for these prompts.

    `recorded` are the residuals after `layer` and after the blocks above it, where they are known. None where the
    blocks cannot be run in parts.

    That is: no block above, blocks that are not made of these parts, half precision, keys and values of more than
    `held` bytes, or blocks that do more than their parts say. The last is checked on a few prompts with all positions
    changed, where the model's own pass must agree.
    """
    last = model.n_layers - 1 if to is None else to
    blocks = [block_of(model, number, tokens.shape[1]) for number in range(layer + 1, last + 1)]
    known = [block for block in blocks if block is not None and block.gain.dtype is torch.float32]
    if not blocks or len(known) < len(blocks):
        return None
    if 2 * len(blocks) * tokens.numel() * model.d_model * torch.float32.itemsize > held:
        return None
    below = [Site(number) for number in range(layer, last)]
    recorded = recorded or model.record(tokens, below)
    residuals = [recorded[site] for site in below]
    run, prompts = SuffixRun(model, known, end, residuals), torch.arange(min(N_CHECKED, len(end)), device=end.device)
    x = residuals[0]
    change = x[prompts].flip(0, 1) - x.mean()
    expected = model.resume(x[prompts] + change, layer, [Site(last)])[Site(last)][prompts, end[prompts]]
    if to is not None:
        return run if agrees(run.ends(prompts, change), expected) else None
    return run if agrees(run.logits(prompts, change), model.unembed(expected)) else None
