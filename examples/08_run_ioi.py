"""Which features carry the indirect object: `python examples/08_run_ioi.py [SET]`.

In "When Mary and John went to the store, John gave a drink to" the next word is Mary. In the corrupted prompt the two
swap roles. Features are given their values of the clean run, x' = x + sum_j (c_j - f_j(x)) d_j, those first that matter
most on *other* prompts; how far the prediction still is from the clean one is drawn against their number (Cunningham et
al. 2023).
"""

import sys

import subrank as sr

saes = sr.load(sys.argv[1] if len(sys.argv) > 1 else "example_set")
model = sr.load_model("storybook")

# The site is named here; by default it is chosen on prompts of its own. PCA stands beside; by default others do, too.
fewer = {"site": "resid_post.3", "corruption": "swap", "prompts": 24, "contexts": 64, "baselines": "pca"}
result = sr.ioi(model, saes, selectors=("attribution", "random"), **fewer)
print(result)

# Divergence from the clean prediction, against the number of patched directions and against the size of the edit.
result.plot()

# Sixty-four features of 512 close most of the gap; as many in random order do not.
first = result.results[0]
curves = {(curve.name, curve.selection): curve for curve in first.curves}


def kl(name: str, how: str, n: int) -> float:
    """KL to the clean prediction, in nats, after `n` directions."""
    return next(point.kl.value for point in curves[name, how].points if point.n_features == n)


before, features = (kl("dictionary", "attribution", n) for n in (0, 64))
by_chance = kl("dictionary", "random", 64)
print(f"KL {before:.2f} before, {features:.2f} after 64 features, {by_chance:.2f} after 64 at random")
assert features < 0.5 * before and features < by_chance
