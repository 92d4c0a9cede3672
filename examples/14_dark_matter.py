"""What a dictionary leaves unexplained: `python examples/14_dark_matter.py [SET]`.

The error e = x - x_hat is no noise: much of it can be predicted from x by a linear map (Engels et al. 2024). How much,
beside controls; and whether the rest is what costs the model's predictions.
"""

import sys

import subrank as sr

saes = sr.load(sys.argv[1] if len(sys.argv) > 1 else "example_set")
model = sr.load_model("storybook")

result = sr.dark_matter(model, saes, site="resid_post.3", quick=True)
print(result)

# The error, taken apart: what is predicted from x, from other things that might explain it, and what is left.
result.plot()

# A linear map from x predicts the error; one from activations of other tokens does not.
(errors,) = result.errors
from_x, from_another = errors.r2("error", "x"), errors.r2("error", "x of another token")
print(f"R² of the error from x {from_x.value:.2f}, from x of another token {from_another.value:.2f}")
assert from_x.low > from_another.high
