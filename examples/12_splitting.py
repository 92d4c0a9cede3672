"""What becomes of features in a larger dictionary: `python examples/12_splitting.py`.

A feature of a small dictionary is kept in a larger one, splits into several, or goes; others are new (Bricken et al.
2023). Each latent of the larger set is given a parent in the smaller one, by direction and, independently, by activity.
"""

import subrank as sr

model = sr.load_model("storybook")

# Two sizes, from different seeds: sets of one seed begin from the same directions, and keep some for that reason alone.
sizes = {"small": {"expansion": 2, "seed": 1}, "large": {"expansion": 8, "seed": 2}}
sets = {name: sr.train(model, "storybook", sites="resid_post.3", tokens=60_000, **size) for name, size in sizes.items()}

result = sr.splitting(model, sets, contexts=64)
print(result)

# Shares of features that are kept, split, gone and new, beside chance.
result.plot()

# The largest families, parents on the left.
result.plot("families")

# Direction and activity are told apart, and agree on the parent far more often than by chance.
(step,) = result.steps
print(f"same parent by direction and by activity: {step.agree.value:.0%}, by chance {step.agree_by_chance.value:.0%}")
assert step.agree.value > step.agree_by_chance.high
