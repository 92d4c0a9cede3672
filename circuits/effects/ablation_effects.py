"""How much a target depends on each latent of a site, by ablation in the real model.

    effect_j = (sum_i a_i - sum_i a_ij) / |sum_i a_i|

over the target's examples i, a ratio of sums: positive where the cause supports the target. a_ij is the
target with latent j set to its ablated value (zero, a mean, another token's) at all positions up to the one
that is read, the error term kept. Its standard error is that of a ratio of sums r = sum d_i / sum a_i,

    sqrt(n / (n - 1) sum_i (d_i - r a_i)^2) / |sum_i a_i|        d_i = a_i - a_ij

(linearised, Cochran 1977, section 2.11; it counts the scatter of d about r a, not that of d).

A pair of latent and example in which the ablated value is the clean one at every position has no effect,
exactly, and is not run. `circuits/effects/exact_routes.py` says how the others are computed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.effects.exact_routes import Route, route, runs_at_once
from circuits.effects.scene import Change, Scene
from circuits.effects.targets import Target
from circuits.features.atlas import Examples
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.errors import UserError
from sae_core.model.language_model import LanguageModel
from sae_core.outliers import inliers, outlier_norm_of
from sae_core.seeds import generator_for
from sae_core.sites import Site


@runtime_checkable
class AblatedCodes(Protocol):
    """The values that latents are set to: zero, a mean, or those of another token."""

    def __call__(self, codes: Float[Tensor, "pos n_latents"], example: int) -> Float[Tensor, "#pos n_latents"]:
        """The values in place of `codes`, which are those of one example."""
        ...


def to_zero(codes: Float[Tensor, "pos n_latents"], example: int) -> Float[Tensor, "#pos n_latents"]:
    """Zero: what a latent contributes is taken away."""
    return torch.zeros_like(codes[:1])


@dataclass(frozen=True, eq=False)
class ToMean:
    """Each latent's mean over some text, tokens on which it is silent included. No pair can be skipped."""

    mean: Float[Tensor, "n_latents"]

    def __call__(self, codes: Float[Tensor, "pos n_latents"], example: int) -> Float[Tensor, "#pos n_latents"]:
        return self.mean[None].to(codes)


@dataclass(frozen=True, eq=False)
class ToOthers:
    """The codes of other tokens, one drawn for each position of each example, all latents from the same one."""

    codes: Float[Tensor, "tokens n_latents"]
    seed: int

    def __call__(self, codes: Float[Tensor, "pos n_latents"], example: int) -> Float[Tensor, "#pos n_latents"]:
        drawn = torch.randint(len(self.codes), (len(codes),), generator=generator_for(self.seed, "resample", example))
        return self.codes[drawn.to(self.codes.device)].to(codes)


@dataclass(frozen=True, eq=False)
class Effects:
    """The effect of every latent of one site on one target."""

    source: Site
    effect: Float[Tensor, "n_latents"]
    """In float64, as the sums are."""
    error: Float[Tensor, "n_latents"]
    """Standard error over the examples; NaN if there is only one."""
    n_active: Int[Tensor, "n_latents"]
    """Examples on which the ablation changes the latent, up to the target's position."""
    n_pairs: int
    """Pairs of latent and example that were run."""


Runs = Iterator[tuple[Change, Int[Tensor, "runs"]]]
"""The runs of one example at a time, and the key that each is summed under."""


