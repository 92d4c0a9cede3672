"""The best toy model of a kind at a density, as plain numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from subrank.studies.toys import geometry
from subrank.studies.toys.models import ToyModel, ToyModels


@dataclass(frozen=True)
class Solution:
    """The copy of lowest loss, and how its features lie; features are numbered from 0."""

    model: ToyModel
    losses: tuple[float, ...]
    """Of all copies on the same new rows, the lowest first."""
    weights: tuple[tuple[float, ...], ...]
    """W, a row for each dimension. Only W^T W means anything: a rotated W is the same model."""
    bias: tuple[float, ...]
    norms: tuple[float, ...]
    """|W_i|."""
    interference: tuple[float, ...]
    """sum_{j != i} (W^_i . W_j)^2."""
    dimensions: tuple[float, ...]
    """D_i, the dimensions that each feature has to itself."""
    represented: tuple[int, ...]
    """Features of a length of at least 0.5."""
    pairs: tuple[tuple[int, int], ...]
    """Antipodal ones."""

    @classmethod
    def of(cls, model: ToyModel, losses: Sequence[float], W: Tensor, b: Tensor) -> "Solution":
        """That of weights `[m, n]` and biases `[n]`."""
        W = W.detach().double()
        return cls(
            model=model,
            losses=tuple(losses),
            weights=tuple(map(tuple, W.tolist())),
            bias=tuple(b.tolist()),
            norms=tuple(geometry.norms(W).tolist()),
            interference=tuple(geometry.interference(W).tolist()),
            dimensions=tuple(geometry.dimensions_per_feature(W).tolist()),
            represented=tuple(geometry.represented(W)),
            pairs=tuple(geometry.antipodal_pairs(W)),
        )

    @property
    def W(self) -> Tensor:  # noqa: N802
        """The weights, `[m, n]`."""
        return torch.tensor(self.weights)

    @property
    def per_feature(self) -> float:
        """m / |W|_F^2: dimensions for each represented feature, on average."""
        return len(self.weights) / sum(norm**2 for norm in self.norms)

    @property
    def alone(self) -> tuple[int, ...]:
        """Represented features that share nothing to speak of: at least 0.9 dimensions are theirs."""
        return tuple(i for i in self.represented if self.dimensions[i] >= 0.9)


def solutions(toys: ToyModels, losses: Sequence[float]) -> tuple[Solution, ...]:
    """The best of the copies of each model, by the loss of each copy, in the models' order."""
    copies: dict[ToyModel, list[int]] = {}
    for index in sorted(range(len(losses)), key=losses.__getitem__):
        copies.setdefault(toys.models[index], []).append(index)
    W, b = toys.W.detach(), toys.b.detach()
    return tuple(
        Solution.of(model, [losses[index] for index in copies[model]], W[copies[model][0]], b[copies[model][0]])
        for model in dict.fromkeys(toys.models)
    )
