"""How far edits move the activations they are applied to.

Sizes are those of the composed run: each edit is measured on the activation that it gets, after the edits
upstream and those before it at its own site.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from editing.interventions.masks import reach_of
from sae_core.model.language_model import Intervention, LanguageModel
from sae_core.sites import Site


class MeasuredEdit:
    """An edit that notes |edit(h) - h| at every position of every pass, in `moved`, and is else the same.

    measured = [MeasuredEdit(edit) for edit in edits]
    with model.hooks(*measured):
        ...
    measured[0].sizes()
    """

    def __init__(self, edit: Intervention):
        self.edit = edit
        self.moved: list[Float[Tensor, "batch pos"]] = []
        self.touched: list[Bool[Tensor, "batch pos"]] = []
        """Where the edit may write."""

    @property
    def site(self) -> Site:
        return self.edit.site

    def __call__(self, h: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_in"]:
        changed = self.edit(h)
        self.moved.append((changed - h).detach().norm(dim=-1))
        self.touched.append(reach_of(self.edit, h))
        return changed

    def sizes(self, counted: Bool[Tensor, "batch pos"] | None = None) -> Float[Tensor, "batch"]:
        """Per prompt, the mean over the positions that are edited, and `counted`; zero where there are none.

        The passes are taken one after the other: those of a generated text make one run of positions.
        """
        moved, touched = torch.cat(self.moved, 1), torch.cat(self.touched, 1)
        kept = touched if counted is None else touched & counted.to(touched.device)
        return (moved * kept).sum(-1) / kept.sum(-1).clamp_min(1)


@torch.no_grad()
def edit_sizes(
    model: LanguageModel,
    tokens: Int[Tensor, "batch pos"],
    edits: Sequence[Intervention],
    *,
    counted: Bool[Tensor, "batch pos"] | None = None,
) -> Float[Tensor, "edits batch"]:
    """Mean |h' - h| of every edit, in the run that has them all, over the content positions that it edits.

    `counted` are the positions to average over, by default the content tokens; give it where prompts are
    padded with tokens that could be content.
    """
    measured = [MeasuredEdit(edit) for edit in edits]
    with model.hooks(*measured):
        model.record(tokens, {edit.site for edit in edits})
    counted = model.content(tokens) if counted is None else counted
    return torch.stack([edit.sizes(counted) for edit in measured]) if measured else torch.zeros(0, len(tokens))
