"""Which latents could matter, where ablating all of them would take too long.

Between neighbouring layers every effect is computed; over more than one block each costs a pass through all
blocks in between. There screens propose candidates, exact ablation decides among them, and an audit of the
rest bounds what the screens may have missed. A gradient alone misses true top causes in early layers (large
latents whose first-order term is small or of the wrong sign), so the first of three lists are united: by
gradient, by integrated gradients, and by the norm of what is taken away.
"""

from dataclasses import dataclass
from math import log

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.effects.ablation_effects import Causes, Effects, ablation_effects
from circuits.effects.exact_routes import InParts
from editing.engine.resumed_run import adds_to_residual
from editing.interventions.add_direction import AddDirection
from sae_core.seeds import generator_for
from sae_core.sites import Site

CONFIDENCE = 0.95
IG_STEPS = 10


@dataclass(frozen=True)
class Audit:
    """Latents drawn at random from those that no screen proposed, and what ablating them showed."""

    n_drawn: int
    n_rest: int
    """Latents that were neither ablated nor drawn."""
    n_beyond: int
    """Drawn ones that would have been kept."""

    @property
    def share(self) -> float:
        """Upper end of a one-sided 95% interval for the share of the rest that ablation would have kept."""
        if not self.n_rest:
            return 0.0
        # If the share p were larger, n draws would all miss with probability (1 - p)^n < e^(-p n) = 0.05. With a hit
        # among them no such bound is claimed: the screens have failed.
        return min(1.0, -log(1 - CONFIDENCE) / self.n_drawn) if self.n_drawn and not self.n_beyond else 1.0


def first_order(causes: Causes) -> Float[Tensor, "n_latents"]:
    """Effects to first order: sum over examples and positions of (c_j - c'_j) d_j . da / dx, over |sum a|."""
    return _gradients(causes, [0.0])[0]


def integrated(causes: Causes, steps: int = IG_STEPS) -> Float[Tensor, "n_latents"]:
    """First-order effects averaged on the way to all latents ablated at once (Marks et al. 2024, section 2).

    They add up to the effect of ablating all at once; that of one latent alone would need a path of its own.
    """
    return _gradients(causes, [step / steps for step in range(steps)])[1]


def squared_norms(causes: Causes) -> Float[Tensor, "n_latents"]:
    """Sum of (c - c')^2 over examples and positions: how much is taken away, whatever it does."""
    squares = [causes.taken(i).double().square().sum(0) for i in range(len(causes.scene.end))]
    return torch.stack(squares).sum(0).cpu()


def shortlist(causes: Causes, per_list: int) -> Int[Tensor, "k"]:
    """Latents that are among the `per_list` first by gradient, by integrated gradients, or by norm."""
    norms = squared_norms(causes)
    at_start, on_average = _gradients(causes, [step / IG_STEPS for step in range(IG_STEPS)])
    lists = (at_start.abs(), on_average.abs(), norms)
    listed = torch.cat([score.topk(min(per_list, len(score))).indices for score in lists]).unique()
    return listed[norms[listed] > 0]


def audited(
    causes: Causes, ablated: Int[Tensor, "k"], n: int, threshold: float, *, seed: int = 0
) -> tuple[Audit, Int[Tensor, "drawn"], Effects]:
    """An audit of up to `n` latents that are active and not in `ablated`, those latents, and their effects.

    A drawn latent would have been kept if its |effect| is above `threshold`. Draws are uniform and without
    replacement, so that the bound of `Audit.share` holds (it is conservative for a finite rest).
    """
    rest = squared_norms(causes) > 0
    rest[ablated.cpu()] = False
    latents = rest.nonzero()[:, 0]
    order = torch.randperm(len(latents), generator=generator_for(seed, "audit", str(causes.scene.target.node)))
    drawn = latents[order[:n]].sort().values
    effects = ablation_effects(causes, drawn.to(causes.scene.x.device))
    n_beyond = int((effects.effect[drawn].abs() > threshold).sum())
    return Audit(len(drawn), len(latents) - len(drawn), n_beyond), drawn, effects


def _gradients(causes: Causes, places: list[float]) -> tuple[Float[Tensor, "n_latents"], Float[Tensor, "n_latents"]]:
    """(At the first of `places`, on average over them:) the gradient there times what is taken.

    Place 0 is the clean run, 1 that with all latents ablated.
    """
    # effect_j ~ sum_p t_pj (D g_p)_j with t = c - c' [pos, n_latents], D the directions [n_latents, d_in] and
    # g = da / dx [pos, d_in], at x - s t D for each place s. Ablation moves x by -t D, and the effect is
    # a - a_ablated: the two signs cancel.
    scene, directions = causes.scene, causes.dictionary.directions
    total = torch.zeros(2, len(directions), dtype=torch.float64)
    for i in range(len(scene.end)):
        taken = causes.taken(i)
        with torch.no_grad():
            path = taken @ directions
        slopes = _slopes(causes, i, torch.stack([place * path for place in places]))
        for row, slope in enumerate((slopes[0], slopes.mean(0))):
            total[row] += (taken * (slope @ directions.T)).double().sum(0).cpu()
    at_first, on_average = total / causes.total
    return at_first, on_average


def _slopes(causes: Causes, example: int, moved: Float[Tensor, "places pos d_in"]) -> Float[Tensor, "places pos d_in"]:
    """`_slope` for several moves, in one pass where the blocks between are known by their parts."""
    if not isinstance(causes.route, InParts):
        return torch.stack([_slope(causes, example, move) for move in moved])
    offset = (-moved).detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(causes.route.values_after(example, offset).sum(), offset)[0]


def _slope(causes: Causes, example: int, moved: Float[Tensor, "pos d_in"]) -> Float[Tensor, "pos d_in"]:
    """d target / d x at the source of one example, whose activation there has been moved by minus `moved`."""
    scene = causes.scene
    width, layer = int(scene.end[example]) + 1, scene.source.layer
    offset = (-moved)[None].detach().requires_grad_()
    wanted = [scene.target.site]
    with torch.enable_grad():
        if scene.source == scene.target.site:
            h = scene.x[example, None, :width] + offset
        elif adds_to_residual(scene.model, scene.source) and scene.gap:
            after = scene.recorded[Site(layer)][example, None, :width] + offset
            h = scene.model.resume(after, layer, wanted)[scene.target.site]
        else:
            with scene.model.hooks(AddDirection(scene.source, offset)):
                if layer:
                    before = scene.recorded[Site(layer - 1)][example, None, :width]
                    h = scene.model.resume(before, layer - 1, wanted)[scene.target.site]
                else:
                    h = scene.model.record(scene.tokens[example, None, :width], wanted)[scene.target.site]
        value = scene.target.read(h[:, -1], torch.tensor([example], device=h.device))
        return torch.autograd.grad(value.sum(), offset)[0][0]
