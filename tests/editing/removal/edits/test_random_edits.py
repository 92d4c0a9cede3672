"""Random edits: of the size that they should have, and always the same."""

import pytest
import torch
from handmade import random_topk
from removal_world import MIDDLE

from editing.interventions.patch import ablate
from editing.removal.edits.random_edits import Resampled, scaled_to_sizes
from sae_core.sites import Site


def test_scaled_edits_have_their_sizes_in_the_run_that_has_them_all(storybook, text):
    """Once each was scaled on the unedited run, and all together were larger than the features' edits."""
    edits = [ablate(Site(layer), random_topk(128, seed=layer), range(30)) for layer in (0, 2, 5)]
    sizes = (8.0, 1.3, 2.9)
    together = scaled_to_sizes(edits, sizes, text.runs)
    assert text.runs.edited(together).sizes == pytest.approx(sizes, rel=1e-3)
    alone = [scaled_to_sizes([edit], [size], text.runs)[0] for edit, size in zip(edits, sizes, strict=True)]
    assert text.runs.edited(alone).sizes != pytest.approx(sizes, rel=0.02)  # control


def test_resampled_features_have_values_of_the_text_and_always_the_same(text):
    sae, x = random_topk(128), text.runs.at(MIDDLE).x
    rows = x[text.runs.mask]
    edit = Resampled(MIDDLE, sae, (0, 1, 2), rows, seed=0)
    change = edit(x) - x
    assert torch.equal(edit(x) - x, change) and change.abs().max() > 0
    values = (sae.encode(x)[..., :3] + change @ torch.linalg.pinv(sae.directions[:3])).flatten(0, 1)
    known = sae.encode(rows)[:, :3]
    assert torch.cdist(values, known).min(1).values.max() < 1e-3
    assert not torch.equal(Resampled(MIDDLE, sae, (0, 1, 2), rows, seed=1)(x), edit(x))  # control
