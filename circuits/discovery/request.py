"""What a circuit explains and on which examples: a request in words, made into targets, prompts and ablations."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from jaxtyping import Int
from torch import Tensor

from circuits.discovery.default_target import check_next_token, default_target, next_token_target
from circuits.discovery.edges import SearchMode
from circuits.discovery.prompts import PromptSource, from_lines, from_task, from_text, logit_target
from circuits.discovery.sampling import SpreadExamples
from circuits.discovery.target_causes import CauseSearch, DiscoveryConfig, Reach, check_target
from circuits.effects.ablation_effects import AblatedCodes, ToMean, ToOthers
from circuits.effects.target_prompts import TargetPrompts
from circuits.effects.targets import Target
from circuits.features.atlas import Examples, FeatureAtlas
from circuits.graph import NodeId
from circuits.scoring.walks import WRITTEN
from editing.tasks.task import task_and_corruption
from sae_core.data.activations import harvest
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.errors import UserError
from sae_core.model.language_model import LanguageModel
from sae_core.sites import FeatureId, Site, Stream
from sae_core.storage import DictionarySet

NEXT = "next:"
ABLATION_CONTEXTS = 32
"""Contexts over which ablated values are collected."""


class CauseAblation(StrEnum):
    """What a cause's activation is set to when it is ablated."""

    ZERO = "zero"
    MEAN = "mean"
    """Its mean over tokens of the text."""
    RESAMPLE = "resample"
    """Its value at a random token of the text."""


class Covered(StrEnum):
    """The sites that a sufficient set is chosen from, and at which everything else is ablated."""

    RESIDUAL = "residual"
    """The residual after each block, through which everything passes again at every layer."""
    WRITTEN = "written"
    """What attention and MLPs write (attn_out, mlp_out); the residual carries the rest by itself."""

    def of(self, dictionaries: Mapping[Site, Dictionary]) -> dict[Site, Dictionary]:
        """The dictionaries of those sites."""
        streams = WRITTEN if self is Covered.WRITTEN else (Stream.RESID_POST,)
        return {site: dictionary for site, dictionary in dictionaries.items() if site.stream in streams}

    @classmethod
    def default(cls, dictionaries: Mapping[Site, Dictionary], target: Site, is_pruned: bool) -> "Covered":
        """For pruning what blocks write where all of it is there below the target, else the residual where it is.

        Recursion goes from residual to residual, and is scored there.
        """
        below = {site.stream for site in dictionaries if site < target or site == target}
        has_residual = Stream.RESID_POST in below
        return cls.WRITTEN if not has_residual or (is_pruned and set(WRITTEN) <= below) else cls.RESIDUAL


