"""Who is measured: our own training step and those of other packages, each as its package runs it.

All train a TopK autoencoder of equal size on equal batches, from their own initialisation, and differ in
arithmetic, loss, clipping and optimiser as the packages do. Left to each: its auxiliary loss for dead
latents, its bias at the start, its decoder's norm. Equal for all: batches and their order, the vectors'
scale (E|x|^2 = d), the learning rate with warm-up and a linear fall to zero over the last fifth, and the
number of tokens after which a latent counts as dead.

This file is read by the interpreters of all environments, so that it imports torch alone; a package is
imported where its contestant is made.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import cycle
from typing import Protocol

import torch
from torch import Tensor

_FOR_EVER = 10**9
"""Steps in the schedule of a run that is only timed."""
_SEED = 10**6
"""Added to the seed of those that draw their weights with `torch.manual_seed`, away from any seed of the data."""


@dataclass(frozen=True)
class Job:
    """One training run, as every contestant is asked for it."""

    data: str
    """A safetensors file with the vectors `train`, `[tokens, d_in]`."""
    n_latents: int
    k: int
    batch: int
    steps: int = _FOR_EVER
    lr: float = 1e-3
    warm_up: int = 20
    """Steps."""
    dead_after: int = _FOR_EVER
    """Tokens without activity after which a latent is dead; for ever means that nobody works on dead latents."""
    seed: int = 0
    device: str = "cpu"

    def share(self, step: int) -> float:
        """Share of the learning rate at a step."""
        return min(1.0, (step + 1) / max(1, self.warm_up), (self.steps - step) / max(1.0, 0.2 * self.steps))


class Contestant(Protocol):
    """A training run in progress."""

    def step(self) -> None:
        """Train on the next batch: forward, backward, optimiser, norms."""
        ...

    def directions(self) -> Tensor:
        """The decoder's rows, `[n_latents, d_in]`."""
        ...

    def reconstruct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`x_hat` and the active latents `[batch, n_latents]` (bool) of the finished dictionary; changes nothing."""
        ...


# ---- ours ---------------------------------------------------------------------------------------------


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
        from sae_core.training.topk_recipes import TopK

        self.site, d_in = Site(0), batches[0].shape[1]
        config = TrainConfig(
            TopK(k=job.k),
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


# ---- others -------------------------------------------------------------------------------------------


class Sparsify:
    """The part of sparsify's `Trainer.fit` that follows the language model, on its `SparseCoder`.

    `fit` itself needs a language model. Left out, in its favour: copies of the activations, masks, logs.
    AuxK, off by its default, is on (1/32) where latents may die.
    """

    def __init__(self, job: Job, batches: list[Tensor], optimizer: str = "adam"):
        from sparsify import SparseCoder, SparseCoderConfig

        torch.manual_seed(_SEED + job.seed)
        self.job, self.batches = job, cycle(batches)
        config = SparseCoderConfig(num_latents=job.n_latents, k=job.k)
        self.coder = SparseCoder(batches[0].shape[1], config, job.device, dtype=torch.float32)
        self.coder.b_dec.data = batches[0].mean(0)
        self.silent = torch.zeros(job.n_latents, dtype=torch.long, device=job.device)
        self.fired = torch.zeros(job.n_latents, dtype=torch.bool, device=job.device)
        self.watches = job.dead_after < _FOR_EVER
        self.fvu = 0.0
        self.schedule = None
        if optimizer == "adam":
            self.optimizer = torch.optim.Adam(self.coder.parameters(), lr=job.lr)
            self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, job.share)
        else:
            from schedulefree import ScheduleFreeWrapper
            from sparsify.sign_sgd import SignSGD

            rate = 5e-3 / (job.n_latents / 2**14) ** 0.5  # its default, which depends on the size alone
            self.optimizer = ScheduleFreeWrapper(SignSGD(self.coder.parameters(), lr=rate), momentum=0.95)
            self.optimizer.train()

    def step(self) -> None:
        x = next(self.batches)
        self.coder.set_decoder_norm_to_unit_norm()
        dead = self.silent > self.job.dead_after if self.watches else None
        variance = (x - x.mean(0)).pow(2).sum()
        out = self.coder(x=x, y=x, dead_mask=dead, total_variance=variance)
        self.fired[out.latent_indices.flatten()] = True
        self.fvu = float(out.fvu.detach())
        (out.fvu + out.auxk_loss / 32 if self.watches else out.fvu).backward()
        self.coder.remove_gradient_parallel_to_decoder_directions()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.schedule:
            self.schedule.step()
        self.silent += len(x)
        self.silent[self.fired] = 0
        self.fired.zero_()

    def directions(self) -> Tensor:
        return self.coder.W_dec.detach()

    def reconstruct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out = self.coder(x)
        on = torch.zeros(len(x), self.job.n_latents, dtype=torch.bool, device=x.device)
        return out.sae_out, on.scatter_(1, out.latent_indices, out.latent_acts > 0)


class DictionaryLearning:
    """dictionary-learning's `TopKTrainer.update`."""

    def __init__(self, job: Job, batches: list[Tensor]):
        from dictionary_learning.trainers.top_k import TopKTrainer

        self.batches, self.number = cycle(batches), 0
        self.trainer = TopKTrainer(
            steps=job.steps,
            activation_dim=batches[0].shape[1],
            dict_size=job.n_latents,
            k=job.k,
            layer=0,
            lm_name="",
            lr=job.lr,
            warmup_steps=job.warm_up,
            decay_start=max(job.warm_up + 1, int(0.8 * job.steps)),
            seed=_SEED + job.seed,
            device=job.device,
        )
        self.trainer.dead_feature_threshold = job.dead_after

    def step(self) -> None:
        self.trainer.update(self.number, next(self.batches))
        self.number += 1

    def directions(self) -> Tensor:
        return self.trainer.ae.decoder.weight.detach().T

    def reconstruct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x_hat, f = self.trainer.ae(x, output_features=True)
        return x_hat, f != 0


