"""Feature splitting: where a smaller dictionary has one feature, a larger one has several (Bricken et al. 2023).

Sets of dictionaries of one model, from the smallest to the largest, are compared step by step at every site that all
have, on the same held-out text:

1. Each latent of the larger set is given a parent in the smaller one, by direction and, independently of that, by
   activity (`relations/families.py`). Latents that are active on no token of the text are left out.
2. A feature of the smaller set is kept (one child), split (several) or gone; one of the larger set is new where it has
   no parent. Features of the smaller set coalesce where one latent of the larger is the nearest to several of them.
3. Where a feature splits, its children should be active where it is: how often one of them is, is counted.

Controls: random directions, as many; tokens shuffled between the two sets; families in which every latent has another's
parent (`relations/splitting_step.py`). Sets of one size, such as of two seeds, are compared in the same way: what is
kept then is what training finds again. Cost: the text read once by the model, and n_small x n_large additions per
token.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Int
from markupsafe import Markup
from torch import Tensor

from sae_core.codec import from_plain, to_plain
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.errors import UserError
from sae_core.formats.hook_names import parse_site
from sae_core.model.language_model import LanguageModel
from sae_core.progress import OnProgress, Stages, silent
from sae_core.room import check_memory
from sae_core.sites import Site
from subrank.progress import shown
from subrank.result import Provenance, Result
from subrank.saes import Saes, by_name, folders_of, text_of
from subrank.settings.fields import make, takes
from subrank.settings.studies import SplittingSettings
from subrank.studies.cost import announce
from subrank.studies.relations.splitting_page import Parents, family_figure, sentences, shares_figure, splitting_section
from subrank.studies.relations.splitting_step import Step, StepCount
from subrank.studies.relations.top_places import TopPlaces
from subrank.studies.sample import drawn

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

AT_ONCE = 8
"""Contexts that are read and encoded together."""


@dataclass(frozen=True, eq=False, repr=False)
class Splitting(Result):
    """What becomes of features from each set to the next larger one."""

    verb: ClassVar[str] = "splitting"
    sizes: dict[str, dict[Site, int]]
    """Latents of each set, the smallest first."""
    steps: tuple[Step, ...]
    """By site, then by size."""
    labels: dict[str, dict[Site, tuple[str, ...]]]
    """The words at each latent's largest activations, by set and site; empty where it is never active."""
    provenance: Provenance

    def title(self) -> str:
        return f"Feature splitting: {', '.join(self.sizes)}"

    def lines(self) -> list[str]:
        return sentences(self.steps)[:10]

    def figures(self) -> "dict[str, Figure]":
        families = {parents: family_figure(self.steps, parents, self.labels) for parents in Parents}
        return {"shares": shares_figure(self.steps)} | {name: drawn for name, drawn in families.items() if drawn}

    def body(self) -> Markup:
        return splitting_section(self.steps, self.sizes, self.figures())

    def to_dict(self) -> dict[str, Any]:
        known = {"sizes": self.sizes, "steps": self.steps, "labels": self.labels}
        return {name: to_plain(value) for name, value in known.items()}

    @classmethod
    def from_dict(cls, numbers: Mapping[str, Any], provenance: Provenance) -> "Splitting":
        sizes = {
            name: {Site.parse(at): int(n) for at, n in by_site.items()} for name, by_site in numbers["sizes"].items()
        }
        labels = {
            name: {Site.parse(at): tuple(words) for at, words in by_site.items()}
            for name, by_site in numbers.get("labels", {}).items()  # older results have none
        }
        return cls(sizes, tuple(from_plain(Step, each) for each in numbers["steps"]), labels, provenance)


@takes(SplittingSettings)
def splitting(
    model: LanguageModel,
    saes: Mapping[str, Saes],
    *,
    progress: bool = True,
    on_progress: OnProgress | None = None,
    **settings: Any,
) -> Splitting:
    """Which features of smaller sets split, coalesce or go in larger ones, and which are new.

    `saes` are two sets of one model or more, by name.
    """
    sets, chosen = by_name(saes), make(SplittingSettings, settings)
    with shown("splitting", progress, on_progress) as report:
        return run_splitting(model, sets, chosen, report)


