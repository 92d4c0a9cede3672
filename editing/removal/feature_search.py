"""Which features to ablate, how strongly, and what to compare them with at equal edit size.

Features are ablated with a strength, x' = x - s * sum_i c_i f_i. At s = 1 they are set to zero, and what
the encoder missed of them stays behind in the error; as an AUROC does not depend on scale, that rest
can still tell the classes apart, and s > 1 pushes against it. Both the set and the strength keep to a budget
of damage on other text.
"""

from collections.abc import Callable, Iterator
from math import sqrt

import torch
from jaxtyping import Bool, Float
from scipy.interpolate import PchipInterpolator
from torch import Tensor

from editing.interventions.compose import Scaled
from editing.interventions.erase import Erasure
from editing.removal.cached_runs import CODES_AT_ONCE, Elsewhere, Ground
from editing.removal.two_class_prompts import Contrast
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.errors import UserError
from sae_core.model.language_model import Intervention
from sae_core.sites import Site

GRID = tuple(round(0.5 + 0.05 * step, 2) for step in range(51))
"""Strengths from which one is chosen."""
FIRST_STRENGTHS = (0.5, 1.0, 1.5, 2.0, 3.0)
REFINEMENTS = 4
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
    found = _shortlist(ground, dictionary, shortlist)
    directions, text = dictionary.directions[found], elsewhere.runs
    codes, on_text = (
        torch.cat([codes[..., found] for codes in _codes(dictionary, *of)])
        for of in ((ground.x, ground.mask), (text.at(ground.site)[0], text.mask))
    )
    scores = ground.scores(torch.zeros_like(ground.x)[None])[0]
    apart = _separation(scores[None], ground.prompts)[0]
    chosen: list[int] = []
    left = list(range(len(found)))
    while left and len(chosen) < most:
        trials = _with_one_more(ground, codes, directions, chosen, left, scores)
        separations = _separation(trials, ground.prompts)
        better = [i for i in separations.argsort().tolist() if separations[i] < (WORTH if chosen else 1.0) * apart]

        def cost(i: int, chosen: list[int] = chosen, left: list[int] = left) -> float:
            which = [*chosen, left[i]]
            return elsewhere.kl_moved(ground.site, -(on_text[..., which] @ directions[which]))

        best = next((i for i in better if cost(i) <= budget), None)
        if best is None:
            break
        apart, scores = separations[best], trials[best]
        chosen.append(left[best])
        passed = set(better[: better.index(best) + 1])
        left = [j for i, j in enumerate(left) if i not in passed]
    return [found[j] for j in chosen]


def _shortlist(ground: Ground, dictionary: Dictionary, most: int) -> list[int]:
    """The features whose ablation closes the gap most, at first order; only those that are active at all."""
    positive = ground.prompts.positive.to(ground.x.device)
    pull = ground.gradient(torch.where(positive, 1.0 / positive.sum(), -1.0 / (~positive).sum()))
    closing = ground.x.new_zeros(len(dictionary.directions))
    active, done = torch.zeros_like(closing, dtype=torch.bool), 0
    for codes in _codes(dictionary, ground.x, ground.mask):
        closing += (codes * (pull[done : done + len(codes)] @ dictionary.directions.T)).sum((0, 1))
        active |= codes.flatten(0, 1).any(0)
        done += len(codes)
    return [j for j in closing.topk(min(most, len(closing))).indices.tolist() if active[j]]


