"""What is known of each dictionary's error, in plain numbers."""

import math
from dataclasses import dataclass

from sae_core.estimate import Estimate
from sae_core.sites import Site
from subrank.studies.errors.batches import Place
from subrank.studies.errors.fits import ACTIVATION, PLAIN, ErrorFit, X
from subrank.studies.errors.regression import estimate


@dataclass(frozen=True)
class Prediction:
    """How well a target is predicted, by R^2."""

    target: str
    predictor: str
    r2: Estimate
    """On other contexts, over tokens and dimensions."""
    of_dimensions: float
    """Mean over dimensions of theirs, as Engels et al. have it."""
    on_fit: float
    """On the tokens of the fit; NaN for the means of tokens and the rescaled reconstruction."""


@dataclass(frozen=True)
class SiteErrors:
    """The error of one dictionary; intervals are over contexts."""

    set: str
    site: Site
    n_latents: int
    n_tokens: int
    """Measured."""
    n_left_out: int
    """Tokens of massive norm."""
    l0: float
    predictions: tuple[Prediction, ...]
    measured: dict[str, dict[str, Estimate]]
    """`fvu`: of x_hat, and of it with what each predictor says of e. `smaller`: R^2 of |e| from the smallest set's. Of
    the largest set also `loss` (rise of cross-entropy in nats per token, and the share of it that each part gives
    back), `dictionaries` (FVU of one trained on each part), `pursuit` (FVU without it and with it, on some tokens)."""

    def number(self, kind: str, name: str) -> Estimate:
        """NaN where it was not measured."""
        return self.measured.get(kind, {}).get(name, Estimate(math.nan))

    def r2(self, target: str, predictor: str) -> Estimate:
        """NaN where it was not tried."""
        key = target, predictor
        return next((p.r2 for p in self.predictions if (p.target, p.predictor) == key), Estimate(math.nan))

    @property
    def fvu(self) -> Estimate:
        return self.number("fvu", PLAIN)

    @property
    def nonlinear(self) -> Estimate:
        """FVU of the nonlinear error."""
        return self.number("fvu", X)


def site_errors(place: Place, error: ErrorFit) -> SiteErrors:
    """The numbers of one error."""
    keys = [(target, predictor) for target, predictor in error.scores.missed if target != ACTIVATION]
    return SiteErrors(
        set=place.set,
        site=place.site,
        n_latents=len(error.dictionary.directions),
        n_tokens=error.n_tokens,
        n_left_out=error.n_left_out,
        l0=error.active / max(1, error.n_tokens),
        predictions=tuple(
            Prediction(*key, estimate(error.scores.r2(*key)), error.scores.r2_of_dimensions(*key), error.on_fit(*key))
            for key in keys
        ),
        measured={
            kind: {name: estimate(draws) for name, draws in numbers.items()} for kind, numbers in error.measured.items()
        },
    )
