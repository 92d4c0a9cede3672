"""Run the model on reconstructions, and what that costs its prediction."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from editing.patch import ActivationPatch, where
from sae_core.dictionaries import Dictionary
from sae_core.models import Intervention, LanguageModel
from sae_core.sites import Site


@dataclass(frozen=True, eq=False)
class Splice:
    """The reconstruction x_hat in place of the activation x."""

    site: Site
    dictionary: Dictionary
    mask: Bool[Tensor, "batch pos"] | None = None

    def __call__(self, h: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_in"]:
        return where(self.mask, self.dictionary.decode(self.dictionary.encode(h)), h)


@dataclass(frozen=True)
class SpliceCost:
    """Next-token cross-entropy, nats per content token, of the model, with x_hat, and with the site set to zero."""

    original: float
    spliced: float
    zeroed: float

    @property
    def recovered(self) -> float:
        """Loss recovered: spliced loss on the scale zero-ablated = 0, original = 1."""
        return (self.zeroed - self.spliced) / (self.zeroed - self.original)


@torch.no_grad()
def splice_costs(
    model: LanguageModel,
    dictionaries: dict[Site, Dictionary],
    contexts: Int[Tensor, "contexts pos"],
    *,
    at_once: int = 32,
) -> dict[Site, SpliceCost]:
    """What each dictionary costs, alone, at all content positions; BOS keeps its activation."""
    sums = {site: torch.zeros(3, dtype=torch.float64) for site in dictionaries}
    n_tokens = int(model.content(contexts[:, 1:]).sum())
    for chunk in contexts.split(at_once):
        mask = model.content(chunk[:, :-1]).to(model.device)
        original = _loss(model, chunk)
        for site, dictionary in dictionaries.items():
            zero = ActivationPatch(site, torch.zeros(1, 1, model.d_in(site), device=model.device), mask)
            spliced, zeroed = _loss(model, chunk, Splice(site, dictionary, mask)), _loss(model, chunk, zero)
            sums[site] += torch.tensor([original, spliced, zeroed], dtype=torch.float64)
    return {site: SpliceCost(*(total / n_tokens).tolist()) for site, total in sums.items()}


def _loss(model: LanguageModel, tokens: Int[Tensor, "batch pos"], *edits: Intervention) -> float:
    """Sum over all next tokens, special ones excepted, of -log p."""
    with model.hooks(*edits):
        log_probs = model.logits(tokens[:, :-1]).log_softmax(-1)
    found = log_probs.gather(-1, tokens[:, 1:, None].to(log_probs.device))[..., 0]
    return -found[model.content(tokens[:, 1:]).to(found.device)].double().sum().item()
