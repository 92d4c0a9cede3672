"""Training on what the language model makes of a reconstruction: KL beside reconstruction and sparsity.

Predictions need whole contexts, so that here a batch is some contexts with all their tokens, not a mixture.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_core.errors import UserError
from sae_core.model.language_model import LanguageModel
from sae_core.seeds import generator_for
from sae_core.sites import Site, Stream


class ContextBatch(dict[Site, Tensor]):
    """Activations `[tokens, d_in]` of the content tokens of some contexts, by site, with those contexts."""

    contexts: Tensor
    residuals: dict[int, Tensor]
    """The residual `[contexts, pos, d_model]` after each block whose `resid_post` is a site."""
    log_probs: Tensor | None = None
    """The untouched model's, of content tokens, once somebody has asked."""


@dataclass(frozen=True, eq=False)
class ContextStream:
    """Endless batches of whole contexts; a block is one epoch, in an order that depends on its number only.

    A batch holds as many contexts as have `batch` tokens, at least one; their content tokens are a few less.
    """

    model: LanguageModel
    contexts: Int[Tensor, "contexts pos"]
    sites: tuple[Site, ...]
    seed: int
    batch: int

    def block(self, block: int) -> Iterator[ContextBatch]:
        """The batches of one epoch."""
        at_once = max(1, self.batch // self.contexts.shape[1])
        order = torch.randperm(len(self.contexts), generator=generator_for(self.seed, "epoch", block))
        for rows in order.split(at_once):
            if len(rows) < at_once and at_once <= len(order):
                return
            contexts = self.contexts[rows]
            content = self.model.content(contexts).to(self.model.device)
            with torch.no_grad():
                recorded = self.model.record(contexts, self.sites)
            batch = ContextBatch({site: h[content] for site, h in recorded.items()})
            batch.contexts = contexts
            batch.residuals = {s.layer: h for s, h in recorded.items() if s.stream is Stream.RESID_POST}
            yield batch


@dataclass(frozen=True, eq=False)
class Divergence:
    """KL(model || model with x_hat at a site), averaged over content tokens, in nats per token."""

    model: LanguageModel

    def __call__(self, site: Site, x_hat: Float[Tensor, "tokens d_in"], batch: dict[Site, Tensor]) -> Float[Tensor, ""]:
        """Differentiable in `x_hat`; raises `UserError` for a batch without contexts."""
        if not isinstance(batch, ContextBatch):
            raise UserError("the KL divergence needs whole contexts: train on a ContextStream")
        content = self.model.content(batch.contexts).to(self.model.device)
        put = _Put(site, x_hat, content)
        if batch.log_probs is None:
            with torch.no_grad():
                batch.log_probs = self.model.logits(batch.contexts)[content].log_softmax(-1)
        if site.stream is Stream.RESID_POST:  # blocks up to the site need not run again
            final = self.model.final(put(batch.residuals[site.layer]), site.layer)
        else:
            last = self.model.sites()[-1]
            with self.model.hooks(put):
                final = self.model.record(batch.contexts, [last])[last]
        wanted, found = batch.log_probs, self.model.unembed(final[content]).log_softmax(-1)
        return (wanted.exp() * (wanted - found)).sum(-1).mean()


@dataclass(frozen=True, eq=False)
class _Put:
    """Reconstructions in the place of the activations of content tokens."""

    site: Site
    x_hat: Tensor
    content: Tensor

    def __call__(self, h: Tensor) -> Tensor:
        return h.index_put(self.content.nonzero(as_tuple=True), self.x_hat.to(h.dtype))
