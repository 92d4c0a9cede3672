"""The IOI curve: how many features, and how large an edit, carry a behaviour from one run into another.

Cunningham et al. 2023: in the corrupted run, move the features of a set F to their values in the clean
run, x' = x_bar + sum_{i in F} (c_i - c_bar_i) f_i, at one site, and read KL(clean || patched) where the
answer is due. F grows in an order that was chosen on other prompts (`selection.py`).

Cost: rows (one prompt under one edit) are stacked into forward passes that begin at the edited layer and
unembed one position each. A prompt on which none of the added features differs is not run again: its
activation is the one of the point before.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from editing.memory import rows_at_once
from editing.metrics import interval, kl_divergence, logit_difference, resampled
from editing.tasks.pairs import PromptPairs, at_end
from sae_core.dictionaries import Dictionary
from sae_core.errors import UserError
from sae_core.models import LanguageModel
from sae_core.sites import Site, Stream

KL, DIFFERENCE, PROBABILITY = range(3)
"""What is read where the answer is due: the columns of a readout."""


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
    """Mean over prompts of the mean over edited positions of |x' - x_bar|."""
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
    readout: Float[Tensor, "points batch 3"]
    edit_size: Float[Tensor, "points batch"]


@dataclass(frozen=True, eq=False)
class _Add:
    """The activation plus a change."""

    site: Site
    change: Float[Tensor, "rows pos d"]

    def __call__(self, h: Float[Tensor, "rows pos d"]) -> Float[Tensor, "rows pos d"]:
        return h + self.change


