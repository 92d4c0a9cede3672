"""Two-class prompts without a model, for tests of AUROCs and of their intervals."""

import torch

from editing.removal.prompts.two_class_prompts import TwoClassPrompts


def two_classes(
    positive: torch.Tensor,
    group: torch.Tensor,
    *,
    template: torch.Tensor | None = None,
    name: torch.Tensor | None = None,
) -> TwoClassPrompts:
    """Prompts of one token each, with these classes, groups, templates and names."""
    n, zeros = len(group), torch.zeros_like(group)
    tokens = torch.zeros(n, 2, dtype=torch.long)
    return TwoClassPrompts(
        tokens, zeros, positive, zeros, zeros + 1, group, group if template is None else template, tokens == 0, name
    )


def normal(n: int, seed: int) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))
