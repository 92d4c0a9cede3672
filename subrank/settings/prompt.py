"""Settings of the verb `prompt`."""

from dataclasses import dataclass

from sae_core.checks import SEEDS
from subrank.settings.fields import Settings, setting


@dataclass(frozen=True)
class PromptSettings(Settings):
    """What is shown of a prompt, and how much is ablated on it."""

    features: int = setting(5, least=1, most=1000)
    """the most active features that are shown at each site and token"""
    exact: int = setting(8, least=0, most=1000, quick=2)
    """features that are ablated one at a time, beside random directions, by direct and first-order effect"""
    logit: str | None = None
    """what effects at the prompt's end are on: the logit of a token, or the difference of two: she, or 'she - he'
    (default: of the model's most probable next token)"""
    contexts: int = setting(256, least=0, quick=64, large=100)
    """contexts of the text from which labels are made, of the features that cells name, of those ablated and of the
    circuit's; 0 for none"""
    text: str | None = setting(None, needs={"contexts": ()})
    """another text than the one trained on, for the labels"""
    seed: int = setting(0, least=0, most=SEEDS)
    """seed of random directions, and of the features that labels are compared with"""
    quick: bool = False
    """about a tenth of the work wherever nothing else is given, to see what comes; the result says so"""
    check: bool = False
    """compute a sample of the numbers again by full forward passes with hooks, and say by how much they differ"""
