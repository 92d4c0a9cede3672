"""Settings of the verbs that work on a set of dictionaries: `ioi`, `remove`, `steer`, `features`, `evaluate`."""

from dataclasses import dataclass
from typing import Literal

from sae_core.checks import SEEDS, TOKENS
from sae_core.errors import UserError
from sae_core.formats.hook_names import parse_site
from subrank.settings.fields import Settings, setting, site_or_stream

Selector = Literal["attribution", "greedy", "threshold", "random"]
Baseline = Literal["pca", "nonnegative_pca", "neurons", "random_basis", "ica"]

SHARES = (0.5, 0.8, 0.9)
"""Of a capability; removals are compared there (`editing.removal.measurement.curve`, which loads torch)."""

PROMPTS = 100_000
"""Of a task, at most: they are in memory together."""
STRONGEST = 1000
"""What features are turned to, at most: more leaves the range of half precision."""
_GREEDY = {"selectors": ("greedy", None)}


def _all_or_place(name: str) -> None:
    if name != "all":
        site_or_stream(name)


def _share(value: float) -> None:
    if value not in SHARES:
        raise UserError(f"--share must be one of {', '.join(map(str, SHARES))}; got {value:g}")


@dataclass(frozen=True)
class IOISettings(Settings):
    """Where to patch, on which prompts, how features are chosen, and beside what."""

    site: str | None = setting(None, reads=parse_site)
    """where to patch; by default chosen on selection prompts"""
    sites: tuple[str, ...] | None = setting(None, metavar="SITE", reads=_all_or_place, excludes=("site",))
    """one experiment after the other: sites, streams, or 'all'"""
    jointly: tuple[str, ...] | None = setting(None, metavar="SITE", reads=_all_or_place, excludes=("site", "sites"))
    """sites or streams, or 'all', in one experiment"""
    positions: tuple[str, ...] = setting(("all",), metavar="WHERE")
    """all, or any of IO, S1, S2, END, and places counted from the end: -1 is the last"""
    corruption: Literal["both", "io", "swap", "abc"] = "both"
    """what differs between the prompts of a pair: io, swap, abc, or both io and swap"""
    prompts: int = setting(96, least=2, most=PROMPTS, quick=10, large=48)
    """test prompts; a third as many for the selection"""
    selectors: tuple[Selector, ...] | None = setting(None, metavar="HOW")
    """ways to choose features on other prompts: attribution, greedy, threshold, random (default: attribution, random,
    and greedy where the model is small); besides they are chosen for each pair on the pair itself"""
    baselines: tuple[Baseline, ...] | None = setting(None, metavar="WHAT", empty=True)
    """what to compare with: pca, nonnegative_pca, neurons, random_basis, ica (default: all but ica, which is slow)"""
    shortlist: int = setting(32, least=1, quick=8, needs=_GREEDY)
    """features among which greedy search chooses"""
    features: int = setting(16, least=1, quick=4, needs=_GREEDY)
    """features that greedy search chooses"""
    contexts: int = setting(256, least=2, quick=64)
    """contexts of the text that baselines are fitted on, and from which features are labelled"""
    thresholds: int | None = setting(None, least=1, most=10_000, needs={"selectors": ("threshold",)})
    """values of tau of the threshold pruning (default: 16); the source took 50"""
    text: str | None = None
    """another text than the one trained on"""
    seed: int = setting(0, least=0, most=SEEDS)
    """seed of prompts, random orders and intervals"""
    quick: bool = False
    """about a tenth of the work wherever nothing else is given, to see what comes; the result says so"""
    check: bool = False
    """compute a sample of the numbers again by full forward passes with hooks, and say by how much they differ"""


@dataclass(frozen=True)
class RemoveSettings(Settings):
    """Where to edit, how much to remove, on how many prompts, and how much damage is allowed."""

    site: str | None = setting(None, reads=parse_site)
    """where to edit; by default chosen on selection prompts"""
    prompts: int = setting(256, least=8, most=PROMPTS, quick=26, large=64)
    """test prompts; half as many to choose the edit"""
    contexts: int = setting(48, least=8, quick=8, large=16)
    """held-out contexts on which damage is measured; the first half to choose the edit by"""
    share: float = setting(0.8, reads=_share)
    """share of the capability that sites and strengths are chosen to remove: 0.5, 0.8 or 0.9"""
    shortlist: int = setting(16, least=1, quick=6, large=12)
    """features whose effect on other text is measured before some are chosen"""
    features: int = setting(16, least=1, quick=4, large=8)
    """features that are ablated together at a site, at most"""
    budget: float = setting(0.05, above=0)
    """nats per token that features may cost on the text for choosing them"""
    text: str | None = None
    """another text than the one trained on"""
    seed: int = setting(0, least=0, most=SEEDS)
    """seed of prompts, random controls and intervals"""
    quick: bool = False
    """about a tenth of the work wherever nothing else is given, to see what comes; the result says so"""
    check: bool = False
    """compute a sample of the numbers again by full forward passes with hooks, and say by how much they differ"""


