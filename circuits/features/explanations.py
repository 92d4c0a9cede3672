"""Explanations of features that need no language model to write them, and how well they predict.

An explanation is a rule that predicts the activation at every position from the tokens alone. There are two
kinds: a token table (the tokens on which the feature is active, each with its mean activation), which costs
nothing once the text is counted, and patterns of tokens (`patterns.py`). Rules are made on training contexts
and scored on held-out ones: precision and recall of "active", and the correlation of predicted and true
activation over all tokens (the simulation score of Bills et al. 2023, the rule being its own simulator).
The control is the same score for the rules of other features of the site.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.features.statistics import Pairs, SiteTally
from sae_core.model.language_model import LanguageModel
from sae_core.seeds import generator_for
from sae_core.sites import Site

_SHOWN = 6
"""Tokens of a table that its text names."""


class Kind(StrEnum):
    """Which kind a rule is of."""

    PATTERN = "pattern"
    TOKENS = "tokens"


@dataclass(frozen=True)
class Score:
    """How well a rule predicts a feature on a text; 0 where there is nothing to divide by."""

    precision: float
    """Of the tokens on which it predicts the feature to be active, the share on which it is."""
    recall: float
    """Of the tokens on which the feature is active, the share on which it predicts that."""
    correlation: float
    """Pearson's, of predicted and true activation over all content tokens."""

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return 2 * self.precision * self.recall / max(self.precision + self.recall, 1e-12)


