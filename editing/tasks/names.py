"""First names with the pronoun that English text uses for them, and which of them a model can use."""

from collections.abc import Sequence

from sae_core.models import LanguageModel

FEMALE = (
    "Mary Anna Alice Emma Lucy Sarah Jane Kate Laura Julia Maria Sophie Amy Rachel Helen Ruth Diana Grace "
    "Nina Clara Susan Molly Lily Sue Mia Lisa Eva Rosa Nora Ella Betty Carol Emily Linda Martha Olivia "
    "Fiona Paula Tina Vera"
).split()
MALE = (
    "John Tom James Paul Peter Mark David Robert Jack Simon Daniel Henry Adam Luke Oliver Victor Ben Max "
    "Frank George Martin Alan Oscar Leo Tim Sam Bob Bill Fred Joe Timmy Andrew Brian Charles Kevin Michael "
    "Edward Jacob Louis Walter"
).split()


def known(model: LanguageModel, text: str) -> bool:
    """Whether every word of `text` has a token in the model's vocabulary."""
    return model.tokenizer.unk_token_id in (model.tokenizer.eos_token_id, None) or (
        model.tokenizer.unk_token_id not in model.to_ids(text)
    )


def single_token(model: LanguageModel, names: Sequence[str]) -> list[str]:
    """Those names that are one token inside a sentence."""
    return [name for name in names if known(model, name) and len(model.continuation_ids("Then", f" {name}")) == 1]
