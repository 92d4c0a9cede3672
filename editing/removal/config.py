"""How much of a removal to run."""

from dataclasses import dataclass
from math import isfinite

from sae_core.errors import UserError
from sae_core.sites import Site

STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0)
FEWEST_CONTEXTS = 4
"""Of the text to choose by and of the text to report on, each: an interval over fewer contexts says nothing."""


@dataclass(frozen=True)
class RemovalConfig:
    """How much to run; raises `UserError` for what cannot be run."""

    selection_prompts: int = 160
    """To choose features and strength, and as many again, with other names, to check the choice."""
    test_prompts: int = 256
    fit_prompts: int = 96
    """Of the selection prompts, those on which features are chosen and their strengths fitted."""
    eraser_prompts: int = 1024
    """Prompts on which erasers are fitted, at most."""
    shortlist: int = 16
    """Features whose effect on other text is measured before some are chosen."""
    max_features: int = 16
    share: float = 0.8
    """Of the capability, to be removed: what sites and strengths are chosen for, and what the outcome is told by."""
    budget: float = 0.05
    """Nats per token that features may cost on the text for choosing."""
    text_contexts: int = 48
    """Held-out contexts, the first half for choosing and the second for the reported damage."""
    random_draws: int = 3
    """At the chosen site; one at the others."""
    strengths: tuple[float, ...] = STRENGTHS
    """Of the points of a curve, as multiples of the fitted edit, in ascending order."""
    seed: int = 0
    prepend_bos: bool = True
    """Whether prompts begin with BOS, as the text does that the dictionaries were trained on."""
    site: Site | None = None
    """Where to edit; None: where the features do the least damage on prompts and text for choosing."""

    def __post_init__(self):
        least = {"selection_prompts": 4, "test_prompts": 4, "fit_prompts": 4, "shortlist": 1, "max_features": 1}
        least |= {"text_contexts": 2 * FEWEST_CONTEXTS, "random_draws": 1, "eraser_prompts": 4}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise UserError(f"{name} must be {smallest} or more; got {getattr(self, name)}")
        if not (isfinite(self.budget) and self.budget > 0):
            raise UserError(f"the budget must be a positive number of nats per token; got {self.budget}")
        if not 0 < self.share < 1:
            raise UserError(f"the share to remove lies between 0 and 1; got {self.share}")
        if not self.strengths or list(self.strengths) != sorted({*self.strengths}) or not self.strengths[0] > 0:
            raise UserError(f"strengths must be one or more, ascending and above 0; got {self.strengths}")
