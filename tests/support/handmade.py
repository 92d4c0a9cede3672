"""Dictionaries and language models whose answers are known by hand, for the tests of editing and circuits."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor

from sae_core.dictionaries.baselines import Basis, random_basis
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.dictionaries.saes import TopKSAE
from sae_core.model.language_model import LanguageModel
from sae_core.sites import FeatureId, Site, Stream


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random_topk(d_in: int, n_latents: int = 48, k: int = 6, *, seed: int = 0) -> TopKSAE:
    """An untrained TopK dictionary whose encoder and biases are anything."""
    sae = TopKSAE(d_in, n_latents, k, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        sae.W_enc += 0.05 * normal(d_in, n_latents, seed=seed + 1)
        sae.b_enc += 0.1 * normal(n_latents, seed=seed + 2)
        sae.b_dec += 0.3 * normal(d_in, seed=seed + 3)
    return sae.requires_grad_(False)


def complete_basis(d_in: int, *, seed: int = 0) -> Basis:
    """A complete orthonormal basis around a mean that is not zero."""
    directions = random_basis(d_in, generator=torch.Generator().manual_seed(seed)).directions
    return Basis(directions, normal(d_in, seed=seed + 1))


@dataclass(frozen=True, eq=False)
class Zero:
    """A dictionary whose only latent is never active, and whose reconstruction is zero."""

    d_in: int

    @property
    def directions(self) -> Tensor:
        return torch.eye(self.d_in)[:1]

    def encode(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x[..., :1])

    def decode(self, f: Tensor) -> Tensor:
        return torch.zeros(*f.shape[:-1], self.d_in)


class HandModel(LanguageModel):
    """Every token is an embedding; a block adds a linear map of the residual here and of the one before:

    h_t  ->  h_t + W h_t + A h_{t-1}

    Token 0 is BOS, its embedding zero. There is no norm, and the unembedding is the embedding.
    """

    brings_spaces = True
    dtype = torch.float32

    def __init__(self, embedding: Tensor, blocks: Sequence[tuple[Tensor, Tensor]]):
        self.embedding, self.blocks = embedding, list(blocks)
        self.bridge = SimpleNamespace(cfg=None, blocks=self.blocks)  # blocks of no known parts
        self.name, self.tokenizer, self.device = "by hand", None, torch.device("cpu")
        self.n_layers, self.n_ctx = len(self.blocks), 64
        self.n_vocab, self.d_model = embedding.shape
        self._points, self.bos_id, self.special_ids, self._parallel = {}, 0, frozenset({0}), False
        self.resumed: list[tuple[int, int]] = []
        """Rows and positions of every `resume`, in order."""

    def record(self, tokens: Tensor, sites: Iterable[Site]) -> dict[Site, Tensor]:
        return self._run(self.embedding[tokens], 0, sites)

    def resume(self, h: Tensor, layer: int, sites: Iterable[Site]) -> dict[Site, Tensor]:
        self.resumed.append(tuple(h.shape[:2]))
        return self._run(h, layer + 1, sites)

    def unembed(self, h: Tensor) -> Tensor:
        return h @ self.embedding.T

    def token_text(self, token: int) -> str:
        return f" t{token}"

    def _run(self, h: Tensor, first: int, sites: Iterable[Site]) -> dict[Site, Tensor]:
        kept = {}
        for layer in range(first, self.n_layers):
            here, before = self.blocks[layer]
            earlier = torch.cat([torch.zeros_like(h[:, :1]), h[:, :-1]], 1)
            h = h + h @ here.T + earlier @ before.T
            kept[Site(layer)] = h
        assert all(site.stream is Stream.RESID_POST for site in sites)
        return {site: kept[site] for site in sites}


class Circuit:
    """A `HandModel` of four layers with features 0, 1, 2, ... along orthogonal directions.

    Layer 0 has features 0-3, given by the token; the others are, at position t:

        layer 1   f4(t) = f0(t) - 0.5 f1(t) + 0.001 f3(t)      f5(t) = 0.8 f2(t-1)    (attention)
        layer 2   f6(t) = f4(t) + 2 f5(t)                      f7(t) = 0.5 f4(t)
        layer 3   f8(t) = f6(t) - 0.25 f7(t)

    Every layer's dictionary has its own features only, in this order.
    """

    FEATURES = ((0, 1, 2, 3), (4, 5), (6, 7), (8,))
    WEIGHTS = (
        (),
        ((4, 0, 1.0), (4, 1, -0.5), (4, 3, 0.001)),
        ((6, 4, 1.0), (6, 5, 2.0), (7, 4, 0.5)),
        ((8, 6, 1.0), (8, 7, -0.25)),
    )
    MOVES = ((), ((5, 2, 0.8),), (), ())

    def __init__(self, n_vocab: int = 60, d_model: int = 12):
        self.d = random_basis(d_model, generator=torch.Generator().manual_seed(5)).directions
        activations = torch.rand(n_vocab, 4, generator=torch.Generator().manual_seed(6))
        self.by_token = activations + torch.tensor([1.5, 0.0, 0.2, 0.0])
        self.by_token[0] = 0
        blocks = [(self._map(w), self._map(m)) for w, m in zip(self.WEIGHTS, self.MOVES, strict=True)]
        self.model = HandModel(self.by_token @ self.d[:4], blocks)
        self.dictionaries: dict[Site, Dictionary] = {
            Site(layer): Basis(self.d[list(features)], torch.zeros(d_model))
            for layer, features in enumerate(self.FEATURES)
        }

    def _map(self, weights: Sequence[tuple[int, int, float]]) -> Tensor:
        return sum((w * torch.outer(self.d[to], self.d[of]) for to, of, w in weights), torch.zeros_like(self.d))

    def contexts(self, n: int = 40, length: int = 8, *, seed: int = 1) -> Tensor:
        tokens = torch.randint(1, len(self.by_token), (n, length), generator=torch.Generator().manual_seed(seed))
        tokens[:, 0] = 0
        return tokens

    def activation(self, feature: int, tokens: Tensor, *, without: int | None = None) -> Tensor:
        """f_feature at every position, `[batch, pos]`, written out plainly; `without` a feature that is zero."""
        if feature == without:
            return torch.zeros(tokens.shape)
        if feature < 4:
            return self.by_token[tokens][..., feature]
        total = torch.zeros(tokens.shape)
        for weights, shift in ((self.WEIGHTS, 0), (self.MOVES, 1)):
            for to, of, weight in (edge for layer in weights for edge in layer):
                if to == feature:
                    cause = self.activation(of, tokens, without=without)
                    total[:, shift:] += weight * cause[:, : cause.shape[1] - shift]
        return total

    def effect(self, cause: int, target: int, tokens: Tensor, end: Tensor) -> float:
        """(sum a_clean - sum a_ablated) / sum a_clean at the examples' ends."""
        rows = torch.arange(len(tokens))
        clean, ablated = (self.activation(target, tokens, without=w)[rows, end].sum() for w in (None, cause))
        return float((clean - ablated) / clean)


def feature(number: int) -> FeatureId:
    """The name of a feature of `Circuit`."""
    layer = next(i for i, features in enumerate(Circuit.FEATURES) if number in features)
    return FeatureId(Site(layer), Circuit.FEATURES[layer].index(number))


def number(name: FeatureId) -> int:
    """The number of a feature of `Circuit`; the inverse of `feature`."""
    return Circuit.FEATURES[name.site.layer][name.index]


class Clean:
    """A dictionary whose codes are zero where they are only rounding, and on outliers."""

    outlier_norm = math.inf

    def __init__(self, basis: Basis):
        self.basis, self.directions, self.decode = basis, basis.directions, basis.decode

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return self.codes(x) * (x.norm(dim=-1, keepdim=True) <= self.outlier_norm)

    def codes(self, x: torch.Tensor) -> torch.Tensor:
        f = self.basis.encode(x)
        return f * (f.abs() > 1e-5)
