"""Which features carry the indirect object: `python examples/08_run_ioi.py [SET]`.

In "When Mary and John went to the store, John gave a drink to" the next word is Mary. In the corrupted prompt another
name stands in her place. More and more features are given their values of the clean run, x' = x + sum_j (c_j - f_j(x))
d_j; how far the prediction still is from the clean one is drawn against their number (Cunningham et al. 2023).
"""

import sys

import subrank as sr

saes = sr.load(sys.argv[1] if len(sys.argv) > 1 else "example_set")
model = sr.load_model("storybook")

# The site is named here; by default it is chosen on prompts of its own. PCA stands beside; by default others do, too.
fewer = {"site": "resid_post.3", "corruption": "io", "prompts": 24, "contexts": 64, "baselines": "pca"}
result = sr.ioi(model, saes, selectors=("attribution", "random"), **fewer)
print(result)

# Divergence from the clean prediction, against the number of patched directions and against the size of the edit.
result.plot()

# Two questions are told apart: which features matter on other prompts (attribution), and which for each pair on the
# pair itself. Where the curve ends, all latents are patched; what is then left of the divergence sits in the
# dictionary's error. These dictionaries have seen 60,000 tokens, and leave much: longer training is worth it.
curves = {(curve.name, curve.selection): curve for curve in result.results[0].curves}


def kl(selection: str, n: int) -> float:
    """KL to the clean prediction, in nats, after `n` features."""
    return next(point.kl.value for point in curves["dictionary", selection].points if point.n_features == n)


before, features, at_random = kl("random", 0), kl("each pair itself", 16), kl("random", 16)
print(f"KL {before:.2f} before, {features:.2f} after each pair's 16 features, {at_random:.2f} after 16 at random")
assert features < 0.8 * before and features < at_random - 1, "few features carry much, any few carry nothing"
