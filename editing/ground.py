"""What a removal is tried and judged on: runs recorded once, to be run again with edits from the edited layer up.

Logits are never kept: those of prompts are read at one position, those of text for `LOGITS_AT_ONCE` at a time,
clean and edited ones side by side, so that memory does not grow with vocabulary times text.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from editing.contrast import Contrast
from editing.metrics import interval, resampled
from editing.sizes import Measured
from editing.splice import LOGITS_AT_ONCE
from editing.tasks.pairs import at_end
from editing.tradeoff import stacked_logits
from sae_core.errors import UserError
from sae_core.models import Intervention, LanguageModel
from sae_core.sites import Site, Stream

NOT_DUE = 0.01
"""Text counts where the model gives the task's tokens less than this probability together."""


class Runs:
    """Tokens run once. A single edit of a stream that adds to the residual starts at its layer, others from below."""

    def __init__(self, model: LanguageModel, tokens: Int[Tensor, "batch pos"], mask: Bool[Tensor, "batch pos"]):
        self.model, self.tokens, self.mask = model, tokens, mask.to(model.device)
        self._at: dict[Site, tuple[Tensor, Tensor]] = {}

    def at(self, site: Site) -> tuple[Float[Tensor, "batch pos d_in"], Float[Tensor, "batch pos d_model"]]:
        """The activation at `site`, and the residual after its block; those of the last site asked for are kept."""
        if site not in self._at:
            recorded = self.model.record(self.tokens, {site, Site(site.layer)})
            self._at = {site: (recorded[site], recorded[Site(site.layer)])}
        return self._at[site]

    def edited(
        self, edits: Sequence[Intervention]
    ) -> tuple[Float[Tensor, "batch pos d_model"], dict[Site, Tensor], float]:
        """The last residual, the activations at the edited sites, and the mean |x' - x| over the masked tokens.

        With several edits the sizes of all are added up.
        """
        masked = [replace(edit, mask=self.mask) for edit in edits]
        if len(masked) == 1 and masked[0].site.stream in (Stream.RESID_POST, Stream.MLP_OUT):
            site = masked[0].site
            x, residual = self.at(site)
            edited = masked[0](x)
            change = edited - x
            final = self.model.final(residual + change, site.layer)
            return final, {site: edited}, change.norm(dim=-1)[self.mask].mean().item()
        last = Site(self.model.n_layers - 1)
        watched = [Measured(edit) for edit in masked]
        with self.model.hooks(*watched):
            recorded = self.model.record(self.tokens, {last, *(edit.site for edit in edits)})
        return recorded[last], recorded, sum(one.moved[-1][self.mask].mean().item() for one in watched)


@dataclass(frozen=True)
class Harm:
    """What an edit does to text, nats per token, with 95% bootstrap intervals over contexts."""

    kl: float
    kl_interval: tuple[float, float]
    """Of the mean KL(unedited || edited)."""
    rise: float
    rise_interval: tuple[float, float]
    """Of the rise of the cross-entropy of the next token."""
    edit_size: float
    contexts: tuple[float, ...]
    """Sum of the KL over the counted tokens of each context."""
    counts: tuple[float, ...]
    """How many tokens of each context count."""


