"""A dictionary for every layer, in one pass over the text: `python examples/01_train_dictionaries.py [OUT [SEED]]`.

A dictionary writes each activation as a sum of few directions out of many: x is about b + sum_j f_j(x) d_j. The model
reads the text once, and the dictionaries of all its layers learn from what it computes there.
"""

import sys

import subrank as sr

out = sys.argv[1] if len(sys.argv) > 1 else "example_set"
seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0

# `storybook` names both a small model that comes with the package and the text of the grammar that it learned from.
# A model may as well be a name on the hub or a folder, a text a file or a data set. Sixty thousand tokens are few:
# enough to see features, and done in seconds.
model = sr.load_model("storybook")
saes = sr.train(model, "storybook", tokens=60_000, seed=seed)
saes.save(out)

# How good they are is measured on text that was held out. *FVU* is the share of the variance that is left unexplained,
# *L0* how many features are active on a token, *loss recovered* how well the model still predicts when it has to go on
# from the reconstruction.
assert saes.quality is not None  # measured on text that was held out
print(*saes.quality.lines(), sep="\n")

# `sr.evaluate` measures more, and draws it.
evaluation = sr.evaluate(model, saes, contexts=16, spliced=4)
evaluation.plot()

# Sixteen of 512 features a token carry most of what there is:
assert all(quality.fvu < 0.3 for quality in saes.quality.quality.values()), "16 features a token explain 7 tenths"
assert all(cost.recovered > 0.7 for cost in saes.quality.cost.values()), "and the model predicts nearly as before"
