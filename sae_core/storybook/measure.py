"""What `storybook` can do: `python -m sae_core.storybook.measure [DIR]` prints and returns the figures.

Accuracies are shares of cases in which the right token is the argmax over the whole vocabulary; the
losses are means over all tokens of whole held-out documents, in nats per token, the grammar's being
the exact entropy of the same tokens.
"""

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from sae_core.storybook.grammar import Grammar
from sae_core.storybook.page import END, Token

HELD_OUT_SEED = 10**6  # training documents are drawn from small seeds


def surprises(model, ids: dict[str, int], stories: Sequence[list[Token]]) -> Iterator[tuple[list[Token], torch.Tensor]]:
    """Each story with the model's log-probabilities [len(story), n_vocab] of its tokens, given `END` first."""
    for start in range(0, len(stories), 64):
        chunk = stories[start : start + 64]
        rows = [[ids[END], *(ids[token.text] for token in story)] for story in chunk]
        longest = max(map(len, rows))
        tokens = torch.tensor([row + [ids[END]] * (longest - len(row)) for row in rows])
        with torch.no_grad():
            log_probs = model(input_ids=tokens).logits.float().log_softmax(-1)
        for story, row in zip(chunk, log_probs, strict=True):
            yield story, row[: len(story)]


def measure(model, ids: dict[str, int], *, n: int = 1000, seed: int = HELD_OUT_SEED) -> dict[str, float | int]:
    """Accuracy on gifts, pronouns and brackets, and the loss beside the grammar's entropy."""
    grammar, figures = Grammar(), {}
    for name, new in (("unseen_combinations", False), ("unseen_sentences", True)):
        rng = random.Random(seed + new)
        balanced: dict[str, list[list[Token]]] = {"abba": [], "baba": []}
        while min(map(len, balanced.values())) < n // 2:
            story = grammar.gift_story(rng, unseen_sentences=new)
            people = [t.text for t in story if t.role in ("name", "subject")]
            balanced["abba" if people[0] == story[-1].text else "baba"].append(story)
        for order, stories in balanced.items():
            hits = [p[-1].argmax().item() == ids[s[-1].text] for s, p in surprises(model, ids, stories[: n // 2])]
            figures[f"ioi_{name}_{order}"] = sum(hits) / len(hits)
        figures[f"ioi_{name}"] = (figures[f"ioi_{name}_abba"] + figures[f"ioi_{name}_baba"]) / 2

    rng = random.Random(seed + 2)
    documents = [grammar.document(rng) for _ in range(2 * n)]
    right = {"pronoun": [], "close": []}
    loss = entropy = n_tokens = 0
    for story, log_probs in surprises(model, ids, documents):
        target = torch.tensor([ids[token.text] for token in story])
        loss -= log_probs.gather(1, target[:, None]).sum().item()
        entropy -= sum(token.log_prob for token in story)
        n_tokens += len(story)
        hit = (log_probs.argmax(-1) == target).tolist()
        for token, correct in zip(story, hit, strict=True):
            if token.role in right and token.log_prob == 0.0:  # the grammar allows nothing else
                right[token.role].append(correct)
    for role, name in (("pronoun", "pronoun_agreement"), ("close", "bracket_closing")):
        figures[name] = sum(right[role]) / len(right[role])
        figures[f"n_{name}"] = len(right[role])
    figures |= {"loss": loss / n_tokens, "entropy": entropy / n_tokens, "n_tokens": n_tokens}
    return figures


def main(arguments: list[str] | None = None) -> dict[str, float | int]:
    """Measure the model in a directory and print the figures as JSON."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", nargs="?", type=Path, default=Path(__file__).parent / "model")
    parser.add_argument("-n", type=int, default=1000, help="stories per figure")
    options = parser.parse_args(arguments)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32, local_files_only=True).eval()
    ids = AutoTokenizer.from_pretrained(options.model, local_files_only=True).get_vocab()
    figures = measure(model, ids, n=options.n)
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}, indent=1))
    return figures


if __name__ == "__main__":
    main()