@dataclass(frozen=True)
class ScoredRule:
    """A rule in words with its score on held-out text."""

    text: str
    kind: Kind
    score: Score
    control: Score
    """What rules of other features of the site score on this feature, on average."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"text": self.text, "kind": str(self.kind), **asdict(self.score), "control": asdict(self.control)}


def rule_from_json(value: Mapping[str, Any]) -> ScoredRule:
    """The rule that `to_json` wrote."""
    numbers = {name: value[name] for name in ("precision", "recall", "correlation")}
    return ScoredRule(value["text"], Kind(value["kind"]), Score(**numbers), Score(**value["control"]))


@runtime_checkable
class Explanation(Protocol):
    """A rule."""

    @property
    def kind(self) -> Kind: ...

    def text(self, model: LanguageModel) -> str:
        """The rule in words."""
        ...

    def shortened(self) -> "Explanation":
        """The rule that its words state: without what they only count."""
        ...

    def predict(
        self, tokens: Int[Tensor, "contexts pos"], content: Bool[Tensor, "contexts pos"]
    ) -> Float[Tensor, "contexts pos"]:
        """The activation that it expects at each position; 0 where it expects the feature to be silent."""
        ...


def score(predicted: Float[Tensor, "tokens"], true: Float[Tensor, "tokens"]) -> Score:
    """The score of predictions on content tokens."""
    expected, active = predicted != 0, true != 0
    hits = (expected & active).sum().item()
    correlation = torch.stack([predicted, true]).double().corrcoef()[0, 1].nan_to_num()  # NaN: one does not vary
    return Score(hits / max(1, int(expected.sum())), hits / max(1, int(active.sum())), correlation.item())


def score_on(
    model: LanguageModel,
    rule: Explanation,
    contexts: Int[Tensor, "contexts pos"],
    activation: Float[Tensor, "contexts pos"],
) -> Score:
    """The score of a rule on contexts."""
    content = model.content(contexts)
    return score(rule.predict(contexts, content)[content], activation[content])


def mean_score(scores: Sequence[Score]) -> Score:
    """The mean of each number; zeros for none."""
    n = max(1, len(scores))
    return Score(*(sum(getattr(score, field) for score in scores) / n for field in Score.__dataclass_fields__))


def spelled(pieces: Sequence[str], *, joined: bool) -> str:
    """Tokens as readable text, joined as they are or with spaces between (`Vocabulary.brings_spaces`)."""
    text = ("" if joined else " ").join(pieces)
    return text.strip(" ").replace("\n", "↵") or repr(text)


# ---- token tables ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenTable:
    """The tokens on which a feature is mostly active, the heaviest first, each with its mean activation."""

    tokens: tuple[int, ...]
    values: tuple[float, ...]
    kind: Kind = Kind.TOKENS

    def text(self, model: LanguageModel) -> str:
        """The first few tokens."""
        return listed([spelled([model.token_text(token)], joined=True) for token in self.tokens], _SHOWN)

    def shortened(self) -> "TokenTable":
        """The tokens that are named."""
        return TokenTable(self.tokens[:_SHOWN], self.values[:_SHOWN])

    def predict(
        self, tokens: Int[Tensor, "contexts pos"], content: Bool[Tensor, "contexts pos"]
    ) -> Float[Tensor, "contexts pos"]:
        """The mean activation of the token at each position."""
        table = torch.zeros(max([int(tokens.max()), *self.tokens]) + 1)
        table[list(self.tokens)] = torch.tensor(self.values)
        return table[tokens] * content


def listed(words: Sequence[str], most: int) -> str:
    """Words with commas, and how many more there are."""
    more = f" (+{len(words) - most})" if len(words) > most else ""
    return ", ".join(words[:most]) + more


@dataclass(frozen=True, eq=False)
class TokenTables:
    """The token tables of all latents of a site, by latent."""

    latent: Int[Tensor, "entries"]
    token: Int[Tensor, "entries"]
    value: Float[Tensor, "entries"]
    """Mean activation over all occurrences of the token, silent ones included."""
    weight: Float[Tensor, "entries"]
    """Sum of the activations on the token."""
    n_latents: int

    def of(self, latent: int) -> TokenTable:
        """The table of one latent."""
        low, high = torch.searchsorted(self.latent, torch.tensor([latent, latent + 1])).tolist()
        order = self.weight[low:high].argsort(descending=True, stable=True) + low
        return TokenTable(tuple(self.token[order].tolist()), tuple(self.value[order].tolist()))


def token_tables(site: SiteTally, token_counts: Int[Tensor, "vocab"]) -> TokenTables:
    """For every latent the tokens on which it is active most often, as many as give the best F1 on this text.

    Tokens enter by the share of their occurrences on which the latent is active, the largest first. No other set has
    a larger F1: F1 >= c means sum over the set of (2 hits - c occurrences) >= c active, and that sum is largest for
    the tokens of a share above c / 2, which are first in this order.
    """
    # F1 of "active on the first m tokens" = 2 hits_m / (occurrences_m + active), hits_m and occurrences_m being
    # cumulative sums; entries are sorted by latent, and within one by falling share, so that all latents go at once.
    pairs, n = site.pairs, len(site.active)
    seen = token_counts[pairs.token]
    order = (-pairs.active / seen).argsort(stable=True)
    order = order[pairs.latent[order].argsort(stable=True)]
    latent = pairs.latent[order]
    hits = _running(pairs.active[order], latent, n)
    f1 = 2 * hits / (_running(seen[order], latent, n) + site.active[latent]).double()
    best = torch.zeros(n, dtype=f1.dtype).scatter_reduce(0, latent, f1, "amax")
    place = torch.arange(len(latent))
    last = torch.full((n,), len(latent)).scatter_reduce(
        0, latent[f1 == best[latent]], place[f1 == best[latent]], "amin"
    )
    kept = order[place <= last[latent]]
    value, weight = (pairs.total / seen)[kept], pairs.total[kept]
    return TokenTables(pairs.latent[kept], pairs.token[kept], value, weight, n)


def _running(values: Tensor, group: Tensor, n_groups: int) -> Tensor:
    """Cumulative sums that start anew in each group; `group` is sorted."""
    total = values.cumsum(0)
    starts = torch.searchsorted(group, torch.arange(n_groups))
    before = torch.cat([total.new_zeros(1), total])[starts]
    return total - before[group]


@dataclass(frozen=True, eq=False)
class Scores:
    """The score of a rule for each latent."""

    precision: Float[Tensor, "n_latents"]
    recall: Float[Tensor, "n_latents"]
    correlation: Float[Tensor, "n_latents"]

    def of(self, latent: int) -> Score:
        """The score of one latent."""
        return Score(*(float(part[latent]) for part in (self.precision, self.recall, self.correlation)))


def table_scores(
    tables: TokenTables,
    site: SiteTally,
    token_counts: Int[Tensor, "vocab"],
    predicts: Int[Tensor, "n_latents"] | None = None,
) -> Scores:
    """The score of every table on a tallied text, equal to that of `score`, from sums alone.

    Table j is scored on latent `predicts[j]` (j by default), and its score stands under that latent.
    """
    # A table predicts p_t = value[token_t], the same at every occurrence of a token. With n_v occurrences of token v
    # and s_v the sum of the latent's activations a_t on it, over the N tokens of the text,
    #     sum_t p_t = sum_v value_v n_v      sum_t p_t^2 = sum_v value_v^2 n_v      sum_t p_t a_t = sum_v value_v s_v
    # and Pearson's correlation is (E[p a] - E[p] E[a]) / sqrt((E[p^2] - E[p]^2) (E[a^2] - E[a]^2)).
    target = torch.arange(tables.n_latents) if predicts is None else predicts
    n_vocab, n = len(token_counts), token_counts.sum().double()
    latent, seen = target[tables.latent], token_counts[tables.token]
    hits, overlap = _looked_up(site.pairs, latent * n_vocab + tables.token, n_vocab)

    def summed(values: Tensor) -> Tensor:
        return torch.zeros(tables.n_latents, dtype=torch.float64).index_add_(0, latent, values.double())

    right, expected = summed(hits), summed(seen)
    mean, square = summed(tables.value * seen) / n, summed(tables.value.square() * seen) / n
    covariance = summed(tables.value * overlap) / n - mean * site.total / n
    scale = ((square - mean.square()) * (site.square / n - (site.total / n).square())).clamp_min(0).sqrt()
    return Scores(
        right / expected.clamp_min(1),
        right / site.active.clamp_min(1),
        torch.where(scale > 0, covariance / scale.clamp_min(torch.finfo(scale.dtype).tiny), 0.0),
    )


def _looked_up(pairs: Pairs, wanted: Int[Tensor, "entries"], n_vocab: int) -> tuple[Tensor, Tensor]:
    """`active` and `total` of the pairs with these keys, 0 where there is none."""
    keys = pairs.latent * n_vocab + pairs.token
    if not len(keys):
        return torch.zeros_like(wanted), torch.zeros_like(wanted)
    place = torch.searchsorted(keys, wanted).clamp_max(len(keys) - 1)
    there = keys[place] == wanted
    return pairs.active[place] * there, pairs.total[place] * there


def partners(active: Int[Tensor, "n_latents"], generator: torch.Generator) -> Int[Tensor, "n_latents"]:
    """For each latent that is ever active another such latent: one cycle through them all, in random order."""
    partner = torch.arange(len(active))
    alive = active.nonzero()[:, 0]
    order = alive[torch.randperm(len(alive), generator=generator)]
    partner[order] = order.roll(1)
    return partner


def partners_by_site(tallies: Mapping[Site, SiteTally], seed: int) -> dict[Site, Int[Tensor, "_"]]:
    """The partners of the latents of every site."""
    return {site: partners(tally.active, generator_for(seed, "control", site)) for site, tally in tallies.items()}
