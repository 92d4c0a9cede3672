"""Patterns of tokens that make a feature active, measured on the model (in the manner of N2G, Foote et al. 2023).

For an example of the feature, the shortest suffix of its context that keeps half of the activation; in it,
from the furthest position to the last, each position at which other tokens keep half as well becomes `*`,
"any token". Both are measured by running the model on the changed text, never estimated; positions are freed
together with those freed before, so that a pattern holds for all its free positions at once. Of the patterns
of several examples those stay that raise F1 on the training contexts.

Where N2G replaces by one padding token, here several tokens drawn from the text must do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.features.explanations import Kind, spelled
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.model.language_model import LanguageModel
from sae_core.model.padding import pad
from sae_core.sites import FeatureId

LONGEST = 16
"""Tokens of the longest suffix that is tried."""
KEPT = 0.5
"""Share of the activation that a suffix or a substitution must keep."""
_ROUNDS = (4, 8, LONGEST)
"""Suffixes are tried up to these lengths in turn: most that keep the activation are short."""
_SUBSTITUTES = 8
_FIRST = 3
"""Substitutions that are tried first; where all of them lose the activation, too few of the others could keep it."""
_MUST_KEEP = 6
"""Of so many substitutions, how many must keep the activation for a position to be free."""
_POOL = 64
_SHOWN = 4
_AT_ONCE = 8192  # tokens per forward pass


@dataclass(frozen=True)
class Pattern:
    """Tokens allowed at consecutive positions, the last being the current one; None allows every content token."""

    places: tuple[frozenset[int] | None, ...]

    @property
    def n_fixed(self) -> int:
        """Positions that are not free."""
        return sum(place is not None for place in self.places)

    def matches(
        self, tokens: Int[Tensor, "contexts pos"], content: Bool[Tensor, "contexts pos"]
    ) -> Bool[Tensor, "contexts pos"]:
        """Where the pattern ends."""
        matches = content.clone()
        for back, place in enumerate(reversed(self.places)):
            here = content if place is None else torch.isin(tokens, torch.tensor(sorted(place)))
            matches[:, back:] &= here[:, : here.shape[1] - back]
            matches[:, :back] = False
        return matches

    def text(self, model: LanguageModel) -> str:
        """The pattern with `*` for free positions and `(a|b)` for a choice."""
        words = [None if place is None else _choice(place, model) for place in self.places]
        free = " *" if model.brings_spaces else "*"
        return spelled([word or free for word in words], joined=model.brings_spaces)


def _choice(place: frozenset[int], model: LanguageModel) -> str:
    words = [model.token_text(token) for token in sorted(place)]
    if len(words) == 1:
        return words[0]
    space = " " * all(word.startswith(" ") for word in words)
    more = f"|+{len(words) - _SHOWN}" if len(words) > _SHOWN else ""
    return f"{space}({'|'.join(word.strip(' ') for word in words[:_SHOWN])}{more})"


@dataclass(frozen=True)
class Patterns:
    """Patterns, those with most fixed positions first; the first that matches predicts."""

    patterns: tuple[Pattern, ...]
    values: tuple[float, ...]
    """Mean activation where the pattern is the first to match, on the training contexts."""
    hits: tuple[int, ...]
    """Active tokens of the training contexts where it is the first to match."""
    kind: Kind = Kind.PATTERN

    def text(self, model: LanguageModel) -> str:
        """The patterns, the one that explains most first."""
        order = self._order
        more = f" (+{len(order) - _SHOWN})" if len(order) > _SHOWN else ""
        return "; ".join(self.patterns[i].text(model) for i in order[:_SHOWN]) + more

    def shortened(self) -> "Patterns":
        """The patterns that are named."""
        kept = sorted(self._order[:_SHOWN])
        patterns, values = tuple(self.patterns[i] for i in kept), tuple(self.values[i] for i in kept)
        return Patterns(patterns, values, tuple(self.hits[i] for i in kept))

    @property
    def _order(self) -> list[int]:
        return sorted(range(len(self.patterns)), key=lambda i: -self.hits[i])

    def predict(
        self, tokens: Int[Tensor, "contexts pos"], content: Bool[Tensor, "contexts pos"]
    ) -> Float[Tensor, "contexts pos"]:
        """The value of the first pattern that matches."""
        predicted = torch.zeros(tokens.shape)
        for pattern, value in zip(reversed(self.patterns), reversed(self.values), strict=True):
            predicted[pattern.matches(tokens, content)] = value
        return predicted


@dataclass(frozen=True, eq=False)
class Probe:
    """The activation of one feature at the end of any text."""

    model: LanguageModel
    dictionary: Dictionary
    feature: FeatureId

    @torch.no_grad()
    def __call__(self, texts: Sequence[Sequence[int]]) -> Float[Tensor, "texts"]:
        """One forward pass as far as the feature's site; texts of similar length run together."""
        activation = torch.zeros(len(texts))
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        while order:
            few = max(1, _AT_ONCE // len(texts[order[-1]]))
            rows, order = order[-few:], order[:-few]
            tokens, lengths = pad([texts[i] for i in rows])
            h = self.model.record(tokens, [self.feature.site])[self.feature.site]
            ends = h[torch.arange(len(rows), device=h.device), lengths.to(h.device) - 1]
            activation[rows] = self.dictionary.encode(ends)[:, self.feature.index].cpu()
        return activation


def find_patterns(
    probe: Probe,
    contexts: Int[Tensor, "contexts pos"],
    activation: Float[Tensor, "contexts pos"],
    examples: Sequence[tuple[int, int]],
    *,
    generator: torch.Generator,
) -> Patterns | None:
    """The patterns of a feature from examples (context, position) in the training contexts.

    None where no suffix of at most `LONGEST` tokens keeps any example active.
    """
    content = probe.model.content(contexts)
    pool = _pool(contexts[content], generator)
    suffixes = _suffixes(probe, contexts, content, activation, examples)
    candidates = list(dict.fromkeys(_generalised(probe, suffixes, pool, generator)))
    chosen = _chosen(candidates, contexts, content, activation)
    if not chosen:
        return None
    chosen = sorted(_merged(chosen), key=lambda pattern: -pattern.n_fixed)
    free, kept, values, counts = content.clone(), [], [], []
    for pattern in chosen:
        first = pattern.matches(contexts, content) & free
        if activation[first].any():
            free &= ~first
            kept.append(pattern)
            values.append(activation[first].mean().item())
            counts.append(int((activation[first] != 0).sum()))
    return Patterns(tuple(kept), tuple(values), tuple(counts))


def _pool(tokens: Int[Tensor, "tokens"], generator: torch.Generator) -> Int[Tensor, "pool"]:
    """Different tokens, drawn by how often they occur."""
    counts = torch.bincount(tokens).double()
    return torch.multinomial(counts, min(_POOL, int((counts > 0).sum())), generator=generator)


@dataclass(frozen=True)
class _Suffix:
    """The end of a context, after the special token with which contexts of this text begin, if they do."""

    before: tuple[int, ...]
    tokens: tuple[int, ...]
    activation: float


def _suffixes(
    probe: Probe, contexts: Tensor, content: Tensor, activation: Tensor, examples: Sequence[tuple[int, int]]
) -> list[_Suffix]:
    """For each example the shortest suffix that keeps `KEPT` of its activation, where there is one."""
    options = [_options(contexts[row], content[row], end) for row, end in examples]
    shortest: dict[int, _Suffix] = {}
    for shorter, longest in zip((0, *_ROUNDS), _ROUNDS, strict=False):
        tried = {i: texts[shorter:longest] for i, texts in enumerate(options) if i not in shortest}
        measured = iter(probe([before + tokens for texts in tried.values() for before, tokens in texts]).tolist())
        for i, texts in tried.items():
            row, end = examples[i]
            suffixes = [_Suffix(before, tokens, next(measured)) for before, tokens in texts]
            kept = (suffix for suffix in suffixes if suffix.activation >= KEPT * float(activation[row, end]))
            if suffix := next(kept, None):
                shortest[i] = suffix
    return [shortest[i] for i in sorted(shortest)]


def _options(tokens: Tensor, content: Tensor, end: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(What stands before, suffix) for suffixes of rising length, as far as the last special token."""
    special = (~content[: end + 1]).nonzero()[:, 0].tolist()
    begin = max([0, end + 1 - LONGEST, *(place + 1 for place in special)])
    before = () if content[0] else (int(tokens[0]),)
    return [(before, tuple(tokens[start : end + 1].tolist())) for start in range(end, begin - 1, -1)]


def _generalised(
    probe: Probe, suffixes: Sequence[_Suffix], pool: Int[Tensor, "pool"], generator: torch.Generator
) -> list[Pattern]:
    """The suffixes with every position free at which other tokens do as well."""
    free: list[set[int]] = [set() for _ in suffixes]
    for place in range(max((len(suffix.tokens) for suffix in suffixes), default=0)):
        longer = [i for i, suffix in enumerate(suffixes) if place < len(suffix.tokens)]
        texts = {
            i: [_substituted(suffixes[i], free[i] | {place}, pool, generator) for _ in range(_SUBSTITUTES)]
            for i in longer
        }
        kept = _n_keeping(probe, suffixes, {i: tried[:_FIRST] for i, tried in texts.items()})
        more = _n_keeping(probe, suffixes, {i: texts[i][_FIRST:] for i, n in kept.items() if n})
        for i, n in more.items():
            if kept[i] + n >= _MUST_KEEP:
                free[i].add(place)
    return [
        Pattern(tuple(None if i in places else frozenset({token}) for i, token in enumerate(suffix.tokens)))
        for places, suffix in zip(free, suffixes, strict=True)
    ]


def _n_keeping(probe: Probe, suffixes: Sequence[_Suffix], texts: Mapping[int, list[tuple[int, ...]]]) -> dict[int, int]:
    """For each suffix how many of its texts keep the activation."""
    measured = iter(probe([text for tried in texts.values() for text in tried]).tolist())
    return {i: sum(next(measured) >= KEPT * suffixes[i].activation for _ in tried) for i, tried in texts.items()}


def _substituted(
    suffix: _Suffix, places: set[int], pool: Int[Tensor, "pool"], generator: torch.Generator
) -> tuple[int, ...]:
    """The text with another token at each of the places."""
    tokens = list(suffix.tokens)
    for place in sorted(places):
        others = pool[pool != tokens[place]]
        if len(others):
            tokens[place] = int(others[torch.randint(len(others), (), generator=generator)])
    return suffix.before + tuple(tokens)


def _chosen(candidates: Sequence[Pattern], contexts: Tensor, content: Tensor, activation: Tensor) -> list[Pattern]:
    """Patterns added one by one, the one that raises F1 most first, until none does.

    A pattern must be right about two tokens at least: about the token that it was made from any pattern is.
    """
    if not candidates:
        return []
    active = (activation != 0)[content]
    matches = torch.stack([pattern.matches(contexts, content)[content] for pattern in candidates])
    general = (matches & active).sum(1) >= min(2, int(active.sum()))
    chosen, covered, best, n_active = [], torch.zeros_like(active), 0.0, int(active.sum())
    while len(chosen) < len(candidates):
        new = matches & ~covered
        hits, expected = (covered & active).sum() + (new & active).sum(1), covered.sum() + new.sum(1)
        f1 = general * 2 * hits / (expected + n_active)
        i = int(f1.argmax())
        if f1[i] <= best:
            break
        best, covered = float(f1[i]), covered | matches[i]
        chosen.append(candidates[i])
    return chosen


def _merged(patterns: Sequence[Pattern]) -> list[Pattern]:
    """The same patterns with those united that differ in the tokens of one position only."""
    merged: list[Pattern] = []
    for pattern in patterns:
        for i, other in enumerate(merged):
            both = _union(other, pattern)
            if both is not None:
                merged[i] = both
                break
        else:
            merged.append(pattern)
    return merged


def _union(a: Pattern, b: Pattern) -> Pattern | None:
    """The pattern that matches where either does; None where it would match elsewhere too."""
    if [place is None for place in a.places] != [place is None for place in b.places]:
        return None
    pairs = list(zip(a.places, b.places, strict=True))
    if sum(left != right for left, right in pairs) > 1:
        return None
    return Pattern(tuple(left and right and left | right for left, right in pairs))
