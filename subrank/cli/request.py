"""What a circuit explains, from what the options say: a feature, a logit, a task; and on which examples."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from circuits.discovery.recursive import DiscoveryConfig
    from circuits.effects.ablation_effects import Ablation
    from circuits.effects.targets import LogitTarget, Target
    from circuits.features.atlas import Examples, ExampleSource, FeatureAtlas
    from sae_core.dictionaries.dictionary import Dictionary
    from sae_core.model.language_model import LanguageModel
    from sae_core.sites import Site
    from sae_core.storage import DictionarySet


@dataclass(frozen=True)
class Search:
    """What is explained, on which prompts, by which ablation."""

    target: str | None = None
    prompts: Path | None = None
    ablation: str = "zero"
    spread: bool = False
    """Whether examples are spread over the range of activations; the strongest otherwise."""
    n_contexts: int = 1000
    seed: int = 0


@dataclass(frozen=True)
class After:
    """What is made of a circuit once it is found."""

    n_held: int = 400
    cover: int = 2
    n_draws: int = 3
    n_cards: int = 300
    names: Mapping[str, str] = field(default_factory=dict)
    n_nodes: int = 0
    """Features that suffice, in place of those that recursion finds; 0 for the latter."""


@dataclass(frozen=True, eq=False)
class Question:
    """What is explained, on which examples of its own (None: those of the text), and whence the rest come."""

    target: "Target"
    examples: "Examples | None"
    corrupted: "torch.Tensor | None"
    """The counterparts of the examples, where these are a task's."""
    source: "ExampleSource"


def question(
    model: "LanguageModel",
    dictionaries: "DictionarySet",
    contexts: "torch.Tensor",
    atlas: "FeatureAtlas",
    how: Search,
    config: "DiscoveryConfig",
) -> Question:
    """The question that the options ask."""
    from circuits.discovery.prompts import PromptSource
    from circuits.discovery.recursive import check_target
    from circuits.features.atlas import default_target
    from sae_core.sites import FeatureId

    own = dictionaries.dictionaries
    if how.target and how.target.startswith(("logit:", "task:")):
        n, prepend_bos = config.n_examples, dictionaries.text.prepend_bos
        target, examples, corrupted = prompts_of(model, how, contexts, "selection", n, prepend_bos=prepend_bos)
        return Question(target, examples, corrupted, PromptSource(model, own, examples))
    storybook = dictionaries.model == "storybook"
    feature = FeatureId.parse(how.target) if how.target else default_target(model, own, atlas, storybook=storybook)
    return Question(check_target(model, own, feature), None, None, atlas)


def other_prompts(
    model: "LanguageModel", dictionaries: "DictionarySet", held: "torch.Tensor", how: Search, config: "DiscoveryConfig"
) -> "tuple[Target, Examples, torch.Tensor | None]":
    """The target on prompts that discovery has not seen: a task's test split, or places of a text."""
    plain = replace(how, prompts=None)
    n, prepend_bos = 4 * config.n_examples, dictionaries.text.prepend_bos
    return prompts_of(model, plain, held, "test", n, prepend_bos=prepend_bos)


def prompts_of(
    model: "LanguageModel", how: Search, contexts: "torch.Tensor", split: str, n: int, *, prepend_bos: bool
) -> "tuple[LogitTarget, Examples, torch.Tensor | None]":
    """A target read from the logits, its prompts, and their corrupted counterparts if it is a task's."""
    from circuits.discovery.prompts import from_lines, from_task, from_text
    from editing.tasks.task import task_of
    from sae_core.errors import UserError

    kind, _, name = how.target.partition(":")
    if kind == "task":
        pairs = task_of(name.strip(), model).pairs(split, n, seed=how.seed, prepend_bos=prepend_bos)
        return *from_task(model, pairs), pairs.corrupted
    if how.prompts is None:
        return *from_text(model, name.strip(), contexts, n), None
    try:
        lines = how.prompts.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompts {how.prompts} cannot be read: {error}") from error
    return *from_lines(model, name.strip(), lines, prepend_bos=prepend_bos), None


def ablation_of(
    how: Search, model: "LanguageModel", dictionary: "Dictionary", contexts: "torch.Tensor", site: "Site"
) -> "Ablation | None":
    """What the latents of a site are set to; None for zero."""
    from circuits.effects.ablation_effects import ToMean, ToOthers
    from sae_core.data.activations import harvest

    if how.ablation == "zero":
        return None
    codes = dictionary.encode(harvest(model, contexts[:32], (site,))[site])
    return ToMean(codes.mean(0)) if how.ablation == "mean" else ToOthers(codes, how.seed)
