"""Turn a feature up, and read what the model writes: `python examples/10_steer.py [SET]`.

A feature is set to a multiple of its largest activation at every token: at 0 it is off, at 1 always as strong as it
ever is. Texts show what that does. How far the tokens rise that it promotes, and what that costs, is measured.
"""

import sys

import subrank as sr

saes = sr.load(sys.argv[1] if len(sys.argv) > 1 else "example_set")
model = sr.load_model("storybook")

# Without a name, the feature is that of the last layer which moves one token's logit most.
# `mode="scale"` multiplies what it contributes instead, and so changes nothing where the feature is silent.
start = "Every morning Mary walked to the pool."
fewer = {"tokens": 20, "contexts": 8, "read": 64, "temperature": 0}
result = sr.steer(model, saes, mode="clamp", strengths=(0, 0.5, 1, 2), prompt=start, **fewer)
print(result)

# Dose and response: the promoted tokens' logits over the strength, beside a random direction of the same size.
result.plot()

slope = {str(along): estimate.value for along, estimate in result.response.slope.items()}
print(", ".join(f"{name}: {value:+.2f} per unit of strength" for name, value in slope.items()))
assert slope["features"] > max(slope["random direction"], 0), "what it promotes rises, by more than by chance"
