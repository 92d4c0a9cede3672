"""Text as contexts of equal length (`sae_core/data/packing.py`), read little further than it takes.

No document is trained on and measured on. Which documents are held out is a matter of their content alone: a tenth of
them, by a hash. So equal documents fall on one side, and what one run holds out no other trains on, whatever its seed,
its context or how much it reads; but for plain text, which is cut into documents by the context, and for very few
documents.
"""

import hashlib
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from jaxtyping import Int
from torch import Tensor

from sae_core import checks
from sae_core.data.documents import PIECE, documents
from sae_core.data.file_kinds import Conversation, Document
from sae_core.data.packing import Packer
from sae_core.data.reading import ModelAsRead, as_chat, padding_of, plain, token_id
from sae_core.digest import digest
from sae_core.errors import UserError
from sae_core.files import user_path
from sae_core.model.language_model import LanguageModel
from sae_core.room import check_memory

HELD_SHARE, MOST_HELD = 0.1, 256
"""Of documents, and of contexts."""
AT_ONCE = 2**14
"""Characters, or token ids, of the documents that are tokenised together."""
PASSAGE = 32
"""Characters of a plain text that count as one document, for each token of a context: some eight contexts."""


@dataclass(frozen=True, eq=False)
class Contexts:
    """The contexts of a text in a model's tokens."""

    training: Int[Tensor, "contexts pos"]
    held_out: Int[Tensor, "held pos"]
    """Never trained on. They are those of training, where the text has but one context."""
    note: str = ""
    """What a reader should know of them."""
    by_document: bool = False
    """Whether no document lies in both parts."""

    @cached_property
    def digest(self) -> str:
        """By this the text is known again."""
        return digest(self.held_out, self.training)

    @cached_property
    def all(self) -> Int[Tensor, "every pos"]:
        """Those held out, then those of training."""
        single = self.training.data_ptr() == self.held_out.data_ptr()
        return self.training if single else torch.cat([self.held_out, self.training])

    @property
    def training_apart(self) -> Int[Tensor, "contexts pos"]:
        """Those of training without the first where one that is held out may run on into it, a document being cut."""
        return self.training[0 if self.by_document or len(self.training) < 2 else 1 :]

    def apart(self, n: int, n_other: int) -> tuple[Int[Tensor, "n pos"], Int[Tensor, "other pos"]]:
        """(`n` contexts, `n_other` further ones): from training and held out, so that they share no document.

        Where too few are held out, the last ones of training fill up: a document would have to run through all that lie
        between. Where documents were not held out whole, neighbours of one order; fewer where there are fewer.
        """
        if self.by_document:
            rest, kept = self.training[n:], self.held_out[:n_other]
            return self.training[:n], torch.cat([kept, rest[max(0, len(rest) - n_other + len(kept)) :]])
        return self.all[:n], self.all[n : n + n_other]


