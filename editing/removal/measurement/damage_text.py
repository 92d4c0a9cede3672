"""What an edit does to text that is not about the task: KL(unedited || edited) per token, and the rise of the loss.

Tokens count where the unedited model gives the task's tokens together less than `TASK_PROBABILITY`. Logits are never
kept for a whole text: clean and edited ones are made side by side, `logits_at_once` at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from editing.edited_contexts import LOGITS_AT_ONCE
from editing.metrics import estimate_from, kl_from_log_probs, resampled
from editing.removal.measurement.cached_runs import CODES_AT_ONCE, TokenRuns
from sae_core.errors import UserError
from sae_core.estimate import Estimate
from sae_core.model.language_model import Intervention, LanguageModel
from sae_core.sites import Site

TEXT_SEED = 10**6
"""Added to the seed: contexts are drawn independently of prompts."""
TASK_PROBABILITY = 0.01
"""Probability of the task's tokens together from which on a token of the text does not count."""


@dataclass(frozen=True)
class Damage:
    """What an edit does to text; intervals are of a bootstrap over contexts."""

    kl: Estimate
    """Mean KL(unedited || edited), nats per token."""
    rise: Estimate
    """Mean rise of the cross-entropy of the next token, nats per token."""
    edit_size: float
    """Mean |x' - x| over the content tokens, added up over the edits."""
    resamples: tuple[float, ...] = ()
    """The mean KL in each bootstrap resample of the contexts, the same for all edits of a text and seed."""
    share_changed: float = 0.0
    """Of the content tokens, those whose activation the edits change."""


