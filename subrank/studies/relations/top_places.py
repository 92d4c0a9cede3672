"""Where a latent is most active, in a few words: a label that costs no further reading."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

KEPT, SHOWN = 12, 3
"""Places that are kept of each latent, and different words of them that a label shows."""


class TopPlaces:
    """The places of largest activation of each latent, as a text is read."""

    def __init__(self, n_latents: int):
        self.words: list[str] = []
        self.values = torch.zeros(KEPT, n_latents)
        self.places = torch.zeros(KEPT, n_latents, dtype=torch.int64)

    def add(self, codes: Float[Tensor, "places n_latents"], words: Sequence[str]) -> None:
        """Activations on further places, and what stands there."""
        largest = codes.cpu().topk(min(KEPT, len(codes)), dim=0)
        values = torch.cat([self.values, largest.values])
        places = torch.cat([self.places, largest.indices + len(self.words)])
        self.words += words
        self.values, kept = values.topk(KEPT, dim=0)
        self.places = places.gather(0, kept)

    def labels(self) -> tuple[str, ...]:
        """The label of every latent."""
        return tuple(self.label(latent) for latent in range(self.values.shape[1]))

    def label(self, latent: int) -> str:
        """The words at its largest activations, the largest first; empty for a latent that was never active."""
        places = self.places[:, latent][self.values[:, latent] > 0].tolist()
        return " · ".join(list(dict.fromkeys(self.words[place].strip() or "␣" for place in places))[:SHOWN])
