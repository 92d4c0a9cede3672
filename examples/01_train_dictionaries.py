"""A dictionary for every layer, in one pass over the text: `python examples/01_train_dictionaries.py [OUT [SEED]]`."""

import sys

import subrank as sr

out = sys.argv[1] if len(sys.argv) > 1 else "example_set"
seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0

model = sr.load_model("storybook")
saes = sr.train(model, "storybook", tokens=60_000, seed=seed)
saes.save(out)

assert saes.quality is not None  # measured on text that was held out
print(*saes.quality.lines(), sep="\n")
assert all(quality.fvu < 0.3 for quality in saes.quality.quality.values()), "16 features a token explain 7 tenths"
assert all(cost.recovered > 0.7 for cost in saes.quality.cost.values()), "and the model predicts nearly as before"
