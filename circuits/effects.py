"""How much one feature depends on another, by ablation in the real model.

The effect of a cause on a target is (sum a_clean - sum a_ablated) / sum a_clean over the target's
examples, a ratio of sums: positive where the cause supports the target. The cause is ablated at all
positions, x - c f, its error term kept. What cannot matter is not run: the pass starts at the cause's
layer and stops at the target's, a pair of cause and example is skipped where the cause is not active up
to the target's position, and examples are cut there. None of this changes the answer.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.features import Examples
from sae_core.dictionaries import Dictionary
from sae_core.errors import UserError
from sae_core.models import LanguageModel
from sae_core.sites import FeatureId, Site, Stream

AT_ONCE = 8192  # tokens per forward pass of stacked pairs


@dataclass(frozen=True, eq=False)
class Effects:
    """Effects of every latent of one site on one target."""

    source: Site
    effect: Float[Tensor, "n_latents"]
    n_active: Int[Tensor, "n_latents"]
    """Examples on which the latent is active up to the target's position."""
    n_pairs: int
    """Pairs of latent and example that were run."""


@torch.no_grad()
def ablation_effects(
    model: LanguageModel,
    dictionaries: dict[Site, Dictionary],
    source: Site,
    target: FeatureId,
    examples: Examples,
) -> Effects:
    """Effect on `target` of ablating each latent of `source` that is active on `examples`; the others' is 0."""
    if source.stream not in (Stream.RESID_POST, Stream.MLP_OUT) or not source.layer < target.site.layer:
        raise UserError(f"effects of {source} on {target} cannot be measured: the cause must lie in an earlier layer")
    order = examples.end.argsort(stable=True)
    tokens, end = examples.tokens[order], examples.end[order].to(model.device)
    tokens = tokens[:, : int(end.max()) + 1]
    residual_site = Site(source.layer)
    clean = model.record(tokens, {source, residual_site, target.site})
    x, residual = clean[source], clean[residual_site]
    activation = _read(dictionaries, target, clean[target.site], end)
    if not activation.sum() > 0:
        raise UserError(f"{target} is not active on the examples given")

    before_end = torch.arange(tokens.shape[1], device=model.device) <= end[:, None]
    mask = model.content(tokens).to(model.device) & before_end
    codes = dictionaries[source].encode(x) * mask[..., None]
    active = (codes != 0).any(1)  # [examples, n_latents]
    rows, latents = active.nonzero(as_tuple=True)  # sorted by length, as the examples are
    drop = torch.zeros(active.shape[1], dtype=torch.float64, device=model.device)
    for pairs in _chunks(end[rows] + 1):
        i, j = rows[pairs], latents[pairs]
        width = int(end[i].max()) + 1
        change = (
            codes[i, :width].gather(-1, j[:, None, None].expand(-1, width, 1))
            * dictionaries[source].directions[j, None]
        )
        ablated = model.resume(residual[i, :width] - change, source.layer, [target.site])[target.site]
        fall = activation[i] - _read(dictionaries, target, ablated, end[i])
        drop.index_add_(0, j, fall.double())
    return Effects(source, (drop / activation.double().sum()).float().cpu(), active.sum(0).cpu(), len(rows))


def _read(dictionaries: dict[Site, Dictionary], target: FeatureId, h: Tensor, end: Tensor) -> Tensor:
    """The target's activation at each row's end."""
    return dictionaries[target.site].encode(h[torch.arange(len(h), device=h.device), end])[:, target.index]


def _chunks(lengths: Tensor) -> list[slice]:
    """Slices of rows, sorted by length, such that each padded slice holds at most `AT_ONCE` tokens."""
    sizes, slices, start = lengths.tolist(), [], 0
    for i in range(1, len(sizes) + 1):
        if i == len(sizes) or (i + 1 - start) * sizes[i] > AT_ONCE:
            slices.append(slice(start, i))
            start = i
    return slices if sizes else []