def _codes(
    dictionary: Dictionary, x: Float[Tensor, "batch pos d_in"], mask: Bool[Tensor, "batch pos"]
) -> Iterator[Float[Tensor, "_ pos n_latents"]]:
    """Latent activations where `mask` is set, zero elsewhere, some rows at a time."""
    rows = max(1, CODES_AT_ONCE // (x.shape[1] * len(dictionary.directions)))
    for part, kept in zip(x.split(rows), mask.split(rows), strict=True):
        yield dictionary.encode(part) * kept[..., None]


def _with_one_more(
    ground: Ground,
    codes: Float[Tensor, "batch pos k"],
    directions: Float[Tensor, "k d"],
    chosen: list[int],
    left: list[int],
    scores: Float[Tensor, "batch"],
) -> Float[Tensor, "trials batch"]:
    """The scores when, beside the chosen features, each of those left is ablated in turn.

    Prompts on which it is silent keep the `scores` that they have without it, and are not run.
    """
    done, more = codes[..., chosen] @ directions[chosen], torch.tensor(left, device=codes.device)
    moved = codes[..., more].ne(0).any(1).T
    trial, prompt = moved.nonzero(as_tuple=True)

    def change(part: slice) -> Float[Tensor, "rows pos d"]:
        which = more[trial[part]]
        return -(done[prompt[part]] + codes[prompt[part], :, which][..., None] * directions[which][:, None])

    found = scores.repeat(len(left), 1)
    found[moved] = ground.read(prompt, change)
    return found


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


def meeting_strength(ground: Ground, edit: Intervention, elsewhere: Elsewhere, budget: float) -> tuple[float, float]:
    """The strength between 0.5 and 3 at which the classes are told apart least, or less where that is too dear; and
    the damage there.

    Scores are smooth in the strength: they are run at five, interpolated between them, and run where the
    interpolation has the least, until that is a strength that has been run. So the one found is never a guess.
    """
    change = ground.change(edit)
    first = ground.scores_at(torch.tensor(FIRST_STRENGTHS), change).cpu()
    run: dict[float, Tensor] = dict(zip(FIRST_STRENGTHS, first, strict=True))
    for _ in range(REFINEMENTS):
        known = sorted(run)
        curve = PchipInterpolator(known, torch.stack([run[strength] for strength in known]).numpy())
        best = GRID[int(ground.prompts.told_apart(torch.from_numpy(curve(GRID))).argmin())]
        if best in run:
            break
        run[best] = ground.scores_at(torch.tensor([best]), change).cpu()[0]
    apart = ground.prompts.told_apart(torch.stack([*run.values()]))
    return affordable_strength([edit], [*run][int(apart.argmin())], elsewhere, budget)


def affordable_strength(
    edits: list[Intervention], strength: float, elsewhere: Elsewhere, budget: float
) -> tuple[float, float]:
    """`strength`, or one below it, to a hundredth part, at which the edits' damage just keeps to the budget; and that
    damage, in nats per token."""

    def root(share: float) -> float:
        return sqrt(max(0.0, elsewhere.kl([Scaled(edit, share * strength) for edit in edits])))

    share, found = highest(root, sqrt(budget))
    return strength * share, found**2


def highest(cost: Callable[[float], float], most: float, *, within: float = 0.01) -> tuple[float, float]:
    """The largest share of 1 whose cost is at most `most`, at most `within` too small, and its cost; that of 0 is 0.

    A straight line between the ends of the bracket says where to look next: a damage grows with the square of a
    small edit, so that its root is nearly straight.
    """
    low, high, at_low, at_high = 0.0, 1.0, 0.0, cost(1.0)
    if at_high <= most:
        return high, at_high
    while high - low > within:
        margin = 0.1 * (high - low)
        guess = low + (high - low) * (most - at_low) / (at_high - at_low) - within / 3
        share = min(max(guess, low + margin), high - margin)
        if (found := cost(share)) > most:
            high, at_high = share, found
        else:
            low, at_low = share, found
    return low, at_low


def like_density(
    dictionary: Dictionary,
    x: Float[Tensor, "batch pos d_in"],
    mask: Bool[Tensor, "batch pos"],
    chosen: list[int],
    *,
    generator: torch.Generator,
) -> list[int]:
    """As many other features as `chosen`, each drawn from the ten of most like density on the masked tokens of `x`.

    Raises `UserError` where the dictionary has too few that are ever active.
    """
    density = sum((codes != 0).flatten(0, 1).sum(0).double() for codes in _codes(dictionary, x, mask)).cpu()
    density /= mask.sum().item()
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


def random_projection(site: Site, x: Float[Tensor, "tokens d_in"], k: int, *, generator: torch.Generator) -> Erasure:
    """The projection that takes out `k` random orthonormal directions, around the mean of `x`."""
    rows = torch.linalg.qr(torch.randn(x.shape[-1], k, generator=generator)).Q.T.to(x).contiguous()
    return Erasure(site, rows.T.contiguous(), rows, x.mean(0))
