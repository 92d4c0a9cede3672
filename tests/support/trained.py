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
    found = {}
    for member in state.members:
        for site, own in member.sites.items():
            place = f"{member.name} {site}"
            found |= {f"{place} {name}": tensor for name, tensor in own.sae.state_dict().items()}
            found |= {f"{place} {name}": getattr(own, name) for name in ("silent", "dead", "threshold", "lost")}
            for name, weight in own.weights.items():
                moments = own.optimizer.state.get(weight, {})
                found |= {f"{place} {name} {key}": moment for key, moment in moments.items()}
    return found


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
