"""Contexts that are read once without edits, and again with each of several: what that costs the prediction.

Blocks up to a residual site, or below another, run once for all edits, and logits are there for a few tokens at a time.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from editing.interventions.masks import Mask, where_inlier
from editing.metrics import kl_from_log_probs
from sae_core.model.language_model import Intervention, LanguageModel
from sae_core.sites import Site, Stream

LOGITS_AT_ONCE = 2**24
"""Logits in memory at a time, in each of the few tensors that hold them."""


@dataclass(frozen=True, eq=False)
class Constant:
    """One vector in place of every activation, where a splice would write, too: outliers are left alone."""

    site: Site
    value: Tensor
    mask: Mask
    outlier_norm: float

    def __call__(self, h: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_in"]:
        return where_inlier(self, self.mask, self.value.expand_as(h), h)


class EditedContexts:
    """Contexts that have been read once, to be read again with edits."""

    def __init__(self, model: LanguageModel, tokens: Int[Tensor, "batch pos"], sites: Iterable[Site]):
        self.model, self.tokens, self.last = model, tokens, Site(model.n_layers - 1)
        self.mask = model.content(tokens[:, :-1]).to(model.device)
        self.scored = model.content(tokens[:, 1:]).to(model.device)
        """Positions whose next token is scored."""
        known = {site for each in sites if (site := _known_at(each)) is not None}
        self.h = model.record(tokens[:, :-1], {*known, self.last})

    @cached_property
    def original(self) -> Float[Tensor, "1 tokens"]:
        """-log p of every scored token without edit, in float64."""
        return self._costs(self.h[self.last][self.scored][None])

    def costs(self, edits: Sequence[Intervention]) -> Float[Tensor, "edits tokens"]:
        """-log p of every scored token with each edit, in float64."""
        return self._costs(torch.stack([self._final(edit) for edit in edits]))

    def _costs(self, finals: Float[Tensor, "runs tokens d_model"]) -> Float[Tensor, "runs tokens"]:
        return torch.cat([nll for _, nll in self._read(finals)], -1).double().cpu()

    def _read(self, finals: Float[Tensor, "runs tokens d_model"]) -> Iterator[tuple[Tensor, Tensor]]:
        """(Log probabilities, -log p of the next token) for a few of the scored tokens at a time, of every run."""
        targets = self.tokens[:, 1:].to(self.model.device)[self.scored]
        few = max(1, LOGITS_AT_ONCE // (self.model.n_vocab * len(finals)))
        for rows, wanted in zip(finals.split(few, dim=1), targets.split(few), strict=True):
            log_probs = self.model.unembed(rows).log_softmax(-1)
            yield log_probs, -log_probs.gather(-1, wanted.expand(len(rows), -1)[..., None])[..., 0]

    def constant(self, site: Site, limit: float, value: Tensor | None = None) -> Constant:
        """The edit that writes `value`, by default zero, at every content position with a norm up to `limit`."""
        value = torch.zeros(self.model.d_in(site)) if value is None else value
        return Constant(site, value.float().to(self.model.device), self.mask, limit)

    def losses(
        self, edits: Sequence[Intervention]
    ) -> tuple[Float[Tensor, "edits_and_none tokens"], Float[Tensor, "edits tokens"]]:
        """-log p of every scored token without edit and with each, and KL(without || with each); in float64."""
        finals = torch.stack([self.h[self.last][self.scored], *(self._final(edit) for edit in edits)])
        nll, kl = [], []
        for log_probs, costs in self._read(finals):
            nll.append(costs)
            kl.append(kl_from_log_probs(log_probs[:1], log_probs[1:]))
        return torch.cat(nll, -1).double().cpu(), torch.cat(kl, -1).double().cpu()

    def _final(self, edit: Intervention) -> Float[Tensor, "tokens d_model"]:
        """The last residual, at the positions before the scored tokens, under one edit."""
        known = _known_at(edit.site)
        if known is not None and known == edit.site:
            return self.model.final(edit(self.h[known]), known.layer)[self.scored]
        with self.model.hooks(edit):
            if known is None:
                final = self.model.record(self.tokens[:, :-1], [self.last])[self.last]
            else:
                final = self.model.final(self.h[known], known.layer)
        return final[self.scored]


def _known_at(site: Site) -> Site | None:
    """The residual from which a run with an edit at `site` goes on; None for one from the beginning."""
    if site.stream is Stream.RESID_POST:
        return site
    return Site(site.layer - 1) if site.layer else None
