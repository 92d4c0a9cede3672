"""Tokens per second of `LanguageModel.record` beside plain Transformers with sdpa at the same depth.

    python benchmarks/harvest.py FOLDER --layer 12

FOLDER holds a model in Hugging Face layout; both run its blocks up to LAYER in float32 on one thread, turn by turn, on
random tokens, without logits. Prints medians, their ratio, and how far the activations are apart.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from sae_core.model.language_model import load_model
from sae_core.sites import Site


class _Reached(Exception):
    """The block that is read has run."""


def main() -> None:
    options = build_parser().parse_args()
    torch.set_num_threads(1)
    from transformers import AutoModelForCausalLM

    model, site = load_model(options.folder, device="cpu"), Site(options.layer)
    plain = AutoModelForCausalLM.from_pretrained(options.folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    block = plain.get_submodule(model.bridge.blocks[options.layer].name)

    @torch.no_grad()
    def with_transformers(tokens: Tensor) -> Tensor:
        kept = []

        def keep(module, args, output):
            kept.append(output[0] if isinstance(output, tuple) else output)
            raise _Reached

        handle = block.register_forward_hook(keep)
        try:
            plain(tokens, use_cache=False)
        except _Reached:
            pass
        finally:
            handle.remove()
        return kept[0]

    @torch.no_grad()
    def with_subrank(tokens: Tensor) -> Tensor:
        return model.record(tokens, [site])[site]

    print("| tokens per context | subrank, tokens/s | Transformers, sdpa | ratio | apart |\n|---|---|---|---|---|")
    for length in options.lengths:
        shape, generator = (options.tokens // length, length), torch.Generator().manual_seed(0)
        tokens = torch.randint(100, model.n_vocab - 100, shape, generator=generator)
        a, b = with_subrank(tokens), with_transformers(tokens)
        apart = ((a - b).norm() / b.norm()).item()
        rates: dict[Callable, list[float]] = {with_subrank: [], with_transformers: []}
        for _ in range(options.rounds):
            for run, rate in rates.items():
                begun = time.process_time()
                run(tokens)
                rate.append(tokens.numel() / (time.process_time() - begun))
        subrank, sdpa = (statistics.median(rate) for rate in rates.values())
        print(f"| {length} | {subrank:.0f} | {sdpa:.0f} | {subrank / sdpa:.2f} | {apart:.0e} |", flush=True)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--layer", type=int, default=12, help="the last block that runs")
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512], help="tokens per context")
    parser.add_argument("--tokens", type=int, default=1024, help="tokens per pass")
    parser.add_argument("--rounds", type=int, default=5)
    return parser


if __name__ == "__main__":
    main()
