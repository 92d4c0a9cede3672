"""Text from a model, token by token: every step reads one token per row, the rest is kept (a KV cache).

Prompts of unequal length are padded on the right, as everywhere: in the prompt, edits see `[batch, pos, d]`
and their masks mean what they mean in any forward pass; every step after it they see `[batch, 1, d]`.
After the prompt the padding moves to the left in what is kept, so that a row's text does not depend on the
rows beside it: windows and ALiBi measure distances in slots of the cache. Positions count without it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_core.errors import UserError
from sae_core.model.padding import pad
from sae_core.seeds import generator_for

if TYPE_CHECKING:
    from transformers import Cache


@runtime_checkable
class TextModel(Protocol):
    """What generation needs of a language model; `LanguageModel` is one."""

    name: str
    n_ctx: int
    device: torch.device
    special_ids: frozenset[int]
    tokenizer: Any

    def extend(self, tokens: Tensor, cache: "Cache", attended: Tensor, places: Tensor) -> Tensor:
        """The residual after the last block for tokens that follow those in `cache`."""
        ...

    def unembed(self, h: Tensor) -> Tensor:
        """Logits of final residuals."""
        ...


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn from the logits."""

    temperature: float = 1.0
    """Divides the logits; at 0 the most probable token is always taken."""
    top_k: int | None = None
    """Only the so many most probable tokens."""
    top_p: float | None = None
    """Only the fewest most probable tokens that hold this much probability together."""

    def __post_init__(self):
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature must be 0 or more; got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top-k must be at least 1; got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top-p must lie above 0 and be at most 1; got {self.top_p}")


@torch.no_grad()
def generate(
    model: TextModel, prompts: Sequence[Sequence[int]], n_new: int, *, seed: int, sampling: Sampling | None = None
) -> list[list[int]]:
    """At most `n_new` tokens that go on from each prompt; fewer where a special token (the end) is drawn.

    Chance depends on the seed, the prompt and the place in the text, and not on what is drawn before: runs
    with and without an edit share their noise, so that texts part where the edit makes a difference.
    Raises `UserError` for a prompt that is empty or has no room for `n_new` tokens.
    """
    from transformers import DynamicCache

    check_room(model, prompts, n_new)
    sampling = sampling or Sampling()
    chances = [generator_for(seed, "text", *row) for row in prompts]
    tokens, lengths = (part.to(model.device) for part in pad(prompts))
    place = torch.arange(tokens.shape[1], device=model.device).expand_as(tokens)
    attended = (place < lengths[:, None]).long()
    rows = torch.arange(len(prompts), device=model.device)
    cache, read = DynamicCache(), lengths - 1
    texts: list[list[int]] = [[] for _ in prompts]
    done = [False] * len(texts)
    for step in range(n_new):
        h = model.extend(tokens, cache, attended, place)
        tokens = _draw(model.unembed(h[rows, read]), sampling, chances)[:, None]
        for row, token in enumerate(tokens[:, 0].tolist()):
            done[row] |= token in model.special_ids
            if not done[row]:
                texts[row].append(token)
        if all(done):
            break
        if step == 0:
            _align_right(cache, attended)
            attended = attended.flip(1)
        read, place = torch.zeros_like(read), (lengths + step)[:, None]
        attended = torch.cat([attended, torch.ones_like(attended[:, :1])], 1)
    return texts


def _align_right(cache: "Cache", attended: Int[Tensor, "batch pos"]) -> None:
    """Move each row's keys and values to the end of the cache, its padding to the front."""
    width = attended.shape[1]
    slots = torch.arange(width, device=attended.device)
    source = (slots - (width - attended.sum(1, keepdim=True))) % width
    for layer in cache.layers:
        for name in ("keys", "values"):
            kept = getattr(layer, name)
            setattr(layer, name, kept.gather(2, source[:, None, :, None].to(kept.device).expand_as(kept)))


def check_room(model: TextModel, prompts: Sequence[Sequence[int]], n_new: int) -> None:
    """Raise `UserError` unless there are prompts, none empty, and the model can read each with `n_new` tokens more."""
    if n_new < 1:
        raise UserError(f"at least 1 token must be generated; got {n_new}")
    if not prompts or not all(prompts):
        raise UserError("a prompt is empty; give at least one word")
    longest = max(map(len, prompts))
    if longest + n_new > model.n_ctx:
        raise UserError(
            f"a prompt of {longest} tokens and {n_new} more do not fit {model.name}, which reads {model.n_ctx}"
        )


def pieces(model: TextModel, before: Sequence[int], tokens: Sequence[int]) -> list[str]:
    """The text of each of `tokens` where they follow `before`, spaces included; together they are the whole text.

    A token that is only part of a character has an empty text; the one that completes it has all of it.
    """
    texts = [model.tokenizer.decode([*before, *tokens[:n]]) for n in range(len(tokens) + 1)]
    cuts = list(accumulate((_shared(text, texts[-1]) for text in texts), max))
    return [texts[-1][start:end] for start, end in pairwise(cuts)]


def _shared(text: str, other: str) -> int:
    """How many characters two texts share at their beginning."""
    differ = (n for n, (a, b) in enumerate(zip(text, other, strict=False)) if a != b)
    return next(differ, min(len(text), len(other)))


def _draw(
    logits: Float[Tensor, "batch vocab"], sampling: Sampling, chances: Sequence[torch.Generator]
) -> Int[Tensor, "batch"]:
    """One token per row: the largest of logit / temperature + Gumbel noise, which is a draw from the softmax."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    scores = logits.double().cpu() / sampling.temperature
    if sampling.top_k is not None:
        kept = scores.topk(min(sampling.top_k, scores.shape[-1]), dim=-1).values[:, -1:]
        scores = scores.masked_fill(scores < kept, -torch.inf)
    if sampling.top_p is not None:
        p, order = scores.softmax(-1).sort(dim=-1, descending=True)
        beyond = p.cumsum(-1) - p >= sampling.top_p
        scores = scores.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), -torch.inf)
    noise = torch.stack(
        [torch.empty_like(row).exponential_(generator=g) for row, g in zip(scores, chances, strict=True)]
    )
    return (scores - noise.log()).argmax(-1).to(logits.device)
