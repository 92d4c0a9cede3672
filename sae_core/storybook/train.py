"""Train `storybook`, the bundled language model: `python -m sae_core.storybook.train --out DIR`.

A GPT-NeoX of six layers (the Pythia family) on text from `grammar.py`, AdamW with warm-up and cosine
decay, about 18 minutes on two CPU cores. The same seed gives the same weights on the same machine.
Weights are stored in float16; `measure.py` measures what was stored.
"""

import argparse
import logging
import math
import random
from collections.abc import Iterator
from pathlib import Path

import torch

from sae_core.storybook.grammar import Grammar, vocabulary
from sae_core.storybook.page import END

N_CTX = 128
log = logging.getLogger(__name__)


def build_tokenizer():
    """Tokenizer of whole words, brackets, quotes and line ends; spaces only separate."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {word: i for i, word in enumerate(vocabulary())}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n|\w+|[^\w\s]"), behavior="removed", invert=True)
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END, unk_token="<unk>")


def build_model(n_vocab: int, *, n_layers: int = 6, d_model: int = 128, seed: int = 0):
    """Untrained GPT-NeoX with weights drawn from `seed`."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=n_vocab,
        hidden_size=d_model,
        num_hidden_layers=n_layers,
        num_attention_heads=4,
        intermediate_size=4 * d_model,
        max_position_embeddings=2 * N_CTX,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # transformers draws initial weights from the global generator
        return GPTNeoXForCausalLM(config)


def rows(seed: int, ids: dict[str, int]) -> Iterator[list[int]]:
    """Token ids of endless contexts: whole documents, each after `END`, the last one cut."""
    grammar, rng, row = Grammar(), random.Random(seed), []
    while True:
        row += [ids[END], *(ids[token.text] for token in grammar.document(rng)[:-1])]
        if len(row) >= N_CTX:
            yield row[:N_CTX]
            row = []


def train(model, ids: dict[str, int], *, steps: int, batch: int, lr: float, seed: int) -> Iterator[tuple[int, float]]:
    """Train `model` in place; yields (step, mean next-token loss in nats per token)."""
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=True)
    warm_up = min(100, steps // 10)

    def rate(step: int) -> float:
        done = (step - warm_up) / max(1, steps - warm_up)
        return min(1.0, (step + 1) / warm_up) if step < warm_up else 0.05 + 0.475 * (1 + math.cos(math.pi * done))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    stream = rows(seed, ids)
    model.train()
    for step in range(steps):
        tokens = torch.tensor([next(stream) for _ in range(batch)])
        loss = model(input_ids=tokens, labels=tokens).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        yield step, loss.item()
    model.eval()


def main(arguments: list[str] | None = None) -> None:
    """Train and save in Hugging Face layout."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "model")
    parser.add_argument("--steps", type=int, default=6500)
    parser.add_argument("--batch", type=int, default=16, help="contexts of 128 tokens a step")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    tokenizer = build_tokenizer()
    model = build_model(len(tokenizer), seed=options.seed)
    run = train(
        model, tokenizer.get_vocab(), steps=options.steps, batch=options.batch, lr=options.lr, seed=options.seed
    )
    for step, loss in run:
        if step % 50 == 0 or step == options.steps - 1:
            log.info("step %5d  loss %.4f nats/token", step, loss)
    model.half().save_pretrained(options.out)  # half the bytes; it computes in float32 everywhere
    config = options.out / "config.json"
    config.write_text(config.read_text().replace('"dtype": "float16"', '"dtype": "float32"'))
    tokenizer.save_pretrained(options.out)


if __name__ == "__main__":
    main()
