"""How loss falls with the number of latents: `python examples/13_scaling.py`.

L(n) = A n^-m: dictionaries of rising size, trained on one stream of activations, and the power law of their loss (Gao
et al. 2024), with an interval and a control for its exponent.
"""

import subrank as sr

model, site = sr.load_model("storybook"), "resid_post.3"
sets = sr.sweep(model, "storybook", sites=site, expansion=(1, 2, 4, 8), tokens=60_000)

# The metrics of every dictionary (probes, n-grams, effects downstream) take longer, and are left out here.
result = sr.scaling(model, sets, metrics=False, draws=200)
print(result)

# Points, fits and their residuals, on logarithmic axes. Four sizes are few: five are needed to ask for an irreducible
# term.
result.plot()

losses = [point.fvu for point in sorted(result.laws.points, key=lambda point: point.n_latents)]
print("FVU, from small to large:", *(f"{loss:.3f}" for loss in losses))
assert losses[-1] < losses[0], "more latents explain more"
