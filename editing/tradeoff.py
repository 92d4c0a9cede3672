"""The IOI curve: how many features, and how large an edit, carry a behaviour from one run into another.

Cunningham et al. 2023: in the corrupted run, move the features of a set F to their values in the clean
run, x' = x_bar + sum_{i in F} (c_i - c_bar_i) f_i, at one site and all positions after BOS, and read
KL(clean || patched) where the answer is due. F grows in an order that was chosen on other prompts: the
first-order estimate ranks all features, exact greedy search re-orders the best of them. Every trial
starts at the edited layer and unembeds one position per prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from editing.metrics import kl_divergence, logit_difference
from editing.tasks.pairs import PromptPairs, at_end
from sae_core.dictionaries import Dictionary
from sae_core.errors import UserError
from sae_core.models import LanguageModel
from sae_core.sites import Site, Stream

AT_ONCE = 16_384  # tokens per forward pass of stacked trials


@dataclass(frozen=True)
class CurvePoint:
    """One set F on the test prompts."""

    n_features: int
    kl: float
    """Mean over prompts of KL(clean || patched) at the answer, nats."""
    recovered: float
    """(LD patched - LD corrupted) / (LD clean - LD corrupted), LD the mean logit difference over prompts."""
    edit_size: float
    """Mean over prompts and edited positions of |x' - x_bar|."""


@dataclass(frozen=True)
class Curve:
    """One way to choose features, from none to all."""

    name: str
    points: tuple[CurvePoint, ...]
    order: tuple[int, ...] = ()
    """The first features in the order in which they were added."""
    forwards: int = 0
    """Prompts run to choose them."""


