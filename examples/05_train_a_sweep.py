"""Several kinds of dictionary from one pass of the model: `python examples/05_train_a_sweep.py [OUT [SEED]]`."""

import sys
from pathlib import Path

import subrank as sr

out = Path(sys.argv[1] if len(sys.argv) > 1 else "example_sweep")
seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
site, sizes, kinds = sr.Site(2), (8, 16, 32), ("topk", "batchtopk")

# One stream of activations feeds all six. BatchTopK becomes a dictionary with one threshold, at which L0 = k.
members = sr.sweep(
    sr.load_model("storybook"), "storybook", sites=str(site), kind=kinds, k=sizes, tokens=60_000, seed=seed
)
fvu = {}
for name, saes in members.items():
    assert saes.quality is not None
    fvu[name] = saes.quality.quality[site].fvu
    print(f"{name:26s} {saes.quality.lines()[0]}")
    saes.save(out / name)

# More active latents explain more, whichever the kind.
for kind in kinds:
    by_k = [fvu[f"{kind}-n512-k{k}-seed{seed}"] for k in sizes]
    assert by_k == sorted(by_k, reverse=True), "more active latents explain more"
