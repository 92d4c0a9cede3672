"""What a removal is tried and judged on: runs recorded once, to be run again with edits from the edited layer up.

Logits are never kept: those of prompts are read at one position, those of text for `LOGITS_AT_ONCE` at a time,
clean and edited ones side by side, so that memory does not grow with vocabulary times text; nor are the codes of
text, which are made for `CODES_AT_ONCE` at a time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from editing.engine.batching import budget_on, measure_rows_that_fit
from editing.engine.resumed_run import ResumedRun, adds_to_residual
from editing.engine.suffix_run import SuffixRun, suffix_run
from editing.interventions.compose import unscaled
from editing.interventions.edit_size import MeasuredEdit
from editing.interventions.patch import FeaturePatch
from editing.loss_recovered import LOGITS_AT_ONCE
from editing.metrics import estimate_from, kl_from_log_probs, resampled
from editing.removal.two_class_prompts import Contrast
from sae_core.errors import UserError
from sae_core.estimate import Estimate
from sae_core.model.language_model import Intervention, LanguageModel
from sae_core.sites import Site, Stream

NOT_DUE = 0.01
"""Text counts where the model gives the task's tokens less than this probability together."""
CODES_AT_ONCE = 2**24
"""Latent activations that are in memory at one time, in each of the few tensors that hold them."""
REMOVABLE = (Stream.RESID_POST, Stream.MLP_OUT)
"""Streams at which features are chosen: what changes there changes the residual after the block by as much."""


class Edited(NamedTuple):
    """An edited run."""

    final: Float[Tensor, "batch pos d_model"]
    """The residual after the last block."""
    at: dict[Site, Tensor]
    """The activations at the edited sites, after the edits."""
    sizes: tuple[float, ...]
    """Mean |x' - x| over the masked tokens, edit by edit."""


class Runs:
    """Tokens run once. A single edit of a stream that adds to the residual starts at its layer, others from below."""

    def __init__(self, model: LanguageModel, tokens: Int[Tensor, "batch pos"], mask: Bool[Tensor, "batch pos"]):
        self.model, self.tokens, self.mask = model, tokens, mask.to(model.device)
        self._at: dict[Site, tuple[Tensor, Tensor]] = {}
        self._changed: tuple[Intervention, Tensor] | None = None

    def at(self, site: Site) -> tuple[Float[Tensor, "batch pos d_in"], Float[Tensor, "batch pos d_model"]]:
        """The activation at `site`, and the residual after its block; those of the last site asked for are kept."""
        if site not in self._at:
            recorded = self.model.record(self.tokens, {site, Site(site.layer)})
            self._at = {site: (recorded[site], recorded[Site(site.layer)])}
        return self._at[site]

    def change(self, edit: Intervention) -> Float[Tensor, "batch pos d_in"]:
        """What an edit adds to the activation of the unedited run; kept for the same edit at another strength."""
        edit, strength = unscaled(edit)
        if self._changed is None or self._changed[0] is not edit:
            x, _ = self.at(edit.site)
            self._changed = edit, changes(edit, x, self.mask)
        return strength * self._changed[1]

    def edited(self, edits: Sequence[Intervention]) -> Edited:
        """The run with `edits`."""
        if len(edits) == 1 and adds_to_residual(self.model, edits[0].site):
            return self.moved(edits[0].site, self.change(edits[0]))
        last, parts = Site(self.model.n_layers - 1), []
        moved: list[list[Tensor]] = [[] for _ in edits]
        rows = min(rows_of_codes(edit, self.mask) for edit in edits)
        for tokens, mask in zip(self.tokens.split(rows), self.mask.split(rows), strict=True):
            watched = [MeasuredEdit(replace(edit, mask=mask)) for edit in edits]
            with self.model.hooks(*watched):
                parts.append(self.model.record(tokens, {last, *(edit.site for edit in edits)}))
            for own, one in zip(moved, watched, strict=True):
                own += one.moved
        at = {site: torch.cat([part[site] for part in parts]) for site in parts[0]}
        return Edited(at[last], at, tuple(self.size(torch.cat(own)) for own in moved))

    def moved(self, site: Site, change: Float[Tensor, "batch pos d"]) -> Edited:
        """The run whose activation at `site`, of a stream that adds to the residual, is changed."""
        x, residual = self.at(site)
        final = self.model.final(residual + change, site.layer)
        return Edited(final, {site: x + change}, (self.size(change.norm(dim=-1)),))

    def size(self, distance: Float[Tensor, "batch pos"]) -> float:
        """Mean over the masked tokens."""
        return distance[self.mask].mean().item()


