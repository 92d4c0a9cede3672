"""The other packages themselves read what we write, and write what we read."""

import pytest
import torch
from foreign_files import (
    K,
    N,
    X,
    dl_card,
    dl_files,
    gated_values,
    sae_lens,
    sae_lens_card,
    save_as_set,
    tensors,
    varied,
    without,
    write,
)
from handmade import random_topk
from tiny import random_tokens

from editing.loss_recovered import splice_costs
from sae_core.formats.hook_names import hook_name
from sae_core.formats.readers import load_foreign
from sae_core.formats.sparsify import save_sparsify
from sae_core.model.hub import STORYBOOK
from sae_core.sites import Site, Stream

THEIRS = pytest.mark.filterwarnings("default")  # what they warn of is their affair


@THEIRS
def test_sparsify_itself_reads_our_export(tmp_path):
    sparsify = pytest.importorskip("sparsify")
    sae = varied()[Site(1, Stream.MLP_OUT)]
    save_sparsify(sae, tmp_path / "layers.4")
    coder = sparsify.SparseCoder.load_from_disk(tmp_path / "layers.4")
    with torch.no_grad():
        code = coder.encode(X.float())
        f = torch.zeros(len(X), N).scatter(-1, code.top_indices, code.top_acts)
        assert (f - sae.encode(X.float())).abs().max() < 1e-5
        x_hat = coder.decode(code.top_acts, code.top_indices)
        assert (x_hat - sae.decode(sae.encode(X.float()))).abs().max() < 1e-5


@THEIRS
def test_sae_lens_itself_reads_our_sets(tmp_path):
    package = pytest.importorskip("sae_lens")
    saes = varied()
    save_as_set(tmp_path, saes)
    for site, sae in saes.items():
        coder = package.SAE.load_from_disk(tmp_path / str(site))
        with torch.no_grad():
            assert (coder.encode(X.float()) - sae.encode(X.float())).abs().max() < 1e-5
            assert (coder(X.float()) - sae.decode(sae.encode(X.float()))).abs().max() < 1e-5


MODULES = {Stream.RESID_POST: "", Stream.MLP_OUT: "mlp", Stream.MLP_HIDDEN: "mlp.act", Stream.ATTN_OUT: "attention"}
SITES = [Site(layer, stream) for layer, stream in enumerate((s for s in Stream if s is not Stream.RESID_MID), 1)]


class PlainSplices:
    """Random dictionaries of `storybook`, spliced into the model by Transformers alone, and what each costs."""

    def __init__(self) -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(STORYBOOK, dtype=torch.float32)
        self.tokens = random_tokens(self.model.config.vocab_size, 2, 16)
        self.dictionaries = {
            site: random_topk(512 if site.stream is Stream.MLP_HIDDEN else 128, 64, 8, seed=site.layer)
            for site in SITES
        }

    @torch.no_grad()
    def loss(self, site: Site | None) -> float:
        """Next-token cross-entropy with the site's dictionary spliced in, nats per token; None: as the model is."""
        if site is None:
            return self.model(self.tokens, labels=self.tokens).loss.item()
        sae = self.dictionaries[site]

        def splice(module, args, output):
            h, *rest = output if isinstance(output, tuple) else (output,)
            x_hat = sae.decode(sae.encode(h))
            return (x_hat, *rest) if isinstance(output, tuple) else x_hat

        layer = self.model.get_submodule(f"gpt_neox.layers.{site.layer}")
        if site.stream is Stream.ATTN_Z:
            handle = layer.attention.dense.register_forward_pre_hook(lambda module, args: splice(module, args, args))
        else:
            handle = layer.get_submodule(MODULES[site.stream]).register_forward_hook(splice)
        loss = self.loss(None)
        handle.remove()
        return loss


@pytest.fixture(scope="module")
def plain() -> PlainSplices:
    return PlainSplices()


def test_our_spliced_loss_is_that_of_plain_transformers(plain, storybook):
    for site, cost in splice_costs(storybook, plain.dictionaries, plain.tokens).items():
        assert abs(cost.spliced - plain.loss(site)) < 1e-4 and abs(cost.original - plain.loss(None)) < 1e-4
        assert abs(cost.spliced - cost.original) > 1e-2  # control


@THEIRS
def test_sae_lens_keeps_our_cards_and_gets_our_spliced_loss(tmp_path, plain):
    """Attached to the model by what the card says, each dictionary costs what we say that it costs."""
    package = pytest.importorskip("sae_lens")
    save_as_set(tmp_path, plain.dictionaries)
    bridge = package.SAETransformerBridge.boot_transformers(str(STORYBOOK), device="cpu")
    for site in SITES:
        if site.stream is Stream.ATTN_Z:  # not yet tried with the package
            continue
        sae = package.SAE.load_from_disk(tmp_path / str(site))
        about = sae.cfg.metadata
        assert (about.hook_name, about.model_name, about.context_size) == (hook_name(site), "m", 8)
        assert about.prepend_bos and about.model_from_pretrained_kwargs == {"center_writing_weights": False}
        with torch.no_grad(), bridge.saes([sae]):
            assert abs(bridge(plain.tokens, return_type="loss").item() - plain.loss(site)) < 1e-4


@pytest.mark.parametrize("norm", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("kind", ["standard", "jumprelu", "topk", "gated"])
@THEIRS
def test_we_read_what_sae_lens_itself_writes(tmp_path, kind, norm):
    package = pytest.importorskip("sae_lens")
    values = gated_values() if kind == "gated" else without(tensors(), *([] if kind == "jumprelu" else ["threshold"]))
    card = sae_lens_card(kind, rescale_acts_by_decoder_norm=True, normalize_activations=norm)
    coder = package.SAE.load_from_disk(sae_lens(tmp_path / "ours", values, card))
    coder.save_model(tmp_path / "theirs")
    foreign = load_foreign(tmp_path / "theirs")
    with torch.no_grad():
        x_hat = foreign.dictionary.decode(foreign.dictionary.encode(X.float()))
        assert (coder(X.float()) - x_hat).abs().max() < 1e-4


@pytest.mark.parametrize("kind", dl_files())
@THEIRS
def test_we_read_what_dictionary_learning_itself_writes(tmp_path, kind):
    pytest.importorskip("dictionary_learning")
    from dictionary_learning.utils import load_dictionary

    write(tmp_path, "ae.pt", dl_files()[kind], dl_card(kind, k=K), at="config.json")
    coder, _ = load_dictionary(str(tmp_path), "cpu")
    torch.save(coder.state_dict(), tmp_path / "ae.pt")
    with torch.no_grad():
        sae = load_foreign(tmp_path).dictionary
        x_hat, f = coder(X.float(), output_features=True)
        assert (x_hat - sae.decode(sae.encode(X.float()))).abs().max() < 1e-4
        assert ((f != 0) == (sae.encode(X.float()) != 0)).double().mean() > 0.999
