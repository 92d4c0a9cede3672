"""The IOI curve: how many features, and how large an edit, carry a behaviour from one run into another.

Cunningham et al. 2023: in the corrupted run, move the features of a set F to their values in the clean
run, x' = x_bar + sum_{i in F} (c_i - c_bar_i) f_i, and read KL(clean || patched) where the answer is due. F grows in
an order that was chosen on other prompts (`selection.py`).

Cost: a prompt on which none of the added features differs is not run again; it reads as at the point before.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from editing.ioi.feature_sets import DIFFERENCE, KL, PROBABILITY, SIZE, Patching, Trial
from editing.metrics import interval


@dataclass(frozen=True)
class CurvePoint:
    """One set F on the test prompts."""

    n_features: int
    kl: float
    """Mean over prompts of KL(clean || patched) at the answer, nats."""
    recovered: float
    """(LD patched - LD corrupted) / (LD clean - LD corrupted), LD the mean logit difference over prompts.

    NaN where the clean and the corrupted run do not differ in it.
    """
    edit_size: float
    """Mean over prompts of the mean over edited positions of |x' - x_bar|; with several sites, summed over them."""
    probability: float = float("nan")
    """Mean over prompts of the probability of the answer."""
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    """95% bootstrap interval of each of the numbers above, over groups of prompts and prompts within."""


@dataclass(frozen=True)
class Curve:
    """One way to choose features, from none to all."""

    name: str
    points: tuple[CurvePoint, ...]
    order: tuple[str, ...] = ()
    """The features in the order in which they were added, as far as the figure names them."""
    forwards: int = 0
    """Prompts run to choose them; a backward pass counts as one more."""
    selection: str = ""
    """How they were chosen."""


@dataclass(frozen=True, eq=False)
class Trace:
    """A curve prompt by prompt."""

    counts: tuple[int, ...]
    readout: Float[Tensor, "points batch 4"]
    """The columns of `editing/ioi/feature_sets.py`: KL, logit difference, probability, edit size."""


@torch.no_grad()
def trace(patching: Patching, order: Sequence[int], counts: Sequence[int]) -> Trace:
    """What is read when the first m features of `order` are patched, for every m of `counts`, prompt by prompt."""
    sets, device = patching.none(), patching.corrupted.device

    def steps() -> Iterator[Trial]:
        done = 0
        for count in counts:
            new = torch.tensor(order[done:count], dtype=torch.long, device=device)
            prompts = patching.differs[:, new].any(1).nonzero()[:, 0]
            done = max(done, count)
            sets[prompts] += patching.several(new, prompts)
            yield prompts, sets[prompts]

    readout = patching.table(steps())
    run = torch.arange(len(counts), device=device)[:, None].expand(readout.shape[:2])
    latest = torch.where(readout[..., KL].isnan(), -1, run).cummax(0).values
    readout = torch.cat([patching.corrupted[None], readout]).gather(0, (latest + 1)[..., None].expand_as(readout))
    return Trace(tuple(counts), readout.double().cpu())


def summary(
    clean: Float[Tensor, "batch 4"],
    corrupted: Float[Tensor, "batch 4"],
    found: Trace,
    weights: Float[Tensor, "n batch"],
) -> tuple[CurvePoint, ...]:
    """The points of a trace: means, and their intervals under `resampled` weights of its prompts.

    `clean` and `corrupted` are what is read of the two runs.
    """
    ends = [own[:, DIFFERENCE].double().cpu() for own in (corrupted, clean)]
    everyone = torch.full((1, len(clean)), 1 / len(clean), dtype=torch.float64)

    def numbers(weights: Tensor) -> dict[str, Float[Tensor, "n points"]]:
        readout = torch.einsum("rb,pbc->crp", weights, found.readout)
        start, full = (weights @ own for own in ends)
        return {
            "kl": readout[KL],
            "recovered": _ratio(readout[DIFFERENCE] - start[:, None], (full - start)[:, None]),
            "edit_size": readout[SIZE],
            "probability": readout[PROBABILITY],
        }

    means = {name: own[0].tolist() for name, own in numbers(everyone).items()}
    spread = {name: interval(own).T.tolist() for name, own in numbers(weights).items()}
    return tuple(
        CurvePoint(
            n_features=count,
            **{name: own[row] for name, own in means.items()},
            intervals={name: (own[row][0], own[row][1]) for name, own in spread.items()},
        )
        for row, count in enumerate(found.counts)
    )


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    return torch.where(below.abs() > 1e-9, above / below, torch.nan)


@torch.no_grad()
def floor(patching: Patching) -> dict[str, float]:
    """KL that is left when all features are patched, and when the dictionary's error is patched too.

    The first is what the change of the error, e - e_bar, is worth; the second is zero where all positions of a
    residual site are edited, and elsewhere what the edited positions of that site do not carry.
    """
    everyone = torch.arange(len(patching.corrupted), device=patching.corrupted.device)
    every = patching.several(torch.arange(patching.differs.shape[1], device=everyone.device), everyone)
    latents, nothing, whole = patching.table([(everyone, every)])[0], patching.corrupted, patching.whole()
    each = {"nothing": nothing, "all_latents": latents, "all_latents_and_error": whole}
    return {name: own[:, KL].mean().item() for name, own in each.items()}


def default_counts(n: int) -> list[int]:
    """0, 1, ..., 16, then in steps that grow, up to `n`."""
    counts = [*range(17), 20, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096, 8192, 16384]
    return [count for count in counts if count < n] + [n]
