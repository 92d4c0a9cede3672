"""The survey of a text: what every dictionary of a set makes of every token, read from the language model once.

All that is said of features on a text (densities, strongest contexts, token tables, single activations) follows from
its codes. So they are kept, by context: whoever asks for a context that was read before, in this process or by another
verb, causes no pass of the model and no encoding. Passes stop at the highest site of the set. The mean residual after
the last block is that of all contexts where a site of the set is that residual, and else of every eighth context, by a
hash of its tokens, for which alone the blocks above the highest site are run.
"""

import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.features.reading import DEFAULT_CHUNKS, Chunks, Piece
from circuits.features.sparse_codes import CodedContexts, SiteCodes
from circuits.features.survey_files import SurveyFolder
from sae_core.data.reading import left_out
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.digest import digest
from sae_core.errors import UserError
from sae_core.model.fingerprint import weights_digest
from sae_core.model.language_model import LanguageModel
from sae_core.progress import OnProgress, Stages, silent
from sae_core.sites import FeatureId, Site

log = logging.getLogger(__name__)
VERSION = 2
KEPT_BYTES = 2**30
"""What a survey keeps at most; contexts beyond are read anew each time."""
WRITTEN_EVERY = 60.0
"""Seconds after which what was read is written down."""
_SAMPLED, _FEWEST = 8, 16
"""Of so many contexts one is read to the last block; or the first few of a text, where that leaves fewer."""


