"""Tokens per second of training dictionaries for all layers of a language model, the language model included."""

import statistics
import sys
from contextlib import ExitStack
from dataclasses import asdict, replace

import torch
from all_layers import PYTHIA_70M, TRAINERS, LayersJob, write_model
from contestants import OURS
from field import Field

from sae_core.seeds import generator_for


def all_layers(field: Field, *, n_contexts: int, n_ctx: int, batch_contexts: int, rounds: int, **size: int) -> None:
    """Tokens per second of training dictionaries of four times the width at all layers."""
    from safetensors.torch import save_file

    report, shape = field.report, PYTHIA_70M | size
    folder, tokens = field.folder / "model", field.folder / "tokens.safetensors"
    write_model(folder, **shape)
    ids = torch.randint(2, shape["vocab_size"], (n_contexts, n_ctx), generator=generator_for(0, "tokens"))
    save_file({"tokens": ids}, tokens)
    n_latents = 4 * shape["hidden_size"]
    job = LayersJob(str(folder), str(tokens), n_contexts, n_latents, 32, batch_contexts)
    rates: dict[str, list[float]] = {}
    with ExitStack() as stack:
        workers = field.open(stack, TRAINERS, threads=1)
        for _ in range(rounds):
            for name, worker in workers.items():
                steps = max(1, round(TRAINERS[name].share * n_contexts / batch_contexts))
                part = replace(job, n_contexts=steps * batch_contexts)
                took = worker.ask("layers", run=asdict(part), threads=1)
                rates.setdefault(name, []).append(took["tokens"] / took["cpu"])
                print(f"{name}: {took['tokens']} tokens in {took['cpu']:.1f} CPU seconds", file=sys.stderr)
    middle = {name: statistics.median(speeds) for name, speeds in rates.items()}
    report.say(
        f"### {shape['num_hidden_layers']} layers of width {shape['hidden_size']}, n={n_latents} each, k=32, "
        f"{batch_contexts} contexts of {n_ctx} tokens per step, 1 thread, tokens per CPU second"
    )
    report.table(
        ("contestant", "median", "range", "ours against it"),
        (
            (
                f"{name} {field.versions[name]}" if TRAINERS[name].environment != "own" else name,
                f"{middle[name]:.0f}",
                f"{min(speeds):.0f}-{max(speeds):.0f}",
                f"{middle[OURS] / middle[name]:.2f}",
            )
            for name, speeds in rates.items()
        ),
    )
