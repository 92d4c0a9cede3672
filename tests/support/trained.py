"""Short training runs on planted rows, and their comparison to the bit."""

import torch
from planted import Planted, planted_directions, unchecked
from torch import Tensor

from sae_core.sites import Site, Stream
from sae_core.training.config import TrainConfig
from sae_core.training.loop import train
from sae_core.training.penalty_recipes import Gated, JumpReLU, ReLU
from sae_core.training.state import TrainState
from sae_core.training.topk_recipes import BatchTopK, Matryoshka, TopK

BATCH, PLACES = 64, (Site(0), Site(2, Stream.MLP_OUT))


EVERY = {
    "topk": TopK(2),
    "batchtopk": BatchTopK(2),
    "matryoshka": Matryoshka(2),
    "jumprelu": JumpReLU(2),
    "gated": Gated(1.0),
    "relu": ReLU(1.0),
    "tied": ReLU(1.0, tied=True),
}


def config(recipe=EVERY["topk"], *, steps: int = 50, **rest) -> TrainConfig:
    defaults = {
        "expansion": 4,
        "tokens": steps * BATCH,
        "batch": BATCH,
        "warm_up": 3,
        "lr": 3e-3,
        "dead_after": 300,
        "bfloat16": False,
    }
    return TrainConfig(recipe, **(defaults | rest))


def every(**rest) -> list[TrainConfig]:
    """A member of each architecture, and TopK once more with Multi-TopK, another width and a clipped gradient."""
    other = config(TopK(2, multi=1 / 8), **(rest | {"expansion": 3, "clip": 0.5, "seed": 1}))
    return [*(config(recipe, **rest) for recipe in EVERY.values()), other]


def small(sites=PLACES, *, dtype=torch.float32, batches: int = 5) -> Planted:
    directions = planted_directions(30, 12).to(dtype)
    return Planted(directions, sites, batch=BATCH, batches=batches)


def finish(stream, state: TrainState) -> None:
    with unchecked():
        for _ in train(stream, state):
            pass


def memory(state: TrainState) -> dict[str, Tensor]:
    """Every tensor that training goes on from."""
    result = {}
    for member in state.members:
        for site, at_site in member.sites.items():
            place = f"{member.name} {site}"
            result |= {f"{place} {name}": tensor for name, tensor in at_site.sae.state_dict().items()}
            result |= {f"{place} {name}": getattr(at_site, name) for name in ("silent", "dead", "threshold", "lost")}
            for name, weight in at_site.weights.items():
                moments = at_site.optimizer.state.get(weight, {})
                result |= {f"{place} {name} {key}": moment for key, moment in moments.items()}
    return result


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
