"""Dictionaries for every layer of a language model of Pythia-70M's shape, the language model included.

Two packages train all layers from one pass of the model: ours and sparsify, whose own `Trainer.fit` runs
here as it is, without its checkpoints. Others take one layer at a time, and pass through the model once
for each. For them the model's part is written out here, cheaper than their own: a plain forward that
stops after the layer, vectors unshuffled. dictionary-learning is run a second time as it ships, its
trainer fed by its `ActivationBuffer`. Nobody computes logits. What comes before the first step (loading,
the bias at the start) is not timed.
"""

import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from contestants import ENTRIES, OURS
from torch import Tensor
from training_job import Job


@dataclass(frozen=True)
class LayersJob:
    """One run over the layers."""

    model: str
    """A folder in Hugging Face layout."""
    tokens: str
    """A safetensors file with `tokens`, `[contexts, pos]`."""
    n_contexts: int
    """How many of them to train on."""
    n_latents: int
    k: int
    batch_contexts: int
    """Contexts per step."""
    lr: float = 1e-3
    warm_up: int = 20
    seed: int = 0

    def contexts(self) -> Tensor:
        from safetensors.torch import load_file

        return load_file(self.tokens)["tokens"][: self.n_contexts]


@dataclass(frozen=True)
class LayersTrainer:
    """Who trains, and what share of the tokens it is given: slow ones are measured on fewer."""

    run: Callable[[LayersJob], dict[str, float]]
    package: str
    environment: str = "own"
    share: float = 1.0


def write_model(folder: Path, **size: int) -> None:
    """Write a GPT-NeoX with random weights, and a tokenizer that it can be loaded with."""
    from transformers import AutoModelForCausalLM, GPTNeoXConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    from sae_core.storybook.train import build_tokenizer

    config = GPTNeoXConfig(bos_token_id=0, eos_token_id=0, **size)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)


PYTHIA_70M = {
    "vocab_size": 50304,
    "hidden_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "intermediate_size": 2048,
}


# ---- one pass -----------------------------------------------------------------------------------------


def _subrank(job: LayersJob, layers: Callable[[Any], list]) -> Iterator[tuple[int, Callable[[], None]]]:
    """(tokens, work) for each pass: `layers` names the sites of the passes, a list of tuples."""
    from sae_core.data.activations import ActivationStream
    from sae_core.model.language_model import load_model
    from sae_core.training.config import TrainConfig
    from sae_core.training.loop import start, train
    from sae_core.training.topk_recipes import TopK

    model, contexts = load_model(job.model, device="cpu"), job.contexts()
    batch = job.batch_contexts * contexts.shape[1]
    for sites in layers(model):
        stream = ActivationStream(model, contexts, sites, job.seed, batch)
        config = TrainConfig(
            TopK(k=job.k),
            expansion=job.n_latents // model.d_model,
            tokens=contexts.numel(),
            batch=batch,
            lr=job.lr,
            warm_up=job.warm_up,
            seed=job.seed,
        )
        state = start(stream, config)
        stream.forget()  # what `start` has read, not the memory: the language model's pass is to be timed
        yield config.steps * batch, lambda stream=stream, state=state: [None for _ in train(stream, state)]


def subrank(job: LayersJob) -> dict[str, float]:
    """All layers from one pass."""
    return _timed(_subrank(job, lambda model: [tuple(model.sites())]))


def subrank_layer_by_layer(job: LayersJob) -> dict[str, float]:
    """The same, one pass per layer."""
    return _timed(_subrank(job, lambda model: [(site,) for site in model.sites()]))


def model_alone(job: LayersJob) -> dict[str, float]:
    """Our pass through the language model, and nothing trained."""
    from sae_core.data.activations import ActivationStream
    from sae_core.model.language_model import load_model

    model, contexts = load_model(job.model, device="cpu"), job.contexts()
    stream = ActivationStream(model, contexts, tuple(model.sites()), job.seed, job.batch_contexts * contexts.shape[1])
    stream.rows(0)
    stream.forget()  # its memory is there, as it is where training begins
    return _timed(iter([(contexts.numel(), lambda: stream.rows(0))]))


def _sparsify(job: LayersJob, optimizer: str) -> dict[str, float]:
    from datasets import Dataset
    from sparsify import SparseCoderConfig, TrainConfig, Trainer
    from transformers import AutoModel

    contexts = job.contexts()
    rows = Dataset.from_dict({"input_ids": contexts.tolist()}).with_format("torch")
    config = TrainConfig(
        SparseCoderConfig(num_latents=job.n_latents, k=job.k),
        batch_size=job.batch_contexts,
        optimizer=optimizer,
        lr=job.lr if optimizer == "adam" else None,
        lr_warmup_steps=job.warm_up,
        log_to_wandb=False,
    )
    trainer = Trainer(config, rows, AutoModel.from_pretrained(job.model))
    trainer.save = lambda: None
    return _timed(iter([(contexts.numel(), trainer.fit)]))


