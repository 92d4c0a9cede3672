"""Which features to ablate, how strongly, and what to compare them with at equal edit size.

Features are ablated with a strength, x' = x - s * sum_i c_i f_i. At s = 1 they are set to zero, and what
the encoder missed of them stays behind in the error; as an AUROC does not depend on scale, that rest
can still tell the classes apart, and s > 1 pushes against it. Both the set and the strength keep to a budget
of damage on other text.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from editing.contrast import Contrast
from editing.erase import Erasure
from editing.ground import Elsewhere, Ground
from editing.patch import ablate
from editing.scaled import Scaled
from sae_core.dictionaries import Dictionary
from sae_core.errors import UserError
from sae_core.models import Intervention

STRONGEST = 3.0
COARSE = 64
"""Prompts on which strengths are compared in steps of 0.25."""
WORTH = 0.95
"""After the first, a feature must leave at most this share of the separation: smaller gains are mostly noise."""


def choose_features(
    ground: Ground, dictionary: Dictionary, elsewhere: Elsewhere, budget: float, *, shortlist: int, most: int
) -> list[int]:
    """At most `most` features to ablate, by greedy search on the ground's prompts.

    A first-order estimate of how much each ablation closes the gap between the classes' mean scores
    makes a shortlist; each step then keeps the feature after which the classes lie closest, measured as
    |difference of means| / pooled standard deviation, averaged over the groups. A feature that would take the
    plain ablation over the budget is passed over; the search ends where no feature gains enough (`WORTH`).
    """
    codes = dictionary.encode(ground.x) * ground.mask[..., None]
    positive = ground.prompts.positive.to(codes.device)
    sign = torch.where(positive, 1.0 / positive.sum(), -1.0 / (~positive).sum())
    change = torch.zeros_like(ground.residual)[None].requires_grad_()
    with torch.enable_grad():
        (ground.scores(change)[0] * sign).sum().backward()
    closing = (codes * (change.grad[0] @ dictionary.directions.T)).sum((0, 1))
    candidates = closing.topk(min(shortlist, len(closing))).indices.tolist()
    candidates = [j for j in candidates if codes[..., j].any()]

    chosen: list[int] = []
    done = torch.zeros_like(ground.residual)
    apart = _separation(ground.scores(done[None]), ground.prompts)[0]
    while candidates and len(chosen) < most:
        steps = torch.stack([-codes[..., j, None] * dictionary.directions[j] for j in candidates])
        separations = _separation(ground.scores(done + steps), ground.prompts)
        better = [i for i in separations.argsort().tolist() if separations[i] < (WORTH if chosen else 1.0) * apart]
        affordable = (
            i for i in better if elsewhere.kl([ablate(ground.site, dictionary, [*chosen, candidates[i]])]) <= budget
        )
        best = next(affordable, None)
        if best is None:
            break
        apart, done = separations[best], done + steps[best]
        chosen.append(candidates[best])
        dear = set(better[: better.index(best) + 1])
        candidates = [j for i, j in enumerate(candidates) if i not in dear]
    return chosen


def _separation(scores: Float[Tensor, "trials batch"], prompts: Contrast) -> Float[Tensor, "trials"]:
    """Mean over groups of |difference of the classes' means|, in pooled standard deviations of all scores."""
    positive, group = prompts.positive.to(scores.device), prompts.group.to(scores.device)
    spread = ((scores[:, positive].var(-1) + scores[:, ~positive].var(-1)) / 2).sqrt().clamp_min(1e-9)
    gaps = []
    for one in group.unique():
        ahead, behind = positive & (group == one), ~positive & (group == one)
        if ahead.any() and behind.any():
            gaps.append((scores[:, ahead].mean(-1) - scores[:, behind].mean(-1)).abs())
    if not gaps:  # every group holds one class: only the whole can be compared
        gaps = [(scores[:, positive].mean(-1) - scores[:, ~positive].mean(-1)).abs()]
    return torch.stack(gaps).mean(0) / spread


def meeting_strength(ground: Ground, edit: Intervention, elsewhere: Elsewhere, budget: float) -> float:
    """The strength between 0.5 and 3 at which the classes are told apart least, or less where that is too dear."""
    best, few = 1.75, ground.first(COARSE)
    for prompts, reach, step in ((few, 1.25, 0.25), (ground, 0.2, 0.05)):
        grid, change = (best + torch.arange(-reach, reach + step / 2, step)).clamp(0.5, STRONGEST), prompts.change(edit)
        scores = prompts.scores(grid.to(change)[:, None, None, None] * change).cpu()
        best = float(grid[torch.tensor([prompts.prompts.told_apart(row) for row in scores]).argmin()])
    return affordable_strength([edit], round(best, 4), elsewhere, budget)


def affordable_strength(edits: list[Intervention], strength: float, elsewhere: Elsewhere, budget: float) -> float:
    """`strength`, or one below it, to a hundredth part, at which the edits' damage just keeps to the budget."""

    def too_dear(share: float) -> bool:
        return elsewhere.kl([Scaled(edit, share * strength) for edit in edits]) > budget

    if not too_dear(1.0):
        return strength
    low, high = 0.0, 1.0
    while high - low > 0.01:
        middle = (low + high) / 2
        low, high = (low, middle) if too_dear(middle) else (middle, high)
    return low * strength


def like_density(
    dictionary: Dictionary, x: Float[Tensor, "tokens d_in"], chosen: list[int], *, generator: torch.Generator
) -> list[int]:
    """As many other features as `chosen`, each drawn from the ten of most like density on `x`.

    Raises `UserError` where the dictionary has too few that are ever active.
    """
    density = (dictionary.encode(x) != 0).double().mean(0).cpu()
    drawn: list[int] = []
    for j in chosen:
        apart = (density.clamp_min(1e-9).log() - density[j].clamp_min(1e-9).log()).abs()
        apart[[*chosen, *drawn]] = torch.inf
        apart[density == 0] = torch.inf
        left = int(apart.isfinite().sum())
        if not left:
            raise UserError("a dictionary has too few latents to compare the chosen features with random ones")
        near = apart.topk(min(10, left), largest=False).indices
        drawn.append(int(near[torch.randint(len(near), (1,), generator=generator)]))
    return drawn


def random_directions(site, x: Float[Tensor, "tokens d_in"], k: int, *, generator: torch.Generator) -> Erasure:
    """The projection that takes out `k` random orthonormal directions, around the mean of `x`."""
    rows = torch.linalg.qr(torch.randn(x.shape[-1], k, generator=generator)).Q.T.to(x).contiguous()
    return Erasure(site, rows.T.contiguous(), rows, x.mean(0))
