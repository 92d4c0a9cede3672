"""Which contexts of a text a study reads: neighbours are of one document, and say the same thing twice."""

import torch
from jaxtyping import Int
from torch import Tensor

from sae_core.seeds import generator_for


def drawn(contexts: Int[Tensor, "contexts pos"], n: int, seed: int) -> Int[Tensor, "drawn pos"]:
    """At most `n` contexts from all over a text, in random order."""
    order = torch.randperm(len(contexts), generator=generator_for(seed, "contexts"))[:n]
    return contexts[order.to(contexts.device)]
