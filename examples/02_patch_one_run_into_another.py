"""Move single features from one prompt into another: `python examples/02_patch_one_run_into_another.py [SET]`.

Two prompts in which Mary and John swap roles. In the second run the features that differ most are given
their values of the first, x' = x + sum (c_i - c_i(x)) d_i, everything else staying as it is.
"""

import sys
from pathlib import Path

import torch

from editing.interventions.patch import FeaturePatch
from editing.metrics import kl_divergence
from sae_core.model.language_model import load_model
from sae_core.sites import Site
from sae_core.storage import load_set

dictionaries = load_set(Path(sys.argv[1] if len(sys.argv) > 1 else "example_set")).dictionaries
model, site = load_model("storybook"), Site(3)
sae = dictionaries[site]
clean, corrupted = (
    torch.tensor([[model.bos_id, *model.to_ids(f"Then, Mary and John went to the store. {giver} gave a book to")]])
    for giver in ("John", "Mary")
)

codes, codes_bar = (sae.encode(model.record(tokens, [site])[site]) for tokens in (clean, corrupted))
differ = (codes - codes_bar).abs().amax((0, 1)).argsort(descending=True)


def patched(latents: torch.Tensor) -> torch.Tensor:
    patch = FeaturePatch(site, sae, latents, target=codes[..., latents])
    with model.hooks(patch):
        return model.logits(corrupted)[0, -1]


target = model.logits(clean)[0, -1]
divergence = {n: kl_divergence(target, patched(differ[:n])).item() for n in (0, 1, 4, 16, 64)}
for n, kl in divergence.items():
    print(f"{n:3d} features patched: KL {kl:6.3f}, next token {model.token_text(int(patched(differ[:n]).argmax()))}")
others = kl_divergence(target, patched(differ[-64:])).item()
assert divergence[64] < 0.75 * divergence[0], "a few dozen features carry much of who gives to whom"
assert abs(others - divergence[0]) < 1e-4, "features that do not differ carry nothing"