@dataclass(frozen=True, eq=False)
class Causes:
    """A target on its examples, and the latents of one site whose effects on it are sought."""

    scene: Scene
    route: Route
    dictionary: Dictionary
    ablation: AblatedCodes
    content: Bool[Tensor, "examples pos"]
    """Positions at which latents are ablated."""

    @classmethod
    def of(
        cls,
        model: LanguageModel,
        dictionary: Dictionary,
        source: Site,
        target: Target,
        examples: Examples,
        *,
        ablation: AblatedCodes = to_zero,
    ) -> "Causes":
        """Total effects; raises `UserError` where the source cannot affect the target, or the target is zero."""
        return cls.along(route(model, source, target, examples), dictionary, ablation)

    @classmethod
    def along(cls, way: Route, dictionary: Dictionary, ablation: AblatedCodes = to_zero) -> "Causes":
        """The effects that take a given route; raises `UserError` where the target is zero on the examples."""
        scene = way.scene
        if not abs(float(scene.clean.sum())) > 0:
            raise UserError(f"{scene.target.node} is not active on the examples given")
        content = scene.model.content(scene.tokens.cpu()).to(scene.tokens.device)
        content &= torch.arange(scene.tokens.shape[1], device=content.device) <= scene.end[:, None]
        content &= inliers(scene.x, outlier_norm_of(dictionary))
        return cls(scene, way, dictionary, ablation, content)

    @torch.no_grad()
    def taken(self, example: int, only: Int[Tensor, "k"] | None = None) -> Float[Tensor, "pos n_latents"]:
        """c - c': what the ablation takes from each latent of one example; zero for latents outside `only`."""
        width = int(self.scene.end[example]) + 1
        codes = self.dictionary.encode(self.scene.x[example, :width])
        taken = (codes - self.ablation(codes, example)) * self.content[example, :width, None]
        return taken if only is None else torch.zeros_like(taken).index_copy_(1, only, taken[:, only])

    @property
    def total(self) -> float:
        """|sum_i a_i|."""
        return abs(float(self.scene.clean.double().sum()))


@torch.no_grad()
def ablation_effects(causes: Causes, only: Int[Tensor, "k"] | None = None, *, at_once: int | None = None) -> Effects:
    """The effect of each latent that is active on the examples; the others' is 0, exactly.

    With `only`, the effects of those latents, and zeros for the rest. `at_once` runs share a forward pass (as many
    as memory allows by default); the effects do not depend on it.
    """
    directions, n_examples = causes.dictionary.directions, len(causes.scene.end)
    runs = (_each_latent(causes.taken(i, only), i) for i in range(n_examples))
    sums = _measured(causes, directions, len(directions), runs, at_once)
    n_active = sums.n_runs.cpu()  # a latent has one run for each example on which it is active
    return Effects(causes.scene.source, *sums.effects(), n_active, int(n_active.sum()))


@torch.no_grad()
def effects_by_position(
    causes: Causes, only: Int[Tensor, "k"] | None = None
) -> tuple[Float[Tensor, "n_latents pos"], Float[Tensor, "n_latents pos"]]:
    """Effects and their standard errors of each latent ablated at one position only.

    Positions are counted back from the target's: 0 is its own.
    """
    directions, scene = causes.dictionary.directions, causes.scene
    n_pos = scene.tokens.shape[1]

    def runs() -> Runs:
        for i in range(len(scene.end)):
            change, latents = _each_place(causes.taken(i, only), i)
            yield change, latents * n_pos + int(scene.end[i]) - change.position

    effect, error = _measured(causes, directions, len(directions) * n_pos, runs()).effects()
    return effect.view(-1, n_pos), error.view(-1, n_pos)


@torch.no_grad()
def null_effects(causes: Causes, latent: int, n: int = 1000, *, seed: int = 0) -> Float[Tensor, "n"]:
    """Effects of taking a latent's codes along `n` random unit directions instead of its own."""
    scene = causes.scene
    width = scene.x.shape[-1]
    drawn = torch.randn(n, width, generator=generator_for(seed, "null", str(scene.target.node), str(scene.source)))
    directions = torch.nn.functional.normalize(drawn, dim=-1).to(scene.x)
    numbers = torch.arange(n, device=scene.x.device)  # of directions, and so of runs

    def runs() -> Runs:
        for i in range(len(scene.end)):
            amount = causes.taken(i)[:, latent]
            position = amount.nonzero()[:, 0]
            if len(position):
                run = numbers.repeat_interleave(len(position))
                yield Change(i, n, run, position.repeat(n), run, amount[position].repeat(n)), numbers

    return _measured(causes, directions, n, runs()).effects()[0]


