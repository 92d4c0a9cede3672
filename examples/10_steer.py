"""Turn a feature up, and read what the model writes: `python examples/10_steer.py [SET]`.

A feature's contribution is multiplied: by 0 it is off, by 1 nothing changes, by 8 it shouts. Texts show what that does.
How far the tokens rise that the feature promotes, and what it costs where the feature is silent, is measured.
"""

import sys

import subrank as sr

saes = sr.load(sys.argv[1] if len(sys.argv) > 1 else "example_set")
model = sr.load_model("storybook")

# Without a name, the feature is that of the last layer which moves one token's logit most.
result = sr.steer(model, saes, strengths=(0, 1, 4, 8), tokens=12, contexts=8, read=64)
print(result)

# Dose and response: the promoted tokens' logits over the strength, beside a random direction of the same size.
result.plot()

slope = {str(along): estimate.value for along, estimate in result.response.slope.items()}
print(slope)
assert slope["features"] > max(slope["random direction"], 0), "what it promotes rises, by more than by chance"
