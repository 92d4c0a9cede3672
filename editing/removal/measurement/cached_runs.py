"""Runs recorded once, to be run again with edits from the edited layer up: of any tokens, and of two-class prompts.

Memory does not grow with vocabulary times text, nor with latents times text: logits of prompts are read at one
position, and latent activations are made for some rows at a time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from editing.engine.batching import budget_on, measure_rows_that_fit
from editing.engine.resumed_run import ResumedRun, adds_to_residual
from editing.engine.suffix_run import SuffixRun, suffix_run
from editing.interventions.compose import unscaled
from editing.interventions.edit_size import MeasuredEdit
from editing.interventions.masks import with_mask
from editing.interventions.patch import FeaturePatch
from editing.removal.prompts.class_scores import scores_of
from editing.removal.prompts.two_class_prompts import TwoClassPrompts
from sae_core.errors import UserError
from sae_core.model.language_model import Intervention, LanguageModel
from sae_core.sites import Site, Stream

CODES_AT_ONCE = 2**24
"""Latent activations in memory at one time, in each of the few tensors that hold them."""
REMOVABLE = (Stream.RESID_POST, Stream.MLP_OUT)
"""Streams at which features are chosen: a change there changes the residual after the block by as much."""


class Recorded(NamedTuple):
    """The unedited run at one site."""

    x: Float[Tensor, "batch pos d_in"]
    """The activation there."""
    after: Float[Tensor, "batch pos d_model"]
    """The residual after its block."""
    final: Float[Tensor, "batch pos d_model"]
    """The residual after the last block."""


class EditedRun(NamedTuple):
    """What an edited run leaves."""

    final: Float[Tensor, "batch pos d_model"]
    """The residual after the last block."""
    at: dict[Site, Tensor]
    """The activations at the edited sites, after the edits."""
    sizes: tuple[float, ...]
    """Mean |x' - x| over the masked tokens, edit by edit."""
    share_changed: float
    """Of the masked tokens, those at which any of the edits changes the activation."""


