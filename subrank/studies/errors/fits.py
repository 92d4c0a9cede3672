"""What can be known of one dictionary's error e = x - x_hat without knowing it: fits on one text, scores on another.

    linear error      L = x W + b, the least-squares prediction of e from x
    nonlinear error   N = e - L,   so that x = x_hat + L + N

Three passes: `fit` (the predictors of e and its norm), `fit_parts` (what takes L and N to be known), `score`. Beside x
stand, as predictors: x through zero, as Engels et al. fit it; x_hat times a factor (a dictionary that shrinks, x_hat =
(1 - s) x, has an error that is all linear, and says nothing of features), x_hat, x_hat of an earlier site, |x|, the
token. Controls that ought to be near zero: x of another token, a Gaussian of the mean and covariance of x. And the
dictionary on that Gaussian, which has no features: is its error there as predictable?
"""

import math
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_core.dictionaries.dictionary import Dictionary
from sae_core.seeds import generator_for
from subrank.studies.errors.batches import Batch, norm
from subrank.studies.errors.regression import Designs, Draws, Gaussian, Linear, Regressions, Scores, TokenMeans

X, X_HAT, NORM, TOKEN, EARLIER = "x", "x_hat", "|x|", "token", "earlier x_hat"
RESCALED, OTHER, NOISE = "a x_hat + mean", "x of another token", "Gaussian like x"
ERROR, LINEAR, NONLINEAR = "error", "linear error", "nonlinear error"
ERROR_NORM, SQUARED, ON_NOISE = "|e|", "|e|²", "error on Gaussian vectors"
ACTIVATION, PLAIN = "activation", "nothing"
"""What is added to x_hat where nothing is."""
BOTH, WITH_NORM = "|e|, |nonlinear error|", "|e|, |x|"