def stacked_logits(
    model: LanguageModel,
    residual: Float[Tensor, "batch pos d"],
    change: Float[Tensor, "trials batch pos d"],
    layer: int,
    end: Int[Tensor, "batch"],
) -> Float[Tensor, "trials batch vocab"]:
    """Logits at each prompt's end for every change of the residual after `layer`, run from there upward."""
    n_prompts, n_pos = residual.shape[:2]
    found = []
    for part in change.split(max(1, AT_ONCE // (n_prompts * n_pos))):
        final = at_end(model.final((residual + part).flatten(0, 1), layer), end.repeat(len(part)))
        found.append(model.unembed(final).unflatten(0, (len(part), -1)))
    return torch.cat(found)


class PatchExperiment:
    """Clean and corrupted runs of prompt pairs at one site, and the effect of any edit of the corrupted one.

    An edit is given as the change of the activation `[trials, batch, pos, d]`; a stream that adds to the
    residual (all but `mlp_hidden` and, in sequential blocks, `attn_out`) changes it by as much.
    """

    def __init__(self, model: LanguageModel, pairs: PromptPairs, site: Site):
        if site.stream not in (Stream.RESID_POST, Stream.MLP_OUT):
            raise UserError(f"patching at {site} is not supported; give a resid_post or mlp_out site")
        self.model, self.pairs, self.site = model, pairs, site
        residual, last = Site(site.layer), model.sites()[-1]
        with torch.no_grad():
            clean = model.record(pairs.clean, {site, last})
            corrupted = model.record(pairs.corrupted, {site, residual, last})
            self.x, self.x_bar, self.residual = clean[site], corrupted[site], corrupted[residual]
            self.end = pairs.end.to(model.device)
            self.clean_logits = model.unembed(at_end(clean[last], self.end))
            self.corrupted_logits = model.unembed(at_end(corrupted[last], self.end))
        pos = torch.arange(self.x.shape[1], device=model.device)
        self.mask: Bool[Tensor, "batch pos"] = model.content(pairs.clean).to(model.device) & (pos <= self.end[:, None])
        self.answer, self.foil = pairs.answer.to(model.device), pairs.foil.to(model.device)

    def differences(self, dictionary: Dictionary) -> Float[Tensor, "batch pos n_latents"]:
        """c - c_bar at the positions that are edited, zero elsewhere."""
        return (dictionary.encode(self.x) - dictionary.encode(self.x_bar)) * self.mask[..., None]

    def logits(self, change: Float[Tensor, "trials batch pos d"]) -> Float[Tensor, "trials batch vocab"]:
        """Logits at the answer when the corrupted activation is changed."""
        return stacked_logits(self.model, self.residual, change, self.site.layer, self.end)

    def kl(self, logits: Float[Tensor, "*trials batch vocab"]) -> Float[Tensor, "*trials"]:
        """Mean KL(clean || patched) over prompts."""
        return kl_divergence(self.clean_logits.expand_as(logits), logits).mean(-1)

    def recovered(self, logits: Float[Tensor, "batch vocab"]) -> float:
        """Logit difference recovered, a ratio of means."""
        patched, clean, corrupted = (
            logit_difference(values, self.answer, self.foil).mean().item()
            for values in (logits, self.clean_logits, self.corrupted_logits)
        )
        return (patched - corrupted) / (clean - corrupted)

    def first_order(self, dictionary: Dictionary) -> Float[Tensor, "n_latents"]:
        """Estimated fall of the KL when one latent alone is patched: -(c - c_bar) dKL/dx . f at the corrupted run."""
        change = torch.zeros_like(self.residual)[None].requires_grad_()
        with torch.enable_grad():
            self.kl(self.logits(change)).sum().backward()
        along = change.grad[0] @ dictionary.directions.T
        return -(self.differences(dictionary) * along).sum((0, 1))


@torch.no_grad()
def choose(
    experiment: PatchExperiment, dictionary: Dictionary, *, n_greedy: int = 16, shortlist: int = 32
) -> tuple[list[int], int]:
    """All latents in the order in which to patch them, and the number of prompts run to find it.

    The first `n_greedy` come from an exact greedy search among the `shortlist` best by the first-order
    estimate (each step keeps the latent after which the KL is least); the rest follow by estimate.
    """
    estimate = experiment.first_order(dictionary)
    order = estimate.argsort(descending=True, stable=True).tolist()
    differences, directions = experiment.differences(dictionary), dictionary.directions
    candidates = [j for j in order[:shortlist] if differences[..., j].any()]
    change = torch.zeros_like(experiment.residual)
    chosen: list[int] = []
    forwards = 2 * len(experiment.pairs)
    while candidates and len(chosen) < n_greedy:
        steps = torch.stack([differences[..., j, None] * directions[j] for j in candidates])
        best = int(experiment.kl(experiment.logits(change + steps)).argmin())
        forwards += len(candidates) * len(experiment.pairs)
        change = change + steps[best]
        chosen.append(candidates.pop(best))
    return chosen + [j for j in order if j not in set(chosen)], forwards


@torch.no_grad()
def curve(
    experiment: PatchExperiment, dictionary: Dictionary, order: Sequence[int], counts: Sequence[int], name: str
) -> Curve:
    """KL, recovered logit difference and edit size when the first m features of `order` are patched."""
    differences = experiment.differences(dictionary)
    points, change, done = [], torch.zeros_like(experiment.residual), 0
    for count in counts:
        new = torch.tensor(order[done:count], dtype=torch.long, device=change.device)
        change = change + differences[..., new] @ dictionary.directions[new]
        done = count
        points.append(_point(experiment, change, count))
    return Curve(name, tuple(points), tuple(order[:32]))


def _point(experiment: PatchExperiment, change: Tensor, count: int) -> CurvePoint:
    logits = experiment.logits(change[None])[0]
    size = change.norm(dim=-1)[experiment.mask].mean().item()
    return CurvePoint(count, experiment.kl(logits).item(), experiment.recovered(logits), size)


@torch.no_grad()
def floor(experiment: PatchExperiment, dictionary: Dictionary) -> dict[str, float]:
    """KL that is left when all latents are patched, and when the dictionary's error is patched too.

    The first is what the change of the error, e - e_bar, is worth; the second is zero at residual sites,
    and elsewhere what the site alone does not carry.
    """
    change = experiment.differences(dictionary) @ dictionary.directions
    whole = (experiment.x - experiment.x_bar) * experiment.mask[..., None]
    kl = experiment.kl(experiment.logits(torch.stack([torch.zeros_like(change), change, whole])))
    return {"nothing": kl[0].item(), "all_latents": kl[1].item(), "all_latents_and_error": kl[2].item()}


def default_counts(n: int) -> list[int]:
    """0, 1, ..., 16, then in steps that grow, up to `n`."""
    counts = [*range(17), 20, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096, 8192, 16384]
    return [count for count in counts if count < n] + [n]
