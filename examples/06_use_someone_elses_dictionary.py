"""An experiment on an autoencoder from elsewhere: `python examples/06_use_someone_elses_dictionary.py [SET [OUT]]`.

Files of SAELens, OpenAI, Gemma Scope, sparsify and dictionary-learning are read. Here one stands for yours: a
dictionary of SET, written into OUT as sparsify writes it. `subrank import FILE --model MODEL` does the same.
"""

import sys
from pathlib import Path

import torch

import subrank as sr
from sae_core.formats.sparsify import save_sparsify

saes = sr.load(sys.argv[1] if len(sys.argv) > 1 else "example_set")
file = Path(sys.argv[2] if len(sys.argv) > 2 else "example_foreign") / "layers.2"
model, site = sr.load_model("storybook"), sr.Site(2)
save_sparsify(saes.at(site), file)

# The file's name says where it belongs: behind block 2. Others say it in their card, or are told by `at=`.
imported = sr.import_saes(file, model, tokens=20_000)
result = sr.evaluate(model, imported, contexts=16, spliced=16)
print(result)
result.plot()

# What was read is what was written, to rounding.
text = "Then, Mary and John went to the store."
assert list(imported.dictionaries) == [site]
assert torch.allclose(imported.encode(model, text)[site], saes.encode(model, text)[site], atol=1e-4)
assert result.to_dict()["sets"]["dictionary"]["resid_post.2"]["l0"] <= 16
