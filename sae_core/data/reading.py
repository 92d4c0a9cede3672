"""A language model as a text reads it: what contexts begin with, and which tokens are left out."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from sae_core.errors import UserError, did_you_mean
from sae_core.model.language_model import LanguageModel


class ModelAsRead(LanguageModel):
    """`plain` with a text's BOS in place of its own, and with tokens that are left out as special ones are."""

    def __init__(self, plain: LanguageModel, bos_id: int | None, left_out: frozenset[int]):
        self.__dict__.update(vars(plain))
        self.plain, self.bos_id, self.left_out = plain, bos_id, left_out

    def content(self, tokens: Int[Tensor, "*batch"]) -> Tensor:
        """Boolean mask of the tokens that are neither special nor left out."""
        left_out = torch.tensor(sorted(self.left_out), dtype=tokens.dtype, device=tokens.device)
        return self.plain.content(tokens) & ~torch.isin(tokens, left_out)


def plain(model: LanguageModel) -> LanguageModel:
    """The model itself, by its own conventions."""
    return model.plain if isinstance(model, ModelAsRead) else model


def left_out(model: LanguageModel) -> frozenset[int]:
    """The tokens that are left out, besides special ones."""
    return model.left_out if isinstance(model, ModelAsRead) else frozenset()


def token_id(model: LanguageModel, token: str) -> int:
    """The id of a token: as the vocabulary spells it, or a text that is one token; `UserError` for any other text."""
    vocabulary = model.tokenizer.get_vocab()
    if token in vocabulary:
        return vocabulary[token]
    ids = model.to_ids(token)
    if len(ids) != 1:
        near = did_you_mean(token, model.tokenizer.all_special_tokens)
        raise UserError(f"{token!r} is not one token of {model.name} but {len(ids)}{near}; give one at a time")
    return ids[0]


def padding_of(model: LanguageModel) -> int:
    """A special token that fills up contexts; raises `UserError` where the model has none."""
    tokenizer = model.tokenizer
    ends = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id)
    special = [token for token in ends if token in model.special_ids]
    if not special:
        raise UserError(f"{model.name} has no token to fill contexts up with; leave --no-pack out")
    return special[0]


def as_chat(model: LanguageModel, said: str | Sequence[Mapping[str, str]], *, reply: bool = False) -> str:
    """What was said, by the model's chat template; a text alone is the user's turn, a `reply` is begun for the model.

    Raises `UserError` where the model has no template, or one that cannot take these turns.
    """
    if not model.tokenizer.chat_template:
        raise UserError(f"{model.name} has no chat template: it is no instruct model; leave --chat out")
    turns = [{"role": "user", "content": said}] if isinstance(said, str) else list(said)
    try:
        return model.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=reply)
    except Exception as error:  # whatever a template raises
        raise UserError(f"the chat template of {model.name} does not take {turns!r:.80}: {error}") from error


def bos_of(model: LanguageModel, name: str | None) -> bool | str:
    """What texts begin with, as `Text` keeps it: the token `name`, by default the model's own, False for `none`.

    Raises `UserError` for what is not one token.
    """
    model = plain(model)
    if name is None and model.bos_id is not None:
        return model.tokenizer.convert_ids_to_tokens([model.bos_id])[0]
    if name is None or name == "none":
        return False
    token_id(model, name)
    return name
