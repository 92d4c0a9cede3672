"""More features than dimensions: `python examples/11_superposition.py`.

Twenty features are squeezed into five dimensions and read back, by a linear model and by one with a ReLU (Elhage et al.
2022). How often features are active is what is varied. No language model is needed.
"""

import subrank as sr

result = sr.superposition(densities=(1.0, 0.1, 0.01), quick=True)
print(result)

# Rows of each picture are features: how long W_i is, coloured by how much others share its direction.
result.plot()

# How many dimensions does a feature have to itself? One where it is alone, a half in an antipodal pair.
result.plot("dimensions")

# Dictionaries, trained on the hidden activations alone, find the features where these are sparse.
result.plot("dictionaries")

# A linear model keeps as many features as it has dimensions. One with a ReLU keeps more, once they are sparse.
kept = {kind: [len(model.represented) for model in result.of_kind(kind)] for kind in ("linear", "ReLU")}
print("features kept, from dense to sparse:", kept)
assert kept["linear"][0] <= 5 and kept["ReLU"][-1] > 5