@torch.no_grad()
def error_effect(causes: Causes) -> tuple[float, float]:
    """(effect, standard error) of taking away the error term of the source, x - x_hat, at all content positions."""
    scene, sums = causes.scene, _Sums(1, causes.scene)
    for i in range(len(scene.end)):
        width = int(scene.end[i]) + 1
        x, position = scene.x[i, :width], causes.content[i, :width].nonzero()[:, 0]
        if len(position):
            # one run, whose direction at each position is that position's own error term
            errors = (x - causes.dictionary.decode(causes.dictionary.encode(x)))[position]
            row, run = torch.arange(len(position), device=x.device), torch.zeros_like(position)
            change = Change(i, 1, run, position, row, x.new_ones(len(position)))
            sums.add(i, run[:1], causes.route.values(change, causes.route.table(errors)))
    effect, error = sums.effects()
    return float(effect), float(error)


def _measured(
    causes: Causes,
    directions: Float[Tensor, "rows d_in"],
    n_keys: int,
    runs: Runs,
    at_once: int | None = None,
) -> "_Sums":
    """The sums over all runs, each added to its key; `directions` are those that the changes take away."""
    table = causes.route.table(directions)
    at_once = at_once or runs_at_once(causes.route, table)
    sums = _Sums(n_keys, causes.scene)
    for change, keys in runs:
        for part, part_keys in zip(change.parts(at_once), keys.split(at_once), strict=False):  # no runs: no parts
            sums.add(change.example, part_keys, causes.route.values(part, table))
    return sums


def _each_latent(taken: Float[Tensor, "pos n_latents"], example: int) -> tuple[Change, Int[Tensor, "runs"]]:
    """A run for each latent from which something is taken, and those latents."""
    latent, position = taken.T.nonzero(as_tuple=True)
    latents, run = latent.unique_consecutive(return_inverse=True)
    return Change(example, len(latents), run, position, latent, taken[position, latent]), latents


def _each_place(taken: Float[Tensor, "pos n_latents"], example: int) -> tuple[Change, Int[Tensor, "runs"]]:
    """A run for each latent and position at which something is taken, and their latents."""
    latent, position = taken.T.nonzero(as_tuple=True)
    run = torch.arange(len(latent), device=taken.device)
    return Change(example, len(latent), run, position, latent, taken[position, latent]), latent


class _Sums:
    """Sums over runs by key of d, d^2 and d a, in float64 and in the order of the examples; d = a - a_ablated."""

    def __init__(self, n: int, scene: Scene):
        self.clean = scene.clean.double()
        self.drop, self.square, self.product = torch.zeros(3, n, dtype=torch.float64, device=self.clean.device)
        self.n_runs = torch.zeros(n, dtype=torch.long, device=self.clean.device)

    def add(self, example: int, keys: Int[Tensor, "runs"], values: Float[Tensor, "runs"]) -> None:
        """Runs of one example, no two with the same key."""
        a = self.clean[example]
        d = a - values.double()
        for total, part in ((self.drop, d), (self.square, d.square()), (self.product, d * a)):
            total.index_add_(0, keys, part)
        self.n_runs.index_add_(0, keys, torch.ones_like(keys))

    def effects(self) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
        """Ratios of sums and their standard errors, by key."""
        # sum_i (d_i - r a_i)^2 = sum d^2 - 2 r sum d a + r^2 sum a^2, so that no d need be kept
        total, n = self.clean.sum(), len(self.clean)
        ratio = self.drop / total
        spread = self.square - 2 * ratio * self.product + ratio.square() * self.clean.square().sum()
        error = (n / (n - 1) * spread.clamp_min(0)).sqrt() / total.abs() if n > 1 else torch.full_like(ratio, torch.nan)
        # divided by |sum a|: a difference of logits may be negative, and what supports it then lowers it
        return (self.drop / total.abs()).cpu(), error.cpu()