# ---- one layer at a time ------------------------------------------------------------------------------


def _layer_by_layer(name: str) -> Callable[[LayersJob], dict[str, float]]:
    def run(job: LayersJob) -> dict[str, float]:
        return _timed(_passes(name, job))

    return run


def _passes(name: str, job: LayersJob) -> Iterator[tuple[int, Callable[[], None]]]:
    from transformers import AutoModel

    model, contexts = AutoModel.from_pretrained(job.model).requires_grad_(False), job.contexts()
    batch = job.batch_contexts * contexts.shape[1]
    single = Job("", job.n_latents, job.k, batch, lr=job.lr, warm_up=job.warm_up, seed=job.seed)
    for layer in range(model.config.num_hidden_layers):
        pieces = [contexts[i : i + job.batch_contexts] for i in range(0, len(contexts), job.batch_contexts)]
        contestant = ENTRIES[name].new(single, [_activations(model, pieces[0], layer)])

        def work(contestant=contestant, pieces=pieces, layer=layer):
            contestant.batches = (_activations(model, piece, layer) for piece in pieces)
            for _ in pieces:
                contestant.step()

        yield contexts.numel(), work


def _own_buffer(job: LayersJob) -> Iterator[tuple[int, Callable[[], None]]]:
    """dictionary-learning's trainer with its own buffer, of two batches, so that nothing is read in vain.

    It takes text; its words are other tokens than those of the job, as many.
    """
    from dictionary_learning.buffer import ActivationBuffer
    from nnsight import LanguageModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job.model)
    tokenizer.pad_token = tokenizer.eos_token
    traced = LanguageModel(AutoModelForCausalLM.from_pretrained(job.model), tokenizer=tokenizer)
    contexts = job.contexts()
    n_ctx, words = contexts.shape[1], [word for word in tokenizer.get_vocab() if word.isalpha()]
    draw = random.Random(job.seed)
    texts = [" ".join(draw.choices(words, k=n_ctx)) for _ in contexts]
    assert {len(row) for row in tokenizer(texts)["input_ids"]} == {n_ctx}
    batch = job.batch_contexts * n_ctx
    single = Job("", job.n_latents, job.k, batch, lr=job.lr, warm_up=job.warm_up, seed=job.seed)
    for layer in traced.gpt_neox.layers:
        first = torch.randn(batch, traced.config.hidden_size)
        contestant = ENTRIES["dictionary-learning"].new(single, [first])
        contestant.batches = ActivationBuffer(
            iter(texts),
            traced,
            layer,
            d_submodule=first.shape[1],
            n_ctxs=2 * job.batch_contexts,
            ctx_len=n_ctx,
            refresh_batch_size=job.batch_contexts,
            out_batch_size=batch,
        )

        def work(contestant=contestant):
            for _ in range(contexts.numel() // batch):
                contestant.step()

        yield contexts.numel(), work


class _Halt(Exception):
    pass


@torch.no_grad()
def _activations(model: Any, contexts: Tensor, layer: int) -> Tensor:
    """The residual after a block, `[tokens, d_model]`; later blocks do not run."""
    outputs = []

    def keep(module, args, output):
        outputs.append(output[0] if isinstance(output, tuple) else output)
        raise _Halt

    handle = model.layers[layer].register_forward_hook(keep)
    try:
        model(contexts, use_cache=False)
    except _Halt:
        return outputs[0].flatten(0, 1)
    finally:
        handle.remove()


# ---- measuring ----------------------------------------------------------------------------------------


def _timed(passes: Iterator[tuple[int, Callable[[], Any]]]) -> dict[str, float]:
    """Seconds of the work of all passes, and the tokens of one."""
    cpu = wall = tokens = 0
    for tokens, work in passes:  # noqa: B007
        before = time.process_time(), time.perf_counter()
        work()
        cpu, wall = cpu + time.process_time() - before[0], wall + time.perf_counter() - before[1]
    return {"cpu": cpu, "wall": wall, "tokens": tokens}


TRAINERS: Mapping[str, LayersTrainer] = {
    "language model alone": LayersTrainer(model_alone, "sae_core"),
    OURS: LayersTrainer(subrank, "sae_core"),
    "sparsify": LayersTrainer(lambda job: _sparsify(job, "adam"), "sparsify", "rivals"),
    "sparsify, signum": LayersTrainer(lambda job: _sparsify(job, "signum"), "sparsify", "rivals"),
    "subrank, layer by layer": LayersTrainer(subrank_layer_by_layer, "sae_core", share=0.2),
}
TRAINERS |= {
    f"{name}, layer by layer": LayersTrainer(_layer_by_layer(name), ENTRIES[name].package, environment, share=0.2)
    for name, environment in (("dictionary-learning", "rivals"), ("SAELens", "saelens"))
}
TRAINERS |= {
    "dictionary-learning, its own buffer": LayersTrainer(
        lambda job: _timed(_own_buffer(job)), ENTRIES["dictionary-learning"].package, "rivals", share=0.2
    )
}
