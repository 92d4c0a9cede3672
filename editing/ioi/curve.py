"""The IOI curve: how many features, and how large an edit, carry a behaviour from one run into another.

Cunningham et al. 2023: in the corrupted run, move the features of a set F to their values in the clean
run, x' = x_bar + sum_{i in F} (c_i - c_bar_i) f_i, and read KL(clean || patched) where the answer is due. F grows in
an order that was chosen on other prompts (`feature_selection.py`).

Cost: a prompt on which none of the added features differs is not run again; it reads as at the point before.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from editing.ioi.feature_sets import Patching, PatchReadout, SetOnPrompts
from editing.metrics import interval
from sae_core.estimate import Estimate


@dataclass(frozen=True)
class PatchingPoint:
    """One set F on the test prompts; intervals are 95%, bootstrap over groups of prompts and prompts within."""

    n_features: int
    kl: Estimate
    """Mean over prompts of KL(clean || patched) at the answer, nats."""
    recovered: Estimate
    """(LD patched - LD corrupted) / (LD clean - LD corrupted), LD the mean logit difference over prompts.

    NaN where the clean and the corrupted run do not differ in it.
    """
    edit_size: Estimate
    """Mean over prompts of the mean over edited positions of |x' - x_bar|; with several sites, summed over them."""
    probability: Estimate
    """Mean over prompts of the probability of the answer."""


@dataclass(frozen=True)
class Curve:
    """One way to choose features, from none to all."""

    name: str
    points: tuple[PatchingPoint, ...]
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
    readout: PatchReadout
    """`[points batch]`, float64."""


@torch.no_grad()
def trace(patching: Patching, order: Sequence[int], counts: Sequence[int]) -> Trace:
    """What is read when the first m features of `order` are patched, for every m of `counts`, prompt by prompt."""
    device = patching.corrupted.kl.device
    sets = patching.empty_sets(len(patching.corrupted.kl))

    def growing_sets() -> Iterator[SetOnPrompts]:
        done = 0
        for count in counts:
            new = torch.tensor(order[done:count], dtype=torch.long, device=device)
            prompts = patching.differs[:, new].any(1).nonzero()[:, 0]
            done = max(done, count)
            sets[prompts] += patching.contributions(new, prompts)
            yield prompts, sets[prompts]

    return _traced(patching, growing_sets(), counts)


@torch.no_grad()
def trace_pairs(patching: Patching, orders: Int[Tensor, "batch n_features"], counts: Sequence[int]) -> Trace:
    """As `trace`, each pair of prompts with an order of its own, row by row of `orders`."""
    sets = patching.empty_sets(len(orders))
    ordered = patching.differs.gather(1, orders)  # where in a pair's order features stand that do anything on it

    def growing_sets() -> Iterator[SetOnPrompts]:
        done = 0
        for count in counts:
            prompts = ordered[:, done:count].any(1).nonzero()[:, 0]
            for pair in prompts.tolist():
                new = orders[pair, done:count][ordered[pair, done:count]]
                sets[pair] += patching.contributions(new, prompts.new_tensor([pair]))[0]
            done = max(done, count)
            yield prompts, sets[prompts]

    return _traced(patching, growing_sets(), counts)


def _traced(patching: Patching, sets: Iterable[SetOnPrompts], counts: Sequence[int]) -> Trace:
    """What is read of growing sets, one for every count."""
    # A point runs only the prompts on which a feature added since the point before differs; elsewhere its row in the
    # table is NaN. latest[point, b] is the last point up to this one that ran prompt b, -1 where none did: there
    # the prompt still reads as corrupted, which is row 0 of the table with the corrupted run set before it.
    n_prompts, device = len(patching.corrupted.kl), patching.corrupted.kl.device
    table = patching.table(sets)
    point = torch.arange(len(counts), device=device)[:, None].expand(len(counts), n_prompts)
    latest = torch.where(table.kl.isnan(), -1, point).cummax(0).values
    rows = (torch.cat([start[None], run]) for start, run in zip(patching.corrupted, table, strict=True))
    return Trace(tuple(counts), PatchReadout(*(row.gather(0, latest + 1).double().cpu() for row in rows)))


def summary(
    clean: PatchReadout, corrupted: PatchReadout, trace: Trace, weights: Float[Tensor, "resamples batch"]
) -> tuple[PatchingPoint, ...]:
    """The points of a trace: means over prompts, and their intervals under `resampled` weights of the prompts.

    `clean` and `corrupted` are what is read of the two runs, `[batch]`.
    """
    # Every number is a function of weighted means over prompts, w @ readout [resamples points]: itself for KL, edit
    # size and probability, a ratio of differences for `recovered`. Equal weights give the value, resampled ones the
    # interval, so that the ratio is resampled as a whole.
    start, end = (run.logit_difference.double().cpu() for run in (corrupted, clean))
    equal = torch.full((1, len(start)), 1 / len(start), dtype=torch.float64)

    def numbers(weights: Tensor) -> dict[str, Float[Tensor, "resamples points"]]:
        mean = trace.readout.each(lambda x: weights @ x.T)
        low, whole = (weights @ start)[:, None], (weights @ (end - start))[:, None]
        recovered = torch.where(whole.abs() > 1e-9, (mean.logit_difference - low) / whole, torch.nan)
        return {"kl": mean.kl, "recovered": recovered, "edit_size": mean.edit_size, "probability": mean.probability}

    values = {name: value[0].tolist() for name, value in numbers(equal).items()}
    ends = {name: interval(value).T.tolist() for name, value in numbers(weights).items()}
    return tuple(
        PatchingPoint(count, **{name: Estimate(values[name][row], *ends[name][row]) for name in values})
        for row, count in enumerate(trace.counts)
    )


@torch.no_grad()
def floor(patching: Patching) -> dict[str, float]:
    """KL that is left when all features are patched, and when the dictionary's error is patched too.

    The first is what the change of the error, e - e_bar, is worth; the second is zero where all positions of a
    residual site are edited, and elsewhere what the edited positions of that site do not carry.
    """
    n_prompts, n_features = patching.differs.shape
    prompts, features = (torch.arange(n, device=patching.differs.device) for n in (n_prompts, n_features))
    all_latents = patching.table([(prompts, patching.contributions(features, prompts))])
    return {
        "nothing": patching.corrupted.kl.mean().item(),
        "all_latents": all_latents.kl.mean().item(),
        "all_latents_and_error": patching.activation_patched().kl.mean().item(),
    }


def curve_counts(n: int) -> list[int]:
    """The numbers of features at which a curve is read: 0, 1, ..., 16, then in steps that grow, up to `n`."""
    counts = [*range(17), 20, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096, 8192, 16384]
    return [count for count in counts if count < n] + [n]