class PatchExperiment:
    """Clean and corrupted runs of prompt pairs at one site, and the effect of any edit of the corrupted one.

    `positions` count from the end of each prompt as in Python, -1 being the one where the answer is read; by
    default every content position up to it is edited. Raises `UserError` for pairs that cannot be aligned.
    """

    def __init__(self, model: LanguageModel, pairs: PromptPairs, site: Site, positions: Sequence[int] | None = None):
        _check(pairs)
        self.model, self.pairs, self.site = model, pairs, site
        self.last, below = model.sites()[-1], Site(site.layer - 1)
        self.end = pairs.end.to(model.device)
        with torch.no_grad():
            clean = model.record(pairs.clean, {site, self.last})
            wanted = {site, Site(site.layer), self.last} | ({below} if site.layer else set())
            corrupted = model.record(pairs.corrupted, wanted)
            self.x, self.x_bar, self.residual = clean[site], corrupted[site], corrupted[Site(site.layer)]
            self.below = corrupted.get(below)
            self.clean_logits = model.unembed(at_end(clean[self.last], self.end))
            self.corrupted_logits = model.unembed(at_end(corrupted[self.last], self.end))
            self.adds = self._adds()
        self.mask: Bool[Tensor, "batch pos"] = self._edited(positions)
        self.answer, self.foil = pairs.answer.to(model.device), pairs.foil.to(model.device)
        everyone = torch.arange(len(pairs), device=model.device)
        self.clean: Float[Tensor, "batch 3"] = self._readout(self.clean_logits, everyone)
        self.corrupted: Float[Tensor, "batch 3"] = self._readout(self.corrupted_logits, everyone)

    def __len__(self) -> int:
        return len(self.pairs)

    # ---- the edit ------------------------------------------------------------------------------

    def differences(self, dictionary: Dictionary) -> Float[Tensor, "batch pos n_latents"]:
        """c - c_bar at the positions that are edited, zero elsewhere.

        Raises `UserError` for a dictionary of another width than the site's.
        """
        width = dictionary.directions.shape[-1]
        if width != self.x.shape[-1]:
            raise UserError(
                f"these features read activations of width {width}, those at {self.site} have width "
                f"{self.x.shape[-1]}; give the dictionary of this site"
            )
        return (dictionary.encode(self.x) - dictionary.encode(self.x_bar)) * self.mask[..., None]

    def whole(self) -> Float[Tensor, "batch pos d"]:
        """x - x_bar at the positions that are edited, zero elsewhere."""
        return (self.x - self.x_bar) * self.mask[..., None]

    def sizes(self, change: Float[Tensor, "*batch pos d"], prompts: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Mean over a prompt's edited positions of |x' - x_bar|."""
        mask = self.mask[prompts]
        return (change.norm(dim=-1) * mask).sum(-1) / mask.sum(-1).clamp_min(1)

    # ---- what it does --------------------------------------------------------------------------

    def run(self, prompts: Int[Tensor, "rows"], change: Float[Tensor, "rows pos d"]) -> Float[Tensor, "rows vocab"]:
        """Logits at the answer of corrupted prompts whose activation is changed, in one forward pass."""
        if self.adds:
            final = self.model.final(self.residual[prompts] + change, self.site.layer)
        else:
            with self.model.hooks(_Add(self.site, change)):
                if self.below is None:
                    tokens = self.pairs.corrupted.to(prompts.device)[prompts]
                    final = self.model.record(tokens, [self.last])[self.last]
                else:
                    final = self.model.final(self.below[prompts], self.site.layer - 1)
        return self.model.unembed(at_end(final, self.end[prompts]))

    def read(self, prompts: Int[Tensor, "rows"], change: Float[Tensor, "rows pos d"]) -> Float[Tensor, "rows 3"]:
        """KL(clean || patched), logit difference and probability of the answer, in as many passes as memory asks."""
        parts = zip(prompts.split(self.at_once), change.split(self.at_once), strict=True)
        return torch.cat([self._readout(self.run(*part), part[0]) for part in parts])

    @torch.no_grad()
    def table(
        self, trials: Iterable[tuple[Int[Tensor, "_"], Float[Tensor, "_ pos d"]]]
    ) -> Float[Tensor, "trials batch 3"]:
        """Readouts of many trials, each given as the prompts it runs and their changes; NaN for the others.

        Trials are drawn from the iterable as they fit into memory, and share forward passes.
        """
        found, waiting, n_waiting = [], [], 0

        def run() -> None:
            nonlocal waiting, n_waiting
            rows, changes = (torch.cat(parts) for parts in zip(*(one[1:] for one in waiting), strict=True))
            readout = self.read(rows, changes)
            for (row, prompts, _), part in zip(waiting, readout.split([len(one[1]) for one in waiting]), strict=True):
                row[prompts] = part
            waiting, n_waiting = [], 0

        for prompts, change in trials:
            found.append(torch.full_like(self.corrupted, torch.nan))
            if len(prompts):
                waiting.append((found[-1], prompts, change))
                n_waiting += len(prompts)
            if n_waiting >= self.at_once:
                run()
        if waiting:
            run()
        return torch.stack(found) if found else self.corrupted.new_zeros(0, *self.corrupted.shape)

    def first_order(self, dictionary: Dictionary) -> Float[Tensor, "n_latents"]:
        """Estimated fall of the KL when one latent alone is patched: -(c - c_bar) dKL/dx . f at the corrupted run."""
        along = torch.zeros_like(self.x)
        everyone = torch.arange(len(self), device=self.x.device)
        for prompts in everyone.split(max(1, self.at_once // 4)):  # a backward pass keeps what a forward one frees
            change = torch.zeros_like(self.x[prompts]).requires_grad_()
            with torch.enable_grad():
                kl = self._readout(self.run(prompts, change), prompts)[:, KL].sum() / len(self)
            (along[prompts],) = torch.autograd.grad(kl, change)
        return -(self.differences(dictionary) * (along @ dictionary.directions.T)).sum((0, 1))

    @cached_property
    def at_once(self) -> int:
        """Rows per forward pass."""

        def run(rows: int) -> None:
            prompts = torch.arange(rows, device=self.x.device) % len(self)
            self._readout(self.run(prompts, torch.zeros_like(self.x[prompts])), prompts)

        with torch.no_grad():
            return rows_at_once(run)

    def _readout(self, logits: Float[Tensor, "rows vocab"], prompts: Int[Tensor, "rows"]) -> Float[Tensor, "rows 3"]:
        answer, foil = self.answer[prompts], self.foil[prompts]
        probability = logits.softmax(-1).gather(-1, answer[:, None])[:, 0]
        kl = kl_divergence(self.clean_logits[prompts], logits)
        return torch.stack([kl, logit_difference(logits, answer, foil), probability], dim=-1)

    def _adds(self) -> bool:
        """Whether a change at the site is the same change of the residual after its block; tried on one prompt."""
        if self.site.stream is Stream.RESID_POST:
            return True
        if self.x.shape[-1] != self.residual.shape[-1]:
            return False
        change, after = self.x[:1], Site(self.site.layer)
        with self.model.hooks(_Add(self.site, change)):
            changed = self.model.record(self.pairs.corrupted[:1], [after])[after] - self.residual[:1]
        return torch.allclose(changed, change, rtol=0, atol=1e-4 * change.abs().max().item())

    def _edited(self, positions: Sequence[int] | None) -> Bool[Tensor, "batch pos"]:
        pos = torch.arange(self.x.shape[1], device=self.x.device)
        mask = self.model.content(self.pairs.clean).to(self.x.device) & (pos <= self.end[:, None])
        if positions is None:
            return mask
        chosen = torch.zeros_like(mask)
        for position in positions:
            where = self.end + 1 + position
            if position >= 0 or (where < 0).any():
                raise UserError(
                    f"no position {position} in prompts of {int(self.end.min()) + 1} tokens; positions count from the "
                    "end, -1 being the last"
                )
            chosen |= pos == where[:, None]
        return mask & chosen


def _check(pairs: PromptPairs) -> None:
    if not len(pairs):
        raise UserError(f"no prompts of {pairs.name}; an experiment needs at least one pair")
    if pairs.clean.shape != pairs.corrupted.shape:
        clean, corrupted = (f"{len(own)} of {own.shape[-1]} tokens" for own in (pairs.clean, pairs.corrupted))
        raise UserError(
            f"clean and corrupted prompts of {pairs.name} must be alike in number and length; "
            f"got {clean} and {corrupted}"
        )


# ---- the curve -------------------------------------------------------------------------------------


@torch.no_grad()
def trace(experiment: PatchExperiment, dictionary: Dictionary, order: Sequence[int], counts: Sequence[int]) -> Trace:
    """What is read when the first m features of `order` are patched, for every m of `counts`, prompt by prompt."""
    differences, directions = experiment.differences(dictionary), dictionary.directions
    change = torch.zeros_like(experiment.x)
    size = change.new_zeros(len(counts), len(experiment))
    everyone = torch.arange(len(experiment), device=change.device)

    def steps():
        done = 0
        for row, count in enumerate(counts):
            new = torch.tensor(order[done:count], dtype=torch.long, device=change.device)
            done, moved = max(done, count), differences[..., new]
            prompts = moved.ne(0).flatten(1).any(1).nonzero()[:, 0]
            change[prompts] += moved[prompts] @ directions[new]
            size[row] = experiment.sizes(change, everyone)
            yield prompts, change[prompts]

    readout = experiment.table(steps())
    run = torch.arange(len(counts), device=change.device)[:, None].expand(readout.shape[:2])
    latest = torch.where(readout[..., KL].isnan(), -1, run).cummax(0).values
    readout = torch.cat([experiment.corrupted[None], readout]).gather(0, (latest + 1)[..., None].expand_as(readout))
    return Trace(tuple(counts), readout.double().cpu(), size.double().cpu())


def summary(
    experiment: PatchExperiment, found: Trace, weights: Float[Tensor, "resamples batch"]
) -> tuple[CurvePoint, ...]:
    """The points of a trace: means, and their intervals under `resampled` weights of its prompts."""
    clean, corrupted = (own[:, DIFFERENCE].double().cpu() for own in (experiment.clean, experiment.corrupted))
    everyone = torch.full((1, len(clean)), 1 / len(clean), dtype=torch.float64)

    def numbers(weights: Tensor) -> dict[str, Float[Tensor, "resamples points"]]:
        readout = torch.einsum("rb,pbc->crp", weights, found.readout)
        start, full = (weights @ own for own in (corrupted, clean))
        return {
            "kl": readout[KL],
            "recovered": _ratio(readout[DIFFERENCE] - start[:, None], (full - start)[:, None]),
            "edit_size": weights @ found.edit_size.T,
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


def curve(
    experiment: PatchExperiment,
    dictionary: Dictionary,
    order: Sequence[int],
    counts: Sequence[int],
    name: str,
    *,
    seed: int = 0,
) -> Curve:
    """KL, recovered logit difference, probability and edit size when the first m features of `order` are patched."""
    found = trace(experiment, dictionary, order, counts)
    return Curve(name, summary(experiment, found, resampled(experiment.pairs.groups, seed)))


@torch.no_grad()
def floor(experiment: PatchExperiment, dictionary: Dictionary) -> dict[str, float]:
    """KL that is left when all latents are patched, and when the dictionary's error is patched too.

    The first is what the change of the error, e - e_bar, is worth; the second is zero where all positions of a
    residual site are edited, and elsewhere what the edited positions of that site do not carry.
    """
    change = experiment.differences(dictionary) @ dictionary.directions
    everyone = torch.arange(len(experiment), device=change.device)
    trials = [(everyone, own) for own in (torch.zeros_like(change), change, experiment.whole())]
    nothing, latents, whole = experiment.table(trials)[..., KL].mean(1).tolist()
    return {"nothing": nothing, "all_latents": latents, "all_latents_and_error": whole}


def default_counts(n: int) -> list[int]:
    """0, 1, ..., 16, then in steps that grow, up to `n`."""
    counts = [*range(17), 20, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096, 8192, 16384]
    return [count for count in counts if count < n] + [n]


# ---- stacked changes of a residual -----------------------------------------------------------------


def stacked_logits(
    model: LanguageModel,
    residual: Float[Tensor, "batch pos d"],
    change: Float[Tensor, "trials batch pos d"],
    layer: int,
    end: Int[Tensor, "batch"],
) -> Float[Tensor, "trials batch vocab"]:
    """Logits at each prompt's end for every change of the residual after `layer`, run from there upward."""
    n_trials, n_prompts = change.shape[:2]
    base, rows = residual.repeat(n_trials, 1, 1), change.flatten(0, 1)
    ends = end.to(residual.device).repeat(n_trials)

    def run(part: slice) -> Float[Tensor, "rows vocab"]:
        return model.unembed(at_end(model.final(base[part] + rows[part], layer), ends[part]))

    if rows.requires_grad:  # one pass, whose graph the caller has asked for
        return run(slice(None)).unflatten(0, (n_trials, n_prompts))
    at_once = rows_at_once(lambda n: run(slice(min(n, len(rows)))))
    parts = [run(slice(start, start + at_once)) for start in range(0, len(rows), at_once)]
    return torch.cat(parts).unflatten(0, (n_trials, n_prompts))
