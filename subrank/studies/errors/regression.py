"""Least squares over a stream of tokens, and how well what was fitted predicts other tokens.

    y ~ x W + b,    W = C_xx^+ C_xy,    b = mean y - mean x W

from sums of products, in float64: memory is d_in x (d_in + d_out), however many tokens there are. Columns of x are
brought to unit length before the pseudo-inverse, so that units do not matter and a constant column gets no weight.

Predictions are scored on other contexts than those of the fit: R^2 = 1 - sum |y - y_hat|^2 / sum |y - mean y|^2 over
tokens and dimensions, and, as Engels et al. 2024 have it, the mean over dimensions of theirs. Where y is an activation,
1 - R^2 is the FVU. Contexts are resampled, alike for all numbers, so that means and differences have intervals, too.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from editing.metrics import estimate_from, resampled
from sae_core.estimate import Estimate

Draws = Float[Tensor, "draws"]
"""A number, then the same of every resample of the contexts."""
Designs = Mapping[str, tuple[Tensor, Mapping[str, Tensor]]]
"""By predictor: its rows x `[tokens, d_in]`, and the targets y `[tokens, d_out]` that it is to predict."""
NO_INTERCEPT = ", no intercept"
RTOL, CONSTANT = 1e-12, 1e-12
"""Eigenvalues of the scaled C_xx that count as zero, and variances beside the mean square that do."""


def context_weights(n_contexts: int, seed: int) -> Float[Tensor, "draws contexts"]:
    """The weight of each context: all alike, then in every resample."""
    return torch.cat([torch.full((1, n_contexts), 1 / n_contexts).double(), resampled(range(n_contexts), seed)])


def estimate(draws: Draws) -> Estimate:
    """The number with its 95% interval; without one where a resample has no value."""
    return estimate_from(draws[0].item(), draws[1:])


@dataclass(frozen=True, eq=False)
class Linear:
    """y = x W + b, in float64."""

    weight: Float[Tensor, "d_in d_out"]
    bias: Float[Tensor, "d_out"]

    def __call__(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        return x.double() @ self.weight + self.bias

    def columns(self, chosen: slice) -> "Linear":
        """The map to some of the dimensions of y."""
        return Linear(self.weight[:, chosen], self.bias[chosen])


@dataclass(frozen=True, eq=False)
class Gaussian:
    """Rows of a normal distribution: mean + g root, g standard normal."""

    mean: Float[Tensor, "d"]
    root: Float[Tensor, "d d"]

    def draw(self, n: int, generator: torch.Generator) -> Float[Tensor, "n d"]:
        g = torch.randn(n, len(self.mean), generator=generator).to(self.mean)
        return (self.mean + g @ self.root).float()


class LeastSquares:
    """Sums of products of the rows of x and y, which come in batches."""

    n: int = 0

    def add(self, x: Float[Tensor, "tokens d_in"], y: Float[Tensor, "tokens d_out"]) -> None:
        x, y = x.double(), y.double()
        if not self.n:
            self.x, self.y, self.yy = x.new_zeros(x.shape[1]), x.new_zeros(y.shape[1]), x.new_zeros(y.shape[1])
            self.xx, self.xy = x.new_zeros(x.shape[1], x.shape[1]), x.new_zeros(x.shape[1], y.shape[1])
        self.n += len(x)
        self.x += x.sum(0)
        self.y += y.sum(0)
        self.yy += y.square().sum(0)
        self.xx.addmm_(x.T, x)
        self.xy.addmm_(x.T, y)

    def centred(self) -> tuple[Tensor, Tensor]:
        """(C_xx, C_xy), sums of products of deviations from the means."""
        return self.xx - torch.outer(self.x, self.x / self.n), self.xy - torch.outer(self.x, self.y / self.n)

    def fit(self, *, intercept: bool = True) -> Linear:
        """The linear map of least squared error; of several the one of least norm."""
        xx, xy = self.centred() if intercept else (self.xx, self.xy)
        variance = xx.diagonal()
        scale = variance.rsqrt().where(variance > CONSTANT * self.xx.diagonal(), 0.0)[:, None]
        weight = scale * (torch.linalg.pinv(scale * xx * scale.T, hermitian=True, rtol=RTOL) @ (scale * xy))
        return Linear(weight, (self.y - self.x @ weight) / self.n if intercept else torch.zeros_like(self.y))

    def rescaling(self, columns: slice) -> Linear:
        """The best y = a x + b of a single factor a, y being some columns, as many as x has."""
        xx, xy = self.centred()
        a = xy[:, columns].trace() / xx.trace()
        return Linear(a * torch.eye(len(xx)).to(xx), (self.y[columns] - a * self.x) / self.n)

    def r2(self, fit: Linear, columns: slice) -> float:
        """R^2 of some columns on the rows of the fit."""
        w, b, y = fit.weight[:, columns], fit.bias[columns], self.y[columns]
        products = (w * self.xy[:, columns]).sum() + b @ y
        predicted = (w * (self.xx @ w)).sum() + 2 * (self.x @ w) @ b + self.n * b @ b
        squares = self.yy[columns].sum()
        return (1 - (squares - 2 * products + predicted) / (squares - y @ y / self.n)).item()

    def gaussian(self) -> Gaussian:
        """The normal distribution with the mean and covariance of x."""
        values, vectors = torch.linalg.eigh(self.centred()[0] / self.n)
        return Gaussian(self.x / self.n, (vectors * values.clamp_min(0).sqrt()).T)


class Regressions:
    """Several predictors, each with its targets; `NO_INTERCEPT` names the fit without one, where that is asked for."""

    def __init__(self, no_intercept: tuple[str, ...] = ()):
        self.no_intercept = no_intercept
        self.sums: dict[str, LeastSquares] = defaultdict(LeastSquares)
        self.columns: dict[str, dict[str, slice]] = {}
        self.fits: dict[str, Linear] = {}

    def add(self, designs: Designs) -> None:
        for name, (x, targets) in designs.items():
            ends = torch.tensor([0, *(y.shape[1] for y in targets.values())]).cumsum(0).tolist()
            self.columns[name] = dict(zip(targets, map(slice, ends, ends[1:]), strict=False))
            self.sums[name].add(x, torch.cat([*targets.values()], 1))

    def solve(self) -> None:
        """Fit all; from here on `predictions` has them."""
        self.fits = {name: sums.fit() for name, sums in self.sums.items()}
        self.fits |= {name + NO_INTERCEPT: self.sums[name].fit(intercept=False) for name in self.no_intercept}

    def targets(self, predictor: str) -> Mapping[str, slice]:
        """What it predicts, and which columns of its map that is."""
        return self.columns[predictor.removesuffix(NO_INTERCEPT)]

    def to(self, predictor: str, target: str) -> Linear:
        """What was fitted."""
        return self.fits[predictor].columns(self.targets(predictor)[target])

    def r2(self, predictor: str, target: str) -> float:
        """R^2 on the tokens of the fit."""
        sums = self.sums[predictor.removesuffix(NO_INTERCEPT)]
        return sums.r2(self.fits[predictor], self.targets(predictor)[target])

    def predictions(self, designs: Designs) -> dict[str, tuple[Tensor, dict[str, Tensor]]]:
        """By target its rows, and what each predictor makes of them."""
        table: dict[str, tuple[Tensor, dict[str, Tensor]]] = {}
        for predictor, fit in self.fits.items():
            name = predictor.removesuffix(NO_INTERCEPT)
            x, targets = designs[name]
            y_hat = fit(x)
            for target, columns in self.columns[name].items():
                table.setdefault(target, (targets[target], {}))[1][predictor] = y_hat[:, columns]
        return table


class TokenMeans:
    """The mean of y for every token of a vocabulary; of a token that was never seen, that of all."""

    def __init__(self, vocabulary: Int[Tensor, "n_tokens"]):
        self.vocabulary = vocabulary.sort().values
        self.counts, self.sums = torch.zeros(len(vocabulary) + 1), torch.zeros(0)

    def place(self, tokens: Int[Tensor, "tokens"]) -> Int[Tensor, "tokens"]:
        """The row of each token; the last is that of all others."""
        place = torch.searchsorted(self.vocabulary, tokens).clamp_max(len(self.vocabulary) - 1)
        return place.where(self.vocabulary[place] == tokens, len(self.vocabulary))

    def add(self, tokens: Int[Tensor, "tokens"], y: Float[Tensor, "tokens d_out"]) -> None:
        if not len(self.sums):
            self.sums = torch.zeros(len(self.counts), y.shape[1])
        place = self.place(tokens)
        self.counts.index_add_(0, place, torch.ones(len(place)))
        self.sums.index_add_(0, place, y.float().cpu())

    def predict(self, tokens: Int[Tensor, "tokens"]) -> Float[Tensor, "tokens d_out"]:
        mean = self.sums.sum(0) / self.counts.sum()
        place = self.place(tokens)
        counts = self.counts[place][:, None]
        return torch.where(counts > 0, self.sums[place] / counts.clamp_min(1), mean)


class Scores:
    """Squared errors of predictions, context by context."""

    def __init__(self, weights: Float[Tensor, "draws contexts"]):
        self.weights = weights
        self.targets: dict[str, tuple[Tensor, ...]] = {}
        self.missed: dict[tuple[str, str], tuple[Tensor, Tensor]] = {}

    def add(
        self,
        target: str,
        contexts: Int[Tensor, "tokens"],
        y: Float[Tensor, "tokens d"],
        predictions: Mapping[str, Tensor],
    ) -> None:
        """Rows of a target, each of a context by its number, and the predictions of them by name."""
        y, n = y.double().cpu(), self.weights.shape[1]

        def by_context(values: Tensor) -> Tensor:
            return torch.zeros(n, *values.shape[1:]).double().index_add_(0, contexts, values)

        new = by_context(torch.ones(len(y)).double()), by_context(y), by_context(y.square().sum(1)), y.square().sum(0)
        known = self.targets.get(target)
        self.targets[target] = tuple(a + b for a, b in zip(known, new, strict=True)) if known else new
        for predictor, y_hat in predictions.items():
            missed = (y - y_hat.double().cpu()).square()
            total, by_dimension = self.missed.get((target, predictor), (0.0, 0.0))
            self.missed[target, predictor] = total + by_context(missed.sum(1)), by_dimension + missed.sum(0)

    def r2(self, target: str, predictor: str) -> Draws:
        """R^2 over tokens and dimensions; below 0 where the mean of the target would be better."""
        n, y, squares, _ = self.targets[target]
        w = self.weights
        return 1 - (w @ self.missed[target, predictor][0]) / (w @ squares - (w @ y).square().sum(1) / (w @ n))

    def r2_of_dimensions(self, target: str, predictor: str) -> float:
        """The mean over dimensions of their R^2; constant ones are left out."""
        n, y, _, squares = self.targets[target]
        around = squares - y.sum(0).square() / n.sum()
        r2 = 1 - self.missed[target, predictor][1] / around
        return r2[around > CONSTANT * squares].mean().item()
