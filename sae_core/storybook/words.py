"""The words and sentences of `storybook`, from `words.json`; `grammar.py` says how they are used.

A sentence is a string of tokens separated by spaces. `{A}` is a person (drawn where first named, the
same one afterwards), `{A.he}` that person's pronoun, `{A:giver}` the person in that role, `{gift/A}`
a thing that A receives, and any other `{class}` a word drawn uniformly from the class of that name.

In `gifts` and `thanks` G gives and R receives; the grammar writes them for both readings, (A, B) and (B, A). In
`partings` three people meet and one leaves, so that one recipient remains; `openings` go on with the gift in the same
sentence; `fillers` tell nothing about it. The `unseen_` sentences are kept from training; every word in them stands in
others. German nouns have a class for each gender, so that the article predicts the noun.
"""

import json
from pathlib import Path

_DATA = json.loads(Path(__file__).with_name("words.json").read_text(encoding="utf-8"))
FEMALE, MALE = (tuple(_DATA[key].split()) for key in ("female", "male"))
CLASSES = {name: tuple(words.split()) for name, words in _DATA["classes"].items()}
UNARY, BINARY, STRINGS = (tuple(_DATA["code"][key].split()) for key in ("unary", "binary", "strings"))
SENTENCES: dict[str, tuple[str, ...]] = {name: tuple(texts) for name, texts in _DATA["sentences"].items()}
