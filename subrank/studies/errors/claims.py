"""What Engels et al. 2024 find, each with our number, its interval, its controls, and whether the two agree.

Numbers are of means over sites, of the largest set where there are several; intervals are over contexts. The rule by
which a claim is judged stands beside it, since the paper's figures are of other models.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from sae_core.estimate import Estimate
from subrank.studies.errors import fits as names
from subrank.studies.errors.fits import ERROR, ERROR_NORM, LINEAR, NONLINEAR, SQUARED, ErrorFit, X
from subrank.studies.errors.parts import LIKE, PARTS, PURSUED, RISE, SHUFFLED
from subrank.studies.errors.regression import Draws, estimate

Errors = Sequence[ErrorFit]


@dataclass(frozen=True)
class Claim:
    """A finding of the paper, and ours."""

    text: str
    rule: str
    """What of ours is meant, and when it agrees."""
    value: Estimate
    beside: str
    """Controls, in words."""
    agrees: bool | None
    """None where it was not measured."""

    @classmethod
    def of(cls, text: str, rule: str, ours: Draws, agrees: "Agrees", beside: Mapping[str, Draws]) -> "Claim":
        if ours[0].isnan():
            return cls(text, rule, Estimate(math.nan), "", None)
        value = estimate(ours)
        words = [
            f"{name} {round(draws[0].item(), 2) + 0.0:.2f}" for name, draws in beside.items() if not draws[0].isnan()
        ]
        return cls(text, rule, value, ", ".join(words), agrees(value))


Agrees = Callable[[Estimate], bool]
SAME_L0 = 1.25
"""Sets whose L0 differs by more than this factor differ in more than their size."""


def claims(smallest: Errors, largest: Errors) -> tuple[Claim, ...]:
    """All of the paper's; `smallest` and `largest` are the errors of these sets, site by site, maybe the same."""
    sizes = _over_sizes(smallest, largest) if _differ_in_size_alone(smallest, largest) else _over_sizes([], [])
    return *_predictable(largest), *sizes, *_parts(largest)


def _differ_in_size_alone(smallest: Errors, largest: Errors) -> bool:
    """Whether one set has more latents than the other at every site, and about as many active ones."""
    pairs = list(zip(smallest, largest, strict=True))
    ratios = [(b.active / max(1, b.n_tokens)) / max(1e-9, a.active / max(1, a.n_tokens)) for a, b in pairs]
    sizes = [(len(a.dictionary.directions), len(b.dictionary.directions)) for a, b in pairs]
    return all(a < b for a, b in sizes) and all(1 / SAME_L0 <= ratio <= SAME_L0 for ratio in ratios)


def _predictable(errors: Errors) -> list[Claim]:
    """What of the error is linear in x."""
    r2 = partial(_mean, errors, "R²")
    rivals = (names.RESCALED, names.TOKEN, names.NORM, names.OTHER, names.NOISE)
    beside = {f"from {name}": r2(ERROR, name) for name in rivals}
    lengths = {name: r2(f"|{name}|²", X) for name in (X, names.X_HAT, LINEAR, NONLINEAR)}
    return [
        Claim.of(
            "About half of the error vector is linear in x",
            "R² of e from x; 0.3 to 0.7, and above that from a factor on x̂",
            r2(ERROR, X),
            lambda v: 0.3 <= v.value <= 0.7 and _above(estimate(r2(ERROR, X) - r2(ERROR, names.RESCALED))),
            beside | {names.ON_NOISE: r2(names.ON_NOISE, names.NOISE)},
        ),
        Claim.of(
            "More than 90% of its squared norm is",
            "R² of |e|² from x; 0.9 or more",
            r2(SQUARED, X),
            lambda v: v.value >= 0.9,
            {f"from {name}": r2(SQUARED, name) for name in (names.NORM, names.TOKEN, names.OTHER)},
        ),
        Claim.of(
            "The nonlinear error holds fewer features not yet learned",
            "R² of |L|² from x less that of |N|²; above 0",
            lengths[LINEAR] - lengths[NONLINEAR],
            _above,
            {f"of |{name}|²": draws for name, draws in lengths.items()},
        ),
    ]


