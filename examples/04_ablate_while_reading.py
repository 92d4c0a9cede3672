"""Switch features off and read what the model says: `python examples/04_ablate_while_reading.py [SET]`.

The features of the last layer that say "she" are ablated; "she" falls, and a sentence about code hardly notices.
"""

import sys
from pathlib import Path

import torch

from editing.interventions.patch import ablate
from editing.metrics import kl_divergence
from sae_core.model.language_model import load_model
from sae_core.sites import Site
from sae_core.storage import load_set

dictionaries = load_set(Path(sys.argv[1] if len(sys.argv) > 1 else "example_set")).dictionaries
model, site = load_model("storybook"), Site(5)
sae = dictionaries[site]


def tokens(text: str) -> torch.Tensor:
    return torch.tensor([[model.bos_id, *model.to_ids(text)]])


story, code = tokens("Lily lived in Rome. Lily was tired, so"), tokens("def run(x):\n y = max(len(x")
she, he = (model.to_ids(word)[0] for word in ("she", "he"))
written = model.unembed(sae.directions)
at_end = sae.encode(model.record(story, [site])[site][:, -1:])[0, 0]
chosen = (at_end * (written[:, she] - written[:, he])).topk(6).indices.tolist()


def predictions() -> dict[str, torch.Tensor]:
    return {name: model.logits(text)[0, -1] for name, text in (("story", story), ("code", code))}


before = predictions()
with model.hooks(ablate(site, sae, chosen)):
    after = predictions()
preference = {
    when: (logits["story"][she] - logits["story"][he]).item() for when, logits in (("before", before), ("after", after))
}
cost = {name: kl_divergence(before[name], after[name]).item() for name in before}
print(f"features {chosen} off: logit(she) - logit(he) {preference['before']:.2f} -> {preference['after']:.2f}")
print(f"KL from the untouched model: {cost['story']:.4f} in the story, {cost['code']:.5f} in code")
assert preference["after"] < preference["before"] - 1 and cost["code"] < 0.1 * cost["story"]