@dataclass(frozen=True)
class Text:
    """Which text, and how it is cut; enough to read the same contexts again."""

    source: str
    """`storybook`, a file or a folder (kept as an absolute path), or a Hugging Face dataset.

    A dataset that comes in several configurations reads `name:configuration`.
    """
    n_ctx: int
    """Tokens per context, BOS included."""
    prepend_bos: bool | str
    """The token that every piece begins with, False for none; True for the model's own, whatever that is."""
    max_tokens: int = 2_000_000
    """At most this many tokens are read."""
    column: str = "text"
    """Where in a row the text is, or its token ids."""
    seed: int | None = None
    """Of the order of documents, which are held out whole. None, as in sets that were made before there was a seed and
    for the storybook: documents as they come, and the first tenth of the contexts held out."""
    exclude: Sequence[str] = ()
    """Tokens that are left out of training and measuring, as special ones are; contexts hold them all the same."""

    chat: bool = False
    """Whether documents are conversations, written by the model's chat template; a text is what the user says."""

    pack: bool = True
    """Whether a context is filled up with further documents; else with padding, where a causal model cannot look."""

    digest: str = field(default="", compare=False)
    """That of its contexts when it was first read: another text is then refused. Empty where nobody has looked."""

    def __post_init__(self):
        path = user_path(self.source)
        object.__setattr__(self, "source", str(self.source))
        if self.source != "storybook" and path.exists():
            object.__setattr__(self, "source", str(path.resolve()))
        checks.whole("the tokens of a context", self.n_ctx, 1)
        checks.whole("the number of tokens", self.max_tokens, 1, checks.TOKENS)
        if isinstance(self.exclude, str):
            raise UserError(f"tokens to leave out are a list, not the text {self.exclude!r}")
        object.__setattr__(self, "exclude", tuple(self.exclude))
        if self.source == "storybook":  # its documents are drawn at random
            object.__setattr__(self, "seed", None)

    def at(self, source: str | None) -> "Text":
        """The text of another `source`, cut in the same way, its documents shuffled; this one where there is none.

        What is named is read as it is now, whatever its digest was.
        """
        other = replace(self, source=source or self.source, digest="" if source else self.digest)
        return other if other.source == self.source else replace(other, seed=self.seed or 0)

    def shares(self, other: "Text") -> bool:
        """Whether two texts hold the same contexts out, as far as each is read: their amounts and seeds may differ."""
        by_document = self.seed is not None and other.seed is not None
        seed = other.seed if by_document else self.seed
        has_bos = self.prepend_bos is True or other.prepend_bos is True  # of one model: it has one
        bos = other.prepend_bos if has_bos and self.prepend_bos and other.prepend_bos else self.prepend_bos
        return replace(self, max_tokens=other.max_tokens, seed=seed, prepend_bos=bos) == other

    def contexts(self, model: LanguageModel) -> Int[Tensor, "contexts pos"]:
        """All contexts of this text in `model`'s tokens; raises `UserError` where there is not even one."""
        return self.read(model).all

    def read(self, model: LanguageModel) -> Contexts:
        """The contexts of this text in `model`'s tokens, in two parts; raises `UserError` where there is none."""
        if self.n_ctx > model.n_ctx:
            raise UserError(f"a context of {self.n_ctx} tokens does not fit {model.name}, which reads {model.n_ctx}")
        if self.n_ctx <= len(self.bos(model)):
            raise UserError(f"a context of {self.n_ctx} tokens has no room for text; give a larger --context")
        if self.source == "storybook":  # which has no end
            check_memory(8 * self.max_tokens, torch.device("cpu"), "the text", "read fewer --tokens, or --text-tokens")
        contexts = self._in_order(model) if self.seed is None else self._by_document(model)
        if self.digest and contexts.digest != self.digest:
            raise UserError(
                f"{self.source} holds another text than the dictionaries were made with; bring that back, or name it "
                f"with --text {self.source} to have it read as it is"
            )
        return contexts

    def bos(self, model: LanguageModel) -> list[int]:
        """What every piece of a document begins with: one token or none."""
        if not self.prepend_bos:
            return []
        if isinstance(self.prepend_bos, str):
            return [token_id(model, self.prepend_bos)]
        bos_id = plain(model).bos_id
        if bos_id is None and self.seed is None:  # what the first version took for one
            bos_id = model.tokenizer.eos_token_id
        return [] if bos_id is None else [bos_id]

    def bos_text(self, model: LanguageModel) -> str:
        """What every piece of a document begins with, as the model's vocabulary spells it; or none."""
        return next(iter(model.tokenizer.convert_ids_to_tokens(self.bos(model))), "none")

    def read_by(self, model: LanguageModel) -> LanguageModel:
        """`model` with the BOS of this text, and without the tokens that it leaves out: what it is measured with."""
        model, bos = plain(model), self.bos(model)
        beside = {*bos, *(token_id(model, token) for token in self.exclude)} - model.special_ids
        bos_id = bos[0] if bos else model.bos_id
        return ModelAsRead(model, bos_id, frozenset(beside)) if beside or bos_id != model.bos_id else model

    def _packer(self, model: LanguageModel) -> Packer:
        return Packer(self.n_ctx, self.bos(model), None if self.pack else padding_of(model))

    def _in_order(self, model: LanguageModel, note: str = "") -> Contexts:
        """The first tenth of the contexts is held out."""
        rows, n_tokens, limit = self._packer(model), 0, max(1, self.max_tokens // self.n_ctx)
        for ids in self._tokenised(model):
            n_tokens += len(ids)
            rows.add(ids)
            if len(rows) >= limit:
                break
        if not len(rows):
            raise UserError(
                f"{self.source} holds {n_tokens} tokens, fewer than one context of {self.n_ctx}; "
                "give more text or a smaller --context"
            )
        return Contexts(*held_out(rows.contexts(limit)), note)

    def _by_document(self, model: LanguageModel) -> Contexts:
        """Documents are held out whole: those whose hash lies in the lowest tenth.

        Of few documents the lowest hashes of all that fill a context; a single one is not held out whole.
        """
        limit = self.max_tokens // self.n_ctx
        most = min(MOST_HELD, limit // 10 or 1)
        training, held = self._packer(model), self._packer(model)
        for ids in self._tokenised(model):
            (held if share_of(ids) < HELD_SHARE else training).add(ids)
            if len(training) + min(len(held), most) >= limit:
                break
        if not (len(training) and len(held)):
            training, held = self._of_few_documents(model, limit)
        if limit < 2 or not (len(training) and len(held)):
            return self._in_order(model, "so little text that no document could be held out whole")
        kept = held.contexts(most)
        return Contexts(training.contexts(limit - len(kept)), kept, by_document=True)

    def _of_few_documents(self, model: LanguageModel, limit: int) -> tuple[Packer, Packer]:
        """(Training, held out): as few documents are held out as fill one context."""
        read, n_tokens = [], 0
        for ids in self._tokenised(model):
            read.append((share_of(ids), ids))
            n_tokens += len(ids)
            if n_tokens >= limit * self.n_ctx:
                break
        shares = sorted({share for share, _ in read})

        def split(n: int) -> tuple[Packer, Packer]:
            training, held = self._packer(model), self._packer(model)
            for share, ids in read:
                (held if share < shares[n] else training).add(ids)
            return training, held

        fewest = bisect_left(range(1, len(shares)), 1, key=lambda n: len(split(n)[1]))
        return split(min(fewest + 1, len(shares) - 1))

    def _tokenised(self, model: LanguageModel) -> Iterator[list[int]]:
        """The token ids of each document; but for sets from before there were seeds, without a BOS of its own."""
        bos, piece = self.bos(model), PIECE if self.seed is None else PASSAGE * self.n_ctx
        source = documents(self.source, self.column, piece=piece, seed=self.seed)
        for read in _batches(source):
            for ids in self._ids(read, model):
                if self.seed is not None and ids[: len(bos)] == bos:
                    ids = ids[len(bos) :]
                if ids:
                    yield ids

    def _ids(self, read: Sequence[Document], model: LanguageModel) -> Iterator[list[int]]:
        """The token ids of documents, each alone; texts go through the tokenizer together."""
        texts = [text for document in read if (text := self._written(document, model)) is not None]
        tokenised = iter(model.all_ids(texts))
        for document in read:
            yield self._checked(document, model) if isinstance(document, list) else next(tokenised)

    def _written(self, document: Document, model: LanguageModel) -> str | None:
        """A document as text; None where it is one of token ids."""
        if isinstance(document, list):
            return None
        if self.chat:
            document = as_chat(model, document if isinstance(document, str) else document.turns)
        if not isinstance(document, str):
            raise UserError(f"{self.source} holds conversations; --chat writes them by the model's chat template")
        return document

    def _checked(self, ids: list[int], model: LanguageModel) -> list[int]:
        if self.chat:
            raise UserError(f"{self.source} holds token ids, of which no chat template is written; leave --chat out")
        if not 0 <= min(ids) <= max(ids) < model.n_vocab:
            raise UserError(
                f"{self.source} holds the token id {max(ids) if min(ids) >= 0 else min(ids)}, but {model.name} has "
                f"{model.n_vocab} tokens; it was tokenised for another model"
            )
        return ids


def share_of(ids: list[int]) -> float:
    """A document's place in [0, 1): a hash of its tokens, by which documents are held out."""
    return int.from_bytes(hashlib.blake2b(array("q", ids), digest_size=7).digest(), "little") / 2**56


def held_out(contexts: Int[Tensor, "contexts pos"]) -> tuple[Tensor, Tensor]:
    """(training contexts, held-out contexts): the first tenth, at most 256; a single context serves for both."""
    n = min(MOST_HELD, max(1, len(contexts) // 10)) if len(contexts) > 1 else 0
    return contexts[n:], contexts[:n] if n else contexts[n:]


def _batches(source: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents that are tokenised together; a conversation alone or behind others."""
    batch, size = [], 0
    for document in source:
        batch.append(document)
        size += AT_ONCE if isinstance(document, Conversation) else len(document)
        if size >= AT_ONCE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