class ErrorFit:
    """The error of one dictionary: what is fitted to it, and how well that holds on other contexts."""

    def __init__(
        self, dictionary: Dictionary, vocabulary: Int[Tensor, "n_tokens"], weights: Float[Tensor, "draws n"], seed: int
    ):
        self.dictionary, self.chance = dictionary, generator_for(seed, "error")
        self.first, self.second = Regressions((X,)), Regressions()
        self.means, self.scores = TokenMeans(vocabulary), Scores(weights)
        self.active, self.n_tokens, self.n_left_out = 0, 0, 0
        self.measured: dict[str, dict[str, Draws]] = {}
        """FVUs, shares of the rise of cross-entropy, ..., by kind and name (`SiteErrors.measured`)."""

    def fit(self, batch: Batch) -> None:
        """The first pass."""
        self.first.add(self.designs(batch))
        self.means.add(batch.tokens, torch.cat([batch.error, batch.error_norm, batch.error_norm.square()], 1))

    def fit_parts(self, batch: Batch) -> None:
        """The second pass, over the same tokens."""
        if not self.first.fits:
            self.first.solve()
        self.second.add(self.parts_designs(batch))

    def score(self, batch: Batch) -> None:
        """The third pass, over tokens of other contexts."""
        if not self.second.fits:
            self.second.solve()
        first = self.first.predictions(self.designs(batch))
        by_token = self.means.predict(batch.tokens).to(batch.x)
        for target, columns in self.first.targets(X).items():
            first[target][1][TOKEN] = by_token[:, columns]
        first[ERROR][1][RESCALED] = self.rescaled(batch.x_hat)
        second = self.second.predictions(self.parts_designs(batch))
        first[ERROR][1].update(second.pop(ERROR)[1])
        for target, (y, predictions) in (first | second).items():
            self.scores.add(target, batch.contexts, y, predictions)
        added = {name: batch.x_hat + e_hat for name, e_hat in first[ERROR][1].items()}
        self.scores.add(ACTIVATION, batch.contexts, batch.x, {PLAIN: batch.x_hat} | added)
        self.active += int(batch.l0.sum())
        self.n_tokens += len(batch.x)
        self.n_left_out += batch.n_left_out

    def designs(self, batch: Batch) -> Designs:
        """What e and its norm are predicted from."""
        targets = {ERROR: batch.error, ERROR_NORM: batch.error_norm, SQUARED: batch.error_norm.square()}
        half = len(batch.x) // 2  # another token is one of the other half of those read together
        order = [torch.randperm(len(batch.x) - half, generator=self.chance) + half]
        others = torch.cat([*order, torch.randperm(half, generator=self.chance)])
        predictors = {X: batch.x, X_HAT: batch.x_hat, NORM: norm(batch.x), OTHER: batch.x[others]}
        predictors |= {} if batch.earlier is None else {EARLIER: batch.earlier}
        return {name: (x, targets) for name, x in predictors.items()}

    def parts_designs(self, batch: Batch) -> Designs:
        """What is predicted once L and N, and the covariance of x, are known.

        The squared norm of a sparse sum of features is nearly linear in it; that of a dense vector is not.
        """
        linear, nonlinear = self.split(batch)
        vectors = {X: batch.x, X_HAT: batch.x_hat, LINEAR: linear, NONLINEAR: nonlinear}
        gaussian = self.gaussian.draw(len(batch.x), self.chance)
        on_noise = gaussian - self.dictionary.decode(self.dictionary.encode(gaussian))
        designs: dict[str, tuple[Tensor, dict[str, Tensor]]] = {
            X: (batch.x, {f"|{name}|²": norm(vector).square() for name, vector in vectors.items()}),
            NOISE: (gaussian, {ERROR: batch.error, ON_NOISE: on_noise}),
        }
        if batch.earlier is not None:
            designs[EARLIER] = batch.earlier, {LINEAR: linear, NONLINEAR: nonlinear}
        return designs

    @cached_property
    def linear(self) -> Linear:
        """x -> L."""
        return self.first.to(X, ERROR)

    @cached_property
    def rescaled(self) -> Linear:
        """x_hat -> what a single factor and a mean add to it."""
        return self.first.sums[X_HAT].rescaling(self.first.columns[X_HAT][ERROR])

    @cached_property
    def gaussian(self) -> Gaussian:
        """The normal distribution with the mean and covariance of x."""
        return self.first.sums[X].gaussian()

    def split(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(L, N)."""
        linear = self.linear(batch.x).to(batch.x)
        return linear, batch.error - linear

    def fvus(self) -> dict[str, Draws]:
        """FVU of x_hat, and of it with what each predictor says of e; with that of x the nonlinear error is left."""
        return {key[1]: 1 - self.scores.r2(*key) for key in self.scores.missed if key[0] == ACTIVATION}

    def on_fit(self, target: str, predictor: str) -> float:
        """R² on the tokens of the fit; NaN for what is no least-squares fit."""
        for fits in (self.first, self.second):
            if predictor in fits.fits and target in fits.targets(predictor):
                return fits.r2(predictor, target)
        return math.nan

    def number(self, kind: str, *name: str) -> Draws | None:
        """What was measured: R² of a target from a predictor, or a number by kind and name; None where it was not."""
        if kind != "R²":
            return self.measured.get(kind, {}).get(name[0])
        target, predictor = name
        return self.scores.r2(target, predictor) if name in self.scores.missed else None


class SizePair:
    """Whether the tokens at which a smaller dictionary errs most are those at which a larger one does."""

    def __init__(self, small: ErrorFit, large: ErrorFit):
        self.small, self.large = small, large
        self.regressions, self.scores = Regressions(), Scores(small.scores.weights)

    def fit_parts(self, small: Batch, large: Batch) -> None:
        """Both batches hold the same tokens."""
        self.regressions.add(self.designs(small, large))

    def score(self, small: Batch, large: Batch) -> None:
        """The same on other contexts."""
        if not self.regressions.fits:
            self.regressions.solve()
        for target, (y, predictions) in self.regressions.predictions(self.designs(small, large)).items():
            self.scores.add(target, small.contexts, y, predictions)

    def r2(self) -> dict[str, Draws]:
        """By predictor."""
        return {predictor: self.scores.r2(target, predictor) for target, predictor in self.scores.missed}

    def designs(self, small: Batch, large: Batch) -> Designs:
        """|e| of the larger one from: |x|; |e| of the smaller; both; and from |e| and |N| of the smaller."""
        e, target = small.error_norm, {ERROR_NORM: large.error_norm}
        predictors = {NORM: [norm(small.x)], ERROR_NORM: [e], WITH_NORM: [e, norm(small.x)]}
        predictors[BOTH] = [e, norm(self.small.split(small)[1])]
        return {name: (torch.cat(columns, 1), target) for name, columns in predictors.items()}
