"""Switch features off and read what the model says: `python examples/04_ablate_while_reading.py [SET]`.

The features of the last layer that say "she" are ablated; "she" falls, and a sentence about code hardly notices.
"""

import sys

import torch

import subrank as sr
from editing.metrics import kl_divergence

saes = sr.load(sys.argv[1] if len(sys.argv) > 1 else "example_set")
model, site = sr.load_model("storybook"), sr.Site(5)
texts = {"story": "Lily lived in Rome. Lily was tired, so", "code": "def run(x):\n y = max(len(x"}
she, he = (model.to_ids(word)[0] for word in ("she", "he"))

# What does each feature write? Its direction, read by the model's own unembedding, is an effect on every logit.
written = model.unembed(saes.at(site).directions)  # what each feature adds to every token's logit
promotes = saes.encode(model, texts["story"])[site][-1] * (written[:, she] - written[:, he])
names = [sr.FeatureId(site, latent) for latent in promotes.topk(6).indices.tolist()]


def predictions() -> dict[str, torch.Tensor]:
    """Logits at the end of each text."""
    return {name: model.logits(saes.tokens(model, text))[0, -1] for name, text in texts.items()}


# Within the block the model reads without them.
before = predictions()
with model.hooks(*saes.ablate(*names)):
    after = predictions()

# "She" falls; what the same edit costs elsewhere is next to nothing, since these features are silent there.
prefers_before, prefers_after = ((logits["story"][she] - logits["story"][he]).item() for logits in (before, after))
cost = {name: kl_divergence(before[name], after[name]).item() for name in texts}
print(f"{', '.join(map(str, names))} off: logit(she) - logit(he) {prefers_before:.2f} -> {prefers_after:.2f}")
print(f"KL from the untouched model: {cost['story']:.4f} nats in the story, {cost['code']:.5f} in code")
assert prefers_after < prefers_before - 1, "they said she"
assert cost["code"] < 0.1 * cost["story"], "and nothing about code"
