"""Power laws with an irreducible term, fitted to losses, with intervals and a control.

    log L = log sum_t exp(X_t a_t)

Every term t is the exponential of a linear function of products of logarithms: `1 n` is A n^-m, with ln A and -m its
coefficients, and `1` is a constant. So L(n) = e + A n^-m is `1 n | 1`, and the joint law of Gao et al. 2024, section 3,

    L(n, k) = exp(alpha + beta_k ln k + beta_n ln n + gamma ln k ln n) + exp(zeta + eta ln k)

is `1 k n kn | 1 k`. They do not say how they fitted it. Here: least squares on log L, by Levenberg-Marquardt from
several shares that the last term may have of the loss; an irreducible term is kept where the points are enough for one
and an F-test says, at 5%, that they ask for it. Intervals: laws fitted again to draws from the law, with noise as large
as the residuals (`_noise`). Control: the same law with one variable shuffled. Cost: half a second a law.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import f as f_distribution

from editing.metrics import estimate_from
from sae_core.estimate import Estimate
from sae_core.seeds import generator_for

Vector = Float[np.ndarray, "points"]
Variables = Mapping[str, Vector]
"""Values of each variable at every point; its name is one letter."""
SHARES = (0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97)
"""Of the least loss: what the last term is taken to be where a fit starts."""
STEPS = 100
"""Of a fit, at most."""
SHUFFLES = 20
SIGNIFICANT = 0.05
EXACT = 1e-9
"""Residuals of this size, relative to L, are rounding."""
_WEBB = [sign * size for sign, size in product((-1, 1), (0.5**0.5, 1.0, 1.5**0.5))]
"""Six weights of mean 0 and variance 1 for the wild bootstrap of few groups (Webb 2013)."""


@dataclass(frozen=True)
class Form:
    """What is fitted: the columns of each term, and the names of all coefficients in that order."""

    columns: str
    names: tuple[str, ...]

    @cached_property
    def terms(self) -> list[list[str]]:
        return [term.split() for term in self.columns.split("|")]

    def designs(self, x: Variables) -> list[Float[np.ndarray, "points columns"]]:
        """Per term, the products of logarithms at every point."""
        ones = np.ones(len(next(iter(x.values()))))
        return [
            np.stack([ones * np.prod([np.log(x[v]) for v in column if v != "1"], axis=0) for column in term], axis=1)
            for term in self.terms
        ]

    def log_loss(self, a: Float[np.ndarray, "*draws coefficients"], x: Variables) -> Float[np.ndarray, "*draws points"]:
        """log L at every point."""
        return _sum(self.designs(x), a)[0]

    def fit(self, x: Variables, y: Vector) -> Float[np.ndarray, "coefficients"]:
        """The coefficients of least squared error on y = log L."""
        return self.fits([x], y[None])[0]

    def fits(self, xs: Sequence[Variables], y: Float[np.ndarray, "fits points"], start: np.ndarray | None = None):
        """`fit` of several y, with the variables of each, or of all; from one start where it is given."""
        designs = [np.stack(each) for each in zip(*map(self.designs, xs), strict=True)]
        if len(designs) == 1:
            return (np.linalg.pinv(designs[0]) @ y[..., None])[..., 0]
        n, n_starts = len(y), len(SHARES)
        if start is not None:
            return _descend(designs, y, np.broadcast_to(start, (n, len(start))))[0]
        wide = [np.broadcast_to(X, (n, *X.shape[1:])) for X in designs]
        starts = [_start([X[i] for X in wide], y[i], share) for share in SHARES for i in range(n)]
        many = [np.tile(X, (n_starts, 1, 1)) for X in wide]
        a, error = _descend(many, np.tile(y, (n_starts, 1)), np.array(starts))
        return a.reshape(n_starts, n, -1)[error.reshape(-1, n).argmin(0), np.arange(n)]


def _sum(designs: Sequence[np.ndarray], a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log sum_t exp(X_t a_t), and its Jacobian [s_t X_t] side by side, s_t being the share of a term."""
    ends = np.cumsum([X.shape[-1] for X in designs])[:-1]
    terms = np.stack([(X @ part[..., None])[..., 0] for X, part in zip(designs, np.split(a, ends, -1), strict=True)])
    total = np.logaddexp.reduce(terms)
    shares = np.exp(terms - total)[..., None]
    return total, np.concatenate([share * X for share, X in zip(shares, designs, strict=True)], axis=-1)


