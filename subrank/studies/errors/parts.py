"""What the two parts of an error are: x = x_hat + L + N (`errors/fits.py`).

- What each costs the prediction: of the rise of the cross-entropy with x_hat in place of x, the share that goes when
  x_hat + L, or x_hat + N, is there instead. Control: the L of the same position of another context, drawn
  at random.
- How well a sparse dictionary does on each: TopK dictionaries of one size and training on x, e, L, N, by FVU on other
  contexts. Controls: Gaussians of the mean and covariance of N and of L on the contexts of the fit, which have no
  features; a vector of few strong dimensions is easy to reconstruct whatever it is made of.
- How much of the FVU is the encoder's: gradient pursuit with the same directions and as many latents, token by token
  (`errors/pursuit.py`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from editing.edited_contexts import EditedContexts
from editing.interventions.masks import where_inlier
from editing.interventions.patch import codes
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.model.language_model import LanguageModel
from sae_core.outliers import NO_LIMITS, Limits, inliers
from sae_core.seeds import generator_for
from sae_core.sites import Site
from sae_core.training.config import TrainConfig
from sae_core.training.loop import start, train
from sae_core.training.state import TrainState
from sae_core.training.topk_recipes import TopK
from subrank.settings.studies import DarkMatterSettings
from subrank.studies.errors.batches import Batch
from subrank.studies.errors.fits import ERROR, LINEAR, NONLINEAR, PLAIN, ErrorFit, X
from subrank.studies.errors.pursuit import pursuit
from subrank.studies.errors.regression import Draws, Gaussian, LeastSquares, Linear, Scores

LIKE = {LINEAR: "Gaussian like the linear error", NONLINEAR: "Gaussian like the nonlinear error"}
PARTS = (X, ERROR, *LIKE, *LIKE.values())
"""What dictionaries are trained on."""
SHUFFLED = "linear error of another context"
RISE, PURSUED = "rise", "pursuit"
BATCH = 512
"""Tokens per step of training."""


# ---- in the model ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class KeptError:
    """x_hat, and a part of the error, in place of x."""

    site: Site
    dictionary: Dictionary
    linear: Linear
    part: str
    mask: Bool[Tensor, "batch pos"]
    outlier_norm: float
    other: Float[Tensor, "batch pos d_in"]
    """The linear error of other contexts."""

    def __call__(self, h: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_in"]:
        linear = self.other if self.part == SHUFFLED else self.linear(h).to(h)
        if self.part == NONLINEAR:
            return where_inlier(self, self.mask, h - linear, h)
        x_hat = self.dictionary.decode(codes(self.site, self.dictionary, h))
        return where_inlier(self, self.mask, x_hat + linear if self.part else x_hat, h)


@torch.no_grad()
def loss_shares(
    model: LanguageModel, site: Site, error: ErrorFit, contexts: Int[Tensor, "contexts pos"], limit: float
) -> dict[str, Draws]:
    """(CE with x_hat - CE with the part too) / (CE with x_hat - CE of the model), and that rise in nats per token."""
    parts, at_once = ("", LINEAR, NONLINEAR, SHUFFLED), model.at_once(16)
    sums, others = torch.zeros(len(contexts), 2 + len(parts)).double(), contexts.roll(len(contexts) // 2, 0)
    for number, (tokens, elsewhere) in enumerate(zip(contexts.split(at_once), others.split(at_once), strict=True)):
        chunk = EditedContexts(model, tokens, [site])
        other = linear_error(model, site, error.linear, elsewhere[:, :-1], limit)
        edits = [KeptError(site, error.dictionary, error.linear, part, chunk.mask, limit, other) for part in parts]
        nll = torch.cat([chunk.original, chunk.costs(edits)])
        rows = number * at_once + chunk.scored.nonzero()[:, 0].cpu()
        sums.index_add_(0, rows, torch.cat([nll, torch.ones_like(nll[:1])]).T)
    original, spliced, *kept, n = (error.scores.weights @ sums).T
    shares = {part: (spliced - loss) / (spliced - original) for part, loss in zip(parts[1:], kept, strict=True)}
    return {RISE: (spliced - original) / n, **shares}


def linear_error(
    model: LanguageModel, site: Site, linear: Linear, tokens: Int[Tensor, "batch pos"], limit: float
) -> Float[Tensor, "batch pos d_in"]:
    """L at every token; 0 at those that are left out."""
    h = model.record(tokens, [site])[site]
    counted = model.content(tokens).to(h.device) & inliers(h, limit)
    return torch.where(counted[..., None], linear(h).to(h), 0.0)


# ---- on the activations ----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows in memory as training takes activations, in a new order in each block. Every part stands as a site."""

    x: Mapping[Site, Float[Tensor, "tokens d_in"]]
    seed: int

    @property
    def sites(self) -> tuple[Site, ...]:
        return tuple(self.x)

    @property
    def batch(self) -> int:
        return min(BATCH, len(next(iter(self.x.values()))))

    def block(
        self, block: int, limits: Limits = NO_LIMITS, steps: int | None = None
    ) -> Iterator[Mapping[Site, Tensor]]:
        n = len(next(iter(self.x.values())))
        order = torch.randperm(n, generator=generator_for(self.seed, "rows", block))
        for rows in order[: n - n % self.batch].split(self.batch):
            yield {site: x[rows.to(x.device)] for site, x in self.x.items()}


