"""A tokenizer that cuts words into pieces."""

import re
from collections.abc import Sequence
from types import SimpleNamespace

from sae_core.model.language_model import LanguageModel


class Pieces(LanguageModel):
    """Only a tokenizer: words fall into pieces of at most `size` letters; no BOS, no unknown word."""

    def __init__(self, size: int):
        self.name, self.bos_id, self.special_ids, self.size, self.table = "pieces", None, frozenset(), size, {}
        self.n_ctx = 128
        self.tokenizer = SimpleNamespace(unk_token_id=None, eos_token_id=None)

    def all_ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [self._ids(text) for text in texts]

    def _ids(self, text: str) -> list[int]:
        pieces = re.findall(f" ?[A-Za-z]{{1,{self.size}}}|[^A-Za-z]", text)
        return [self.table.setdefault(piece, len(self.table)) for piece in pieces]