@dataclass(frozen=True)
class SteerSettings(Settings):
    """How features are turned, and what is written and measured."""

    mode: Literal["scale", "clamp", "off"] = "scale"
    """what strengths mean: factors of the activation, multiples of its maximum, or off"""
    strengths: tuple[float, ...] | None = setting(
        None, metavar="S", least=-STRONGEST, most=STRONGEST, needs={"mode": ("scale", "clamp")}
    )
    """factors of the activation (scale; default: -4 0 1 2 4 8), or multiples of its maximum on the text
    (clamp; default: -1 0 0.5 1 2)"""
    prompt: tuple[str, ...] | None = setting(None, metavar="TEXT")
    """prompts to continue; by default taken from held-out text"""
    chat: bool = setting(False, needs={"prompt": ()})
    """prompts are what a user says: they are written by the model's chat template"""
    tokens: int = setting(40, least=1, most=100_000)
    """tokens to write after each prompt"""
    temperature: float = setting(1.0, least=0, most=100)
    """0 always takes the most probable token"""
    top_p: float | None = setting(None, above=0, most=1, needs={"temperature": ()})
    """draw from the most probable tokens of this share"""
    contexts: int = setting(32, least=2, quick=4)
    """held-out contexts to measure on"""
    read: int = setting(256, least=8, quick=64)
    """contexts on which features are read: their maxima, the tokens that they promote, examples"""
    text: str | None = None
    """another text than the one trained on"""
    seed: int = setting(0, least=0, most=SEEDS)
    """seed of the texts and of random directions"""
    quick: bool = False
    """about a tenth of the work wherever nothing else is given, to see what comes; the result says so"""
    check: bool = False
    """compute a sample of the numbers again by full forward passes with hooks, and say by how much they differ"""


@dataclass(frozen=True)
class FeatureSettings(Settings):
    """Which features get a full card, and how much text is read."""

    site: str | None = setting(None, reads=parse_site, needs={"full": ()})
    """full cards for features of this site only, e.g. resid_post.3"""
    full: int = setting(24, least=0, quick=3, large=12)
    """full cards, for features drawn at random if not named"""
    contexts: int = setting(1000, least=8, quick=100, large=400)
    """contexts read, and a quarter as many held-out ones"""
    neurons: bool = setting(False, needs={"full": ()})
    """beside each full card that of the nearest neuron"""
    text: str | None = None
    """another text than the one trained on"""
    neuronpedia: bool = False
    """write a folder neuronpedia/ as well: dashboards of all features that are alive, as SAEDashboard makes them"""
    seed: int = setting(0, least=0, most=SEEDS)
    """seed of the features drawn and of the examples"""
    quick: bool = False
    """about a tenth of the work wherever nothing else is given, to see what comes; the result says so"""
    check: bool = False
    """compute a sample of the numbers again by full forward passes with hooks, and say by how much they differ"""


@dataclass(frozen=True)
class EvaluateSettings(Settings):
    """How much held-out text is measured on."""

    contexts: int = setting(256, least=1, quick=26)
    """contexts to measure on, at most; held-out ones"""
    spliced: int = setting(64, least=1, quick=6)
    """of them, contexts to splice dictionaries into"""
    text: str | None = None
    """another text than the one trained on"""
    seed: int = setting(0, least=0, most=SEEDS)
    """seed of the random baseline of the comparison"""
    quick: bool = False
    """about a tenth of the work wherever nothing else is given, to see what comes; the result says so"""
    check: bool = False
    """compute a sample of the numbers again by full forward passes with hooks, and say by how much they differ"""


@dataclass(frozen=True)
class ImportSettings(Settings):
    """Where other people's dictionaries belong, and the text that verbs read with them."""

    at: tuple[str, ...] | None = setting(None, metavar="SITE", reads=site_or_stream)
    """site of each file; by default where it says that it belongs"""
    text: str = "storybook"
    """'storybook', a file, a folder, or a dataset name"""
    tokens: int = setting(500_000, least=1, most=TOKENS)
    """tokens of it that verbs may read, at most"""
    context: int | None = setting(None, least=3)
    """tokens per context; the model's, or the files', at most 128"""
    column: str = "text"
    """where a row has its text, or its token ids; input_ids where there is no such column"""
    bos: str | None = None
    """the token that every piece of text begins with, or none; as the files say by default"""
    outliers: float = setting(10.0, least=0)
    """multiple of a site's median norm beyond which a token is left out by all verbs; 0 leaves none out"""
    seed: int = setting(0, least=0, most=SEEDS)
    """accepted as by every verb; importing draws nothing"""
