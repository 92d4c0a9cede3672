"""A dictionary for every layer, in one pass over the text: `python examples/01_train_dictionaries.py [OUT [SEED]]`."""

import sys
from pathlib import Path

from sae_core.data.activations import ActivationStream
from sae_core.data.text import Text, held_out
from sae_core.evaluation.reconstruction import quality
from sae_core.model.language_model import load_model
from sae_core.storage import DictionarySet
from sae_core.training.config import TrainConfig
from sae_core.training.loop import start, train
from sae_core.training.topk_recipes import TopK

out = Path(sys.argv[1] if len(sys.argv) > 1 else "example_set")
seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
model = load_model("storybook")
text = Text("storybook", n_ctx=128, prepend_bos=True, max_tokens=60_000)
training, measuring = held_out(text.contexts(model))

config = TrainConfig(TopK(k=16), tokens=50_000, batch=512, lr=3e-3, seed=seed)
stream = ActivationStream(model, training, tuple(model.sites()), config.seed, config.batch)
state = start(stream, config)
for step in train(stream, state):
    if step.step % 50 == 0:  # another logger, such as wandb, goes here: wandb.log(...) of the same numbers
        (numbers,) = step.numbers()
        print(step.step, {str(site): round(row["fvu"], 3) for site, row in numbers.items()})

dictionaries = state.dictionaries()
DictionarySet(model.name, model.fingerprint(), text, dictionaries, config).save(out)
found = quality(model, dictionaries, measuring)
for site, own in found.items():
    print(f"{site}: FVU {own.fvu:.3f}, L0 {own.l0:.0f}, dead {own.dead:.1%}")
assert all(own.fvu < 0.2 for own in found.values()), "sixteen features a token explain four fifths of every layer"
