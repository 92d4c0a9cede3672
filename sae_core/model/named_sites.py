"""Which site of a model another tool's name is: a hook point (`blocks.1.mlp.hook_out`) or a module (`layers.1.mlp`).

The output of a module is what is added to the residual only where nothing follows it: Gemma 2 and OLMo 2 have a norm
there, Granite a factor. So the tensor of that name is recorded, in one short pass, and its site is the one that holds
the same tensor.
"""

from typing import Any

import torch
from torch import Tensor, nn

from sae_core.errors import UserError
from sae_core.formats.hook_names import site_of
from sae_core.model.block import TOLERANCE
from sae_core.model.language_model import LanguageModel
from sae_core.sites import Site, Stream

N_TOKENS = 8
EMBEDDING = ("blocks.0.hook_resid_pre",)
"""Names of the residual before the first block."""


def site_named(model: LanguageModel, name: str) -> Site:
    """The site whose activation is the tensor that other tools call `name`.

    Raises `UserError` where the model has nothing of that name, and where no site holds that tensor.
    """
    site = Site.parse(name) if name in EMBEDDING else site_of(name)  # which the former refuses
    if site is not None:
        return model.check(site)
    tensor, activations = _recorded(model, name)
    distances = {site: _distance(tensor, h) for site, h in activations.items() if h.shape == tensor.shape}
    nearest = min(distances, key=distances.__getitem__, default=None)
    if nearest is not None and distances[nearest] <= TOLERANCE:
        return nearest
    beside = f" (the nearest, {nearest}, differs from it by {distances[nearest]:.0%})" if nearest else ""
    raise UserError(f"{name} has an output that is at no site of {model.name}{beside}")


@torch.no_grad()
def _recorded(model: LanguageModel, name: str) -> tuple[Tensor, dict[Site, Tensor]]:
    """The tensor of that name, and the activations at all sites, on the same few tokens."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        tensor = output[0] if isinstance(output, tuple) else output
        kept.append(tensor if tensor.dtype is torch.float64 else tensor.float())

    sites = {Site(layer, stream) for layer in range(model.n_layers) for stream in Stream} - model.unfit.keys()
    handle = _module(model, name).register_forward_hook(keep)
    try:
        activations = model.record(torch.arange(2, 2 + N_TOKENS)[None] % model.n_vocab, sites)
    finally:
        handle.remove()
    return kept[0] if kept else torch.empty(0), activations


def _module(model: LanguageModel, name: str) -> nn.Module:
    if name in model.bridge.hook_dict:
        return model.bridge.hook_dict[name]
    modules: dict[str, nn.Module] = {}
    for path, module in model.bridge.original_model.named_modules():  # wrappers come before what they wrap
        modules.setdefault(path.replace("._original_component", ""), module)
    matches = [module for path, module in modules.items() if f".{path}".endswith(f".{name}")]
    if len(matches) != 1:
        raise UserError(f"{model.name} has {len(matches) or 'no'} modules of the name {name}")
    return matches[0]


def _distance(a: Tensor, b: Tensor) -> float:
    """max |a - b| / max |b|"""
    return ((a - b).abs().max() / b.abs().max()).item()
