"""Other packages' training steps, each as its package runs it, in the interpreter of its own environment."""

from collections.abc import Mapping
from itertools import cycle

import torch
from torch import Tensor
from training_job import FOR_EVER, SEED, Job


class Sparsify:
    """The part of sparsify's `Trainer.fit` that follows the language model, on its `SparseCoder`.

    `fit` itself needs a language model. Left out, in its favour: copies of the activations, masks, logs.
    AuxK, off by its default, is on (1/32) where latents may die.
    """

    def __init__(self, job: Job, batches: list[Tensor], optimizer: str = "adam"):
        from sparsify import SparseCoder, SparseCoderConfig

        torch.manual_seed(SEED + job.seed)
        self.job, self.batches = job, cycle(batches)
        config = SparseCoderConfig(num_latents=job.n_latents, k=job.k)
        self.coder = SparseCoder(batches[0].shape[1], config, job.device, dtype=torch.float32)
        self.coder.b_dec.data = batches[0].mean(0)
        self.silent = torch.zeros(job.n_latents, dtype=torch.long, device=job.device)
        self.fired = torch.zeros(job.n_latents, dtype=torch.bool, device=job.device)
        self.watches = job.dead_after < FOR_EVER
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
    """`update` of dictionary-learning's trainer of the kind, at its defaults."""

    def __init__(self, job: Job, batches: list[Tensor]):
        from dictionary_learning.trainers import gdm, jumprelu, standard, top_k

        trainer, options = {
            "topk": (top_k.TopKTrainer, {"k": job.k}),
            "jumprelu": (jumprelu.JumpReluTrainer, {"target_l0": float(job.k)}),
            "relu": (standard.StandardTrainer, {}),
            "gated": (gdm.GatedSAETrainer, {}),
        }[job.kind]
        self.batches, self.number = cycle(batches), 0
        self.trainer = trainer(
            steps=job.steps,
            activation_dim=batches[0].shape[1],
            dict_size=job.n_latents,
            layer=0,
            lm_name="",
            lr=job.lr,
            warmup_steps=job.warm_up,
            decay_start=max(job.warm_up + 1, int(0.8 * job.steps)),
            seed=SEED + job.seed,
            device=job.device,
            **options,
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
        from sae_lens.saes import gated_sae, jumprelu_sae, standard_sae, topk_sae
        from sae_lens.training.sae_trainer import SAETrainer

        torch.manual_seed(SEED + job.seed)
        module, name, options = {
            "topk": (topk_sae, "TopK", {"k": job.k} | self.options),
            "jumprelu": (jumprelu_sae, "JumpReLU", {}),
            "relu": (standard_sae, "Standard", {}),
            "gated": (gated_sae, "Gated", {}),
        }[job.kind]
        size = {"d_in": batches[0].shape[1], "d_sae": job.n_latents, "device": job.device}
        config = getattr(module, f"{name}TrainingSAEConfig")(**size, **options)
        self.sae = getattr(module, f"{name}TrainingSAE")(config)
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
