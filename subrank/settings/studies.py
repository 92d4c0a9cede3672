"""Settings of the studies, and which studies there are."""

from dataclasses import dataclass
from pathlib import Path

from sae_core.checks import SEEDS
from sae_core.formats.hook_names import parse_site
from subrank.settings.experiments import Baseline
from subrank.settings.fields import Settings, setting


@dataclass(frozen=True)
class SuperpositionSettings(Settings):
    """Which toy models are trained and for how long, and the dictionaries on their activations."""

    features: int = setting(20, least=2, most=256)
    """features that the data are made of"""
    dimensions: int = setting(5, least=1, most=255)
    """dimensions that they are squeezed into, fewer than features"""
    importance: float = setting(0.7, above=0, most=1)
    """ratio r of the importances of two neighbours: feature i has r^i"""
    densities: tuple[float, ...] = setting((1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001), metavar="P", least=1e-6, most=1)
    """chances 1-S that a feature is active; toy models are trained for each"""
    copies: int = setting(10, least=1, most=1000, quick=4)
    """toy models of each density, from other weights at the start; that of the lowest loss is shown"""
    steps: int = setting(5000, least=1, most=10**6, quick=1250)
    """steps of training the toy models"""
    batch: int = setting(256, least=2, most=2**16)
    """rows of features per step"""
    dictionary_steps: int = setting(600, least=1, most=10**6, quick=200)
    """steps of training the dictionaries on hidden activations"""
    seed: int = setting(0, least=0, most=SEEDS)
    """seed of weights, data and random controls"""
    quick: bool = False
    """about a tenth of the work wherever nothing else is given, to see what comes; the result says so"""


@dataclass(frozen=True)
class SplittingSettings(Settings):
    """Where sets of dictionaries are compared, and on how much text."""

    site: str | None = setting(None, reads=parse_site)
    """site at which they are compared (default: all that they share)"""
    contexts: int = setting(256, least=1, quick=26)
    """held-out contexts on which activity is counted, at most"""
    text: str | None = None
    """another text than the one trained on"""
    seed: int = setting(0, least=0, most=SEEDS)
    """seed of the random controls and of intervals"""
    quick: bool = False
    """about a tenth of the work wherever nothing else is given, to see what comes; the result says so"""


@dataclass(frozen=True)
class MetricSettings(Settings):
    """On what, and how thoroughly, the metrics of dictionaries are measured."""

    contexts: int = setting(96, least=2, quick=12)
    """held-out contexts on which dictionaries are measured, at most, and as many of training to choose on"""
    explained: int = setting(6, least=0, quick=2)
    """latents of each dictionary that are explained by n-grams of tokens"""
    ablated: int = setting(16, least=0, quick=4)
    """latents of each dictionary that are ablated to see how many logits they move"""
    read_at: tuple[int, ...] = setting((4, 8, 16, 32, 64, 128), metavar="K", least=1, empty=True)
    """numbers of active latents at which dictionaries are read besides that of their training"""
    labels: Path | None = None
    """JSON lines of {"text": ..., "label": true or false}, and "task" where there are several: further probes"""
    ladder: Path | None = None
    """JSON list of {"loss": ..., "compute": ...} of a family of models on this text: for the share of compute"""
    seed: int = setting(0, least=0, most=SEEDS)
    """seed of the latents that are drawn, of random controls and of intervals"""
    quick: bool = False
    """about a tenth of the work wherever nothing else is given, to see what comes; the result says so"""


@dataclass(frozen=True)
class DarkMatterSettings(Settings):
    """Where and on how much text the errors of dictionaries are looked at."""

    site: str | None = setting(None, reads=parse_site)
    """site at which (default: all that the sets share)"""
    contexts: int = setting(512, least=1, quick=128)
    """contexts on which the linear maps are fitted, at most"""
    held: int = setting(128, least=2, quick=32)
    """further contexts on which all is measured, at most"""
    steps: int = setting(200, least=0, most=10**6, quick=40)
    """steps of training dictionaries on each part of the error; 0 for none"""
    expansion: int = setting(4, least=1)
    """latents of these dictionaries per dimension"""
    k: int = setting(16, flag="-k", least=1)
    """latents active per token in them"""
    pursuit: int = setting(2048, least=0, quick=512)
    """tokens at which gradient pursuit chooses codes; 0 for none"""
    text: str | None = None
    """another text than the one trained on"""
    seed: int = setting(0, least=0, most=SEEDS)
    """seed of the random controls, of training and of intervals"""
    quick: bool = False
    """about a tenth of the work wherever nothing else is given, to see what comes; the result says so"""


