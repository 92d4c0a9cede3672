"""Models with a norm behind attention and MLP (Gemma 2): a site holds what is added to the residual."""

import pytest
import torch
from tiny import Edit, random_tokens, user_error
from transformers import AutoModelForCausalLM

from sae_core.formats.hook_names import bridge_hook, hook_name
from sae_core.model.language_model import LanguageModel, load_model
from sae_core.model.probe import probe
from sae_core.sites import Site, Stream


@pytest.fixture(scope="module")
def gemma(tmp_path_factory) -> LanguageModel:
    """Three random layers; logits are capped, as those of the published models are (there at 30)."""
    from transformers import Gemma2Config

    from sae_core.storybook.train import build_tokenizer

    folder, tokenizer = tmp_path_factory.mktemp("gemma"), build_tokenizer()
    size = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    rest = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None, "final_logit_softcapping": 3.0}
    config = Gemma2Config(vocab_size=len(tokenizer), intermediate_size=64, max_position_embeddings=64, **size, **rest)
    model = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_((0.1 if weight.ndim == 1 else 0.25) * torch.randn(weight.shape, generator=generator))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_model(folder, device="cpu")


@pytest.fixture(scope="module")
def tokens(gemma) -> torch.Tensor:
    return random_tokens(gemma.n_vocab, 2, 10)


def test_attention_and_mlp_add_up_to_the_residual(gemma, tokens):
    h = gemma.record(tokens, [site for stream in Stream for site in gemma.sites(stream)])
    behind = {}
    for layer in (1, 2):
        for part in ("attn", "mlp"):

            def keep(module, args, x, place=(layer, part)):
                behind[place] = x

            point = gemma.bridge.hook_dict[f"blocks.{layer}.{part}.hook_out"]
            handle = point.register_forward_hook(keep)
            gemma.record(tokens, [Site(layer)])
            handle.remove()
    for layer in (1, 2):
        before, after = h[Site(layer - 1)], h[Site(layer)]
        added = h[Site(layer, Stream.ATTN_OUT)] + h[Site(layer, Stream.MLP_OUT)]
        assert (before + added - after).abs().max() < 1e-5
        raw = behind[layer, "attn"] + behind[layer, "mlp"]  # control: before the norms, where sites used to be
        assert (before + raw - after).abs().max() > 0.5


@pytest.mark.parametrize("layer", [0, 2])
def test_an_edit_there_is_an_edit_of_what_is_added(gemma, tokens, layer):
    both = [Edit(Site(layer, stream), torch.zeros_like) for stream in (Stream.ATTN_OUT, Stream.MLP_OUT)]
    clean = gemma.record(tokens, gemma.sites())
    with gemma.hooks(*both):
        edited = gemma.record(tokens, gemma.sites())
    if layer:
        assert torch.equal(edited[Site(layer)], clean[Site(layer - 1)])
    assert (edited[Site(layer)] - clean[Site(layer)]).abs().max() > 0.5


def test_logits_are_capped_as_the_models_own(gemma, tokens):
    reference = AutoModelForCausalLM.from_pretrained(gemma.name)(tokens).logits
    assert torch.allclose(gemma.logits(tokens), reference, atol=1e-4) and 2.5 < reference.abs().max() < 3
    uncapped = gemma.bridge.unembed(gemma.bridge.ln_final(gemma.record(tokens, [Site(2)])[Site(2)]))
    assert uncapped.abs().max() > 3.5


def test_a_model_that_does_something_else_after_its_last_block_is_refused(gemma, monkeypatch):
    monkeypatch.setattr(gemma.bridge.adapter, "apply_output_logits_transform", lambda logits: logits)
    with user_error("does more after its last block"):
        probe(gemma)


def test_the_name_written_into_files_leads_to_the_place(gemma):
    for stream in Stream:
        for site in gemma.sites(stream):
            assert gemma.bridge.hook_dict[hook_name(site)] is gemma.bridge.hook_dict[bridge_hook(site)]
