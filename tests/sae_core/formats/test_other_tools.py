"""The other packages themselves read what we write, and write what we read."""

import pytest
import torch
import torch.nn.functional as F
from foreign_files import (
    K,
    N,
    X,
    dl_card,
    dl_files,
    gated_values,
    ours,
    sae_lens,
    sae_lens_card,
    save_as_set,
    tensors,
    without,
    write,
)
from handmade import random_topk
from tiny import random_tokens

from sae_core.formats.hook_names import hook_name
from sae_core.formats.readers import load_foreign
from sae_core.formats.sparsify import save_sparsify
from sae_core.sites import Site, Stream

THEIRS = pytest.mark.filterwarnings("default")  # what they warn of is their affair


@THEIRS
def test_sparsify_itself_reads_our_export(tmp_path):
    sparsify = pytest.importorskip("sparsify")
    sae = ours()[Site(1, Stream.MLP_OUT)]
    save_sparsify(sae, tmp_path / "layers.4")
    theirs = sparsify.SparseCoder.load_from_disk(tmp_path / "layers.4")
    with torch.no_grad():
        code = theirs.encode(X.float())
        f = torch.zeros(len(X), N).scatter(-1, code.top_indices, code.top_acts)
        assert (f - sae.encode(X.float())).abs().max() < 1e-5
        x_hat = theirs.decode(code.top_acts, code.top_indices)
        assert (x_hat - sae.decode(sae.encode(X.float()))).abs().max() < 1e-5


@THEIRS
def test_sae_lens_itself_reads_our_sets(tmp_path):
    package = pytest.importorskip("sae_lens")
    saes = ours()
    save_as_set(tmp_path, saes)
    for site, sae in saes.items():
        theirs = package.SAE.load_from_disk(tmp_path / str(site))
        with torch.no_grad():
            assert (theirs.encode(X.float()) - sae.encode(X.float())).abs().max() < 1e-5
            assert (theirs(X.float()) - sae.decode(sae.encode(X.float()))).abs().max() < 1e-5


@THEIRS
def test_sae_lens_keeps_our_cards_and_gets_our_spliced_loss(tmp_path):
    """Attached to the model by what the card says, each dictionary costs what we say that it costs."""
    package = pytest.importorskip("sae_lens")
    from editing.loss_recovered import Splice
    from sae_core.model.hub import STORYBOOK
    from sae_core.model.language_model import load_model

    model = load_model("storybook", device="cpu")
    sites = [Site(layer, stream) for layer, stream in enumerate(Stream, 1)]
    dictionaries = {site: random_topk(model.d_in(site), 64, 8, seed=site.layer) for site in sites}
    save_as_set(tmp_path, dictionaries)
    tokens = random_tokens(model.n_vocab, 2, 16)
    theirs = package.SAETransformerBridge.boot_transformers(str(STORYBOOK), device="cpu")

    def loss(*edits: Splice) -> float:
        with model.hooks(*edits):
            return F.cross_entropy(model.logits(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).item()

    for site, dictionary in dictionaries.items():
        sae = package.SAE.load_from_disk(tmp_path / str(site))
        about = sae.cfg.metadata
        assert (about.hook_name, about.model_name, about.context_size) == (hook_name(site), "m", 8)
        assert about.prepend_bos and about.model_from_pretrained_kwargs == {"center_writing_weights": False}
        with torch.no_grad(), theirs.saes([sae]):
            assert abs(theirs(tokens, return_type="loss").item() - loss(Splice(site, dictionary))) < 1e-4
        assert abs(loss(Splice(site, dictionary)) - loss()) > 1e-2  # control


@pytest.mark.parametrize("norm", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("kind", ["standard", "jumprelu", "topk", "gated"])
@THEIRS
def test_we_read_what_sae_lens_itself_writes(tmp_path, kind, norm):
    package = pytest.importorskip("sae_lens")
    values = gated_values() if kind == "gated" else without(tensors(), *([] if kind == "jumprelu" else ["threshold"]))
    card = sae_lens_card(kind, rescale_acts_by_decoder_norm=True, normalize_activations=norm)
    theirs = package.SAE.load_from_disk(sae_lens(tmp_path / "ours", values, card))
    theirs.save_model(tmp_path / "theirs")
    foreign = load_foreign(tmp_path / "theirs")
    with torch.no_grad():
        x_hat = foreign.dictionary.decode(foreign.dictionary.encode(X.float()))
        assert (theirs(X.float()) - x_hat).abs().max() < 1e-4


@pytest.mark.parametrize("kind", dl_files())
@THEIRS
def test_we_read_what_dictionary_learning_itself_writes(tmp_path, kind):
    pytest.importorskip("dictionary_learning")
    from dictionary_learning.utils import load_dictionary

    write(tmp_path, "ae.pt", dl_files()[kind], dl_card(kind, k=K), at="config.json")
    theirs, _ = load_dictionary(str(tmp_path), "cpu")
    torch.save(theirs.state_dict(), tmp_path / "ae.pt")
    with torch.no_grad():
        sae = load_foreign(tmp_path).dictionary
        x_hat, f = theirs(X.float(), output_features=True)
        assert (x_hat - sae.decode(sae.encode(X.float()))).abs().max() < 1e-4
        assert ((f != 0) == (sae.encode(X.float()) != 0)).double().mean() > 0.999
