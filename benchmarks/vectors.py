"""What is trained on: vectors with known sparse features, and activations of the bundled language model."""

from pathlib import Path

import torch
from torch import Tensor

_SCALE_ROWS = 2**14


def planted(
    d_in: int, n_features: int, n_active: int, rows: int, *, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(vectors `[rows, d_in]`, unit features `[n_features, d_in]`).

    x = sum_j b_j a_j d_j + noise. Feature j is active with a probability that falls as (j + 10)^-0.8,
    `n_active` of them on average, at strength a_j = |N(1, 0.5)|; the noise has a hundredth of the variance.
    """
    features = torch.nn.functional.normalize(torch.randn(n_features, d_in, generator=generator), dim=-1)
    frequency = (torch.arange(n_features) + 10.0) ** -0.8
    frequency = (n_active * frequency / frequency.sum()).clamp_max(0.5)
    parts = []
    for start in range(0, rows, _SCALE_ROWS):
        n = min(_SCALE_ROWS, rows - start)
        on = torch.rand(n, n_features, generator=generator) < frequency
        strength = (1 + 0.5 * torch.randn(n, n_features, generator=generator)).abs()
        parts.append((on * strength) @ features)
    x = torch.cat(parts)
    noise = torch.randn(x.shape, generator=generator)
    return x + 0.1 * x.std() * noise, features


def activations(name: str, text: str, at: str, rows: int) -> Tensor:
    """Activations `[rows, d_in]` of a language model at a site, in the order of the text, without outliers."""
    from sae_core.data.activations import harvest
    from sae_core.data.text import Text
    from sae_core.model.language_model import load_model
    from sae_core.outliers import FACTOR, inliers, norm_limit
    from sae_core.sites import Site

    model, site = load_model(name, device="cpu"), Site.parse(at)
    contexts = Text(text, 128, True, max_tokens=rows + rows // 16 + 2**10).contexts(model)
    x = harvest(model, contexts, (site,))[site].float()
    return x[inliers(x, norm_limit(x.norm(dim=-1), FACTOR))][:rows].contiguous()


def write_splits(path: Path, x: Tensor, held_out: int) -> None:
    """Write `train`, `validation` and `test`, the last two of `held_out` rows, at the scale E|x|^2 = d_in.

    The scale and the order, by which splits are cut, are those of the rows as they come: neighbours in a
    text stay together, so that no context lies in two splits but where they meet.
    """
    from safetensors.torch import save_file

    x = x * (x.shape[1] / x.pow(2).sum(-1).mean()).sqrt()
    train, validation, test = x.split([len(x) - 2 * held_out, held_out, held_out])
    splits = {"train": train, "validation": validation, "test": test}
    save_file({name: rows.contiguous() for name, rows in splits.items()}, path)
