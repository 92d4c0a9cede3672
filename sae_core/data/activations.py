"""Activations of many sites from one forward pass, mixed over contexts.

Contexts follow one seeded permutation per epoch. A block is the activations of some dozen to thousand
contexts at every site, its order a function of (seed, block) and, for the last, of the steps that are left: a resumed
run harvests its block again and continues inside it.

Tokens of one context resemble each other, so that a block is not shuffled freely but spread: of contexts of
equal length, a batch holds at most ceil(batch / contexts in the block) tokens each. Where a block has at
least as many contexts as a batch has tokens, a batch holds no two of the same, and no shuffle of the whole
text does better.

Blocks are harvested synchronously: the language model and the dictionaries share one device, so that
prefetching would gain nothing and hold a second block.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sae_core.model.language_model import LanguageModel
from sae_core.outliers import NO_LIMITS, Limits, inliers_everywhere
from sae_core.seeds import generator_for
from sae_core.sites import Site, Stream

_Buffers = dict[Site, Tensor]
_MEETING = 8
"""Tokens of a context that may meet in a batch where a block is not read whole."""
_SPARE = 1.01
"""What is read of a block that is not read whole, over what is needed: outliers are left out of it."""


class _Latest:
    """The rows of the block that was read last, and the memory that they are in.

    Freed with every block, memory of this size would be fetched from the system again, page by page.
    """

    def __init__(self):
        self._place: tuple[int, ...] | None = None
        self._rows: dict[Site, Tensor] = {}
        self._buffers: _Buffers = {}

    def get(self, place: tuple[int, ...], make: Callable[[_Buffers], dict[Site, Tensor]]) -> dict[Site, Tensor]:
        """The rows at `place`, made unless they are there, in the memory of those that were there before."""
        if place != self._place:
            self._place, self._rows = None, {}
            self._rows = make(self._buffers)
            self._place = place
        return self._rows

    def forget(self) -> None:
        """Compute the rows again at the next `get`."""
        self._place, self._rows = None, {}


@dataclass(frozen=True, eq=False)
class ActivationStream:
    """Endless batches of activations; the same tokens at every site."""

    model: LanguageModel
    contexts: Int[Tensor, "contexts pos"]
    sites: tuple[Site, ...]
    seed: int
    """Of the order of the text."""
    batch: int
    """Tokens per batch; a block's last tokens, fewer than a batch, are left out."""
    budget: int = 2**30
    """Bytes that the activations of one block may take."""
    at_once: int | None = None
    """Contexts per forward pass; None for as many as the device takes well."""
    _latest: _Latest = field(default_factory=_Latest, init=False, repr=False)

    @property
    def block_contexts(self) -> int:
        """Contexts per block: as many as the budget allows and the text has, at least enough for two batches."""
        width, length = sum(self.model.d_in(site) for site in self.sites), self.contexts.shape[1]
        return max(min(self.budget // (4 * width * length), len(self.contexts)), -(-2 * self.batch // length))

    def tokens(self, block: int) -> Int[Tensor, "contexts pos"]:
        """The contexts of one block; epochs follow each other without a seam."""
        n, size = len(self.contexts), self.block_contexts
        if size == n:
            return self.contexts
        first, last = block * size, (block + 1) * size - 1
        order = torch.cat([_permutation(n, self.seed, epoch) for epoch in range(first // n, last // n + 1)])
        return self.contexts[order[first % n :][:size]]

    def n_content(self, block: int) -> int:
        """Tokens of a block that are trained on, but for outliers."""
        return int(self.model.content(self.tokens(block)).sum())

    def block(self, block: int, limits: Limits = NO_LIMITS, steps: int | None = None) -> Iterator[dict[Site, Tensor]]:
        """The batches `[batch, d_in]` of one block; BOS, special tokens and outliers are left out.

        Where training takes but `steps` more, no more of the block is read than these need (`n_contexts`).
        """
        n = self.n_contexts(block, steps)
        yield from self.batches(block, lambda: self.rows(block, n), limits, n)

    def n_contexts(self, block: int, steps: int | None) -> int:
        """How many contexts of a block are read for so many batches: all, or the first few that hold them.

        All of the first block, on which scales are taken, and of a text that a block holds, which is read once. Never
        so few that more than `_MEETING` tokens of a context meet in a batch.
        """
        size = self.block_contexts
        if steps is None or block == 0 or size >= len(self.contexts):
            return size
        n_content = self.model.content(self.tokens(block)).sum(1).cumsum(0)
        enough = int((n_content < _SPARE * steps * self.batch).sum()) + 1
        at_once = self.contexts_at_once  # passes are those of the whole block
        return min(size, -(-max(enough, -(-self.batch // _MEETING)) // at_once) * at_once)

    @property
    def contexts_at_once(self) -> int:
        """Contexts per forward pass."""
        return self.at_once or _contexts_at_once(self.model, self.contexts.shape[1])

    def n_read(self, tokens: int) -> int:
        """Tokens of contexts that the model reads for so many tokens of training; once, if a block holds all."""
        size, length = self.block_contexts, self.contexts.shape[1]
        whole, rest = divmod(tokens, size * length)
        if size == len(self.contexts) or not whole:
            return size * length
        return (whole * size + (self.n_contexts(whole, rest // self.batch) if rest else 0)) * length

    def reader(self, block: int, n: int, share: tuple[int, int]) -> Callable[[], dict[Site, Tensor]]:
        """What returns the `rows` of a share."""
        return lambda: self.rows(block, n, share)

    def rows(self, block: int, n: int | None = None, share: tuple[int, int] = (0, 1)) -> dict[Site, Tensor]:
        """The activations `[tokens, d_in]` of one block, or of its first `n` contexts, in the order of `tokens`.

        Of a `share`, (which, of how many), those of every so-manieth forward pass. They are kept until another block is
        read, which overwrites them.
        """
        n, (which, of) = self.block_contexts if n is None else n, share

        def make(buffers: _Buffers) -> dict[Site, Tensor]:
            contexts, at_once = self.tokens(block)[:n], self.contexts_at_once
            contexts = contexts if of == 1 else contexts[self.dealt(n, of) == which]
            return harvest(self.model, contexts, self.sites, buffers, at_once=at_once)

        return self._latest.get((self.place(block), n, which, of), make)

    def forget(self) -> None:
        """Run the language model again for the next rows, even for those that were read last."""
        self._latest.forget()

    def place(self, block: int) -> int:
        """Which rows a block has: its own, or those of block 0, if a block holds the whole text."""
        return 0 if self.block_contexts == len(self.contexts) else block

    def dealt(self, n: int, of: int) -> Int[Tensor, "contexts"]:
        """In which of so many shares each of the first `n` contexts is: a forward pass in each in turn."""
        return torch.arange(n) // self.contexts_at_once % of

    def order(self, block: int, n: int | None) -> tuple[Bool[Tensor, "contexts pos"], Int[Tensor, "tokens"]]:
        """Which tokens of a block's first `n` contexts are content, and in which order these are trained on."""
        content = self.model.content(self.tokens(block)[:n])
        return content, spread(content, generator=generator_for(self.seed, "block", block))

    def batches(
        self, block: int, rows: Callable[[], Mapping[Site, Tensor]], limits: Limits = NO_LIMITS, n: int | None = None
    ) -> Iterator[dict[Site, Tensor]]:
        """The batches of one block, or of its first `n` contexts; `rows` is called for every one of them.

        (Rows may be overwritten between two batches.)

        A token that is an outlier at one site is left out at all: every batch holds the same tokens at every site.
        """
        order = self.order(block, n)[1].to(self.model.device)
        if (kept := inliers_everywhere(rows(), limits)) is not None:
            order = order[kept[order]]
        for chosen in order.split(self.batch):
            if len(chosen) == self.batch:
                yield {site: x[chosen] for site, x in rows().items()}


def spread(content: Bool[Tensor, "contexts pos"], *, generator: torch.Generator) -> Int[Tensor, "tokens"]:
    """An order of the content tokens, numbered as in the text, in which those of a context lie evenly apart.

    Sorts them by (rank + phase) / n: ranks 0 to n - 1 are a random permutation of the n content tokens of a
    context, its phase is drawn from [0, 1). Between two tokens of a context lies one of every other that is
    as long.
    """
    noise = torch.rand(content.shape, generator=generator).masked_fill(~content, 2.0)
    rank = noise.argsort(-1).argsort(-1)
    phase = torch.rand(len(content), 1, generator=generator, dtype=torch.float64)
    return ((rank + phase) / content.sum(-1, keepdim=True))[content].argsort()


def seconds_per_token(model: LanguageModel, contexts: Int[Tensor, "contexts pos"], sites: tuple[Site, ...]) -> float:
    """How long the model takes for one token of a context, measured on as many contexts as it takes at once."""
    few = contexts[: model.at_once(_contexts_at_once(model, contexts.shape[1]))]
    harvest(model, few[:1], sites)  # what happens only once
    begun = time.perf_counter()
    harvest(model, few, sites)
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return (time.perf_counter() - begun) / few.numel()


def _contexts_at_once(model: LanguageModel, length: int) -> int:
    """Contexts per forward pass: on a CPU as many as keep the widest activation at 8 MiB.

    Larger ones are freed and fetched from the system again, page by page, in every block: a Pythia-70M took
    a quarter more processor time with 32 MiB. A GPU needs more at a time to be busy.
    """
    numbers = 2**21 if model.device.type == "cpu" else 2**26
    widest = max(model.d_in(site) for stream in Stream for site in model.offered(stream))
    return max(1, numbers // (widest * length))


@lru_cache(maxsize=4)
def _permutation(n: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(n, generator=generator_for(seed, "epoch", epoch))


@torch.no_grad()
def harvest(
    model: LanguageModel,
    contexts: Int[Tensor, "contexts pos"],
    sites: tuple[Site, ...],
    buffers: _Buffers | None = None,
    *,
    at_once: int | None = None,
) -> dict[Site, Tensor]:
    """Activations `[tokens, d_in]` of all content tokens, in the order of the text.

    Written into `buffers` where these have room, which hold them afterwards in any case; `at_once` contexts go through
    the model together, by default as many as its device takes well.
    """
    if not len(contexts):
        return {site: torch.empty(0, model.d_in(site), device=model.device) for site in sites}
    content, rows, start = model.content(contexts), {}, 0
    buffers = {} if buffers is None else buffers
    at_once = at_once or model.at_once(_contexts_at_once(model, contexts.shape[1]))
    n_tokens = int(content.sum())
    for chunk, mask in zip(contexts.split(at_once), content.split(at_once), strict=True):
        places = mask.flatten().nonzero().squeeze(-1).to(model.device)
        for site, h in model.record(chunk, sites).items():
            if site not in rows:  # filled in place: parts would have to be held beside the whole
                if site not in buffers or len(buffers[site]) < n_tokens:
                    buffers[site] = h.new_empty(contexts.numel(), h.shape[-1])
                rows[site] = buffers[site][:n_tokens]
            torch.index_select(h.flatten(0, 1), 0, places, out=rows[site][start : start + len(places)])
        start += len(places)
    return {site: rows[site] for site in sites}