def changes(
    edit: Intervention, x: Float[Tensor, "batch pos d_in"], mask: Bool[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos d_in"]:
    """edit(x) - x where `mask` is set, some rows at a time: an edit of features makes all their codes."""
    rows = rows_of_codes(edit, mask)
    parts = zip(x.split(rows), mask.split(rows), strict=True)
    return torch.cat([replace(edit, mask=some)(part) - part for part, some in parts])


def rows_of_codes(edit: Intervention, mask: Bool[Tensor, "batch pos"]) -> int:
    """How many rows an edit may take at a time, by `CODES_AT_ONCE`."""
    inner, _ = unscaled(edit)
    width = len(inner.dictionary.directions) if isinstance(inner, FeaturePatch) else 1
    return max(1, CODES_AT_ONCE // (mask.shape[1] * width))


@dataclass(frozen=True)
class Harm:
    """What an edit does to text, nats per token; intervals are of a bootstrap over contexts."""

    kl: Estimate
    """Mean KL(unedited || edited)."""
    rise: Estimate
    """Mean rise of the cross-entropy of the next token."""
    edit_size: float
    """Added up over the edits."""
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
        final = model.record(tokens, [last])[last]
        likely = torch.zeros_like(content)
        parts = [model.unembed(rows).softmax(-1)[:, list(due)].sum(-1) for rows in self._few(final[content])]
        likely[content] = torch.cat(parts) >= NOT_DUE
        self.counted = content & ~likely
        if not self.counted.any():
            raise UserError(
                "the model expects the task's tokens everywhere in this text; damage cannot be measured on it"
            )
        self.final = final[self.counted]
        fits = len(self.final) * model.n_vocab <= LOGITS_AT_ONCE
        self._log_probs = model.unembed(self.final).log_softmax(-1) if fits else None
        """The unedited model's, where they are few enough to keep."""
        following = torch.zeros_like(content)
        following[:, :-1] = content[:, 1:]
        self._next = tokens.roll(-1, 1).to(model.device)[self.counted]
        self._asked = following[self.counted]
        self._context = self.counted.nonzero()[:, 0].cpu()

    def harm(self, edits: Sequence[Intervention], seed: int) -> Harm:
        """What `edits` do here."""
        edited = self.runs.edited(edits)
        kl, rise = self._per_token(edited.final)
        n = len(self.tokens)
        sums = torch.zeros(4, n, dtype=torch.float64)
        for row, values in zip(sums, (kl, torch.ones_like(kl), rise, self._asked.double().cpu()), strict=True):
            row.index_add_(0, self._context, values)
        totals = sums.sum(1).tolist()
        drawn = sums @ resampled(torch.arange(n), seed).T
        mean_kl = estimate_from(totals[0] / totals[1], drawn[0] / drawn[1].clamp_min(1e-12))
        mean_rise = estimate_from(totals[2] / max(totals[3], 1.0), drawn[2] / drawn[3].clamp_min(1e-12))
        contexts, counts = (tuple(row.tolist()) for row in sums[:2])
        return Harm(mean_kl, mean_rise, sum(edited.sizes), contexts, counts)

    def kl(self, edits: Sequence[Intervention]) -> float:
        """Mean KL(unedited || edited) per counted token."""
        return self._per_token(self.runs.edited(edits).final)[0].mean().item()

    def kl_moved(self, site: Site, change: Float[Tensor, "contexts pos d"]) -> float:
        """The same where the activation at `site` is changed (`Runs.moved`)."""
        return self._per_token(self.runs.moved(site, change).final)[0].mean().item()

    def _per_token(self, final: Float[Tensor, "contexts pos d"]) -> tuple[Tensor, Tensor]:
        """KL and rise of the cross-entropy (zero where the next token is not asked for) of every counted token."""
        kl, rise, done = [], [], 0
        for rows in self._few(final[self.counted]):
            part = slice(done, done := done + len(rows))
            edited, clean = self.model.unembed(rows).log_softmax(-1), self._clean(part)
            kl.append(kl_from_log_probs(clean, edited))
            rise.append((clean - edited).gather(-1, self._next[part, None])[:, 0])
        return torch.cat(kl).double().cpu(), (torch.cat(rise) * self._asked).double().cpu()

    def _clean(self, part: slice) -> Tensor:
        if self._log_probs is None:
            return self.model.unembed(self.final[part]).log_softmax(-1)
        return self._log_probs[part]

    def _few(self, rows: Tensor) -> tuple[Tensor, ...]:
        """As many rows at a time as `LOGITS_AT_ONCE` allows, both sides of a comparison counted."""
        return rows.split(max(1, LOGITS_AT_ONCE // (2 * self.model.n_vocab)))


@dataclass(frozen=True, eq=False)
class Ground:
    """Prompts recorded once at a site; any change of its activation run from there upward, many at a time."""

    resumed: ResumedRun
    suffix: SuffixRun | None
    """The shorter way up, where there is one."""
    site: Site
    prompts: Contrast
    """The prompts of `resumed`, or the first of them."""
    x: Float[Tensor, "batch pos d"]
    mask: Bool[Tensor, "batch pos"]
    """The positions that are edited: content tokens up to each prompt's end."""
    at_once: int
    """Prompts that fit into memory together, measured once."""

    @classmethod
    @torch.no_grad()
    def of(cls, model: LanguageModel, site: Site, prompts: Contrast) -> "Ground":
        """The prompts at `site`; raises `UserError` for a stream that does not add to the residual."""
        if site.stream not in REMOVABLE:
            raise UserError(f"removal at {site} is not supported; give a resid_post or mlp_out site")
        resumed = ResumedRun(model, prompts.tokens, prompts.end, site.layer, [site])
        suffix = suffix_run(model, resumed.tokens, resumed.end, site.layer)
        ground = cls(resumed, suffix, site, prompts, resumed.recorded[site], up_to_end(model, prompts), at_once=1)

        def run(rows: int) -> Tensor:
            which = torch.arange(rows, device=ground.x.device) % len(prompts)
            return ground._scores(which, torch.ones_like(ground.x[which]))

        return replace(ground, at_once=measure_rows_that_fit(run, budget_on(ground.x.device)))

    @torch.no_grad()
    def on(self, prompts: Contrast) -> "Ground":
        """Other prompts at the same site, about as long, so that as many fit into memory."""
        model = self.resumed.model
        resumed = ResumedRun(model, prompts.tokens, prompts.end, self.site.layer, [self.site])
        mask = up_to_end(model, prompts)
        return replace(self, resumed=resumed, suffix=None, prompts=prompts, x=resumed.recorded[self.site], mask=mask)

    def first(self, n: int) -> "Ground":
        """The same ground with the first `n` prompts only."""
        return replace(self, prompts=self.prompts.first(n), x=self.x[:n], mask=self.mask[:n])

    def change(self, edit: Intervention) -> Float[Tensor, "batch pos d_in"]:
        """What an edit of this site adds to the activation."""
        return changes(edit, self.x, self.mask)

    def read(
        self, which: Int[Tensor, "rows"], change: Callable[[slice], Float[Tensor, "some pos d"]]
    ) -> Float[Tensor, "rows"]:
        """logit(yes) - logit(no) at the ends of some prompts, in any order and repeated, under a change of each.

        `change` makes those of a part of the rows, as many as fit into one pass.
        """
        parts = [slice(start, start + self.at_once) for start in range(0, len(which), self.at_once)]
        found = [self._scores(which[part], change(part)) for part in parts]
        return torch.cat(found) if found else self.x.new_zeros(0)

    def scores(self, change: Float[Tensor, "trials batch pos d"]) -> Float[Tensor, "trials batch"]:
        """The same of every prompt under every change."""
        rows = change.flatten(0, 1)
        return self.read(self._everyone.repeat(len(change)), lambda part: rows[part]).unflatten(0, change.shape[:2])

    def scores_at(
        self, strengths: Float[Tensor, "trials"], change: Float[Tensor, "batch pos d"]
    ) -> Float[Tensor, "trials batch"]:
        """The same of every prompt under one change at several strengths."""
        which = self._everyone.repeat(len(strengths))
        factor = strengths.to(change).repeat_interleave(len(change))[:, None, None]
        return self.read(which, lambda part: factor[part] * change[which[part]]).unflatten(0, (-1, len(change)))

    def gradient(self, weights: Float[Tensor, "batch"]) -> Float[Tensor, "batch pos d"]:
        """The gradient of sum_b weights_b (logit(yes) - logit(no))_b by the activation."""

        def of(which: Tensor) -> Tensor:
            with torch.enable_grad():
                change = torch.zeros_like(self.x[which]).requires_grad_()
                total = (self._scores(which, change) * weights[which]).sum()
            return torch.autograd.grad(total, change)[0]

        budget = budget_on(self.x.device)
        at_once = measure_rows_that_fit(lambda n: of(self._everyone[:n]), budget)  # a graph takes more than a pass
        return torch.cat([of(which) for which in self._everyone.split(at_once)])

    def _scores(self, which: Int[Tensor, "rows"], change: Float[Tensor, "rows pos d"]) -> Float[Tensor, "rows"]:
        way = self.resumed.logits_changed if self.suffix is None else self.suffix.logits
        return self.prompts.rows(which.cpu()).score(way(which, change))

    @property
    def _everyone(self) -> Int[Tensor, "batch"]:
        return torch.arange(len(self.prompts), device=self.x.device)


def up_to_end(model: LanguageModel, prompts: Contrast) -> Bool[Tensor, "batch pos"]:
    """The content tokens of each prompt, its last one included."""
    mask = model.content(prompts.tokens) & (torch.arange(prompts.tokens.shape[1]) <= prompts.end[:, None])
    return mask.to(model.device)