class Elsewhere:
    """Text away from the task: the content tokens at which the model gives the task's tokens less than 1%."""

    def __init__(self, model: LanguageModel, tokens: Int[Tensor, "contexts pos"], due: Sequence[int]):
        self.model, self.tokens = model, tokens
        content = model.content(tokens).to(model.device)
        self.runs, last = Runs(model, tokens, content), model.sites()[-1]
        self.final = model.record(tokens, [last])[last]
        likely = torch.zeros_like(content)
        likely[content] = torch.cat(
            [
                model.unembed(rows).softmax(-1)[:, list(due)].sum(-1) >= NOT_DUE
                for rows in self._few(self.final[content])
            ]
        )
        self.counted = content & ~likely
        if not self.counted.any():
            raise UserError(
                "the model expects the task's tokens everywhere in this text; damage cannot be measured on it"
            )
        following = torch.zeros_like(content)
        following[:, :-1] = content[:, 1:]
        self._next = tokens.roll(-1, 1).to(model.device)[self.counted]
        self._asked = following[self.counted]
        self._context = self.counted.nonzero()[:, 0].cpu()

    def harm(self, edits: Sequence[Intervention], seed: int) -> Harm:
        """What `edits` do here."""
        kl, rise, size = self._per_token(edits)
        n = len(self.tokens)
        sums = torch.zeros(4, n, dtype=torch.float64)
        for row, values in zip(sums, (kl, torch.ones_like(kl), rise, self._asked.double().cpu()), strict=True):
            row.index_add_(0, self._context, values)
        own = sums.sum(1).tolist()
        drawn = sums @ resampled(torch.arange(n), seed).T
        spans = [tuple(interval(drawn[i] / drawn[i + 1].clamp_min(1e-12)).tolist()) for i in (0, 2)]
        mean, risen = own[0] / own[1], own[2] / max(own[3], 1.0)
        return Harm(mean, spans[0], risen, spans[1], size, tuple(sums[0].tolist()), tuple(sums[1].tolist()))

    def kl(self, edits: Sequence[Intervention]) -> float:
        """Mean KL(unedited || edited) per counted token."""
        return self._per_token(edits)[0].mean().item()

    @property
    def n_tokens(self) -> int:
        """Tokens that count."""
        return int(self.counted.sum())

    def _per_token(self, edits: Sequence[Intervention]) -> tuple[Tensor, Tensor, float]:
        """KL and rise of the cross-entropy (zero where the next token is not asked for) of every counted token."""
        final, _, size = self.runs.edited(edits)
        pairs = torch.stack([self.final[self.counted], final[self.counted]], 1)
        kl, rise, done = [], [], 0
        for rows in self._few(pairs):
            clean, edited = self.model.unembed(rows).log_softmax(-1).unbind(1)
            targets = self._next[done : done + len(rows), None]
            kl.append((clean.exp() * (clean - edited)).sum(-1))
            rise.append((clean - edited).gather(-1, targets)[:, 0])
            done += len(rows)
        return torch.cat(kl).double().cpu(), (torch.cat(rise) * self._asked).double().cpu(), size

    def _few(self, rows: Tensor) -> tuple[Tensor, ...]:
        """As many rows at a time as `LOGITS_AT_ONCE` allows, both sides of a comparison counted."""
        return rows.split(max(1, LOGITS_AT_ONCE // (2 * self.model.n_vocab)))


class Ground:
    """Prompts recorded once at a site; any change of its activation run from there upward, many at a time."""

    def __init__(self, model: LanguageModel, site: Site, prompts: Contrast):
        if site.stream not in (Stream.RESID_POST, Stream.MLP_OUT):
            raise UserError(f"removal at {site} is not supported; give a resid_post or mlp_out site")
        self.model, self.site, self.prompts = model, site, prompts
        self.mask = up_to_end(model, prompts).to(model.device)
        self.x, self.residual = Runs(model, prompts.tokens, self.mask).at(site)

    def first(self, n: int) -> "Ground":
        """The same ground with the first `n` prompts only."""
        fewer = object.__new__(Ground)
        fewer.model, fewer.site, fewer.prompts = self.model, self.site, self.prompts.first(n)
        fewer.x, fewer.residual, fewer.mask = self.x[:n], self.residual[:n], self.mask[:n]
        return fewer

    def last_tokens(self) -> Float[Tensor, "batch d_in"]:
        """Activations at the prompts' ends, what erasers are fitted on."""
        return at_end(self.x, self.prompts.end)

    def change(self, edit: Intervention) -> Float[Tensor, "batch pos d_in"]:
        """What an edit of this site adds to the activation."""
        return replace(edit, mask=self.mask)(self.x) - self.x

    def scores(self, change: Float[Tensor, "trials batch pos d"]) -> Float[Tensor, "trials batch"]:
        """logit(yes) - logit(no) at the prompts' ends when the activation is changed."""
        return self.prompts.score(stacked_logits(self.model, self.residual, change, self.site.layer, self.prompts.end))


def up_to_end(model: LanguageModel, prompts: Contrast) -> Bool[Tensor, "batch pos"]:
    """The content tokens of each prompt, its last one included."""
    return model.content(prompts.tokens) & (torch.arange(prompts.tokens.shape[1]) <= prompts.end[:, None])
