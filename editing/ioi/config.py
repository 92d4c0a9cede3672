"""The settings of the IOI experiment."""

from dataclasses import dataclass, field

from editing.ioi.baselines import Baseline
from editing.ioi.feature_selection import SelectionConfig, Selector
from sae_core.errors import UserError, no_such


@dataclass(frozen=True)
class IOIConfig:
    """How much to run."""

    selection_prompts: int = 32
    test_prompts: int = 96
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    selectors: tuple[Selector | str, ...] = (Selector.ATTRIBUTION, Selector.RANDOM)
    """How dictionaries' features are chosen; baselines' are by the first of these. Attribution takes two passes per
    prompt, greedy search a hundred times as many, threshold pruning several hundred times."""
    baselines: tuple[Baseline | str, ...] = tuple(kind for kind in Baseline if kind is not Baseline.ICA)
    """What dictionaries are compared with. ICA is slow to fit."""
    random_draws: int = 3
    """Random orders, averaged."""
    seed: int = 0
    prepend_bos: bool = True

    def __post_init__(self) -> None:
        for name, known in (("selectors", Selector), ("baselines", Baseline)):
            for value in getattr(self, name):
                if value not in set(known):
                    raise no_such(name[:-1], str(value), known)
            object.__setattr__(self, name, tuple(map(known, getattr(self, name))))
        if not self.selectors:
            raise UserError(f"no way to choose features is given; there are {', '.join(Selector)}")
        for name in ("selection_prompts", "test_prompts", "random_draws"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1; got {getattr(self, name)}")