class SAELens:
    """SAELens' `SAETrainer.step`, at its defaults."""

    options: Mapping[str, bool] = {}

    def __init__(self, job: Job, batches: list[Tensor]):
        from sae_lens.config import SAETrainerConfig
        from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
        from sae_lens.training.sae_trainer import SAETrainer

        torch.manual_seed(_SEED + job.seed)
        size = {"d_in": batches[0].shape[1], "d_sae": job.n_latents, "k": job.k}
        self.sae = TopKTrainingSAE(TopKTrainingSAEConfig(**size, device=job.device, **self.options))
        config = SAETrainerConfig(
            total_training_samples=job.steps * job.batch,
            train_batch_size_samples=job.batch,
            lr=job.lr,
            lr_end=job.lr,
            lr_warm_up_steps=job.warm_up,
            lr_decay_steps=job.steps // 5,
            device=job.device,
            dead_feature_window=max(1, job.dead_after // job.batch),
        )
        self.batches = cycle(batches)
        self.trainer = SAETrainer(config, self.sae, data_provider=self.batches)

    def step(self) -> None:
        self.trainer.maybe_reset_sparsity()
        self.trainer.step(next(self.batches))
        self.trainer.n_training_steps += 1

    def directions(self) -> Tensor:
        return self.sae.W_dec.detach()

    def reconstruct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        f = self.sae.encode(x)
        return self.sae.decode(f), (f.to_dense() if f.is_sparse else f) != 0


class SparseSAELens(SAELens):
    """The same with its sparse activations, which on a CPU exclude its rescaling by decoder norms."""

    options: Mapping[str, bool] = {"use_sparse_activations": True, "rescale_acts_by_decoder_norm": False}


# ---- the limit ----------------------------------------------------------------------------------------


class EncoderMatmul:
    """The encoder's product and nothing else, into memory that is there already: what no dense encoder can beat."""

    def __init__(self, job: Job, batches: list[Tensor]):
        x = batches[0]
        self.batches = cycle(batches)
        self.weight = torch.randn(job.n_latents, x.shape[1], generator=torch.Generator().manual_seed(_SEED)).to(x).T
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
    LIMIT: Entry(EncoderMatmul, "torch"),
    OURS: Entry(Subrank, "sae_core"),
    FLOAT32: Entry(_float32, "sae_core"),
    "sparsify": Entry(Sparsify, "sparsify", "rivals"),
    "sparsify, signum": Entry(_signum, "sparsify", "rivals"),
    "sparsify, bfloat16": Entry(_rounded, "sparsify", "rivals"),
    "dictionary-learning": Entry(DictionaryLearning, "dictionary_learning", "rivals"),
    "SAELens": Entry(SAELens, "sae_lens", "saelens"),
    "SAELens, sparse": Entry(SparseSAELens, "sae_lens", "saelens"),
}
"""By the names in tables. sparsify trains with Adam but where its own default, signum, is named. `subrank` chooses
latents in bfloat16 where the hardware has instructions; for `sparsify, bfloat16` torch rounds all products."""


def batches_of(job: Job, train: Tensor) -> list[Tensor]:
    """The training vectors in an order that depends on the seed alone, cut into whole batches."""
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(7 * _SEED + job.seed))
    rows = train[order].to(job.device)
    return [batch for batch in rows.split(job.batch) if len(batch) == job.batch]