@dataclass(frozen=True)
class CircuitRequest:
    """What is explained, on which examples, and how its circuit is chosen."""

    target: str | None = None
    """A feature ("5_2079"), the one that best predicts a token ("next: )", or the bracket alone), a logit or a
    difference ("logit: she - he"), a task ("task: ioi", "task: ioi, swap"); None for a default."""
    predict: tuple[str, ...] = ()
    """Tokens that the default target should predict (`default_target`)."""
    prompts: tuple[str, ...] = ()
    """Prompts on which a logit is read at their ends; without any, the places of the text where it is largest."""
    ablation: CauseAblation = CauseAblation.ZERO
    spread: bool = False
    """Whether a feature's examples are spread over its range of activations; the strongest otherwise."""
    n_nodes: int = 0
    """Features of a sufficient set found by pruning; 0 for the circuit that recursion finds."""
    cover: int = 2
    """Layers, nearest to the target, at whose sites all but the circuit is ablated, in pruning and in scoring."""
    stream: Covered | None = None
    """Of which sites a sufficient set is chosen; None: what blocks write, where the set has all of it."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.prompts and not (self.target or "").startswith("logit:"):
            raise UserError("prompts are read only where a logit is explained; give a target like 'logit: she - he'")
        if self.spread and self.is_logit:
            raise UserError(f"{self.target} is read on whole prompts; only a feature's examples spread, leave it out")

    @property
    def is_logit(self) -> bool:
        """Whether the target is read from the logits, on prompts of its own."""
        return self.target is not None and self.target.startswith(("logit:", "task:"))

    @property
    def next_token(self) -> str | None:
        """How the token begins that the target should predict; None where it is chosen otherwise."""
        target = (self.target or "").strip()
        if target.startswith(NEXT):
            return target.removeprefix(NEXT).strip() or None
        return target if target and not any(letter.isalnum() for letter in target) else None


@dataclass(frozen=True, eq=False)
class ResolvedRequest:
    """A request with everything it names: what a search runs on."""

    request: CircuitRequest
    search: CauseSearch
    target: Target
    examples: Examples | None
    """Prompts of the target's own; None for a feature, whose examples `search.source` gives."""
    corrupted: Int[Tensor, "examples pos"] | None
    """Counterparts of the prompts of a task."""
    atlas: FeatureAtlas
    """Statistics of all features on the text that is searched, `atlas.contexts`."""
    prepend_bos: bool
    """Whether prompts begin with BOS, as the text of the dictionaries does."""

    @property
    def covered(self) -> dict[Site, Dictionary]:
        """The dictionaries of the sites that a sufficient set is chosen from, and that a circuit is scored at."""
        return covered(self.request, self.search.dictionaries, self.target)

    def prompts(self) -> TargetPrompts:
        """The target on its examples; raises `UserError` where a feature is never active."""
        examples = self.examples
        if examples is None:
            assert isinstance(self.target.node, FeatureId)
            examples = self.search.source.examples(self.target.node, self.search.config.n_examples)
        if not len(examples):
            raise UserError(f"{self.target.node} is never active on this text; give more text or another target")
        return TargetPrompts(self.target, examples, self.corrupted)

    @property
    def on_prompts(self) -> bool:
        """Whether edges are measured on the prompts that members are chosen on: where these are what blocks write."""
        written = self.request.n_nodes and any(site.stream in WRITTEN for site in self.covered)
        return bool(written) and self.search.config.edges.search is not SearchMode.FIRST_ORDER

    def examples_of(self, node: NodeId) -> TargetPrompts:
        """A node of the circuit on the examples on which its causes are sought."""
        if node == self.target.node:
            return self.prompts()
        assert isinstance(node, FeatureId)
        search, source = self.search, self.search.source
        if self.on_prompts:
            source = PromptSource(search.model, search.dictionaries, self.prompts().examples)
        return TargetPrompts(search.feature(node), source.examples(node, search.config.n_examples))


def resolve(
    model: LanguageModel,
    dictionaries: DictionarySet,
    atlas: FeatureAtlas,
    request: CircuitRequest,
    config: DiscoveryConfig,
) -> ResolvedRequest:
    """The request made ready on the text of `atlas` (`survey` of the contexts to be searched).

    A logit's or a task's prompts are used whole, so `min_examples` becomes 1 for the features found active on them.
    Raises `UserError` for a target that does not exist or cannot be explained.
    """
    saes = dictionaries.dictionaries
    ablations = cause_ablations(model, dictionaries, atlas.contexts, request)
    sinks = frozenset() if config.follow_sinks else sinks_of(atlas)
    prepend_bos = bool(dictionaries.text.prepend_bos)
    if request.is_logit:
        prompts = logit_prompts(model, request, atlas.contexts, "selection", config.n_examples, prepend_bos)
        source, config = PromptSource(model, saes, prompts.examples), replace(config, min_examples=1)
        config = with_reach(config, request, saes, prompts.target)
        search = CauseSearch(model, saes, source, config, ablations, sinks)
        return ResolvedRequest(request, search, prompts.target, prompts.examples, prompts.corrupted, atlas, prepend_bos)
    if request.next_token:
        feature = next_token_target(model, saes, atlas, request.next_token)
    elif request.target:
        feature = FeatureId.parse(request.target)
    else:
        feature = default_target(model, saes, atlas, request.predict)
    target = check_target(model, saes, feature)
    config = with_reach(config, request, saes, target)
    source = SpreadExamples(model, saes, atlas.contexts, request.seed) if request.spread else atlas
    search = CauseSearch(model, saes, source, config, ablations, sinks)
    return ResolvedRequest(request, search, target, None, None, atlas, prepend_bos)


