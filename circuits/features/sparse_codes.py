"""The codes of contexts as they are kept: the entries that are not zero, and what is summed over a context.

Of a TopK dictionary they take 8 k bytes a token, where dense ones take 4 n_latents.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_core.dictionaries.dictionary import Dictionary
from sae_core.outliers import inliers, outlier_norm_of
from sae_core.sites import Site


@dataclass(frozen=True, eq=False)
class Entries:
    """Numbers with a key, any number to a context."""

    n: Int[Tensor, "contexts"]
    """How many each context has."""
    key: Int[Tensor, "entries"]
    """By context, rising within each."""
    value: Float[Tensor, "entries"]

    @classmethod
    def of(cls, dense: Float[Tensor, "contexts keys"]) -> "Entries":
        """The entries that are not zero, on the CPU."""
        context, key = dense.nonzero(as_tuple=True)
        n = torch.bincount(context, minlength=len(dense))
        narrow = torch.int32 if dense.shape[1] < 2**31 else torch.int64
        return cls(n.cpu(), key.to(narrow).cpu(), dense[context, key].cpu())

    @cached_property
    def _ends(self) -> list[int]:
        return [0, *self.n.cumsum(0).tolist()]

    def at(self, context: int) -> tuple[Tensor, Tensor]:
        """The keys and values of one context."""
        place = slice(self._ends[context], self._ends[context + 1])
        return self.key[place], self.value[place]


@dataclass(frozen=True, eq=False)
class SiteCodes:
    """What one dictionary makes of contexts. Outliers (`sae_core/outliers.py`) and special tokens have no codes."""

    codes: Entries
    """By position * n_latents + latent."""
    beyond: Entries
    """By latent, sums over a context's outliers of |code|, of the codes that they would have."""
    n_inliers: Int[Tensor, "contexts"]
    """Content tokens that are no outliers."""
    total: Float[Tensor, "contexts d_in"]
    """Sum of their activations."""
    square: Float[Tensor, "contexts"]
    """Sum of their squared norms."""

    @classmethod
    def of(
        cls, dictionary: Dictionary, x: Float[Tensor, "contexts pos d_in"], content: Bool[Tensor, "contexts pos"]
    ) -> "SiteCodes":
        """The codes of activations at the dictionary's site."""
        kept = content & inliers(x, outlier_norm_of(dictionary))
        wide = torch.where(kept[..., None], x, torch.zeros_like(x)).double()
        f = dictionary.encode(x) * content[..., None]
        return cls(
            Entries.of(f.flatten(1)),
            Entries.of(_beyond(dictionary, x, content & ~kept)),
            kept.sum(1).cpu(),
            wide.sum(1).cpu(),
            wide.square().sum((1, 2)).cpu(),
        )

    @classmethod
    def joined(cls, parts: Sequence["SiteCodes"]) -> "SiteCodes":
        """Those of several pieces of text, one after the other."""
        return cls.from_tensors({name: torch.cat([part.tensors()[name] for part in parts]) for name in _NAMES})

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name; `from_tensors` is the inverse."""
        parts = {"codes": self.codes, "beyond": self.beyond, "": self}
        return {name: getattr(parts[name.rpartition(".")[0]], name.rpartition(".")[2]) for name in _NAMES}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "SiteCodes":
        """The codes that `tensors` gave; raises `KeyError` where one is missing."""
        codes, beyond = (
            Entries(*(tensors[f"{name}.{each.name}"] for each in fields(Entries))) for name in ("codes", "beyond")
        )
        return cls(codes, beyond, tensors["n_inliers"], tensors["total"], tensors["square"])


_NAMES = (
    *(f"{name}.{each.name}" for name in ("codes", "beyond") for each in fields(Entries)),
    *("n_inliers", "total", "square"),
)


def _beyond(
    dictionary: Dictionary, x: Float[Tensor, "contexts pos d_in"], outliers: Bool[Tensor, "contexts pos"]
) -> Float[Tensor, "contexts n_latents"]:
    sums = x.new_zeros(len(x), len(dictionary.directions), dtype=torch.float64)
    if outliers.any():
        plain = getattr(dictionary, "codes", dictionary.encode)
        sums.index_add_(0, outliers.nonzero()[:, 0], plain(x[outliers]).abs().double())
    return sums


@dataclass(frozen=True, eq=False)
class CodedContexts:
    """Contexts with the codes of every dictionary of a set."""

    tokens: Int[Tensor, "contexts pos"]
    final: Float[Tensor, "contexts d_model"]
    """Sums over content of the residual after the last block; NaN for a context that was not read so far."""
    sites: dict[Site, SiteCodes]

    @property
    def n_bytes(self) -> int:
        """What they take in memory, and on disk."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    @classmethod
    def joined(cls, parts: Sequence["CodedContexts"]) -> "CodedContexts":
        """Several pieces of text, one after the other."""
        sites = {site: SiteCodes.joined([part.sites[site] for part in parts]) for site in parts[0].sites}
        return cls(torch.cat([part.tokens for part in parts]), torch.cat([part.final for part in parts]), sites)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name; `from_tensors` is the inverse."""
        named = {f"{site}/{name}": x for site, codes in self.sites.items() for name, x in codes.tensors().items()}
        return {"tokens": self.tokens, "final": self.final} | named

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], widths: Mapping[Site, int]) -> "CodedContexts":
        """The contexts that `tensors` gave, of dictionaries with so many latents.

        Raises `LookupError` or `ValueError` for anything else.
        """
        sites = {site: SiteCodes.from_tensors({name: tensors[f"{site}/{name}"] for name in _NAMES}) for site in widths}
        contexts = cls(tensors["tokens"], tensors["final"], sites)
        n, length = contexts.tokens.shape
        for site, codes in sites.items():
            for entries, keys in ((codes.codes, length * widths[site]), (codes.beyond, widths[site])):
                n_entries = len(entries.key)
                sound = len(entries.n) == n and int(entries.n.sum()) == n_entries == len(entries.value)
                if not sound or (n_entries and not 0 <= int(entries.key.min()) <= int(entries.key.max()) < keys):
                    raise ValueError(f"the codes of {site} do not fit its contexts")
            if not len(codes.n_inliers) == len(codes.total) == len(codes.square) == len(contexts.final) == n:
                raise ValueError(f"the sums of {site} do not fit its contexts")
        return contexts