def run_splitting(
    model: LanguageModel, sets: Mapping[str, Saes], settings: SplittingSettings, on_progress: OnProgress = silent
) -> Splitting:
    """`splitting` with its settings made."""
    sites = shared_sites(sets, settings.site)
    ordered = sorted(sets, key=lambda name: sum(len(sets[name].dictionaries[site].directions) for site in sites))
    model, *_ = [saes.on(model) for saes in sets.values()]
    text, _ = text_of(sets, settings.text)
    Stages(on_progress).begin(f"reading {text.source}")
    contexts = drawn(text.read(model).held_out, settings.contexts, settings.seed)
    named = {name: {site: sets[name].dictionaries[site] for site in sites} for name in ordered}
    chunks = contexts.split(model.at_once(AT_ONCE))
    trial = Counts(named, settings.seed).steps(model, chunks)
    announce({f"{len(contexts)} contexts read": (trial, len(chunks))}, on_progress)
    counts, stages = Counts(named, settings.seed), Stages(on_progress, len(chunks))
    stages.begin("the first contexts")
    for number, _ in enumerate(counts.steps(model, chunks), 1):
        if number < len(chunks):
            stages.begin(f"context {number * len(chunks[0]) + 1} of {len(contexts)}")
    steps = tuple(each.step(settings.seed) for each in counts.between)
    sizes = {name: {site: len(named[name][site].directions) for site in sites} for name in ordered}
    known = asdict(settings) | folders_of(sets)
    of_sets = {name: saes.dictionaries for name, saes in sets.items()}
    provenance = Provenance.of(Splitting.verb, model, known, dictionaries=of_sets, text=contexts)
    return Splitting(sizes, steps, counts.labels(), provenance)


def shared_sites(sets: Mapping[str, Saes], site: str | None, *, least: int = 2) -> list[Site]:
    """The sites that all sets have, or the one that is named; raises `UserError` for none, or too few sets."""
    if len(sets) < least:
        raise UserError("splitting compares two sets of dictionaries or more; give folders of other sizes, too")
    if site:
        for saes in sets.values():
            saes.at(site)
        return [parse_site(site)]
    shared = set.intersection(*(set(saes.dictionaries) for saes in sets.values()))
    if not shared:
        raise UserError("these sets have no site in common; train them at the same --sites")
    return sorted(shared)


class Counts:
    """What is counted for all steps while the text is read; special tokens are left out."""

    def __init__(self, named: Mapping[str, Mapping[Site, Dictionary]], seed: int):
        self.named, self.sites = named, list(next(iter(named.values())))
        sizes = [[len(named[name][site].directions) for name in named] for site in self.sites]
        needed = sum(3 * 4 * small * large for each in sizes for small, large in pairwise(each))
        check_memory(needed, torch.device("cpu"), "counting pairs of latents", "name a --site, or give smaller sets")
        self.between = [
            StepCount(site, (small, named[small][site]), (large, named[large][site]), seed)
            for site in self.sites
            for small, large in pairwise(named)
        ]
        self.tops = {
            (name, site): TopPlaces(len(dictionary.directions))
            for name, dictionaries in named.items()
            for site, dictionary in dictionaries.items()
        }

    @torch.no_grad()
    def steps(self, model: LanguageModel, chunks: Sequence[Int[Tensor, "contexts pos"]]) -> Iterator[None]:
        """Read chunk after chunk; each is a step."""
        for tokens in chunks:
            content = model.content(tokens)
            words = [model.token_text(token) for token in tokens[content].tolist()]
            recorded = model.record(tokens, self.sites)
            codes = {
                (name, site): self.named[name][site].encode(recorded[site][content.to(recorded[site].device)]).cpu()
                for name, site in self.tops
            }
            for key, top in self.tops.items():
                top.add(codes[key], words)
            for each in self.between:
                each.add(codes[each.small[0], each.site], codes[each.large[0], each.site])
            yield

    def labels(self) -> dict[str, dict[Site, tuple[str, ...]]]:
        """The words at the largest activations of every latent."""
        return {name: {site: self.tops[name, site].labels() for site in self.sites} for name in self.named}