def _over_sizes(smallest: Errors, largest: Errors) -> list[Claim]:
    """What becomes of the error in larger dictionaries."""
    before, after = partial(_mean, smallest), partial(_mean, largest)
    whole = after("fvu", names.PLAIN) / before("fvu", names.PLAIN) - 1
    linear = _linear_fvu(largest) / _linear_fvu(smallest) - 1
    by_norm, by_error, by_both, by_norms = (
        after("smaller", name) for name in (names.NORM, ERROR_NORM, names.BOTH, names.WITH_NORM)
    )
    return [
        Claim.of(
            "The linear error falls with the dictionary's size",
            "change of its FVU, smallest set to largest; below 0",
            linear,
            lambda v: v.high < 0,
            {"of the whole FVU": whole},
        ),
        Claim.of(
            "The nonlinear error hardly changes with it",
            "the same of its FVU; within 10%",
            after("fvu", X) / before("fvu", X) - 1,
            lambda v: abs(v.value) <= 0.1,
            {"of the whole FVU": whole},
        ),
        Claim.of(
            "The same tokens stay hard",
            "R² of |e| of the largest set from that of the smallest; 0.5 or more, and above that from |x|",
            by_error,
            lambda v: v.value >= 0.5 and v.low > by_norm[0].item(),
            {"from |x|": by_norm},
        ),
        Claim.of(
            "Which the nonlinear error tells better still",
            "share of the rest that |N| explains besides |e|; above 0",
            (by_both - by_error) / (1 - by_error),
            _above,
            {"|x| besides |e|": (by_norms - by_error) / (1 - by_error)},
        ),
    ]


def _parts(errors: Errors) -> list[Claim]:
    """What the linear and the nonlinear error are, and what makes the latter less."""
    read = partial(_mean, errors)
    on = {name: read("dictionaries", name) for name in PARTS}
    worse = {name: on[name] - on[like] for name, like in LIKE.items()}  # than on what has no features
    costly = [error for error in errors if (rise := error.number("loss", RISE)) is not None and _above(estimate(rise))]
    back = {name: _given_back(costly, name) for name in (LINEAR, NONLINEAR, SHUFFLED)}
    linear = _saved(costly, "fvu", X)
    later = [error for error in errors if error.number("fvu", names.EARLIER) is not None]
    return [
        Claim.of(
            "Dictionaries trained on the nonlinear error are worse",
            "FVU of one on N less that of one on a Gaussian like N, less the same of L; above 0",
            worse[NONLINEAR] - worse[LINEAR],
            _above,
            {f"on {name}": draws for name, draws in on.items()},
        ),
        Claim.of(
            "The nonlinear error costs cross-entropy in proportion to its size",
            "share of the rise that goes where N is left in, less its share of |e|²; within 0.1, and so for L; at "
            "sites where the loss rises beyond its interval",
            back[NONLINEAR] - 1 + linear,
            lambda v: max(abs(v.value), abs((back[LINEAR] - linear)[0].item())) <= 0.1,
            {"share of L in |e|²": linear} | {f"{name} gives back": draws for name, draws in back.items()},
        ),
        Claim.of(
            "Gradient pursuit gains little",
            "share of the FVU that it saves; up to 0.1",
            _saved(errors, "pursuit", PURSUED),
            lambda v: v.value <= 0.1,
            {},
        ),
        Claim.of(
            "A linear map of an earlier site's x_hat gains more",
            "share of the FVU that it saves, less that of pursuit; above 0",
            _saved(later, "fvu", names.EARLIER) - _saved(later, "pursuit", PURSUED),
            _above,
            {"a map of x_hat itself saves": _saved(later, "fvu", names.X_HAT)},
        ),
    ]


def _above(value: Estimate) -> bool:
    return value.low > 0


def _linear_fvu(errors: Errors) -> Draws:
    return _mean(errors, "fvu", names.PLAIN) - _mean(errors, "fvu", X)


def _given_back(errors: Errors, part: str) -> Draws:
    """Of the rise of cross-entropy at all sites together the share that goes where a part of the error is left in."""
    pairs = [(error.measured["loss"][RISE], error.measured["loss"][part]) for error in errors]
    total = _average([rise for rise, _ in pairs])
    return _average([rise * share for rise, share in pairs]) / total


def _saved(errors: Errors, kind: str, name: str) -> Draws:
    """Mean over sites of the share of the FVU that is gone."""
    both = [(error.number(kind, names.PLAIN), error.number(kind, name)) for error in errors]
    return _average([1 - after / before for before, after in both if before is not None and after is not None])


def _mean(errors: Errors, kind: str, *name: str) -> Draws:
    return _average([draws for error in errors if (draws := error.number(kind, *name)) is not None])


def _average(values: Sequence[Draws]) -> Draws:
    """Over the sites that have the number; NaN where none has."""
    numbers = [value for value in values if not value[0].isnan()]
    return torch.stack(numbers).mean(0) if numbers else torch.full((1,), math.nan)