def covered(request: CircuitRequest, saes: Mapping[Site, Dictionary], target: Target) -> dict[Site, Dictionary]:
    """The dictionaries of the kind of sites that a request names or that is usual; raises `UserError` without any."""
    stream = request.stream or Covered.default(saes, target.site, bool(request.n_nodes))
    chosen = stream.of(saes)
    if not chosen:
        streams = ", ".join(dict.fromkeys(site.stream for site in saes))
        raise UserError(f"this set has no dictionaries for --stream {stream}, only of {streams}; leave it out")
    return chosen


def with_reach(
    config: DiscoveryConfig, request: CircuitRequest, saes: Mapping[Site, Dictionary], target: Target
) -> DiscoveryConfig:
    """Among members that blocks write causes are sought everywhere below: what one writes every later one reads."""
    is_written = request.n_nodes and any(site.stream in WRITTEN for site in covered(request, saes, target))
    return replace(config, reach=Reach.ALL) if is_written else config


def sinks_of(atlas: FeatureAtlas) -> frozenset[FeatureId]:
    """The features that belong to attention sinks."""
    return frozenset(
        FeatureId(site, index)
        for site, latents in atlas.sites.items()
        for index in latents.sinks.nonzero()[:, 0].tolist()
    )


def check_request(model: LanguageModel, dictionaries: DictionarySet, request: CircuitRequest) -> None:
    """Raise `UserError` for a target that does not exist, as `resolve` would once the text is read."""
    if request.target is None:
        return
    kind, _, name = request.target.partition(":")
    if request.next_token:
        check_next_token(model, dictionaries.dictionaries, request.next_token)
    elif not request.is_logit:
        check_target(model, dictionaries.dictionaries, dictionaries.check_feature(FeatureId.parse(request.target)))
    elif kind == "task":
        task_and_corruption(name, model)
    else:
        logit_target(model, name.strip(), 1)


def logit_prompts(
    model: LanguageModel,
    request: CircuitRequest,
    contexts: Int[Tensor, "contexts pos"],
    split: str,
    n: int,
    prepend_bos: bool,
) -> TargetPrompts:
    """The logit or task of the request on `n` prompts: a task's split, the given lines, or places of `contexts`."""
    assert request.target is not None
    kind, _, name = request.target.partition(":")
    if kind == "task":
        task, corruption = task_and_corruption(name, model)
        pairs = task.pairs(split, n, seed=request.seed, corruption=corruption, prepend_bos=prepend_bos)
        return from_task(model, pairs)
    if not request.prompts:
        return from_text(model, name.strip(), contexts, n)
    return from_lines(model, name.strip(), request.prompts, prepend_bos=prepend_bos)


def cause_ablations(
    model: LanguageModel,
    dictionaries: DictionarySet,
    contexts: Int[Tensor, "contexts pos"],
    request: CircuitRequest,
) -> dict[Site, AblatedCodes]:
    """What the latents of each site are set to; empty for zero."""
    if request.ablation == CauseAblation.ZERO:
        return {}
    ablations: dict[Site, AblatedCodes] = {}
    for site, dictionary in dictionaries.dictionaries.items():
        codes = dictionary.encode(harvest(model, contexts[:ABLATION_CONTEXTS], (site,))[site])
        is_mean = request.ablation == CauseAblation.MEAN
        ablations[site] = ToMean(codes.mean(0)) if is_mean else ToOthers(codes, request.seed)
    return ablations
