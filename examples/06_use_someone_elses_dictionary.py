"""An experiment on an autoencoder from elsewhere: `python examples/06_use_someone_elses_dictionary.py [FILE]`.

FILE is a file or folder of SAELens, OpenAI, Gemma Scope, sparsify or dictionary-learning, here one for
`storybook`. Without it, one in sparsify's format is made first. `subrank import` does the same for a set.
"""

import sys
import tempfile
from pathlib import Path

import torch

from editing.loss_recovered import Splice
from sae_core.data.activations import ActivationStream
from sae_core.data.text import Text, held_out
from sae_core.formats.readers import load_foreign
from sae_core.formats.sparsify import save_sparsify
from sae_core.model.language_model import load_model
from sae_core.sites import Site
from sae_core.training.config import TrainConfig
from sae_core.training.loop import start, train

model, site = load_model("storybook"), Site(2)
training, measuring = held_out(Text("storybook", 128, True, max_tokens=60_000).contexts(model))

if len(sys.argv) > 1:
    file = Path(sys.argv[1])
else:
    stream = ActivationStream(model, training, (site,), seed=0, batch=512)
    state = start(stream, TrainConfig(tokens=60_000, batch=512, lr=3e-3))
    for _ in train(stream, state):
        pass
    file = Path(tempfile.mkdtemp()) / "layers.2"
    save_sparsify(state.dictionaries()[site], file)

foreign = load_foreign(file)
print(f"a {foreign.format} file; it says that it belongs at {foreign.site}")
tokens = measuring[:16].to(model.device)


def surprise() -> float:
    """Mean surprise of the next token, in nats."""
    log_probs = model.logits(tokens)[:, :-1].log_softmax(-1)
    return -log_probs.gather(-1, tokens[:, 1:, None]).mean().item()


with torch.no_grad():
    before = surprise()
    with model.hooks(Splice(foreign.site or site, foreign.dictionary)):
        after = surprise()
print(f"surprise {before:.3f} nats, with the reconstruction in place {after:.3f}")
assert before < after < before + 1, "the reconstruction costs something, but not much"