class Survey:
    """The codes of a set's dictionaries on contexts, each context read once; in `folder`, where there is one."""

    def __init__(
        self,
        model: LanguageModel,
        dictionaries: Mapping[Site, Dictionary],
        folder: Path | None = None,
        *,
        kept_bytes: int = KEPT_BYTES,
        written_every: float = WRITTEN_EVERY,
    ):
        self.model, self.dictionaries = model, dict(sorted(dictionaries.items()))
        self._kept_bytes, self._written_every = kept_bytes, written_every
        self._places: dict[bytes, tuple[CodedContexts, int]] = {}
        """Where each context is, by the hash of its tokens."""
        self._ends: dict[bytes, Tensor] = {}
        """Of some, the sum of their residuals after the last block."""
        self._unwritten: list[CodedContexts] = []
        self._n_bytes, self._written_at, self._is_full = 0, time.monotonic(), False
        self._folder = None
        if folder is not None:
            widths = {site: len(dictionary.directions) for site, dictionary in self.dictionaries.items()}
            self._folder = SurveyFolder(folder, card_of(model, self.dictionaries), widths)
            for contexts in self._folder.load():
                self._index(contexts)

    def n_unread(self, contexts: Int[Tensor, "contexts pos"]) -> int:
        """How many contexts of a text are not known, and cost a pass."""
        return sum(_key(row) not in self._places for row in contexts)

    @torch.no_grad()
    def read(
        self,
        contexts: Int[Tensor, "contexts pos"],
        add: Callable[[Site, Piece], None],
        *,
        sites: Iterable[Site] | None = None,
        chunks: Chunks = DEFAULT_CHUNKS,
        on_progress: OnProgress = silent,
    ) -> None:
        """Give the pieces of every one of `sites`, by default of all, to `add` in order.

        Raises `UserError` where the text holds special tokens only.
        """
        content = self.model.content(contexts)
        if not content.any():
            raise UserError("the text holds no tokens but special ones; give another text")
        wanted = [*self.dictionaries] if sites is None else sorted(sites)
        chunks = replace(chunks, contexts=self.model.at_once(chunks.contexts))
        announced = chunks.stages(len(contexts))
        stages = Stages(on_progress, len(announced))
        try:
            for number, rows in enumerate(torch.arange(len(contexts)).split(chunks.contexts)):
                if number in announced:
                    stages.begin(announced[number])
                coded = self._coded(contexts[rows], chunks)
                for site in wanted:
                    for few in torch.arange(len(rows)).split(self._at_once(site, contexts.shape[1], chunks)):
                        chosen = rows[few]
                        start, parts = int(chosen[0]), [coded[i] for i in few.tolist()]
                        add(site, self._piece(site, start, contexts[chosen], content[chosen], parts))
        finally:
            self._write()

    @torch.no_grad()
    def mean_final(
        self, contexts: Int[Tensor, "contexts pos"], *, chunks: Chunks = DEFAULT_CHUNKS
    ) -> Float[Tensor, "d_model"]:
        """Mean residual after the last block over the content of a text, or of a sample of its contexts (see above)."""
        if self._reads_to_end:
            chosen = contexts
        else:
            sampled = torch.tensor([_is_sampled(_key(row)) for row in contexts])
            few = torch.arange(len(contexts)) < _FEWEST
            chosen = contexts[sampled if int(sampled.sum()) >= _FEWEST else sampled | few]
        total = torch.zeros(self.model.d_model, dtype=torch.float64)
        for tokens in chosen.split(self.model.at_once(chunks.contexts)):
            total += self._ends_of(tokens, chunks).sum(0)
        self._write()
        return (total / self.model.content(chosen).sum()).float().to(self.model.device)

    def activations(
        self, features: list[FeatureId], contexts: Int[Tensor, "contexts pos"]
    ) -> dict[FeatureId, Float[Tensor, "contexts pos"]]:
        """The activations of a few features on a text, 0 on special tokens; 4 bytes a token and feature."""
        activation = {feature: torch.zeros(contexts.shape) for feature in features}
        for feature, (place, value) in self.entries(features, contexts).items():
            activation[feature].view(-1)[place] = value.float()
        return activation

    @torch.no_grad()
    def entries(
        self, features: Iterable[FeatureId], contexts: Int[Tensor, "contexts pos"], *, chunks: Chunks = DEFAULT_CHUNKS
    ) -> dict[FeatureId, tuple[Int[Tensor, "n"], Float[Tensor, "n"]]]:
        """Where each feature is active, as context * length + position, and how strongly."""
        parts = {feature: [(torch.zeros(0, dtype=torch.long), torch.zeros(0))] for feature in features}
        length, every = contexts.shape[1], torch.arange(len(contexts) if parts else 0)
        for rows in every.split(self.model.at_once(chunks.contexts)) if len(every) else ():
            coded = self._coded(contexts[rows], chunks)
            for site, here in groupby(sorted(parts), key=lambda feature: feature.site):
                n_latents = len(self.dictionaries[site].directions)
                key, value = _entries(site, coded, length * n_latents)
                latent, place = key % n_latents, key // n_latents + int(rows[0]) * length
                for feature in here:
                    is_it = latent == feature.index
                    parts[feature].append((place[is_it], value[is_it]))
        self._write()
        return {f: (torch.cat([p for p, _ in part]), torch.cat([v for _, v in part])) for f, part in parts.items()}

    # ---- contexts that are known ---------------------------------------------------------------

    @property
    def _reads_to_end(self) -> bool:
        return self.model.sites()[-1] in self.dictionaries

    def _coded(self, tokens: Int[Tensor, "contexts pos"], chunks: Chunks) -> list[tuple[CodedContexts, int]]:
        """Where each context's codes are; those that are not known are read, and known afterwards."""
        keys = [_key(row) for row in tokens]
        edited = self.model.edited  # what an edited model does is of no other use
        known = {} if edited else {i: self._places[key] for i, key in enumerate(keys) if key in self._places}
        missing = [i for i in range(len(keys)) if i not in known]
        if missing:
            to_end = torch.tensor([self._reads_to_end or _is_sampled(keys[i]) for i in missing])
            fresh = self._run(tokens[missing], to_end, chunks)
            known |= {i: (fresh, row) for row, i in enumerate(missing)}
            if not edited:
                self._keep(fresh)
        return [known[i] for i in range(len(keys))]

    def _ends_of(self, tokens: Int[Tensor, "contexts pos"], chunks: Chunks) -> Float[Tensor, "contexts d_model"]:
        """The sums after the last block of each context; those that are not known are read."""
        keys = [_key(row) for row in tokens]
        ends = {} if self.model.edited else {i: self._ends[key] for i, key in enumerate(keys) if key in self._ends}
        missing = [i for i in range(len(keys)) if i not in ends]
        if missing:
            fresh = self._run(tokens[missing], torch.ones(len(missing), dtype=torch.bool), chunks)
            ends |= {i: fresh.final[row] for row, i in enumerate(missing)}
            if not self.model.edited:
                self._keep(fresh)
        return torch.stack([ends[i] for i in range(len(keys))])

    def _keep(self, contexts: CodedContexts) -> None:
        if self._n_bytes + contexts.n_bytes > self._kept_bytes:
            if not self._is_full:
                log.warning(f"codes of this text beyond {self._kept_bytes / 2**30:.2g} GiB are made anew each time")
            self._is_full = True
            self._index_ends(contexts)
            return
        self._index(contexts)
        self._unwritten.append(contexts)
        if time.monotonic() - self._written_at > self._written_every:
            self._write()

    def _index(self, contexts: CodedContexts) -> None:
        self._n_bytes += contexts.n_bytes
        for row, tokens in enumerate(contexts.tokens):
            self._places.setdefault(_key(tokens), (contexts, row))
        self._index_ends(contexts)

    def _index_ends(self, contexts: CodedContexts) -> None:
        for tokens, final in zip(contexts.tokens, contexts.final, strict=True):
            if not final[0].isnan():
                self._ends[_key(tokens)] = final

    def _write(self) -> None:
        self._written_at = time.monotonic()
        if (
            self._folder is not None
            and self._unwritten
            and not self._folder.write(CodedContexts.joined(self._unwritten))
        ):
            self._folder = None
        self._unwritten = []

    # ---- contexts that are not -----------------------------------------------------------------

    def _run(
        self, tokens: Int[Tensor, "contexts pos"], to_end: Bool[Tensor, "contexts"], chunks: Chunks
    ) -> CodedContexts:
        """The codes of contexts, from one pass that ends at the highest site; a few of them to the last block."""
        model, top = self.model, max(site.layer for site in self.dictionaries)
        highest = next(site for site in model.sites() if site.layer >= top)
        recorded = model.record(tokens, {*self.dictionaries, highest})
        content = model.content(tokens).to(model.device)
        final = torch.full((len(tokens), model.d_model), math.nan, dtype=torch.float64)
        if to_end.any():
            h = recorded[highest] if to_end.all() else recorded[highest][to_end.to(model.device)]
            ends = model.final(h, highest.layer).double() * content[to_end.to(model.device)][..., None]
            final[to_end] = ends.sum(1).cpu()
        sites = {}
        for site, dictionary in self.dictionaries.items():
            few = self._at_once(site, tokens.shape[1], chunks)
            parts = zip(recorded[site].split(few), content.split(few), strict=True)
            sites[site] = SiteCodes.joined([SiteCodes.of(dictionary, x, mask) for x, mask in parts])
        return CodedContexts(tokens.cpu(), final, sites)

    def _at_once(self, site: Site, length: int, chunks: Chunks) -> int:
        """Contexts whose dense codes are in memory together."""
        return max(1, chunks.codes // (length * len(self.dictionaries[site].directions)))

    def _piece(
        self,
        site: Site,
        start: int,
        tokens: Int[Tensor, "contexts pos"],
        content: Bool[Tensor, "contexts pos"],
        coded: list[tuple[CodedContexts, int]],
    ) -> Piece:
        device, n_latents = self.model.device, len(self.dictionaries[site].directions)
        codes_and_rows = [(part.sites[site], row) for part, row in coded]
        size = tokens.shape[1] * n_latents
        key, value = (part.to(device) for part in _entries(site, coded, size))
        f = value.new_zeros(len(tokens) * size).index_copy_(0, key, value)
        beyond = torch.zeros(n_latents, dtype=torch.float64)
        for codes, row in codes_and_rows:
            latent, total = codes.beyond.at(row)
            beyond.index_add_(0, latent.long(), total)
        return Piece(
            start,
            tokens.to(device),
            content.to(device),
            f.view(*tokens.shape, n_latents),
            beyond.to(device),
            n_inliers=sum(int(codes.n_inliers[row]) for codes, row in codes_and_rows),
            total=torch.stack([codes.total[row] for codes, row in codes_and_rows]).sum(0),
            square=float(torch.stack([codes.square[row] for codes, row in codes_and_rows]).sum()),
        )


def card_of(model: LanguageModel, dictionaries: Mapping[Site, Dictionary]) -> dict[str, Any]:
    """Everything that codes depend on, besides the contexts' own tokens; the names are read by people."""
    return {
        "version": VERSION,
        "model": model.fingerprint(),
        "weights": weights_digest(model.bridge.original_model),
        "precision": str(model.dtype),
        "dictionaries": digest(dictionaries),
        "tokens left out": digest(model.special_ids | left_out(model)),
    }


def _entries(site: Site, coded: list[tuple[CodedContexts, int]], size: int) -> tuple[Tensor, Tensor]:
    """Keys and values of contexts one after the other, `size` keys to a context."""
    entries = [part.sites[site].codes.at(row) for part, row in coded]
    key = torch.cat([key.long() + number * size for number, (key, _) in enumerate(entries)])
    return key, torch.cat([value for _, value in entries])


def _key(tokens: Int[Tensor, "pos"]) -> bytes:
    return hashlib.blake2b(tokens.contiguous().cpu().numpy().tobytes(), digest_size=16).digest()


def _is_sampled(key: bytes) -> bool:
    return key[0] % _SAMPLED == 0
