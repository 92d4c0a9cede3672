"""Remove a capability, and see what else suffers: `python examples/09_remove_a_capability.py [SET [OUT]]`.

The model knows whether "she" or "he" follows a name. Features that carry this are ablated, beside LEACE, which erases
all linear information on it, and the mean difference. What counts is the damage to other text *at equal removal*.
"""

import sys
from pathlib import Path

import subrank as sr

saes = sr.load(sys.argv[1] if len(sys.argv) > 1 else "example_set")
out = Path(sys.argv[2] if len(sys.argv) > 2 else "example_removal")
model = sr.load_model("storybook")

result = sr.remove(model, saes, "pronouns", site="resid_post.4", prompts=64, contexts=16)
print(result)

# Every method along its strength: capability left against damage, in nats per token.
result.plot()

# The folder holds the edit itself, twice: for `load_edit`, and as a PyTorch hook that needs nothing of ours.
result.save(out)
print(*sorted(str(path.relative_to(out)) for path in out.glob("*/*")), sep="\n")

chosen = {str(method.method): method for method in result.result.methods}
for name, method in chosen.items():
    print(f"{name:24s} {method.left:4.0%} of the capability left, damage {method.damage.value:.5f} nats per token")
assert chosen["features"].left < 0.8, "much of the capability is gone"
assert chosen["features"].damage.value < chosen["LEACE"].damage.value, "at less cost than erasing all information"
