"""Who is measured: our own training step and those of other packages, each as its package runs it.

All train an autoencoder of one kind and size on equal batches, from their own initialisation, and differ in
arithmetic, loss, clipping and optimiser as the packages do. Left to each: its auxiliary loss for dead
latents, its bias at the start, its decoder's norm. Equal for all: batches and their order, the vectors'
scale (E|x|^2 = d), the learning rate with warm-up and a linear fall to zero over the last fifth, and the
number of tokens after which a latent counts as dead.

This file and those that it imports are read by the interpreters of all environments, so that they import torch
alone; a package is imported where its contestant is made.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import cycle

import torch
from rivals import DictionaryLearning, SAELens, SparseSAELens, Sparsify
from torch import Tensor
from training_job import SEED, Contestant, Job


@dataclass(frozen=True, eq=False)
class Rows:
    """A stream of given batches, over and over."""

    sites: tuple
    batches: list[Tensor]

    @property
    def batch(self) -> int:
        return len(self.batches[0])

    def block(self, block: int, limits=None, steps=None) -> Iterator[dict]:
        limit = (limits or {}).get(self.sites[0])
        for batch in self.batches:
            yield {self.sites[0]: batch if limit is None else batch[torch.linalg.vector_norm(batch, dim=-1) <= limit]}


class Subrank:
    """`sae_core.training.loop.train` at one site."""

    def __init__(self, job: Job, batches: list[Tensor], bfloat16: bool | None = None):
        from sae_core.sites import Site
        from sae_core.training.config import TrainConfig
        from sae_core.training.loop import start, train
        from sae_core.training.penalty_recipes import Gated, JumpReLU, ReLU
        from sae_core.training.topk_recipes import TopK

        recipes = {"topk": TopK(job.k), "jumprelu": JumpReLU(job.k), "relu": ReLU(), "gated": Gated()}
        self.site, d_in = Site(0), batches[0].shape[1]
        config = TrainConfig(
            recipes[job.kind],
            expansion=job.n_latents // d_in,
            tokens=job.steps * job.batch,
            batch=job.batch,
            lr=job.lr,
            warm_up=job.warm_up,
            dead_after=job.dead_after,
            seed=job.seed,
            bfloat16=bfloat16,
        )
        stream = Rows((self.site,), batches)
        self.state = start(stream, config)
        self.steps = train(stream, self.state)

    def step(self) -> None:
        next(self.steps)

    def directions(self) -> Tensor:
        return self.state.dictionaries()[self.site].directions

    def reconstruct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        dictionary = self.state.dictionaries()[self.site]
        f = dictionary.encode(x)
        return dictionary.decode(f), f != 0


class EncoderMatmul:
    """The encoder's product and nothing else, into memory that is there already: what no dense encoder can beat."""

    def __init__(self, job: Job, batches: list[Tensor]):
        x = batches[0]
        self.batches = cycle(batches)
        self.weight = torch.randn(job.n_latents, x.shape[1], generator=torch.Generator().manual_seed(SEED)).to(x).T
        self.bias = x.new_zeros(job.n_latents)
        self.out = x.new_empty(job.batch, job.n_latents)

    def step(self) -> None:
        torch.addmm(self.bias, next(self.batches), self.weight, out=self.out)


@dataclass(frozen=True)
class Entry:
    """How a contestant comes about."""

    new: Callable[[Job, list[Tensor]], Contestant]
    package: str
    """The module that must be importable."""
    environment: str = "own"
    """Whose interpreter: `own`, `rivals` or `saelens`."""
    every_kind: bool = False
    """Whether it has more than TopK."""


def _float32(job: Job, batches: list[Tensor]) -> Subrank:
    return Subrank(job, batches, bfloat16=False)


def _rounded(job: Job, batches: list[Tensor]) -> Sparsify:
    torch.set_float32_matmul_precision("medium")  # all its matrix products in bfloat16, where there are instructions
    return Sparsify(job, batches)


def _signum(job: Job, batches: list[Tensor]) -> Sparsify:
    return Sparsify(job, batches, "signum")


LIMIT = "encoder matmul"
OURS, FLOAT32 = "subrank", "subrank, float32"
ENTRIES: Mapping[str, Entry] = {
    LIMIT: Entry(EncoderMatmul, "torch", every_kind=True),
    OURS: Entry(Subrank, "sae_core", every_kind=True),
    FLOAT32: Entry(_float32, "sae_core", every_kind=True),
    "sparsify": Entry(Sparsify, "sparsify", "rivals"),
    "sparsify, signum": Entry(_signum, "sparsify", "rivals"),
    "sparsify, bfloat16": Entry(_rounded, "sparsify", "rivals"),
    "dictionary-learning": Entry(DictionaryLearning, "dictionary_learning", "rivals", every_kind=True),
    "SAELens": Entry(SAELens, "sae_lens", "saelens", every_kind=True),
    "SAELens, sparse": Entry(SparseSAELens, "sae_lens", "saelens"),
}
"""By the names in tables. sparsify trains with Adam but where its own default, signum, is named. `subrank` chooses
latents in bfloat16 where the hardware has instructions; for `sparsify, bfloat16` torch rounds all products."""