def training(rows: Rows, settings: DarkMatterSettings) -> TrainState:
    """Untrained dictionaries, one of each part."""
    recipe = TopK(min(settings.k, settings.expansion * next(iter(rows.x.values())).shape[1]))
    shape = {"expansion": settings.expansion, "tokens": settings.steps * rows.batch, "batch": rows.batch}
    return start(rows, TrainConfig(recipe, seed=settings.seed, bfloat16=False, **shape), outliers=0)


def dictionary_fvus(
    error: ErrorFit, fitted: Batch, held: Batch, settings: DarkMatterSettings
) -> Iterator[dict[str, Draws]]:
    """Trains dictionaries on the parts of `fitted`; after each step but the last an empty dict, then FVUs on `held`."""
    like = {name: gaussian_like(part) for name, part in zip(LIKE, error.split(fitted), strict=True)}
    parts, others = (_parts(error, like, *each) for each in ((fitted, settings.seed), (held, settings.seed + 1)))
    places = {name: Site(number) for number, (name, x) in enumerate(parts.items()) if x.any()}
    rows = Rows({place: parts[name].contiguous() for name, place in places.items()}, settings.seed)
    if not rows.x:
        return
    state = training(rows, settings)
    for _ in train(rows, state):
        yield {}
    scores, trained = Scores(error.scores.weights), state.dictionaries()
    with torch.no_grad():
        for name, place in places.items():
            x_hat = trained[place].decode(trained[place].encode(others[name]))
            scores.add(name, held.contexts, others[name], {"": x_hat})
    yield {name: 1 - scores.r2(name, "") for name in places}


def gaussian_like(x: Float[Tensor, "tokens d"]) -> Gaussian:
    """The normal distribution with the mean and covariance of some rows."""
    sums = LeastSquares()
    sums.add(x, x[:, :0])
    return sums.gaussian()


def _parts(error: ErrorFit, like: Mapping[str, Gaussian], batch: Batch, seed: int) -> dict[str, Tensor]:
    drawn = (gaussian.draw(len(batch.x), generator_for(seed, LIKE[name])) for name, gaussian in like.items())
    return dict(zip(PARTS, (batch.x, batch.error, *error.split(batch), *drawn), strict=True))


@torch.no_grad()
def pursued(error: ErrorFit, held: Batch, most: int) -> dict[str, Draws]:
    """FVUs of the dictionary's own codes and of those of pursuit, on at most so many tokens."""
    chosen = torch.randperm(len(held.x), generator=generator_for(0, "pursuit"))[:most]
    x, x_hat, l0, dictionary = held.x[chosen], held.x_hat[chosen], held.l0[chosen], error.dictionary
    constant = dictionary.decode(x.new_zeros(1, len(dictionary.directions)))
    scores = Scores(error.scores.weights)
    better = constant + pursuit(x - constant, dictionary.directions, l0.to(x.device))
    scores.add("activation", held.contexts[chosen], x, {PLAIN: x_hat, PURSUED: better})
    return {name: 1 - scores.r2("activation", name) for name in (PLAIN, PURSUED)}
