"""A dictionary read at other numbers of active latents than it was trained for: progressive codes.

    by k           f = the k largest of m(x), the others zero
    by threshold   f = m(x) where m(x) > t, else zero;   t such that k are above it on average over training tokens

m(x) are the latents' magnitudes before any is chosen, relu(pre) of most kinds. Gao et al. 2024, section 5.3: TopK is
read well up to a little above its k, Multi-TopK (trained at several) at all k; a threshold does slightly better than
the k largest at the same L0 (their activations are brought to one norm first, ours keep theirs, and one threshold is
not fair to all then). Dictionaries behind a normalisation of their input are not read in this way. Cost: one encoding,
and for each k one decoding of dense codes.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from sae_core.dictionaries.saes import SAE, GatedSAE
from sae_core.estimate import Estimate
from subrank.studies.metrics.measured import ReadAt
from subrank.studies.metrics.reading import Rows

CHOSEN_ON, READ_ON = 2**22, 2**26
"""Magnitudes of latents among which thresholds are chosen, and those in memory where codes are read."""
MOST = 2048
"""Tokens that are read, at most."""


def magnitudes(sae: SAE, x: Float[Tensor, "tokens d_in"]) -> Float[Tensor, "tokens n_latents"]:
    """How strongly each latent would be active if it were chosen; never negative."""
    pre = sae.pre(x)
    return sae.magnitude(pre) if isinstance(sae, GatedSAE) else pre.relu()


def largest(m: Float[Tensor, "tokens n_latents"], k: int) -> Float[Tensor, "tokens n_latents"]:
    """The k largest of each row, the others zero."""
    top = m.topk(min(k, m.shape[1]), dim=-1)
    return torch.zeros_like(m).scatter(-1, top.indices, top.values)


def thresholds(m: Float[Tensor, "tokens n_latents"], wanted: Sequence[float]) -> list[float]:
    """For each number of latents the value that so many per token are above, on average; 0 where fewer are positive."""
    positive = m[m > 0].sort(descending=True).values
    counts = [round(k * len(m)) for k in wanted]
    return [positive[count].item() if count < len(positive) else 0.0 for count in counts]


@torch.no_grad()
def read_at(sae: SAE, training: Rows, held: Rows, wanted: Sequence[float]) -> list[ReadAt]:
    """FVU on held-out tokens at each number of active latents, by k (rounded) and by threshold."""
    chosen_on = training.thinned(max(64, min(MOST, CHOSEN_ON // sae.n_latents)))
    held = held.thinned(max(64, min(MOST, READ_ON // sae.n_latents)))
    m, gain = magnitudes(sae, held.x), getattr(sae, "gain", None)

    def fvu(f: Tensor) -> Estimate:
        return held.fvu(sae.decode(f if gain is None else f * gain))

    return [
        ReadAt(round(k), fvu(largest(m, round(k))), fvu(m * (m > t)), (m > t).sum(-1).float().mean().item())
        for k, t in zip(wanted, thresholds(magnitudes(sae, chosen_on.x), wanted), strict=True)
    ]
