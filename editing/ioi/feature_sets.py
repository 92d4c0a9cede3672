"""Sets of features, patched on prompts many at a time: what searches and curves are made of.

    x' = x_bar + sum_{i in F} (c_i - c_bar_i) f_i

A set F on a prompt is a tensor, and features are added to it by adding: at one site it is the change of the
activation, which the features' changes add up to; at several it says which features are in, since what a patch
above changes depends on the patches below it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from editing.engine.batching import budget_on, measure_rows_that_fit
from sae_core.sites import FeatureId


class PatchReadout(NamedTuple):
    """What is read of patched runs where the answer is due; all fields have one shape."""

    kl: Float[Tensor, "*shape"]
    """KL(clean || patched), nats."""
    logit_difference: Float[Tensor, "*shape"]
    """logit(answer) - logit(foil)."""
    probability: Float[Tensor, "*shape"]
    """Of the answer."""
    edit_size: Float[Tensor, "*shape"]
    """Mean over edited positions of |x' - x_bar|, summed over sites."""

    def each(self, change: Callable[[Tensor], Tensor]) -> "PatchReadout":
        """The same function of every field."""
        return PatchReadout(*map(change, self))

    @classmethod
    def stacked(cls, readouts: "Iterable[PatchReadout]") -> "PatchReadout":
        """Readouts of one shape along a new first dimension."""
        return cls(*map(torch.stack, zip(*readouts, strict=True)))

    @classmethod
    def joined(cls, readouts: "Iterable[PatchReadout]") -> "PatchReadout":
        """Readouts one after the other, along the first dimension."""
        return cls(*map(torch.cat, zip(*readouts, strict=True)))


SetOnPrompts = tuple[Int[Tensor, "rows"], Float[Tensor, "rows ..."]]
"""Prompts by number, and a set on each."""


class Patching(ABC):
    """The features of an experiment's dictionaries, numbered through, and what any set of them does."""

    differs: Bool[Tensor, "batch n_features"]
    """The prompts on which patching a feature can change anything; on others it is never run."""
    corrupted: PatchReadout
    """`[batch]`: with nothing patched."""
    at_once: int
    """Rows (a prompt under a set) per forward pass, by measurement; the sets that wait for the pass are counted."""

    @abstractmethod
    def feature(self, number: int) -> FeatureId:
        """The feature of that number."""

    @abstractmethod
    def empty_sets(self, n: int) -> Float[Tensor, "n ..."]:
        """`n` sets without features."""

    @abstractmethod
    def contributions(self, features: Int[Tensor, "k"], prompts: Int[Tensor, "rows"]) -> Float[Tensor, "rows ..."]:
        """What features together add to a set that has none of them, on each of `prompts`."""

    def contribution(self, feature: int, prompts: Int[Tensor, "rows"]) -> Float[Tensor, "rows ..."]:
        """What one feature adds to a set, on each of `prompts`."""
        return self.contributions(torch.tensor([feature], device=prompts.device), prompts)

    @abstractmethod
    def read(self, prompts: Int[Tensor, "rows"], sets: Float[Tensor, "rows ..."]) -> PatchReadout:
        """`[rows]`: what a set does on each of `prompts`, in one forward pass."""

    @abstractmethod
    def estimates(self) -> Float[Tensor, "batch n_features"]:
        """Estimated fall of each prompt's KL when a feature alone is patched: -(c - c_bar) dKL/dx . f at the corrupted
        run, summed over positions.

        One forward and one backward pass of every prompt.
        """

    def first_order(self) -> Float[Tensor, "n_features"]:
        """Estimated fall of the mean KL when a feature alone is patched: the mean of `estimates` over prompts."""
        return self.estimates().mean(0)

    @abstractmethod
    def activation_patched(self) -> PatchReadout:
        """`[batch]`: with the activation itself patched, which is all features and the error."""

    @torch.no_grad()
    def table(self, trials: Iterable[SetOnPrompts]) -> PatchReadout:
        """`[trials batch]`: readouts of many sets, each on its prompts; NaN on the prompts that it does not run.

        Trials are drawn from the iterable as they fit into memory, and share forward passes.
        """
        rows: list[PatchReadout] = []
        waiting: list[tuple[PatchReadout, Tensor, Tensor]] = []  # where results go, prompts, sets
        room = self.at_once
        for prompts, sets in trials:
            rows.append(self.corrupted.each(lambda x: torch.full_like(x, torch.nan)))
            while len(prompts):
                waiting.append((rows[-1], prompts[:room], sets[:room]))
                prompts, sets = prompts[room:], sets[room:]
                room -= len(waiting[-1][1])
                if not room:
                    self._run(waiting)
                    waiting, room = [], self.at_once
        if waiting:
            self._run(waiting)
        if rows:
            return PatchReadout.stacked(rows)
        return self.corrupted.each(lambda x: x.new_zeros(0, len(x)))

    def _run(self, waiting: list[tuple[PatchReadout, Tensor, Tensor]]) -> None:
        """Run what waits in one pass, and write every readout where it goes."""
        lengths = [len(prompts) for _, prompts, _ in waiting]
        readout = self.read(torch.cat([rows for _, rows, _ in waiting]), torch.cat([sets for *_, sets in waiting]))
        for field, values in enumerate(readout):
            for (target, prompts, _), part in zip(waiting, values.split(lengths), strict=True):
                target[field][prompts] = part

    @torch.no_grad()
    def _measure_rows(self) -> int:
        """The rows that fit into one pass; runs a few."""
        n_prompts, device = len(self.corrupted.kl), self.corrupted.kl.device

        def one_pass(rows: int) -> None:
            waiting = torch.ones_like(self.empty_sets(rows))  # a set of all features takes most
            self.read(torch.arange(rows, device=device) % n_prompts, torch.cat([waiting]))

        return measure_rows_that_fit(one_pass, budget_on(device))
