"""One text in the tokens of two models: the spans that end with a token of both, and activations on them.

A place in the text is the number of characters before it that are no white space, since models disagree on which token
brings a space. Tokens of white space alone belong to the span before them.
"""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

import torch
from jaxtyping import Float, Int
from torch import Tensor


def token_ends(pieces: Sequence[str]) -> list[int]:
    """Where each token ends, by the texts of all tokens in order."""
    return list(accumulate(len("".join(piece.split())) for piece in pieces))


def shared_spans(ends: Sequence[int], others: Sequence[int]) -> tuple[Int[Tensor, "pos"], Int[Tensor, "other"]] | None:
    """For each token of either model the number of its span; None where the two have not read the same text.

    Spans are cut wherever a token of both ends: they are as short as both models allow, and every token lies in one.
    """
    if not ends or not others or ends[-1] != others[-1]:
        return None
    cuts = sorted((set(ends) & set(others)) - {0})
    if not cuts:
        return None
    return tuple(torch.tensor([bisect_left(cuts, max(1, end)) for end in each]) for each in (ends, others))  # type: ignore[return-value]


def on_spans(
    codes: Float[Tensor, "pos n_latents"], spans: Int[Tensor, "pos"], n_spans: int
) -> Float[Tensor, "spans n_latents"]:
    """The largest activation of each latent on the tokens of a span; activations are not negative."""
    places = spans.to(codes.device)[:, None].expand_as(codes)
    return codes.new_zeros(n_spans, codes.shape[1]).scatter_reduce_(0, places, codes, "amax")
