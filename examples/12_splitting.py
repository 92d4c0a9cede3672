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

# After so little training no direction is found twice: by cosine nothing is kept. By activity the families are there,
# and when tokens are shuffled they are not.
(step,) = result.steps
split, by_chance = step.split_together, step.split_together_by_chance
print(f"several children by activity: {split.value:.0%} of the features, by chance {by_chance.value:.0%}")
assert split.low > by_chance.high
