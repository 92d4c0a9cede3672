"""Several kinds of dictionary from one pass of the model: `python examples/05_train_a_sweep.py [OUT [SEED]]`."""

import sys

from sae_core.data.activations import ActivationStream
from sae_core.data.text import Text, held_out
from sae_core.evaluation.reconstruction import quality
from sae_core.model.language_model import load_model
from sae_core.sites import Site
from sae_core.training.config import TrainConfig
from sae_core.training.loop import start, train
from sae_core.training.run import calibrate_thresholds
from sae_core.training.topk_recipes import BatchTopK, Matryoshka, TopK

seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
model, site = load_model("storybook"), Site(2)
training, measuring = held_out(Text("storybook", 128, True, max_tokens=60_000).contexts(model))

recipes = [TopK(k=8), TopK(k=16), TopK(k=32), BatchTopK(k=16), Matryoshka(k=16)]
configs = [TrainConfig(recipe, tokens=60_000, batch=512, lr=3e-3, seed=seed) for recipe in recipes]
stream = ActivationStream(model, training, (site,), seed=seed, batch=512)
state = start(stream, *configs)  # one stream of activations feeds all members
for _ in train(stream, state):
    pass

found = {}
for member in state.members:
    dictionaries = member.dictionaries()
    calibrate_thresholds(member.config, dictionaries, model, training[:64])  # BatchTopK and Matryoshka: L0 = k
    found[member.name] = own = quality(model, dictionaries, measuring)[site]
    print(f"{member.name:32s} FVU {own.fvu:.3f}, L0 {own.l0:.1f}, dead {own.dead:.1%}")

by_k = [own.fvu for name, own in found.items() if name.startswith("topk")]
assert by_k == sorted(by_k, reverse=True), "more active latents explain more"
