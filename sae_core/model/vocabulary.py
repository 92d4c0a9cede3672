"""Text as a model's tokens: ids, BOS, special tokens, and what a token is as text."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from sae_core.errors import UserError


class Vocabulary:
    """The tokens of a language model, by its own tokenizer and its own conventions."""

    tokenizer: Any
    bos_id: int | None
    """With what the model's texts begin, by its own convention; None where it has none."""
    special_ids: frozenset[int]
    """Tokens that are no text: BOS, the end, padding and the tokenizer's further special ones."""

    def __init__(self, tokenizer: Any, *, bos_id: int | None):
        self.tokenizer, self.bos_id = tokenizer, bos_id
        special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
        # one token may be the unknown and the end (GPT-2), or the unknown and the padding: that one is special
        ends = (bos_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        self.special_ids = frozenset(special | {token for token in ends if token is not None})

    def to_ids(self, text: str) -> list[int]:
        """Token ids of `text` alone, without BOS or any other special token; raises `UserError` for what is no text."""
        return self.all_ids([text])[0]

    def all_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """`to_ids` of every text, which go through the tokenizer together."""
        for text in texts:
            try:
                text.encode("utf-8")
            except (AttributeError, UnicodeEncodeError) as error:  # half of a surrogate pair, as JSON may hold
                raise UserError(f"{text!r:.60} is no text that has tokens: {error}") from error
        return self.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []

    def with_bos(self, ids: list[int], *, prepend: bool = True) -> list[int]:
        """`ids` behind one BOS, where `prepend` is set and the model has one; a text may bring its own."""
        if not prepend or self.bos_id is None or ids[:1] == [self.bos_id]:
            return ids
        return [self.bos_id, *ids]

    def continuation_ids(self, prompt: str, text: str) -> list[int]:
        """Token ids of `text` where it continues `prompt`; raises `UserError` if the two fuse into one token."""
        before, both = self.to_ids(prompt), self.to_ids(prompt + text)
        if both[: len(before)] != before or len(both) == len(before):
            raise UserError(f"{text!r} does not stand apart from {prompt[-20:]!r} in this model's tokens")
        return both[len(before) :]

    def token_text(self, token: int) -> str:
        """One token as text, with a leading space where it has one."""
        piece = self.tokenizer.convert_ids_to_tokens([token])[0]
        if piece is None:  # rows of the embedding beyond the tokenizer
            return f"<{token}>"
        if piece[:1] in ("Ġ", "▁"):
            return " " + self.tokenizer.convert_tokens_to_string([piece]).strip()
        return self.tokenizer.convert_tokens_to_string([piece]) or piece

    @cached_property
    def brings_spaces(self) -> bool:
        """Whether tokens bring the spaces between words, so that a text is their texts joined as they are."""
        vocabulary = getattr(self.tokenizer, "get_vocab", dict)()
        return any(piece[:1] in ("Ġ", "▁") for piece in vocabulary)

    def content(self, tokens: Int[Tensor, "*batch"]) -> Tensor:
        """Boolean mask of the tokens that are neither BOS nor any other special token."""
        mask = torch.ones_like(tokens, dtype=torch.bool)
        for special in self.special_ids:
            mask &= tokens != special
        return mask
