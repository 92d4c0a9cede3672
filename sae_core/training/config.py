"""What to train and for how long, and the recipes by their names; both as plain values and back."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, cast

from sae_core import checks
from sae_core.codec import from_plain
from sae_core.errors import UserError, no_such
from sae_core.training.penalty_recipes import Gated, JumpReLU, ReLU
from sae_core.training.recipe import Recipe
from sae_core.training.topk_recipes import BatchTopK, Matryoshka, TopK

RECIPES: Mapping[str, type] = {
    "topk": TopK,
    "batchtopk": BatchTopK,
    "matryoshka": Matryoshka,
    "jumprelu": JumpReLU,
    "gated": Gated,
    "relu": ReLU,
}
"""By the names that files and the command line use."""


def recipe_to_json(recipe: Recipe) -> dict[str, Any]:
    """A recipe as plain values; `recipe_from_json` is the inverse."""
    kind = next(name for name, recipe_type in RECIPES.items() if type(recipe) is recipe_type)
    return {"kind": kind, **asdict(cast(Any, recipe))}


def recipe_from_json(value: Mapping[str, Any]) -> Recipe:
    """The recipe that these values describe; raises `UserError` for a kind or an option there is not."""
    if not isinstance(value, Mapping) or not isinstance(value.get("kind"), str):
        raise UserError(f'a recipe is described by its "kind" and its options; got {value!r:.60}')
    options = dict(value)
    kind = options.pop("kind")
    if kind not in RECIPES:
        raise no_such("kind of dictionary", kind, RECIPES)
    try:
        return from_plain(RECIPES[kind], options, exact=True)
    except UserError as error:
        raise UserError(f"a {kind} dictionary: {str(error).partition(': ')[2]}") from error


@dataclass(frozen=True)
class TrainConfig:
    """What to train, and for how long."""

    recipe: Recipe = field(default_factory=TopK)
    """Architecture and loss."""
    expansion: int = 4
    """Latents per dimension of the activation."""
    tokens: int = 2_000_000
    """Tokens to train on, the text being repeated as often as that takes."""
    batch: int = 1024
    """Tokens per step."""
    lr: float | None = None
    """Learning rate; None for 5e-4 * sqrt(2^14 / n_latents)."""
    warm_up: int = 50
    """Steps over which the learning rate rises; penalties rise over four times as many."""
    dead_after: int = 100_000
    """A latent is dead when it was not active during this many tokens."""
    clip: float | None = None
    """The gradient's norm, over all parameters of one dictionary, is cut to this."""
    bfloat16: bool | None = None
    """Whether activations are multiplied with the encoder in bfloat16, which makes codes three digits exact in
    training and not otherwise; None for wherever the hardware that the run begins on has
    instructions for it."""
    kl: float = 0.0
    """Weight of KL(model || model with the reconstruction in place), in nats per token."""
    seed: int = 0
    """Of the weights at the start. Of the order of the text only where the stream is given the same one: in a
    sweep, which reads its text once, that is the first member's for all."""

    def __post_init__(self):
        for name in ("expansion", "tokens", "batch", "dead_after"):
            checks.whole(name, getattr(self, name), 1, checks.TOKENS)
        checks.whole("warm_up", self.warm_up)
        checks.whole("the seed", self.seed, None, checks.SEEDS)
        if self.tokens < self.batch:
            raise UserError(f"{self.tokens} training tokens are fewer than one batch of {self.batch}")
        for name, value in (("learning rate", self.lr), ("largest gradient norm", self.clip)):
            if value is not None:
                checks.positive(f"the {name}", value)
        checks.weight("the weight of the KL divergence", self.kl)
        if not isinstance(self.bfloat16, bool | None):
            raise UserError(f"bfloat16 must be true, false or null; got {self.bfloat16!r}")

    @property
    def steps(self) -> int:
        return self.tokens // self.batch

    def rate(self, step: int, n_latents: int) -> float:
        """Learning rate at a step."""
        top = 5e-4 * (2**14 / n_latents) ** 0.5 if self.lr is None else self.lr
        return top * min(1.0, (step + 1) / max(1, self.warm_up), (self.steps - step) / max(1.0, 0.2 * self.steps))

    def ramp(self, step: int) -> float:
        """Share of the sparsity penalty in force at a step."""
        return min(1.0, (step + 1) / max(1, 4 * self.warm_up))

    def to_json(self) -> dict[str, Any]:
        """As plain values; `from_json` is the inverse."""
        return asdict(self) | {"recipe": recipe_to_json(self.recipe)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "TrainConfig":
        """The configuration these values describe; raises `UserError` for an option there is not."""
        unknown = set(value) - {field.name for field in fields(cls)}
        if unknown:
            raise UserError(f"training has no option {', '.join(sorted(unknown))}")
        options: dict[str, Any] = dict(value)
        if "recipe" in options:
            options["recipe"] = recipe_from_json(options["recipe"])
        return cls(**options)