class TokenRuns:
    """Tokens run with edits at the masked positions.

    A single edit of a stream that adds to the residual (`adds_to_residual`) resumes from the recorded run at its
    layer; other edits run from the embedding.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokens: Int[Tensor, "batch pos"],
        mask: Bool[Tensor, "batch pos"],
        *,
        codes_at_once: int = CODES_AT_ONCE,
    ):
        self.model, self.tokens, self.mask, self.codes_at_once = model, tokens, mask.to(model.device), codes_at_once
        self._recorded: dict[Site, Recorded] = {}
        self._last_change: tuple[Intervention, Tensor] | None = None

    def at(self, site: Site) -> "Recorded":
        """The unedited run at `site`; only that of the latest site is kept."""
        if site not in self._recorded:
            after, last = Site(site.layer), Site(self.model.n_layers - 1)
            recorded = self.model.record(self.tokens, {site, after, last})
            self._recorded = {site: Recorded(recorded[site], recorded[after], recorded[last])}
        return self._recorded[site]

    def change(self, edit: Intervention) -> Float[Tensor, "batch pos d_in"]:
        """What an edit adds to the activation of the unedited run; kept for the same edit at another strength."""
        edit, strength = unscaled(edit)
        if self._last_change is None or self._last_change[0] is not edit:
            self._last_change = edit, changes(edit, self.at(edit.site).x, self.mask, self.codes_at_once)
        return strength * self._last_change[1]

    def edited(self, edits: Sequence[Intervention]) -> EditedRun:
        """The run with `edits`."""
        if len(edits) == 1 and adds_to_residual(self.model, edits[0].site):
            return self.changed(edits[0].site, self.change(edits[0]))
        last, recorded = Site(self.model.n_layers - 1), []
        distances: list[list[Tensor]] = [[] for _ in edits]
        rows = min(_rows_of_codes(edit, self.mask, self.codes_at_once) for edit in edits)
        for tokens, mask in zip(self.tokens.split(rows), self.mask.split(rows), strict=True):
            measured = [MeasuredEdit(with_mask(edit, mask)) for edit in edits]
            with self.model.hooks(*measured):
                recorded.append(self.model.record(tokens, {last, *(edit.site for edit in edits)}))
            for parts, edit in zip(distances, measured, strict=True):
                parts += edit.moved
        at = {site: torch.cat([part[site] for part in recorded]) for site in recorded[0]}
        return EditedRun(at[last], at, *self._sizes([torch.cat(parts) for parts in distances]))

    def changed(self, site: Site, change: Float[Tensor, "batch pos d"]) -> EditedRun:
        """The run in which `change` is added to the activation at `site`, of a stream that adds to the residual.

        Rows that nothing changes are not run again.
        """
        run = self.at(site)
        # nothing between the site and the end of its block reads the activation: the residual changes by as much
        rows = change.ne(0).flatten(1).any(1)
        final = run.final.clone()
        if rows.any():
            final[rows] = self.model.final((run.after + change)[rows], site.layer)
        return EditedRun(final, {site: run.x + change}, *self._sizes([change.norm(dim=-1)]))

    def size(self, distance: Float[Tensor, "batch pos"]) -> float:
        """Mean over the masked tokens."""
        return distance[self.mask].mean().item()

    def _sizes(self, distances: Sequence[Float[Tensor, "batch pos"]]) -> tuple[tuple[float, ...], float]:
        """The mean distance over the masked tokens, edit by edit, and the share of them at which there is one."""
        changed = torch.stack([*distances]).gt(0).any(0)
        return tuple(map(self.size, distances)), changed[self.mask].double().mean().item()


def changes(
    edit: Intervention,
    x: Float[Tensor, "batch pos d_in"],
    mask: Bool[Tensor, "batch pos"],
    codes_at_once: int = CODES_AT_ONCE,
) -> Float[Tensor, "batch pos d_in"]:
    """edit(x) - x where `mask` is set, some rows at a time: an edit of features encodes all latents."""
    rows = _rows_of_codes(edit, mask, codes_at_once)
    parts = zip(x.split(rows), mask.split(rows), strict=True)
    return torch.cat([with_mask(edit, part_mask)(part) - part for part, part_mask in parts])


def _rows_of_codes(edit: Intervention, mask: Bool[Tensor, "batch pos"], codes_at_once: int) -> int:
    """How many rows an edit may take at a time."""
    inner, _ = unscaled(edit)
    width = len(inner.dictionary.directions) if isinstance(inner, FeaturePatch) else 1
    return max(1, codes_at_once // (mask.shape[1] * width))


@dataclass(frozen=True, eq=False)
class PromptRuns:
    """Prompts recorded once at one site, and their scores under any change of its activation, many at a time.

    Scores are logit(yes) - logit(no) at the prompts' ends. Changes have the shape of the activation, [pos, d].
    """

    resumed: ResumedRun
    suffix: SuffixRun | None
    """The run of the prompts' last positions alone, where the model allows it; the same scores for less work."""
    site: Site
    prompts: TwoClassPrompts
    """The prompts of `resumed`, or the first of them."""
    x: Float[Tensor, "batch pos d"]
    mask: Bool[Tensor, "batch pos"]
    """The positions that are edited: content tokens up to each prompt's end."""
    at_once: int
    """Prompts that fit into memory together."""
    codes_at_once: int = CODES_AT_ONCE

    @classmethod
    @torch.no_grad()
    def of(cls, model: LanguageModel, site: Site, prompts: TwoClassPrompts) -> "PromptRuns":
        """The runs at `site`; raises `UserError` for a stream that does not add to the residual."""
        if site.stream not in REMOVABLE:
            raise UserError(f"removal at {site} is not supported; give a resid_post or mlp_out site")
        resumed = ResumedRun(model, prompts.tokens, prompts.end, site.layer, [site])
        suffix = suffix_run(model, resumed.tokens, resumed.end, site.layer)
        runs = cls(resumed, suffix, site, prompts, resumed.recorded[site], up_to_end(model, prompts), at_once=1)

        def score(n_rows: int) -> Tensor:
            which = torch.arange(n_rows, device=runs.x.device) % len(prompts)
            return runs._scores(which, torch.ones_like(runs.x[which]))

        return replace(runs, at_once=measure_rows_that_fit(score, budget_on(runs.x.device)))

    @torch.no_grad()
    def on(self, prompts: TwoClassPrompts) -> "PromptRuns":
        """The runs of other prompts at the same site, about as long, so that as many fit into memory."""
        model = self.resumed.model
        resumed = ResumedRun(model, prompts.tokens, prompts.end, self.site.layer, [self.site])
        suffix, x = suffix_run(model, resumed.tokens, resumed.end, self.site.layer), resumed.recorded[self.site]
        return replace(self, resumed=resumed, suffix=suffix, prompts=prompts, x=x, mask=up_to_end(model, prompts))

    def first(self, n: int) -> "PromptRuns":
        """The runs of the first `n` prompts only."""
        return replace(self, prompts=self.prompts.first(n), x=self.x[:n], mask=self.mask[:n])

    def change(self, edit: Intervention) -> Float[Tensor, "batch pos d_in"]:
        """What an edit of this site adds to the activation."""
        return changes(edit, self.x, self.mask, self.codes_at_once)

    def scores_of_rows(
        self, which: Int[Tensor, "rows"], change: Callable[[slice], Float[Tensor, "part pos d"]]
    ) -> Float[Tensor, "rows"]:
        """The scores of the prompts `which`, in any order and repeated, each under its own change.

        `change` makes the changes of a part of the rows, as many as fit into one pass.
        """
        parts = [slice(start, start + self.at_once) for start in range(0, len(which), self.at_once)]
        scores = [self._scores(which[part], change(part)) for part in parts]
        return torch.cat(scores) if scores else self.x.new_zeros(0)

    def scores(self, change: Float[Tensor, "trials batch pos d"]) -> Float[Tensor, "trials batch"]:
        """The scores of every prompt under every change."""
        rows, which = change.flatten(0, 1), self._all_prompts.repeat(len(change))
        return self.scores_of_rows(which, lambda part: rows[part]).unflatten(0, change.shape[:2])

    def scores_at(
        self, strengths: Float[Tensor, "trials"], change: Float[Tensor, "batch pos d"]
    ) -> Float[Tensor, "trials batch"]:
        """The scores of every prompt under one change at several strengths."""
        which = self._all_prompts.repeat(len(strengths))
        factor = strengths.to(change).repeat_interleave(len(change))[:, None, None]
        scores = self.scores_of_rows(which, lambda part: factor[part] * change[which[part]])
        return scores.unflatten(0, (-1, len(change)))

    def scores_and_gradients(
        self, change: Float[Tensor, "batch pos d"]
    ) -> tuple[Float[Tensor, "batch"], Float[Tensor, "batch pos d"]]:
        """The score of every prompt under `change`, and each score's gradient by the activation there."""

        parts = (self._scores_and_gradients(which, change) for which in self._all_prompts.split(self._graphs_at_once))
        scores, gradients = zip(*parts, strict=True)
        return torch.cat(scores), torch.cat(gradients)

    def _scores_and_gradients(self, which: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            changed = change[which].detach().requires_grad_()
            scores = self._scores(which, changed)
            total = scores.sum()  # each score is of its own prompt alone: the gradient holds them all
        return scores.detach(), torch.autograd.grad(total, changed)[0]

    @cached_property
    def _graphs_at_once(self) -> int:
        """Prompts that fit into memory with their graph, which takes more than `at_once` was measured with."""

        def run(n: int) -> Tensor:
            return self._scores_and_gradients(self._all_prompts[:n], torch.zeros_like(self.x))[1]

        return measure_rows_that_fit(run, budget_on(self.x.device))

    def _scores(self, which: Int[Tensor, "rows"], change: Float[Tensor, "rows pos d"]) -> Float[Tensor, "rows"]:
        logits = self.resumed.logits_changed if self.suffix is None else self.suffix.logits
        return scores_of(self.prompts.rows(which.cpu()), logits(which, change))

    @property
    def _all_prompts(self) -> Int[Tensor, "batch"]:
        return torch.arange(len(self.prompts), device=self.x.device)


def ablated_latents(edit: Intervention) -> list[int]:
    """The latents that an edit ablates; none where it is another kind of edit."""
    inner, _ = unscaled(edit)
    return inner.latents.tolist() if isinstance(inner, FeaturePatch) else []


def up_to_end(model: LanguageModel, prompts: TwoClassPrompts) -> Bool[Tensor, "batch pos"]:
    """The content tokens of each prompt, its last one included."""
    mask = model.content(prompts.tokens) & (torch.arange(prompts.tokens.shape[1]) <= prompts.end[:, None])
    return mask.to(model.device)