@dataclass(frozen=True)
class MatchingSettings(Settings):
    """Where two sets are compared, and on how much text."""

    site: str | None = setting(None, reads=parse_site)
    """site of the first set (default: all)"""
    other_site: str | None = setting(None, reads=parse_site)
    """site of the other set (default: all)"""
    contexts: int = setting(128, least=2, quick=13)
    """held-out contexts of the first set that both read, at most"""
    text: str | None = None
    """another text than the one the first set was trained on"""
    seed: int = setting(0, least=0, most=SEEDS)
    """seed of intervals"""
    quick: bool = False
    """about a tenth of the work wherever nothing else is given, to see what comes; the result says so"""


@dataclass(frozen=True)
class ScalingSettings(MetricSettings):
    """Which laws are fitted, how far they are read, and what is measured beside them."""

    site: str | None = setting(None, reads=parse_site)
    """site at which laws are fitted (default: all that the sets share)"""
    beyond: float = setting(4.0, least=1, most=1e6)
    """multiple of the largest number of latents at which the loss is predicted"""
    budget: float | None = setting(None, metavar="FLOP", above=0, most=1e30)
    """training compute for which the best number of latents is wanted (default: that of the largest dictionary)"""
    draws: int = setting(1000, least=100, most=100_000, quick=200)
    """times that each law is fitted again for its intervals"""
    metrics: bool = True
    """whether the metrics are measured, which takes most of the time; laws need what training measured"""
    text: str | None = None
    """another text than the one trained on"""


@dataclass(frozen=True)
class ExplainSettings(Settings):
    """Which features are explained, by whom, and on which text."""

    site: str | None = setting(None, reads=parse_site)
    """site of the features (default: all that there are)"""
    only: tuple[str, ...] | None = setting(None, metavar="FEATURE", excludes=("site",))
    """explain these features, such as those of a circuit, and none that are drawn"""
    features: int = setting(8, least=2, most=10_000, quick=3, large=3)
    """features per site, drawn at random, and as many directions of each kind beside them"""
    beside: tuple[Baseline, ...] = setting(("neurons", "pca", "ica", "random_basis"), metavar="WHAT", empty=True)
    """what stands beside: pca, nonnegative_pca, neurons, random_basis, ica"""
    contexts: int = setting(500, least=16, quick=100, large=200)
    """contexts on which explanations are made, and half as many held-out ones, at most, on which they are scored"""
    fragment: int = setting(32, least=4, most=10_000)
    """tokens of a fragment of these: what is shown, simulated and told apart"""
    examples: int = setting(5, least=1, most=1000)
    """fragments of each group (top, random, any) per feature"""
    llm: str | None = setting(None, metavar="WHERE")
    """a language model that explains and simulates: an address, http://127.0.0.1:8000/v1, of an endpoint that speaks
    OpenAI's chat completions, or a folder in Hugging Face layout (default: rules, without one)"""
    llm_model: str | None = setting(None, metavar="NAME", needs={"llm": ()})
    """its name at the endpoint"""
    llm_at_once: int = setting(4, least=1, most=1000, needs={"llm": ()})
    """questions that wait for an answer at the same time, at most"""
    text: str | None = None
    """another text than the one trained on"""
    seed: int = setting(0, least=0, most=SEEDS)
    """seed of the features, of fragments and of intervals"""
    quick: bool = False
    """about a tenth of the work wherever nothing else is given, to see what comes; the result says so"""


@dataclass(frozen=True)
class Study:
    """What the command knows of a study before it loads its module, `subrank/studies/NAME.py`."""

    settings: type
    text: str
    """What it does, in the list of studies."""
    on_sets: bool = False
    """Whether it works on sets of dictionaries, and their model: `run_NAME(model, sets, settings, on_progress)`; else
    `run_NAME(settings, on_progress)`."""
    each_model: bool = False
    """Whether sets may be of different models: `run_NAME(models, sets, settings, on_progress)`, models by set."""
    keeps: bool = False
    """Whether it keeps in the result's folder what an interrupted run goes on from: `run_NAME(..., folder=)`."""


STUDIES = {
    "superposition": Study(SuperpositionSettings, "toy models that keep more features than they have dimensions"),
    "matching": Study(
        MatchingSettings, "which features another set, layer or model has too", on_sets=True, each_model=True
    ),
    "splitting": Study(SplittingSettings, "what becomes of features from small dictionaries to large", on_sets=True),
    "dark-matter": Study(DarkMatterSettings, "what dictionaries leave unexplained, and why", on_sets=True),
    "scaling": Study(ScalingSettings, "laws of the loss over latents, sparsity and compute; metrics", on_sets=True),
    "explain": Study(ExplainSettings, "features explained, and what explanations are worth", on_sets=True, keeps=True),
}
"""By the names that the command uses."""
