"""What the model writes after prompts while features are steered, and in which tokens that differs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from itertools import groupby

from editing.interventions.masks import Onward
from editing.steering.edits import Mode, Steering
from editing.steering.feature_text import FeatureText
from sae_core.model.generation import Sampling, check_room, generate, pieces
from sae_core.model.language_model import LanguageModel
from sae_core.model.padding import pad

SHORTEST_MATCH = 3
"""Fewer tokens in a row than this, shared by two texts, are a coincidence."""


@dataclass(frozen=True)
class Writing:
    """How prompts are continued."""

    n_new: int = 40
    """Tokens written after each prompt, at most."""
    seed: int = 0
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True)
class Continuation:
    """What the model writes after a prompt, under one strength."""

    prompt: str
    strength: float | None
    """None without any edit."""
    tokens: tuple[str, ...]
    """The text in pieces, spaces included."""
    changed: tuple[bool, ...]
    """Which of them are not in the text without edit, the two being aligned (`changed_tokens`)."""
    ended: bool
    """Whether the text came to its end by itself."""

    def marked(self) -> list[tuple[str, bool]]:
        """The text as runs of tokens that are changed or not."""
        runs = groupby(zip(self.tokens, self.changed, strict=True), lambda pair: pair[1])
        return [("".join(piece for piece, _ in run), changed) for changed, run in runs]


def continuations(
    model: LanguageModel,
    steering: Steering,
    strengths: Sequence[float],
    prompts: Sequence[Sequence[int]],
    writing: Writing,
) -> list[Continuation]:
    """Every prompt continued without edit and with each strength, all with the same noise; prompt by prompt.

    BOS and special tokens of the prompt are left alone; all new tokens are edited. Raises `UserError` for a prompt
    that is empty or has no room for the new tokens.
    """
    check_room(model, prompts, writing.n_new)
    mask = Onward(model.content(pad(prompts)[0]).to(model.device))
    edits = {None: []} | {strength: steering.edits(strength, mask) for strength in strengths}
    written: dict[float | None, list[list[int]]] = {}
    for strength in edits:
        with model.hooks(*edits[strength]):
            written[strength] = generate(model, prompts, writing.n_new, seed=writing.seed, sampling=writing.sampling)
    return [
        Continuation(
            prompt=model.tokenizer.decode([token for token in prompt if token not in model.special_ids]),
            strength=strength,
            tokens=tuple(pieces(model, prompt, texts[row])),
            changed=changed_tokens(written[None][row], texts[row]),
            ended=len(texts[row]) < writing.n_new,
        )
        for row, prompt in enumerate(prompts)
        for strength, texts in written.items()
    ]


def changed_tokens(before: Sequence[int], after: Sequence[int]) -> tuple[bool, ...]:
    """Which tokens of `after` are not in `before`, when as much as possible is aligned in order.

    Once texts have parted they meet in a word here and there by chance: fewer than `SHORTEST_MATCH` tokens in a row
    count as changed, except at the beginning.
    """
    changed = [True] * len(after)
    for block in SequenceMatcher(None, before, after, autojunk=False).get_matching_blocks():
        if block.size >= SHORTEST_MATCH or block.a == block.b == 0:
            changed[block.b : block.b + block.size] = [False] * block.size
    return tuple(changed)


def example_prompts(
    model: LanguageModel, text: FeatureText, mode: Mode, n: int = 2, *, longest: int = 24
) -> list[list[int]]:
    """Prompts from the text: where the features are at their strongest or, to clamp them, where they are not.

    The former end with the token of the largest activation, of which scaling changes what comes next; the
    latter are beginnings of contexts.
    """
    if mode is Mode.CLAMP:
        silent = (~text.active[:, :8].any(-1)).nonzero()[:, 0].tolist()
        starts = [text.contexts[row, :8].tolist() for row in silent or range(len(text.contexts))]
    else:
        peak, position = text.f.sum(-1).max(-1)
        order = peak.argsort(descending=True, stable=True).tolist()
        starts = [text.contexts[row, : int(position[row]) + 1].tolist() for row in order if peak[row] > 0]
    prompts = [_last_document(model, prompt, longest) for prompt in starts]
    return [list(prompt) for prompt in dict.fromkeys(map(tuple, prompts))][:n]


def _last_document(model: LanguageModel, tokens: Sequence[int], longest: int) -> list[int]:
    """The last document of a context, its last `longest` tokens at most, after BOS if it has one."""
    starts = [place + 1 for place, token in enumerate(tokens) if token in model.special_ids]
    begin = max((start for start in starts if start < len(tokens)), default=0)
    bos = [tokens[begin - 1]] if begin else []
    return bos + list(tokens[max(begin, len(tokens) - longest) :])
