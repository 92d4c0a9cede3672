"""Edits made of other edits."""

import torch

from editing.interventions.compose import Scaled, unscaled
from editing.interventions.patch import ablate
from sae_core.dictionaries.baselines import Basis
from sae_core.sites import Site


def test_the_strengths_of_edits_within_edits_multiply():
    edit = ablate(Site(3), Basis(torch.eye(4), torch.zeros(4)), [1])
    assert unscaled(edit) == (edit, 1.0) and unscaled(Scaled(Scaled(edit, 0.5), 3.0)) == (edit, 1.5)
