"""Token rows of unequal length as one tensor."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor


def pad(rows: Sequence[Sequence[int]], *, fill: int = 0) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch"]]:
    """Token rows padded on the right to one length, and their lengths."""
    lengths = torch.tensor([len(row) for row in rows])
    width = int(lengths.max())
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows]), lengths
