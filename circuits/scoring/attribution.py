"""First-order attribution of a target to every latent of the covered sites, by a few forward and backward passes."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.scoring.circuit_runs import CircuitRuns, Errors, Members
from sae_core.outliers import inliers, outlier_norm_of
from sae_core.sites import FeatureId, Site


@torch.enable_grad()
def attribution(
    runs: CircuitRuns, members: Members | None = None, *, shares: Sequence[float] = (1.0,)
) -> dict[Site, Float[Tensor, "_"]]:
    """First-order estimate of the effect of ablating each latent alone, for every covered site.

        mean over prompts of  sum over positions of  (c_j - ablated c_j) d_j . dm/dh

    in units of the target, positive where the latent supports it, with all paths to the target open. In the
    untouched model; with `members`, in the run in which only these are left and error terms are ablated: what is lost
    with each of them, and what would be won with each of the others, which have their ablated value there. The
    gradient is the mean of those where only a share of the members' activations is there, by default the whole;
    several `shares` are integrated gradients in few steps (Sundararajan et al. 2017, "Axiomatic attribution for deep
    networks").
    """
    kept, errors = (runs.everything(), Errors.KEPT) if members is None else (members, Errors.ABLATED)
    sums = {site: torch.zeros(len(d.directions), dtype=torch.float64) for site, d in runs.dictionaries.items()}
    for prompts in torch.arange(len(runs), device=runs.start.device).split(runs.rows_at_once):
        gradients, here = [], {}
        for share in shares:
            before, after, values = runs.circuit_run(kept, errors, prompts, share)
            gradients.append(torch.autograd.grad(values.sum(), list(after.values()), materialize_grads=True))
            here = before if share == max(shares) else here
        with torch.no_grad():
            # Per site: codes [rows, pos, n_latents], gradient [rows, pos, d_in] of m; summed to [n_latents].
            for (site, h), each in zip(here.items(), zip(*gradients, strict=True), strict=True):
                gradient = torch.stack(each).mean(0)
                dictionary = runs.dictionaries[site]
                ablated, _ = runs.ablation.at(site, dictionary, prompts, h.shape[1])
                acts = runs.mask[prompts] & inliers(h, outlier_norm_of(dictionary))  # others are left as they are
                change = (dictionary.encode(h) - ablated) * acts[..., None]
                lost = change * (gradient @ dictionary.directions.T)
                sums[site] += lost.sum((0, 1)).double().cpu()
    return {site: (total / len(runs)).float() for site, total in sums.items()}


def strongest(attributions: Mapping[Site, Float[Tensor, "_"]], n: int) -> list[FeatureId]:
    """The `n` latents of largest absolute attribution over all sites, the largest first."""
    sites = sorted(attributions)
    sizes = torch.cat([attributions[site].abs() for site in sites])
    names = [FeatureId(site, j) for site in sites for j in range(len(attributions[site]))]
    return [names[k] for k in sizes.argsort(descending=True, stable=True)[:n].tolist()]


def attribution_circuit(
    attributions: Mapping[Site, Float[Tensor, "_"]], members: Members
) -> dict[Site, tuple[int, ...]]:
    """The circuit with as many latents per site as `members`, those of largest absolute attribution."""
    return {
        site: tuple(attributions[site].abs().argsort(descending=True, stable=True)[: len(latents)].tolist())
        for site, latents in members.items()
        if len(latents)
    }
