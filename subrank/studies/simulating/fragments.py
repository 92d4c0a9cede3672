"""Fragments of a text, and those on which the explanation of a feature is made or scored.

Explanations are made on contexts of training and scored on held-out ones; what stands word for word in the former is
left out of the latter. Of every feature (Bills et al. 2023; the source takes five of each)

    top        the fragments with its highest activations
    random     others in which it is active at all
    any        drawn from all fragments: most of them silent, which the other two never are
    silent     fragments in which it is never active, as many as top and random together, for detection alone
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

TOP, RANDOM, ANY, SILENT = "top", "random", "any", "silent"
GROUPS = (TOP, RANDOM, ANY)
"""Those whose tokens are simulated."""


@dataclass(frozen=True, eq=False)
class Fragments:
    """Equally long pieces of contexts, no two alike."""

    tokens: Int[Tensor, "fragments pos"]
    content: Bool[Tensor, "fragments pos"]
    rows: Int[Tensor, "fragments"]
    """Which they are among all pieces of the contexts."""

    def of(self, activation: Float[Tensor, "contexts pos"]) -> Float[Tensor, "fragments pos"]:
        """What is known of contexts, by fragment."""
        return _cut(activation, self.tokens.shape[1])[self.rows]


@dataclass(frozen=True, eq=False)
class Examples:
    """The fragments chosen for one feature."""

    tokens: Int[Tensor, "examples pos"]
    content: Bool[Tensor, "examples pos"]
    activation: Float[Tensor, "examples pos"]
    groups: tuple[str, ...]

    def of(self, *groups: str) -> "Examples":
        """Those of some groups; again, for a group that is named again."""
        among = [i for i, group in enumerate(self.groups) if group in groups]
        rows = among * max(map(groups.count, groups))
        return Examples(
            self.tokens[rows], self.content[rows], self.activation[rows], tuple(self.groups[i] for i in rows)
        )

    def __len__(self) -> int:
        return len(self.groups)


def fragments_of(
    contexts: Int[Tensor, "contexts pos"],
    content: Bool[Tensor, "contexts pos"],
    length: int,
    seen: Int[Tensor, "others pos"] | None = None,
) -> Fragments:
    """The fragments of contexts, but for those that stand anywhere in the contexts `seen`, and repeated ones."""
    length = min(length, contexts.shape[1])
    tokens, mask = _cut(contexts, length), _cut(content, length)
    keys = _hashes(tokens)
    order = keys.argsort(stable=True)
    first = torch.ones_like(keys, dtype=torch.bool)
    first[order[1:]] = keys[order[1:]] != keys[order[:-1]]
    kept = first & mask.any(1)
    if seen is not None:
        kept &= ~torch.isin(keys, _hashes(seen.unfold(1, length, 1).flatten(0, 1)).unique())
    rows = kept.nonzero()[:, 0]
    return Fragments(tokens[rows], mask[rows], rows)


def choose(
    fragments: Fragments, activation: Float[Tensor, "fragments pos"], n: int, generator: torch.Generator
) -> Examples:
    """`n` fragments of each group and twice as many silent ones, or as many as there are; where few are active, half
    of them are the top."""
    peak = activation.max(1).values
    order = peak.argsort(descending=True, stable=True)[: int((peak > 0).sum())]
    n_top = min(n, (len(order) + 1) // 2)
    chance = torch.randperm(len(peak), generator=generator)
    active, silent = chance[torch.isin(chance, order[n_top:])][:n], chance[peak[chance] <= 0][: 2 * n]
    taken = torch.cat([order[:n_top], active])
    anywhere = chance[~torch.isin(chance, taken)]
    anywhere = anywhere[torch.randperm(len(anywhere), generator=generator)][:n]
    rows = torch.cat([taken, anywhere, silent])
    groups = (TOP,) * n_top + (RANDOM,) * len(active) + (ANY,) * len(anywhere) + (SILENT,) * len(silent)
    return Examples(fragments.tokens[rows], fragments.content[rows], activation[rows], groups)


def _cut(values: Tensor, length: int) -> Tensor:
    """`[contexts, pos]` as `[fragments, length]`; what is left at the end of a context is dropped."""
    n = values.shape[1] // length
    return values[:, : n * length].reshape(-1, length)


def _hashes(tokens: Int[Tensor, "rows pos"]) -> Int[Tensor, "rows"]:
    """One number for each row, equal for equal rows; whole numbers wrap around."""
    powers = torch.randint(2**62, (tokens.shape[1],), generator=torch.Generator().manual_seed(0)) | 1
    return (tokens.long() * powers).sum(1)
