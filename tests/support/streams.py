"""Activation streams of tiny models."""

import torch
from tiny import random_tokens

from sae_core.data.activations import ActivationStream
from sae_core.sites import Site, Stream

SITES = (Site(0), Site(2, Stream.MLP_OUT))


def make_stream(model, *, sites=SITES, budget=2**16) -> ActivationStream:
    """40 contexts of 12 tokens, the first and some later ones BOS; 21 contexts and 3 batches to a block.

    No two contexts begin alike, so that no activation occurs twice.
    """
    contexts = random_tokens(model.n_vocab, 40, 12)
    contexts[:, 1] = torch.arange(2, 42)
    contexts[:, 0] = model.bos_id
    contexts[::3, 6] = model.bos_id
    return ActivationStream(model, contexts, sites, seed=3, batch=64, budget=budget)


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
