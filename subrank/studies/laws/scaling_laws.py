"""The laws of a sweep at one site: L(n) and L(n, k) of finished dictionaries, L(C) and L(n, T) of those on the way.

All are fits of `power_law.py`; losses are FVU and, of finished dictionaries, the rise of the cross-entropy when the
reconstruction is spliced in. The best number of latents for a budget C is the minimum over n of L(n, T = C / FLOPs per
token), by the law L(n, T).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sae_core.estimate import Estimate
from sae_core.sites import Site
from subrank.settings.studies import ScalingSettings
from subrank.studies.laws.curves import Checkpoint, flops_per_token, lower_hull
from subrank.studies.laws.power_law import JOINT, TOKENS, Fit, Law, fit_law, interval, power
from subrank.studies.metrics.measured import SetMetrics

LOSSES = {"fvu": "FVU", "rise": "rise of the loss"}
"""Fields of `Point` that laws are fitted to, in words."""
LEAST, FOR_FLOOR, FOR_JOINT = 3, 5, 4
"""Different sizes that a law needs, those for an irreducible term, and different k for that of the joint law."""


@dataclass(frozen=True)
class Point:
    """A dictionary of a set."""

    name: str
    """Its set."""
    site: Site
    kind: str
    k: int
    n_latents: int
    d_in: int
    tokens: int
    """Trained on; 0 where that is not known."""
    fvu: float
    l0: float
    dead: float
    original: float
    """Cross-entropy of the model, nats per token."""
    rise: float
    """By how much it is higher with the reconstruction in place."""
    curve: tuple[tuple[float, float], ...] = ()
    """(tokens, FVU) while it trained."""

    @property
    def flops_per_token(self) -> float:
        return flops_per_token(self.kind, self.d_in, self.n_latents, self.k)

    @property
    def flops(self) -> float:
        """Of its whole training."""
        return self.tokens * self.flops_per_token

    @property
    def checkpoints(self) -> list[Checkpoint]:
        """The dictionary on its way or, where no log tells of that, at its end."""
        curve = self.curve or (((float(self.tokens), self.fvu),) if self.tokens and self.fvu > 0 else ())
        return [Checkpoint(self.name, self.n_latents, t, t * self.flops_per_token, loss) for t, loss in curve]


@dataclass(frozen=True)
class SizeLaw:
    """L(n) of one loss."""

    law: Law
    beyond: float
    """Latents for which it is read beyond its points."""
    predicted: Estimate | None
    """The loss there; None where an exponent's interval includes 0, so that the law may not be read there."""


@dataclass(frozen=True)
class Optimum:
    """The best number of latents for a budget."""

    flops: float
    n_latents: Estimate
    loss: float
    """FVU, before the learning rate falls."""


@dataclass(frozen=True)
class Series:
    """Dictionaries of one site, kind and k."""

    site: Site
    kind: str
    k: int
    sizes: dict[str, SizeLaw]
    """L(n), by the names of `LOSSES`."""
    hull: tuple[Checkpoint, ...]
    """The best checkpoints at every compute."""
    compute: Law | None
    """L(C), through the hull."""
    tokens: Law | None
    """L(n, T), of all checkpoints; intervals by the wild bootstrap over dictionaries."""
    optimum: Optimum | None
    notes: tuple[str, ...]
    """What could not be fitted, and why."""

    @property
    def name(self) -> str:
        return f"{self.site} {self.kind} k={self.k}"


@dataclass(frozen=True)
class Joint:
    """L(n, k) of all dictionaries of one site and kind, by the names of `LOSSES`."""

    site: Site
    kind: str
    laws: dict[str, Law]
    note: str


@dataclass(frozen=True)
class Laws:
    """The numbers of a study of scaling."""

    points: tuple[Point, ...]
    series: tuple[Series, ...]
    joints: tuple[Joint, ...]
    metrics: dict[str, dict[Site, SetMetrics]] = field(default_factory=dict)
    """By set and site."""


def finished(points: Sequence[Point], loss: str = "fvu") -> list[Point]:
    """Those that were trained on the most tokens, as a law over sizes must not mix them, with a loss above 0."""
    most = max(point.tokens for point in points)
    return [point for point in points if point.tokens == most and getattr(point, loss) > 0]


def series_of(points: Sequence[Point], settings: ScalingSettings) -> Series:
    """All laws of dictionaries of one site, kind and k."""
    first, notes = points[0], list[str]()
    sizes = {loss: law for loss in LOSSES if (law := _size_law(finished(points, loss), loss, settings, notes))}
    checkpoints = [each for point in points for each in point.checkpoints]
    hull = lower_hull(checkpoints)
    compute = None
    if len(hull) < LEAST:
        notes.append(f"L(C): the best dictionaries at all computes are {len(hull)}, a law needs {LEAST}")
    else:
        x, loss = {"C": np.array([each.flops for each in hull])}, np.array([each.loss for each in hull])
        compute = fit_law(_forms("C", len(hull)), x, loss, draws=settings.draws, seed=settings.seed).law
    tokens, optimum = _optimum(points, checkpoints, settings, notes)
    return Series(first.site, first.kind, first.k, sizes, tuple(hull), compute, tokens, optimum, tuple(notes))


