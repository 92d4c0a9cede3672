"""How a run in which only a circuit is left goes from site to site of the kind that the circuit is made of.

Over residual sites each activation is edited, and the blocks between it and the next site are run: a state is the
activation at a site. Over what blocks write (attn_out, mlp_out) the residual carries everything else by itself: the
blocks run with an edit at each of their sites, and a state is the residual below the block of a site; below the first
block that is the tokens.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from circuits.scoring.ablations import KeepOnly
from sae_core.model.language_model import LanguageModel
from sae_core.sites import Site, Stream

WRITTEN = (Stream.ATTN_OUT, Stream.MLP_OUT)
"""What a block adds to the residual."""


@runtime_checkable
class Walk(Protocol):
    """From states of prompts to the activation that the target is read from, past the covered sites.

    `edits` are those of all sites from `entry(first)` on.
    """

    def entry(self, first: int) -> int:
        """The number of the first site that has to be edited in a run that shows what changes at site `first`."""
        ...

    def start(self, tokens: Int[Tensor, "prompts pos"]) -> Tensor:
        """The states at the first site."""
        ...

    def final(self, state: Tensor, first: int, edits: Sequence[KeepOnly]) -> Tensor:
        """The activation that the target is read from, `[rows, pos, d]`."""
        ...

    def states(self, state: Tensor, edits: Sequence[KeepOnly]) -> tuple[list[Tensor], list[Tensor]]:
        """At every site the state, and the activation before it is edited, `[rows, pos, d_in]`."""
        ...

    def traced(self, state: Tensor, edits: Sequence[KeepOnly]) -> tuple[dict[Site, Tensor], dict[Site, Tensor], Tensor]:
        """Activations before and after each edit and the final one, so that gradients reach all of them."""
        ...


class ResidualWalk:
    """Past residual sites, each after a block."""

    def __init__(self, model: LanguageModel, sites: Sequence[Site], target: Site):
        self.model, self.sites, self.target = model, sites, target

    def entry(self, first: int) -> int:
        return first

    def start(self, tokens: Int[Tensor, "prompts pos"]) -> Tensor:
        return self.model.record(tokens, [self.sites[0]])[self.sites[0]]

    def final(self, state: Tensor, first: int, edits: Sequence[KeepOnly]) -> Tensor:
        for number, edit in enumerate(edits, first):
            state = self._next(edit(state), number)
        return state

    def states(self, state: Tensor, edits: Sequence[KeepOnly]) -> tuple[list[Tensor], list[Tensor]]:
        states = [state]
        for number, edit in enumerate(edits[:-1]):
            states.append(self._next(edit(states[-1]), number))
        return states, states

    def traced(self, state: Tensor, edits: Sequence[KeepOnly]) -> tuple[dict[Site, Tensor], dict[Site, Tensor], Tensor]:
        h, before, after = state.detach().requires_grad_(torch.is_grad_enabled()), {}, {}
        for number, edit in enumerate(edits):
            before[edit.site] = h
            after[edit.site] = h = edit(h)
            h = self._next(h, number)
        return before, after, h

    def _next(self, h: Tensor, number: int) -> Tensor:
        """The activation at the next site, and after the last at the target's."""
        here = self.sites[number]
        above = self.sites[number + 1] if number + 1 < len(self.sites) else self.target
        return h if above == here else self.model.resume(h, here.layer, [above])[above]


class _Traced:
    """An edit that keeps what it is given and what it makes of it."""

    def __init__(self, edit: KeepOnly):
        self.edit, self.before, self.after = edit, torch.empty(0), torch.empty(0)

    @property
    def site(self) -> Site:
        return self.edit.site

    def __call__(self, h: Tensor) -> Tensor:
        self.before, self.after = h, self.edit(h)
        if torch.is_grad_enabled() and not self.after.requires_grad:  # the first: nothing below it needs a gradient
            self.after.requires_grad_()
        return self.after


class WrittenWalk:
    """Through blocks with an edit at what each of them writes."""

    def __init__(self, model: LanguageModel, sites: Sequence[Site], target: Site):
        self.model, self.sites, self.target = model, sites, target

    def entry(self, first: int) -> int:
        layer = self.sites[first].layer
        return next(number for number, site in enumerate(self.sites) if site.layer == layer)

    def start(self, tokens: Int[Tensor, "prompts pos"]) -> Tensor:
        return tokens if self.sites[0].layer == 0 else self._record(tokens, [_below(self.sites[0])])[0]

    def final(self, state: Tensor, first: int, edits: Sequence[KeepOnly]) -> Tensor:
        with self.model.hooks(*edits):
            return self._record(state, [self.target], self.sites[first].layer)[0]

    def states(self, state: Tensor, edits: Sequence[KeepOnly]) -> tuple[list[Tensor], list[Tensor]]:
        traced, first = [_Traced(edit) for edit in edits], self.sites[0].layer
        below = sorted({_below(site) for site in self.sites if site.layer > first})
        with self.model.hooks(*traced):
            recorded = self._record(state, [*below, self.target], first)
        states = dict(zip(below, recorded, strict=False))
        return [states.get(_below(site), state) for site in self.sites], [edit.before for edit in traced]

    def traced(self, state: Tensor, edits: Sequence[KeepOnly]) -> tuple[dict[Site, Tensor], dict[Site, Tensor], Tensor]:
        traced = [_Traced(edit) for edit in edits]
        with self.model.hooks(*traced):
            (final,) = self._record(state.detach(), [self.target], self.sites[0].layer)
        return {each.site: each.before for each in traced}, {each.site: each.after for each in traced}, final

    def _record(self, state: Tensor, sites: Sequence[Site], layer: int = 0) -> list[Tensor]:
        """Activations at `sites` from the state below block `layer` on."""
        recorded = self.model.resume(state, layer - 1, sites) if layer else self.model.record(state, sites)
        return [recorded[site] for site in sites]


def _below(site: Site) -> Site:
    """The residual that a site's block reads."""
    return Site(site.layer - 1)


def walk_of(model: LanguageModel, sites: Sequence[Site], target: Site) -> Walk:
    """The walk past residual sites, or past sites that blocks write."""
    kind = ResidualWalk if sites[0].stream is Stream.RESID_POST else WrittenWalk
    return kind(model, sites, target)
