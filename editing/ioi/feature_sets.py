"""Sets of features, patched on prompts many at a time: what searches and curves are made of.

    x' = x_bar + sum_{i in F} (c_i - c_bar_i) f_i

A set F on a prompt is a tensor, and features are added to it by adding: at one site it is the change of the
activation, which the features' changes add up to; at several it says which features are in, since what a patch
above changes depends on the patches below it.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_core.sites import FeatureId

KL, DIFFERENCE, PROBABILITY, SIZE = range(4)
"""The columns of a readout: KL(clean || patched) and logit difference and probability of the answer, where it is due,
and the size of the edit: the mean over edited positions of |x' - x_bar|, summed over sites."""

Trial = tuple[Int[Tensor, "_"], Tensor]
"""Prompts, and a set on each."""


class Patching(ABC):
    """The features of an experiment's dictionaries, numbered through, and what any set of them does."""

    differs: Bool[Tensor, "batch n_features"]
    """The prompts on which patching a feature can change anything; on others it is never run."""
    corrupted: Float[Tensor, "batch 4"]
    """What is read with nothing patched."""
    at_once: int
    """Rows per forward pass, by measurement; what waits for the pass is counted."""

    @abstractmethod
    def feature(self, number: int) -> FeatureId:
        """The feature of that number."""

    @abstractmethod
    def none(self) -> Float[Tensor, "batch ..."]:
        """The empty set, on every prompt."""

    @abstractmethod
    def several(self, features: Int[Tensor, "k"], prompts: Int[Tensor, "rows"]) -> Float[Tensor, "rows ..."]:
        """What is added to a set on each of `prompts` when the features come in."""

    def of(self, feature: int, prompts: Int[Tensor, "rows"]) -> Float[Tensor, "rows ..."]:
        """The same of one feature."""
        return self.several(torch.tensor([feature], device=prompts.device), prompts)

    @abstractmethod
    def read(self, prompts: Int[Tensor, "rows"], sets: Float[Tensor, "rows ..."]) -> Float[Tensor, "rows 4"]:
        """What a set does on each of `prompts`, in one forward pass."""

    @abstractmethod
    def first_order(self) -> Float[Tensor, "n_features"]:
        """Estimated fall of the mean KL when a feature alone is patched: -(c - c_bar) dKL/dx . f at the corrupted run.

        One forward and one backward pass of every prompt.
        """

    @abstractmethod
    def whole(self) -> Float[Tensor, "batch 4"]:
        """What is read with the activation itself patched: all features, and the error."""

    @torch.no_grad()
    def table(self, trials: Iterable[Trial]) -> Float[Tensor, "trials batch 4"]:
        """Readouts of many trials, each given as the prompts it runs and a set on each; NaN for the others.

        Trials are drawn from the iterable as they fit into memory, and share forward passes.
        """
        found, waiting, room = [], [], self.at_once
        for prompts, sets in trials:
            found.append(torch.full_like(self.corrupted, torch.nan))
            while len(prompts):
                waiting.append((found[-1], prompts[:room], sets[:room]))
                prompts, sets = prompts[room:], sets[room:]
                room -= len(waiting[-1][1])
                if not room:
                    self._run(waiting)
                    waiting, room = [], self.at_once
        if waiting:
            self._run(waiting)
        return torch.stack(found) if found else self.corrupted.new_zeros(0, *self.corrupted.shape)

    def _run(self, waiting: list[tuple[Tensor, Tensor, Tensor]]) -> None:
        rows, sets = (torch.cat(parts) for parts in zip(*(one[1:] for one in waiting), strict=True))
        parts = self.read(rows, sets).split([len(prompts) for _, prompts, _ in waiting])
        for (into, prompts, _), part in zip(waiting, parts, strict=True):
            into[prompts] = part