def _descend(
    designs: Sequence[np.ndarray], y: Float[np.ndarray, "fits points"], a: Float[np.ndarray, "fits coefficients"]
) -> tuple[Float[np.ndarray, "fits coefficients"], Float[np.ndarray, "fits"]]:
    """Levenberg-Marquardt for many fits at once: coefficients and sums of squares.

    Each step solves (J'J + damping diag J'J) step = J'r; damping falls where the error did, and rises where not.
    """
    a, damping = a.copy(), np.full(len(y), 1e-2)
    total, J = _sum(designs, a)
    error = ((total - y) ** 2).sum(-1)
    for _ in range(STEPS):
        H, slope = J.swapaxes(-1, -2) @ J, (J.swapaxes(-1, -2) @ (total - y)[..., None])[..., 0]
        diagonal = np.einsum("fcc->fc", H)
        diagonal = np.maximum(diagonal, 1e-9 * diagonal.max(-1, keepdims=True))
        step = np.linalg.solve(H + (damping[:, None] * diagonal)[..., None] * np.eye(a.shape[-1]), slope[..., None])
        tried = a - step[..., 0]
        new_total, new_J = _sum(designs, tried)
        new_error = ((new_total - y) ** 2).sum(-1)
        better = new_error < error
        gain = np.where(better, error - new_error, 0)
        a[better], total[better], J[better] = tried[better], new_total[better], new_J[better]
        damping = np.clip(np.where(better, damping / 4, damping * 4), 1e-9, 1e9)
        error = np.where(better, new_error, error)
        if np.all((better & (gain <= 1e-9 * error)) | (damping > 1e6) | (error < y.shape[-1] * EXACT**2)):
            break
    return a, error


def _start(designs: Sequence[np.ndarray], y: Vector, share: float) -> np.ndarray:
    """Coefficients where the last term is a share of the least loss at its own variables, and the others the rest."""
    *others, last = designs
    rows, place = np.unique(last, axis=0, return_inverse=True)
    least = np.array([y[place.ravel() == row].min() for row in range(len(rows))])
    floor = np.linalg.lstsq(rows, least + np.log(share), rcond=None)[0]
    rest = np.log(np.maximum(np.exp(y) - np.exp(last @ floor), 0.01 * np.exp(y)) / len(others))
    return np.concatenate([*(np.linalg.lstsq(X, rest, rcond=None)[0] for X in others), floor])


def power(variable: str) -> tuple[Form, Form]:
    """L = A v^-m, and the same with an irreducible term e."""
    names = ("alpha", f"beta_{variable}")
    return Form(f"1 {variable}", names), Form(f"1 {variable} | 1", (*names, "zeta"))


_OF_BOTH = ("alpha", "beta_k", "beta_n", "gamma")
JOINT = Form("1 k n kn", _OF_BOTH), Form("1 k n kn | 1 k", (*_OF_BOTH, "zeta", "eta"))
"""L(n, k), without and with its irreducible term."""
TOKENS = Form("1 n | 1 T | 1", ("alpha", "beta_n", "delta", "beta_T", "zeta"))
"""L(n, T) = A n^-a + B T^-b + e, of latents and tokens (the form of Hoffmann et al. 2022)."""


@dataclass(frozen=True)
class Law:
    """A fitted law. A coefficient beta_v belongs to the exponent m = -beta_v of the variable v."""

    columns: str
    coefficients: dict[str, Estimate]
    """As in the equations of this module, in logarithms; intervals from draws."""
    r2: float
    """Share of the variance of log L that it explains."""
    residuals: tuple[float, ...]
    """log L minus the law's, point by point."""
    p_irreducible: float
    """Of the F-test for the irreducible term; NaN where there are too few points to ask."""
    shuffled_r2: Estimate
    """With the first variable shuffled over the points; its interval is that of the shuffles."""
    shuffled_exponent: Estimate
    """The exponent of that variable, then."""

    @property
    def form(self) -> Form:
        return Form(self.columns, tuple(self.coefficients))

    @property
    def irreducible(self) -> Estimate | None:
        """e = exp zeta; None for a law without, or one in which it depends on k."""
        if "zeta" not in self.coefficients or "eta" in self.coefficients:
            return None
        zeta = self.coefficients["zeta"]
        return Estimate(*(float(np.exp(each)) for each in (zeta.value, zeta.low, zeta.high)))

    @property
    def exponents(self) -> list[Estimate]:
        """m of every variable, the first being the one that was shuffled; of a joint law no exponents, but slopes."""
        betas = [value for name, value in self.coefficients.items() if name.startswith("beta")]
        return [Estimate(-beta.value, -beta.high, -beta.low) for beta in betas]

    @property
    def extends(self) -> bool:
        """Whether it may be read beyond its points: the intervals of all exponents leave 0 out."""
        return all(each.excludes(0.0) and abs(each.value) > EXACT for each in self.exponents)

    def at(self, x: Variables) -> Vector:
        """L at other values of the variables."""
        return np.exp(self.form.log_loss(np.array([each.value for each in self.coefficients.values()]), x))


