"""How much of a removal to run."""

from dataclasses import dataclass
from math import isfinite

from sae_core.errors import UserError
from sae_core.sites import Site

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
FEWEST_CONTEXTS = 4
"""Of the text to choose by and of the text to report on, each: an interval over fewer contexts says nothing."""


@dataclass(frozen=True)
class RemovalConfig:
    """How much to run; raises `UserError` for what cannot be run."""

    selection_prompts: int = 160
    """To choose features and strength, and as many again, with other names, to check the choice."""
    test_prompts: int = 256
    greedy_prompts: int = 64
    """Of the selection prompts, those on which features are tried one by one."""
    shortlist: int = 16
    max_features: int = 16
    budget: float = 0.05
    """Nats per token that features, and every strength that is tuned, may cost on the text for choosing."""
    text_contexts: int = 48
    """Held-out contexts, the first half for choosing and the second for the reported damage."""
    random_draws: int = 3
    """At the chosen site; one at the others."""
    strengths: tuple[float, ...] = STRENGTHS
    """Of the points of a frontier, as shares of the method's own strength, in ascending order."""
    seed: int = 0
    prepend_bos: bool = True
    """Whether prompts begin with BOS, as the text does that the dictionaries were trained on."""
    site: Site | None = None
    """Where to edit; None: at the site where ablating features ranks best on the check prompts."""

    def __post_init__(self):
        least = {"selection_prompts": 4, "test_prompts": 4, "greedy_prompts": 4, "shortlist": 1, "max_features": 1}
        least |= {"text_contexts": 2 * FEWEST_CONTEXTS, "random_draws": 1}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise UserError(f"{name} must be {smallest} or more; got {getattr(self, name)}")
        if not (isfinite(self.budget) and self.budget > 0):
            raise UserError(f"the budget must be a positive number of nats per token; got {self.budget}")
        if not self.strengths or list(self.strengths) != sorted({*self.strengths}) or not self.strengths[0] >= 0:
            raise UserError(f"strengths must be one or more, ascending, none negative; got {self.strengths}")
