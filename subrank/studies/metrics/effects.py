"""How many logits an ablated latent moves: sparsity of downstream effects.

    D = logits with the latent at zero at one token, less those without, at that token and the next T - 1;  [T, V]
    D <- D - median over V of D                 (a constant added to all logits of a token changes nothing)
    s = (|D|_1 / |D|_2)^2 / (T V)               1 / (T V) for one logit moved, 2 / pi for independent normal ones

Gao et al. 2024, section 4.4 (T = 16). The controls, at the same tokens: as much taken along a random direction, and a
coordinate of the activation at zero. Cost: four forward passes of the contexts, for each dictionary.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from editing.interventions.patch import ActivationPatch
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.model.language_model import LanguageModel
from sae_core.sites import Site
from subrank.studies.metrics.patterns import activations
from subrank.studies.metrics.reading import Reading

AHEAD = 16
"""Tokens whose logits are read, T."""
_LOGITS_AT_ONCE = 2**24
ABLATED, DIRECTION, CHANNEL = "ablated", "random direction", "channel at zero"


def effect_sparsity(change: Float[Tensor, "*batch T V"]) -> Float[Tensor, "*batch"]:
    """s of changes of logits; NaN where nothing changes."""
    d = (change - change.median(-1, keepdim=True).values).double().flatten(-2)
    return d.abs().sum(-1).square() / d.square().sum(-1) / d.shape[-1]


@torch.no_grad()
def ablation_sparsity(
    model: LanguageModel,
    site: Site,
    dictionary: Dictionary,
    reading: Reading,
    latents: Int[Tensor, "k"],
    chance: torch.Generator,
) -> Mapping[str, Float[Tensor, "latents"]]:
    """s of each latent that is active early enough in a context, at one such token drawn for it, and the controls'."""
    ahead = min(AHEAD, reading.tokens.shape[1] // 2)
    active = activations(dictionary, reading, latents)[:, :, : reading.tokens.shape[1] - ahead + 1]
    places = [each.nonzero() for each in active]
    living = [i for i, each in enumerate(places) if len(each)]
    if not living:
        return dict.fromkeys((ABLATED, DIRECTION, CHANNEL), torch.tensor([]))
    drawn = [places[i][int(torch.randint(len(places[i]), (), generator=chance))] for i in living]
    context, start = torch.stack(drawn).T
    amount = active[living, context, start].to(reading.h)
    width = reading.h.shape[-1]
    random = F.normalize(torch.randn(len(living), width, generator=chance), dim=-1).to(reading.h)
    channel = F.one_hot(torch.randint(width, (len(living),), generator=chance), width).to(reading.h)
    x = reading.h[context, start]
    taken = {
        ABLATED: amount[:, None] * dictionary.directions[latents[living]],
        DIRECTION: amount[:, None] * random,
        CHANNEL: x * channel,
    }
    few = max(1, _LOGITS_AT_ONCE // (ahead * model.n_vocab))
    parts = []
    for rows in torch.arange(len(living)).split(few):
        place = (context[rows], start[rows])
        parts.append(_sparsities(model, site, reading, {name: t[rows] for name, t in taken.items()}, place, ahead))
    return {name: torch.cat([part[name] for part in parts]) for name in taken}


def _sparsities(
    model: LanguageModel,
    site: Site,
    reading: Reading,
    taken: Mapping[str, Float[Tensor, "rows d_in"]],
    place: tuple[Tensor, Tensor],
    ahead: int,
) -> dict[str, Tensor]:
    """s of each row of what is taken from the activation at its place."""
    context, start = place
    tokens, rows, last = reading.tokens[context], torch.arange(len(context)), Site(model.n_layers - 1)
    window = start[:, None] + torch.arange(ahead)
    here = F.one_hot(start, tokens.shape[1]).bool().to(model.device)

    def logits(change: Tensor | None) -> Tensor:
        edits = []
        if change is not None:
            edits.append(ActivationPatch(site, reading.h[context] - here[..., None] * change[:, None], here))
        with model.hooks(*edits):
            final = model.record(tokens, [last])[last]
        return model.unembed(final[rows[:, None], window])

    clean = logits(None)
    return {name: effect_sparsity(logits(change) - clean).cpu() for name, change in taken.items()}