def _forms(variable: str, n_values: int):
    return power(variable)[: 1 + (n_values >= FOR_FLOOR)]


def _size_law(points: Sequence[Point], loss: str, settings: ScalingSettings, notes: list[str]) -> SizeLaw | None:
    """L(n); None, with a note, for too few sizes."""
    n = np.array([point.n_latents for point in points], float)
    n_sizes, words = len({*n}), LOSSES[loss]
    if n_sizes < LEAST:
        notes.append(f"L(n) of {words}: {n_sizes} sizes, a law needs {LEAST}")
        return None
    if n_sizes < FOR_FLOOR:
        notes.append(
            f"L(n) of {words}: {n_sizes} sizes are too few for an irreducible term, which takes {FOR_FLOOR}; the pure "
            "power law may be too low beyond them"
        )
    values = np.array([getattr(point, loss) for point in points])
    fit = fit_law(_forms("n", n_sizes), {"n": n}, values, draws=settings.draws, seed=settings.seed)
    beyond = settings.beyond * n.max()
    return SizeLaw(fit.law, beyond, fit.beyond({"n": np.array([beyond])}))


def joint_of(points: Sequence[Point], settings: ScalingSettings) -> Joint | None:
    """L(n, k) of dictionaries of one site and kind; None for too few sizes, or a single k."""
    sizes, ks = ({getattr(point, name) for point in points} for name in ("n_latents", "k"))
    if len(sizes) < LEAST or len(ks) < 2:
        return None
    large = len(sizes) >= FOR_FLOOR and len(ks) >= FOR_JOINT
    laws = {}
    for loss in LOSSES:
        kept = finished(points, loss)
        x = {name[0]: np.array([getattr(p, name) for p in kept], float) for name in ("n_latents", "k")}
        if len({*x["n"]}) >= LEAST and len({*x["k"]}) >= 2 and len(kept) > len(JOINT[0].names):
            values = np.array([getattr(point, loss) for point in kept])
            laws[loss] = fit_law(JOINT[: 1 + large], x, values, draws=settings.draws, seed=settings.seed).law
    grid = f"{len(sizes)} sizes x {len(ks)} k"
    note = f"{grid} are too few for an irreducible term, which takes {FOR_FLOOR} x {FOR_JOINT}; fitted without"
    return Joint(points[0].site, points[0].kind, laws, grid if large else note)


def _optimum(
    points: Sequence[Point], checkpoints: Sequence[Checkpoint], settings: ScalingSettings, notes: list[str]
) -> tuple[Law | None, Optimum | None]:
    """L(n, T), and the best n for the budget by it; None, with a note, where there is none."""
    x = {
        "n": np.array([each.n_latents for each in checkpoints], float),
        "T": np.array([each.tokens for each in checkpoints], float),
    }
    counts = [len({*values}) for values in x.values()]
    if min(counts) < LEAST or len(checkpoints) <= len(TOKENS.names):
        notes.append(
            f"best n for a budget: {counts[0]} sizes at {counts[1]} numbers of tokens, L(n, T) needs {LEAST} of each; "
            "folders of `subrank train` hold the log of training"
        )
        return None, None
    names, loss = [each.name for each in checkpoints], np.array([each.loss for each in checkpoints])
    fit = fit_law([TOKENS], x, loss, draws=settings.draws, seed=settings.seed, groups=names)
    budget = settings.budget or max(point.flops for point in points)
    optimum = best_size(fit, budget, points[0])
    if optimum is None:
        notes.append(
            f"best n for {budget:.2g} FLOP: none is told, as an exponent of L(n, T) has 0 in its interval, or the best "
            f"n, or an end of its interval, lies beyond {RANGE} times the sizes that there are"
        )
    return fit.law, optimum


RANGE = 100
"""The best number of latents is looked for up to so many times the sizes that were trained."""


def best_size(fit: Fit, flops: float, like: Point) -> Optimum | None:
    """The n that is best for a budget by the law L(n, T), for dictionaries that are `like` one in all but size."""
    if not fit.law.extends:
        return None
    n = np.geomspace(max(like.k, like.n_latents / RANGE), like.n_latents * RANGE, 1000)
    cost = np.array([flops_per_token(like.kind, like.d_in, size, like.k) for size in n])
    x: Mapping[str, np.ndarray] = {"n": n, "T": flops / cost}
    values = np.array([each.value for each in fit.law.coefficients.values()])
    best, *drawn = fit.law.form.log_loss(np.stack([values, *fit.draws]), x).argmin(1)
    ends = np.isin(drawn, (0, len(n) - 1)).mean() if drawn else 0.0
    if best in (0, len(n) - 1) or ends >= 0.025:  # an end of the interval would be that of the grid
        return None
    return Optimum(flops, interval(float(n[best]), n[np.array(drawn, int)]), float(fit.law.at(x)[best]))
