"""Training on what the language model makes of a reconstruction: KL beside reconstruction and sparsity.

Predictions need whole contexts, so that here a batch is some contexts with all their tokens, not a mixture.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_core.errors import UserError
from sae_core.model.language_model import LanguageModel
from sae_core.outliers import NO_LIMITS, Limits, inliers_everywhere
from sae_core.seeds import generator_for
from sae_core.sites import Site, Stream


@dataclass(frozen=True, eq=False)
class ContextBatch(Mapping[Site, Tensor]):
    """Activations `[tokens, d_in]` of the content tokens of some contexts, by site, with those contexts."""

    model: LanguageModel
    contexts: Int[Tensor, "contexts pos"]
    content: Bool[Tensor, "contexts pos"]
    """Which tokens are neither BOS nor special nor outliers, on the model's device."""
    activations: dict[Site, Tensor]
    residuals: dict[Site, Tensor]
    """Of residual sites only, `[contexts, pos, d_model]` of all tokens: what runs from there go on from."""

    def __getitem__(self, site: Site) -> Float[Tensor, "tokens d_in"]:
        return self.activations[site]

    def __iter__(self) -> Iterator[Site]:
        return iter(self.activations)

    def __len__(self) -> int:
        return len(self.activations)

    @cached_property
    def log_probs(self) -> Float[Tensor, "tokens vocab"]:
        """The model's own predictions at the content tokens; run once, however many dictionaries need them."""
        with torch.no_grad():
            return self.model.logits(self.contexts)[self.content].log_softmax(-1)


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

    def block(self, block: int, limits: Limits = NO_LIMITS, steps: int | None = None) -> Iterator[ContextBatch]:
        """The batches of one epoch; outliers of any site are left as they are, like special tokens."""
        at_once = max(1, self.batch // self.contexts.shape[1])
        order = torch.randperm(len(self.contexts), generator=generator_for(self.seed, "epoch", block))
        for rows in order.split(at_once):
            if len(rows) < at_once and at_once <= len(order):
                return
            contexts = self.contexts[rows]
            content = self.model.content(contexts).to(self.model.device)
            with torch.no_grad():
                recorded = self.model.record(contexts, self.sites)
            if (kept := inliers_everywhere(recorded, limits)) is not None:
                content = content & kept
            activations = {site: h[content] for site, h in recorded.items()}
            residuals = {site: h for site, h in recorded.items() if site.stream is Stream.RESID_POST}
            yield ContextBatch(self.model, contexts, content, activations, residuals)


@dataclass(frozen=True, eq=False)
class Divergence:
    """KL(p || q) = sum_v p_v (log p_v - log q_v), mean over content tokens, in nats per token.

    p is the model's prediction, q its prediction with x_hat in the place of the activation at a site.
    """

    model: LanguageModel

    def __call__(
        self, site: Site, x_hat: Float[Tensor, "tokens d_in"], batch: Mapping[Site, Tensor]
    ) -> Float[Tensor, ""]:
        """Differentiable in `x_hat`; raises `UserError` for a batch without contexts."""
        if not isinstance(batch, ContextBatch):
            raise UserError("the KL divergence needs whole contexts: train on a ContextStream")
        replace = _Replace(site, x_hat, batch.content)
        if site.stream is Stream.RESID_POST:  # blocks up to the site need not run again
            final = self.model.final(replace(batch.residuals[site]), site.layer)
        else:
            last = self.model.sites()[-1]
            with self.model.hooks(replace):
                final = self.model.record(batch.contexts, [last])[last]
        p, q = batch.log_probs, self.model.unembed(final[batch.content]).log_softmax(-1)
        return (p.exp() * (p - q)).sum(-1).mean()


@dataclass(frozen=True, eq=False)
class _Replace:
    """Reconstructions in the place of the activations of content tokens."""

    site: Site
    x_hat: Tensor
    content: Tensor

    def __call__(self, h: Tensor) -> Tensor:
        return h.index_put(self.content.nonzero(as_tuple=True), self.x_hat.to(h.dtype))