@dataclass(frozen=True, eq=False)
class Fit:
    """A law with the draws behind its intervals."""

    law: Law
    draws: Float[np.ndarray, "draws coefficients"]

    def beyond(self, x: Variables) -> Estimate | None:
        """L at one point outside, with its interval; None where the law may not be read there."""
        if not self.law.extends:
            return None
        return interval(self.law.at(x)[0], np.exp(self.law.form.log_loss(self.draws, x))[:, 0])


def interval(value: float, draws: Vector) -> Estimate:
    """A value with the ends of the middle 95% of its draws; without an interval where there are none."""
    return estimate_from(float(value), torch.from_numpy(draws)) if len(draws) else Estimate(float(value))


def fit_law(
    forms: Sequence[Form], x: Variables, loss: Vector, *, draws: int, seed: int, groups: Sequence[str] | None = None
) -> Fit:
    """The law of the last of `forms` for which there are more points than coefficients, and an F-test.

    `forms` go from simple to rich, and there are points for the first. Points of one of the `groups` share their noise.
    """
    y, form, p = np.log(loss), forms[0], np.nan
    coefficients = form.fit(x, y)
    for richer in forms[1:]:
        if len(y) > len(richer.names):
            richer_coefficients = richer.fit(x, y)
            p = _f_test(y - form.log_loss(coefficients, x), y - richer.log_loss(richer_coefficients, x), form, richer)
            if p < SIGNIFICANT:
                form, coefficients = richer, richer_coefficients
    predicted = form.log_loss(coefficients, x)
    residuals, generator = y - predicted, generator_for(seed, "draws", form.columns)
    noise = _noise(residuals, len(form.names), draws, generator, groups)
    drawn = form.fits([x], predicted + noise, coefficients) if len(noise) else np.zeros((0, len(coefficients)))
    named = zip(form.names, coefficients, drawn.T, strict=True)
    r2, exponent = _shuffled(form, x, y, generator)
    law = Law(
        form.columns,
        {name: interval(value, each) for name, value, each in named},
        _r2(y, predicted),
        tuple(residuals.tolist()),
        float(p),
        interval(r2.mean(), r2),
        interval(exponent.mean(), exponent),
    )
    return Fit(law, drawn)


def _f_test(plain: Vector, rich: Vector, form: Form, richer: Form) -> float:
    """Chance of so much less error by the richer form, if the simple one is true."""
    before, after = (float((each**2).sum()) for each in (plain, rich))
    if before <= len(plain) * EXACT**2:  # nothing is left to explain
        return 1.0
    more, free = len(richer.names) - len(form.names), len(plain) - len(richer.names)
    return float(f_distribution.sf((before - after) / more / max(after / free, EXACT**2), more, free))


def _noise(
    residuals: Vector, n_coefficients: int, draws: int, generator: torch.Generator, groups: Sequence[str] | None
) -> Float[np.ndarray, "draws points"]:
    """What is added to a law for each draw.

    Without groups normal noise, the variance of which is drawn anew as s^2 df / chi^2(df), with df = points -
    coefficients and s^2 = sum of squares / df: for a law that is linear in its coefficients the intervals are then
    those of Student's t. With groups the residuals themselves, those of a group all times one of Webb's weights.
    No draws, and so no intervals, without a degree of freedom.
    """
    free = len(residuals) - n_coefficients
    if free < 1:
        return np.zeros((0, len(residuals)))
    if groups is None:
        normal = torch.randn(draws, len(residuals), generator=generator, dtype=torch.float64).numpy()
        chi2 = torch.randn(draws, free, generator=generator, dtype=torch.float64).square().sum(-1).numpy()
        return normal * np.sqrt((residuals**2).sum() / chi2)[:, None]
    names, place = np.unique(np.array(groups), return_inverse=True)
    picks = torch.randint(len(_WEBB), (draws, len(names)), generator=generator).numpy()
    few = np.sqrt(len(names) / max(1, len(names) - 1))
    return few * np.array(_WEBB)[picks][:, place.ravel()] * residuals


def _shuffled(form: Form, x: Variables, y: Vector, generator: torch.Generator) -> tuple[Vector, Vector]:
    """R^2 and the exponent of laws in which the values of the first variable stand at other points."""
    first = next(iter(x))
    orders = [torch.randperm(len(y), generator=generator).numpy() for _ in range(SHUFFLES)]
    others = [{**x, first: x[first][order]} for order in orders]
    coefficients = form.fits(others, np.broadcast_to(y, (SHUFFLES, len(y))))
    r2 = [_r2(y, form.log_loss(a, other)) for a, other in zip(coefficients, others, strict=True)]
    return np.array(r2), -coefficients[:, form.names.index(f"beta_{first}")]


def _r2(y: Vector, predicted: Vector) -> float:
    spread = ((y - y.mean()) ** 2).sum()
    return float(1 - ((y - predicted) ** 2).sum() / spread) if spread > len(y) * EXACT**2 else float("nan")
