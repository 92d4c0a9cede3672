"""Move single features from one prompt into another: `python examples/02_patch_one_run_into_another.py [SET]`.

Two prompts in which Mary and John swap roles. In the second run the features that differ most are given
their values of the first, x' = x + sum_j (f_j(clean) - f_j(x)) d_j, everything else staying as it is.
"""

import sys

import torch

import subrank as sr
from editing.metrics import kl_divergence

saes = sr.load(sys.argv[1] if len(sys.argv) > 1 else "example_set")
model, site = sr.load_model("storybook"), sr.Site(3)
clean, corrupted = (f"Then, Mary and John went to the store. {giver} gave a book to" for giver in ("John", "Mary"))

# Which features differ most between the two runs?
difference = (saes.encode(model, clean)[site] - saes.encode(model, corrupted)[site]).abs().amax(0)
names = [sr.FeatureId(site, int(latent)) for latent in difference.argsort(descending=True)]


# Patched features are written within `model.hooks(...)`; after the block nothing is left of it.
def next_token(text: str, patched: list[sr.FeatureId]) -> torch.Tensor:
    """Logits at the end of `text`, with features patched to their values on the clean prompt."""
    with model.hooks(*(saes.patch(model, clean, *patched) if patched else ())):
        return model.logits(saes.tokens(model, text))[0, -1]


# The more of them are patched, the nearer the prediction comes to the clean prompt's.
target = next_token(clean, [])
divergence = {n: kl_divergence(target, next_token(corrupted, names[:n])).item() for n in (0, 1, 4, 16, 64)}
for n, kl in divergence.items():
    print(f"{n:3d} features patched: KL {kl:6.3f} nats from the clean prompt's prediction")

# The control: as many features that do not differ change nothing at all.
others = kl_divergence(target, next_token(corrupted, names[-64:])).item()
assert divergence[64] < 0.75 * divergence[0], "a few dozen features carry much of who gives to whom"
assert abs(others - divergence[0]) < 1e-4, "features that do not differ carry nothing"
