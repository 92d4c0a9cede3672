"""Matching: which features of one set another has too, by their activations (Bricken et al. 2023, "Universality").

Directions can be compared only within one space. Activations can be compared wherever two sets have read the same text:
sets of other seeds and settings, of other layers, and of other models, whose tokens are aligned by characters.

1. The held-out text of the first set is read by every model. It is cut where a token of both ends
   (`relations/shared_spans.py`); a latent's activation on such a span is the largest on its tokens.
2. For every pair of sites the correlations of all pairs of latents over spans are computed (`correlations.py`
   there).
3. A latent is matched where its best partner correlates by at least 0.5.

Control: spans of the one beside those of the other in the passage before, drawn from elsewhere in the text. One set
alone is compared with itself, site by site: which features go on through the layers. Cost: the text read once by each
model, and n x n_other additions per span and pair of sites.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from markupsafe import Markup
from torch import Tensor

from sae_core.codec import from_plain, to_plain
from sae_core.errors import UserError
from sae_core.formats.hook_names import parse_site
from sae_core.model.generation import pieces
from sae_core.model.language_model import LanguageModel
from sae_core.progress import OnProgress, Stages, silent
from sae_core.room import check_memory
from sae_core.sites import FeatureId, Site
from subrank.progress import shown
from subrank.result import Provenance, Result
from subrank.saes import Saes, a_set, folders_of
from subrank.settings.fields import make, takes
from subrank.settings.studies import MatchingSettings
from subrank.studies.cost import announce
from subrank.studies.relations.correlations import Correlations, Match, Partners, match
from subrank.studies.relations.matching_page import heat_map, how_matched, matching_section, sentences
from subrank.studies.relations.shared_spans import on_spans, shared_spans, token_ends
from subrank.studies.relations.top_places import TopPlaces
from subrank.studies.sample import drawn

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

LINES = 10
"""Sentences that are printed; the page has one for every site."""
BEFORE = 2
"""Tokens before a span that are shown with it."""


@dataclass(frozen=True, eq=False, repr=False)
class Matching(Result):
    """Which features of one set have partners in another."""

    verb: ClassVar[str] = "matching"
    names: tuple[str, str]
    """Of the two sets; twice the same for a set with itself."""
    matches: tuple[Match, ...]
    """For every site of the first and every site of the other."""
    best: tuple[Partners, ...]
    """The best partners of each other at the pair of sites where most latents are matched."""
    n_spans: int
    skipped: int
    """Passages that were left out, as the two models do not read the same characters there or one has no room."""
    provenance: Provenance

    def title(self) -> str:
        first, other = self.names
        return f"Features of {first} at its other sites" if first == other else f"Features of {first} in {other}"

    def lines(self) -> list[str]:
        return sentences(self.names, self.matches)[:LINES]

    def figures(self) -> "dict[str, Figure]":
        return {"matched": heat_map(self.names, self.matches)}

    def body(self) -> Markup:
        return matching_section(self.names, self.matches, self.best, (self.n_spans, self.skipped))

    def to_dict(self) -> dict[str, Any]:
        known = {"names": list(self.names), "n_spans": self.n_spans, "skipped": self.skipped}
        return known | {"matches": to_plain(self.matches), "best": to_plain(self.best)}

    @classmethod
    def from_dict(cls, numbers: Mapping[str, Any], provenance: Provenance) -> "Matching":
        matches = tuple(from_plain(Match, each) for each in numbers["matches"])
        best = tuple(from_plain(Partners, each) for each in numbers["best"])
        first, other = numbers["names"]
        return cls((first, other), matches, best, numbers["n_spans"], numbers["skipped"], provenance)


@takes(MatchingSettings)
def matching(
    saes: Mapping[str, Saes],
    *,
    models: Mapping[str, LanguageModel] | None = None,
    progress: bool = True,
    on_progress: OnProgress | None = None,
    **settings: Any,
) -> Matching:
    """Which features of one set another has too, by their activations on the same text.

    `saes` are two sets by name, of one model or of two, or one, which is compared with itself. Their models are loaded
    from where the sets say they are, unless `models` has them by the same names.
    """
    for each in saes.values():
        a_set(each)
    chosen = make(MatchingSettings, settings)
    with shown("matching", progress, on_progress) as report:
        loaded = {name: (models or {}).get(name) or each.language_model for name, each in saes.items()}
        return run_matching(loaded, saes, chosen, report)


def run_matching(
    models: Mapping[str, LanguageModel],
    sets: Mapping[str, Saes],
    settings: MatchingSettings,
    on_progress: OnProgress = silent,
) -> Matching:
    """`matching` with its settings made."""
    if len(sets) not in (1, 2):
        raise UserError(f"matching compares two sets of dictionaries, or one with itself; there are {len(sets)}")
    first, *_, other = [*sets, *sets]
    readers = [_Reader(sets[name], models[name]) for name in (first, other)]
    sites = _sites(sets[first], settings.site), _sites(sets[other], settings.other_site)
    contexts = drawn(sets[first].read(readers[0].model, settings.text).held_out, settings.contexts, settings.seed)
    passages = [readers[0].text(row) for row in contexts]
    parts = {f"{len(passages)} passages read by both": (_Counts(readers, sites).steps(passages), len(passages))}
    announce(parts, on_progress)
    parts.clear()  # what was counted for the time takes as much memory as what follows
    counts, stages = _Counts(readers, sites), Stages(on_progress, len(passages))
    stages.begin("passage 1")
    for number, _ in enumerate(counts.steps(passages), 1):
        if number < len(passages):
            stages.begin(f"passage {number + 1}")
    if not counts.n_spans:
        raise UserError("the two models do not read the same characters anywhere in this text; give another --text")
    matches = counts.matches(settings.seed)
    known = asdict(settings) | folders_of(sets) | {"other_model": models[other].name}
    of_sets = {name: saes.dictionaries for name, saes in sets.items()}
    provenance = Provenance.of(Matching.verb, models[first], known, dictionaries=of_sets, text=contexts)
    return Matching((first, other), matches, counts.named(matches), counts.n_spans, counts.skipped, provenance)


def _sites(saes: Saes, site: str | None) -> list[Site]:
    if site:
        saes.at(site)
        return [parse_site(site)]
    return list(saes.dictionaries)


class _Reader:
    """A set and its model, reading passages."""

    def __init__(self, saes: Saes, model: LanguageModel):
        self.saes, self.model = saes, saes.on(model)

    def text(self, row: Tensor) -> str:
        """A context as characters."""
        return self.model.tokenizer.decode(row[self.model.content(row)].tolist())

    def read(self, passage: str, sites: Sequence[Site]) -> tuple[list[str], dict[Site, Tensor]]:
        """The text of each token but special ones, and the codes at `sites`, `[pos, n_latents]`."""
        tokens = self.saes.tokens(self.model, passage)
        content = self.model.content(tokens[0])
        recorded = self.model.record(tokens, sites)
        codes = {site: self.saes.dictionaries[site].encode(x[0]).cpu()[content] for site, x in recorded.items()}
        return pieces(self.model, [], tokens[0][content].tolist()), codes


class _Counts:
    """What is counted while passages are read."""

    def __init__(self, readers: Sequence[_Reader], sites: tuple[list[Site], list[Site]]):
        self.readers, self.sites, self.n_spans, self.skipped = readers, sites, 0, 0
        self.is_same = readers[0].saes is readers[1].saes
        sizes = [
            {site: len(reader.saes.dictionaries[site].directions) for site in at}
            for reader, at in zip(readers, sites, strict=True)
        ]
        pairs = [(a, b) for a in sites[0] for b in sites[1]]
        needed = sum(2 * 4 * sizes[0][a] * sizes[1][b] for a, b in pairs)
        what = f"the products of latents at {len(pairs)} pairs of sites"
        check_memory(needed, torch.device("cpu"), what, "name a --site and an --other-site")
        self.counted = {(a, b): Correlations(sizes[0][a], sizes[1][b]) for a, b in pairs}
        self.shifted = {(a, b): Correlations(sizes[0][a], sizes[1][b]) for a, b in pairs}
        self.tops = [{site: TopPlaces(n) for site, n in of.items()} for of in sizes]
        self.before: dict[Site, Tensor] = {}

    @torch.no_grad()
    def steps(self, passages: Sequence[str]) -> Iterator[None]:
        """Read passage after passage; each is a step."""
        for passage in passages:
            self._add(passage)
            yield

    def _add(self, passage: str) -> None:
        try:
            words, codes = self.readers[0].read(passage, self.sites[0])
            others, other_codes = self.readers[1].read(passage, self.sites[1])
        except UserError:  # the other model has no room for so many tokens, or no token for such a text
            self.skipped += 1
            return
        spans = shared_spans(token_ends(words), token_ends(others))
        if spans is None:
            self.skipped += 1
            return
        n_spans = int(spans[0].max()) + 1
        self.n_spans += n_spans
        texts = _span_texts(words, spans[0].tolist())
        here = {site: on_spans(each, spans[0], n_spans) for site, each in codes.items()}
        there = {site: on_spans(each, spans[1], n_spans) for site, each in other_codes.items()}
        for tops, values in zip(self.tops, (here, there), strict=True):
            for site, each in values.items():
                tops[site].add(each, texts)
        for (a, b), sums in self.counted.items():
            sums.add(here[a], there[b])
            if self.before:
                n = min(n_spans, len(self.before[b]))
                self.shifted[a, b].add(here[a][:n], self.before[b][:n])
        self.before = there

    def matches(self, seed: int) -> tuple[Match, ...]:
        """The numbers of every pair of sites."""
        return tuple(match(*pair, sums, self.shifted[pair], seed) for pair, sums in self.counted.items())

    def named(self, matches: Sequence[Match], most: int = 20) -> tuple[Partners, ...]:
        """The best partners at the sites where most latents are matched; of one set, at different ones."""
        apart = [each for each in matches if not (self.is_same and each.site == each.other)]
        if not apart:
            return ()
        best = max(apart, key=how_matched)
        here, there = self.tops[0][best.site], self.tops[1][best.other]
        return tuple(
            Partners(str(FeatureId(best.site, i)), str(FeatureId(best.other, j)), r, here.label(i), there.label(j))
            for i, j, r in best.pairs[:most]
        )


def _span_texts(words: Sequence[str], spans: Sequence[int]) -> list[str]:
    """Each span as text, behind the tokens before it."""
    last = {span: place for place, span in enumerate(spans)}
    first = {span: place for place, span in reversed(list(enumerate(spans)))}
    return ["".join(words[max(0, first[span] - BEFORE) : last[span] + 1]) for span in sorted(last)]
