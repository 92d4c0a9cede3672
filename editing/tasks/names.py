"""First names with the pronoun that English text uses for them, and which of them a model can use."""

import re
from collections.abc import Sequence

from sae_core.model.language_model import LanguageModel

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
# The 99 names of the IOI literature, in its order.
PUBLISHED = (
    "Michael Christopher Jessica Matthew Ashley Jennifer Joshua Amanda Daniel David James Robert John Joseph "
    "Andrew Ryan Brandon Jason Justin Sarah William Jonathan Stephanie Brian Nicole Nicholas Anthony Heather "
    "Eric Elizabeth Adam Megan Melissa Kevin Steven Thomas Timothy Christina Kyle Rachel Laura Lauren Amber "
    "Brittany Danielle Richard Kimberly Jeffrey Amy Crystal Michelle Tiffany Jeremy Benjamin Mark Emily Aaron "
    "Charles Rebecca Jacob Stephen Patrick Sean Erin Jamie Kelly Samantha Nathan Sara Dustin Paul Angela "
    "Tyler Scott Katherine Andrea Gregory Erica Mary Travis Lisa Kenneth Bryan Lindsey Kristen Jose Alexander "
    "Jesse Katie Lindsay Shannon Vanessa Courtney Christine Alicia Cody Allison Bradley Samuel"
).split()


def known(model: LanguageModel, text: str) -> bool:
    """Whether every word of `text` has a token in the model's vocabulary."""
    return model.tokenizer.unk_token_id in (model.tokenizer.eos_token_id, None) or (
        model.tokenizer.unk_token_id not in model.to_ids(text)
    )


def unknown_word(model: LanguageModel, text: str) -> str | None:
    """The first word of `text` that has no token in the model's vocabulary; None if all have one."""
    if known(model, text):
        return None
    return next((word for word in re.findall(r"\w+|[^\w\s]", text) if not known(model, word)), text)


def single_token(model: LanguageModel, names: Sequence[str]) -> list[str]:
    """Those names that are one token inside a sentence."""
    return [name for name in names if known(model, name) and len(model.continuation_ids("Then", f" {name}")) == 1]