class DamageText:
    """Text on which the damage of edits is measured.

    Raises `UserError` where the model expects the task's tokens everywhere.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokens: Int[Tensor, "contexts pos"],
        task_tokens: Sequence[int],
        *,
        logits_at_once: int = LOGITS_AT_ONCE,
        codes_at_once: int = CODES_AT_ONCE,
    ):
        self.model, self.tokens, self._logits_at_once = model, tokens, logits_at_once
        content = model.content(tokens).to(model.device)
        self.runs, last = TokenRuns(model, tokens, content, codes_at_once=codes_at_once), model.sites()[-1]
        final = model.record(tokens, [last])[last]
        expected = torch.zeros_like(content)
        parts = [
            model.unembed(rows).softmax(-1)[:, list(task_tokens)].sum(-1)
            for rows in final[content].split(self._rows_at_once)
        ]
        expected[content] = torch.cat(parts) >= TASK_PROBABILITY
        self.counted = content & ~expected
        if not self.counted.any():
            raise UserError(
                "damage cannot be measured on this text: the model expects the task's tokens everywhere in it; "
                "give text about other things"
            )
        self._final = final[self.counted]
        few = len(self._final) * model.n_vocab <= logits_at_once
        self._log_probs = model.unembed(self._final).log_softmax(-1) if few else None
        """Of the unedited model, where they are few enough to keep."""
        self._next_token = tokens.roll(-1, 1).to(model.device)[self.counted]
        followed = torch.zeros_like(content)
        followed[:, :-1] = content[:, 1:]
        self._has_next = followed[self.counted]
        """Whether a content token follows, whose cross-entropy is read."""
        self._context = self.counted.nonzero()[:, 0].cpu()
        self._weights_by_seed: dict[int, Tensor] = {}

    def damage(self, edits: Sequence[Intervention], seed: int) -> Damage:
        """What `edits` do here: ratios of sums over contexts, in which the contexts are resampled."""
        edited = self.runs.edited(edits)
        kl, rise = self._per_token(edited.final)
        n = len(self.tokens)
        sums = torch.zeros(4, n, dtype=torch.float64)
        per_token = (kl, torch.ones_like(kl), rise, self._has_next.double().cpu())
        for row, values in zip(sums, per_token, strict=True):
            row.index_add_(0, self._context, values)
        totals, resamples = sums.sum(1).tolist(), sums @ self._weights(seed).T
        means = resamples[0] / resamples[1].clamp_min(1e-12)
        return Damage(
            kl=estimate_from(totals[0] / totals[1], means),
            rise=estimate_from(totals[2] / max(totals[3], 1.0), resamples[2] / resamples[3].clamp_min(1e-12)),
            edit_size=sum(edited.sizes),
            share_changed=edited.share_changed,
            resamples=tuple(means.tolist()),
        )

    def _weights(self, seed: int) -> Float[Tensor, "resamples contexts"]:
        """Of the contexts in each bootstrap resample."""
        if seed not in self._weights_by_seed:
            self._weights_by_seed[seed] = resampled(torch.arange(len(self.tokens)), TEXT_SEED + seed)
        return self._weights_by_seed[seed]

    def final_under(self, edits: Sequence[Intervention]) -> Float[Tensor, "tokens d_model"]:
        """The counted tokens' residual after the last block under `edits`."""
        return self.runs.edited(edits).final[self.counted]

    def second_order(self, finals: Sequence[Float[Tensor, "tokens d_model"]]) -> Float[Tensor, "n n"]:
        """G with KL(unedited || all edits at strengths a) = a^T G a / 2 to second order, nats per token.

            G_ij = mean over counted tokens of Cov_p(D_i, D_j),   D_i the change of the logits under edit i alone

        `finals` are what `final_under` returns of each edit alone. p is the unedited model's distribution: the Hessian
        of the KL by the logits is its covariance.
        """
        gram = torch.zeros(len(finals), len(finals), dtype=torch.float64)
        size = max(1, self._logits_at_once // (len(finals) * self.model.n_vocab))
        changed = torch.stack([self._changed(final) for final in finals]).any(0)
        for part in changed.nonzero()[:, 0].split(size):
            clean = self.model.unembed(self._final[part])
            p = clean.softmax(-1)
            changes = torch.stack([self.model.unembed(final[part]) - clean for final in finals])  # [n tokens vocab]
            centred = ((changes - (p * changes).sum(-1, keepdim=True)) * p.sqrt()).flatten(1)
            gram += (centred @ centred.T).double().cpu()
        return gram / len(self._final)

    def kl(self, edits: Sequence[Intervention]) -> float:
        """Mean KL(unedited || edited) per counted token, nats."""
        return self._per_token(self.runs.edited(edits).final)[0].mean().item()

    def kl_of_change(self, site: Site, change: Float[Tensor, "contexts pos d"]) -> float:
        """The mean KL where `change` is added to the activation at `site` (`TokenRuns.changed`)."""
        return self._per_token(self.runs.changed(site, change).final)[0].mean().item()

    def _per_token(self, final: Float[Tensor, "contexts pos d"]) -> tuple[Tensor, Tensor]:
        """KL and rise of the cross-entropy (0 where no content token follows) of every counted token."""
        final = final[self.counted]
        changed = self._changed(final).nonzero()[:, 0]
        kl, rise = torch.zeros(2, len(final), dtype=torch.float64, device=final.device)
        for rows in changed.split(self._rows_at_once):
            edited, clean = self.model.unembed(final[rows]).log_softmax(-1), self._clean(rows)
            kl[rows] = kl_from_log_probs(clean, edited).double()
            rise[rows] = (clean - edited).gather(-1, self._next_token[rows, None])[:, 0].double()
        return kl.cpu(), (rise * self._has_next).cpu()

    def _changed(self, final: Float[Tensor, "tokens d_model"]) -> Bool[Tensor, "tokens"]:
        """The counted tokens that an edit reaches at all; at the others KL and rise are zero."""
        return (final != self._final).any(-1)

    def _clean(self, part: Int[Tensor, "rows"]) -> Float[Tensor, "tokens vocab"]:
        """The unedited model's log probabilities of some counted tokens."""
        if self._log_probs is None:
            return self.model.unembed(self._final[part]).log_softmax(-1)
        return self._log_probs[part]

    @property
    def _rows_at_once(self) -> int:
        """As many as `logits_at_once` allows, both sides of a comparison counted."""
        return max(1, self._logits_at_once // (2 * self.model.n_vocab))
