"""Gradient pursuit (Blumensath and Davies 2008): better codes for a dictionary's directions, chosen at inference.

For each token, with s what the directions are to make up and W its codes, 0 at the start, repeat L0 times

    r = s - W D                     what is missing
    p = r D^T;  i = argmax p        the direction that would add most
    S = {j : W_j > 0} + {i}
    g = p on S, 0 elsewhere;  c = g D
    W = max(0, W + (<c, r> / <c, c>) g)

as Engels et al. 2024 do (reducing the nonlinear error): no code is negative, and one that was clipped to zero leaves
S. A direction may be chosen again, so that L0 bounds the active latents from above. Cost: tokens x L0 encodings.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

AT_ONCE = 2**25
"""Codes in memory at a time."""


@torch.no_grad()
def pursuit(
    s: Float[Tensor, "tokens d_in"], directions: Float[Tensor, "n_latents d_in"], l0: Int[Tensor, "tokens"]
) -> Float[Tensor, "tokens d_in"]:
    """What at most `l0` directions make of each row, with codes of gradient pursuit: W D."""
    rows = max(1, AT_ONCE // len(directions))
    parts = zip(s.split(rows), l0.split(rows), strict=True)
    return torch.cat([_codes(part, directions, most) @ directions for part, most in parts])


def _codes(s: Tensor, directions: Tensor, l0: Tensor) -> Tensor:
    codes = s.new_zeros(len(s), len(directions))
    for step in range(int(l0.max()) if len(l0) else 0):
        r = s - codes @ directions
        p = r @ directions.T
        chosen = (codes > 0).scatter(1, p.argmax(1, keepdim=True), True)
        g = p * chosen
        c = g @ directions
        size = (c * r).sum(1, keepdim=True) / c.square().sum(1, keepdim=True).clamp_min(torch.finfo(c.dtype).tiny)
        codes = torch.where((step < l0)[:, None], (codes + size * g).clamp_min(0), codes)
    return codes
