"""A model whose tokens are given texts and whose activation is the token's own row, for tests of what text says."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from sae_core.model.language_model import LanguageModel
from sae_core.sites import Site

BOS = "<s>"


class Characters(LanguageModel):
    """Token 0 is BOS. The residual at a token is a one at the token's own coordinate; so are logits."""

    def __init__(self, texts: Sequence[str]):
        self.texts = [BOS, *texts]
        self.special_ids, self.bos_id, self.n_vocab = frozenset({0}), 0, len(texts) + 1
        self.n_layers, self._points, self.tokenizer = 1, {}, None
        self.name, self.device, self.d_model = "characters", torch.device("cpu"), len(texts) + 1

    def unembed(self, h: Tensor) -> Tensor:
        return h

    def token_text(self, token: int) -> str:
        return self.texts[token]

    def record(self, tokens: Tensor, sites: Iterable[Site]) -> dict[Site, Tensor]:
        return {site: torch.eye(self.n_vocab)[tokens] for site in sites}

    def contexts(self, *rows: Sequence[str]) -> Tensor:
        """Rows of tokens of equal number, by their texts."""
        return torch.tensor([[self.texts.index(text) for text in row] for row in rows])


class Lookup:
    """A dictionary of such a model: the codes of token t are row t of a table."""

    def __init__(self, table: Tensor):
        self.table = table

    @property
    def directions(self) -> Tensor:
        return torch.eye(self.table.shape[1], self.table.shape[0])

    def encode(self, x: Tensor) -> Tensor:
        return x @ self.table

    def decode(self, f: Tensor) -> Tensor:
        return f @ self.directions
