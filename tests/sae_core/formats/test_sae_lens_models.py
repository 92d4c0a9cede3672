"""How SAELens loaded its model decides what a dictionary is of; and our own sets as SAELens files."""

import json

import pytest
import torch
from foreign_files import (
    METADATA,
    D,
    N,
    X,
    check,
    gated_values,
    openai_values,
    sae_lens,
    sae_lens_card,
    save_as_set,
    tensors,
    topk,
    varied,
    w64,
    without,
    write,
)
from safetensors.torch import load_file
from tiny import random_tokens, user_error, write_tiny

from sae_core.dictionaries.normalised import Centred, LayerNormed
from sae_core.dictionaries.saes import ReLUSAE
from sae_core.formats.readers import load_foreign
from sae_core.formats.sae_lens import to_sae_lens
from sae_core.sites import Site, Stream


def loaded_with(*, hook: str = "blocks.2.hook_resid_post", **kwargs) -> dict:
    return {"metadata": METADATA | {"hook_name": hook, "model_from_pretrained_kwargs": kwargs}}


@pytest.mark.parametrize("kind", ["standard", "topk"])
def test_centred_writing_weights_are_centred_activations(tmp_path, kind):
    """gpt2-small-res-jb, for one: it used to be read as an SAE of what it never saw."""
    values = without(tensors(), "threshold")
    card = sae_lens_card(kind) | loaded_with(center_writing_weights=True, fold_ln=True)
    foreign = load_foreign(sae_lens(tmp_path, values, card))
    w, mean = w64(values), X.mean(-1, keepdim=True)
    pre = (X - mean - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    g = topk(pre) if kind == "topk" else pre.relu()
    check(foreign.dictionary, g, g @ w["W_dec"] + w["b_dec"] + mean, norms=w["W_dec"].norm(dim=-1))
    assert type(foreign.dictionary) is Centred and foreign.dictionary.n_latents == N + 2
    plain = load_foreign(sae_lens(tmp_path / "plain", values, sae_lens_card(kind))).dictionary.double()
    assert (plain.encode(X) - foreign.dictionary.encode(X)[:, :N]).abs().max() > 0.1  # control


@pytest.mark.slow
def test_what_transformer_lens_does_is_what_is_assumed(tmp_path):
    """Centred writing weights take the mean out of what goes to the residual; the other processing changes nothing."""
    from sae_core.model.language_model import load_model

    streams = Stream.RESID_POST, Stream.RESID_MID, Stream.MLP_OUT, Stream.ATTN_OUT
    for kind in ("gpt2", "neox"):
        folder = write_tiny(tmp_path / kind, kind)
        plain, processed = load_model(folder, device="cpu"), load_model(folder, device="cpu")
        processed.bridge.process_weights(center_writing_weights=True, fold_ln=True, fold_value_biases=True)
        tokens, sites = random_tokens(plain.n_vocab, 3, 12), [site for s in Stream for site in plain.offered(s)]
        processed_h = processed.record(tokens, sites)
        for site, x in plain.record(tokens, sites).items():
            if site.stream is Stream.ATTN_Z:  # its heads lack their biases: the same on every token, and not nothing
                shift = (processed_h[site] - x).flatten(0, 1)
                assert (shift - shift[0]).abs().max() < 1e-4 and shift.abs().max() > 0.1
                continue
            expected = x - x.mean(-1, keepdim=True) if site.stream in streams else x
            assert (processed_h[site] - expected).abs().max() < 1e-4
            assert site.stream not in streams or (x - expected).abs().max() > 0.1


def test_dictionaries_of_heads(tmp_path):
    """SAELens reshapes what they read, and its card says so; without their biases heads are another tensor."""
    values, reshaped = without(tensors(), "threshold"), {"reshape_activations": "hook_z"}
    at = "blocks.2.attn.hook_z"
    card = sae_lens_card("standard") | loaded_with(hook=at) | reshaped
    foreign = load_foreign(sae_lens(tmp_path / "a", values, card))
    assert foreign.site == Site(2, Stream.ATTN_Z)
    _, written = to_sae_lens(foreign.dictionary, {"hook_name": at})
    assert written["reshape_activations"] == "hook_z"
    assert written["metadata"]["model_from_pretrained_kwargs"]["fold_value_biases"] is False
    folded = sae_lens_card("standard") | loaded_with(hook=at, fold_value_biases=True) | reshaped
    with user_error("fold_value_biases"):
        load_foreign(sae_lens(tmp_path / "b", values, folded))
    elsewhere = sae_lens_card("standard") | loaded_with(hook="blocks.2.hook_mlp_out") | reshaped
    with user_error("reshape_activations"):
        load_foreign(sae_lens(tmp_path / "c", values, elsewhere))


def test_where_centred_weights_change_nothing_or_what_is_known(tmp_path):
    values, centred = without(tensors(), "threshold"), {"center_writing_weights": True}
    cards = {
        ReLUSAE: sae_lens_card("standard") | loaded_with(hook="blocks.2.mlp.hook_post", **centred),
        LayerNormed: sae_lens_card("standard", normalize_activations="layer_norm") | loaded_with(**centred),
        Centred: sae_lens_card("standard") | loaded_with(hook="blocks.2.hook_mlp_out", **centred),
    }
    for kind, card in cards.items():
        assert type(load_foreign(sae_lens(tmp_path / kind.__name__, values, card)).dictionary) is kind
    card = sae_lens_card("standard", normalize_activations="constant_norm_rescale") | loaded_with(**centred)
    with user_error("center_writing_weights", "together"):
        load_foreign(sae_lens(tmp_path / "both", values, card))


def test_loading_that_leaves_activations_alone_and_loading_that_may_not(tmp_path):
    values = without(tensors(), "threshold")
    harmless = {"center_writing_weights": False, "fold_ln": True, "fold_value_biases": True, "dtype": "bfloat16"}
    for number, kwargs in enumerate(({}, harmless, {"unheard_of": False})):
        card = sae_lens_card("standard") | loaded_with(**kwargs)
        assert type(load_foreign(sae_lens(tmp_path / str(number), values, card)).dictionary) is ReLUSAE
    with user_error("load_in_8bit, unheard_of", "cannot be represented"):
        card = sae_lens_card("standard") | loaded_with(unheard_of=3, load_in_8bit=True, fold_ln=True)
        load_foreign(sae_lens(tmp_path / "strange", values, card))


def test_a_card_from_before_it_was_kept_is_warned_of(tmp_path, caplog):
    """Flat and without the key; SAELens itself keeps a list of those that were trained on centred activations."""
    values = without(tensors(), "threshold")
    card = {"hook_point": "blocks.6.hook_resid_pre", "d_in": D, "d_sae": N, "model_name": "gpt2-small"}
    assert type(load_foreign(sae_lens(tmp_path, values, card)).dictionary) is ReLUSAE
    (record,) = caplog.records
    assert str(tmp_path) in record.getMessage() and "\n" not in record.getMessage()
    message = record.getMessage().split("add ")[1].split(" to its")[0]
    corrected = card | json.loads("{" + message + "}")  # as it says
    caplog.clear()
    assert type(load_foreign(sae_lens(tmp_path, values, corrected)).dictionary) is Centred
    load_foreign(sae_lens(tmp_path, values, card | {"model_from_pretrained_kwargs": {}}))
    load_foreign(sae_lens(tmp_path, values, card | {"hook_point": "blocks.6.mlp.hook_post"}))
    load_foreign(sae_lens(tmp_path, values, sae_lens_card("standard")))
    assert not caplog.records


def test_half_precision_is_read_as_float32(tmp_path):
    for dtype in (torch.bfloat16, torch.float16):
        values = {name: value.to(dtype) for name, value in without(tensors(), "threshold").items()}
        sae = load_foreign(sae_lens(tmp_path / str(dtype), values, sae_lens_card("standard"))).dictionary
        assert all(tensor.dtype == torch.float32 for tensor in sae.state_dict().values())
        w = w64(values)
        g = ((X - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu()
        check(sae, g, g @ w["W_dec"] + w["b_dec"], norms=w["W_dec"].norm(dim=-1))


REFUSED = {
    "transcoder": {"architecture": "transcoder"},
    "skip_transcoder": {"architecture": "skip_transcoder"},
    "jumprelu_transcoder": {"architecture": "jumprelu_transcoder"},
    "matching_pursuit": {"architecture": "matching_pursuit"},
    "temporal": {"architecture": "temporal"},
    "abstopk": {"architecture": "abstopk"},
    "crosscoder": {"architecture": "crosscoder"},
    "reshape_activations": {"reshape_activations": "hook_z"},
    "hook_head_index": {"metadata": METADATA | {"hook_head_index": 0}},
    "hook_name_out": {"metadata": METADATA | {"hook_name_out": "blocks.2.hook_mlp_out"}},
    "tanh-relu": {"activation_fn": "tanh-relu"},
    "covariance_whitening": {"normalize_activations": "covariance_whitening"},
    "d_in = 12": {"d_in": 13},
    "d_sae = 40": {"d_sae": 41},
    "its k is None": {"architecture": "topk"},
    "its k is 'many'": {"architecture": "topk", "k": "many"},
    "k=41": {"architecture": "topk", "k": 41},
    "threshold is missing": {"architecture": "jumprelu"},
    "b_gate is missing": {"architecture": "gated"},
}


@pytest.mark.parametrize("word", REFUSED)
def test_what_sae_lens_can_say_and_we_cannot(tmp_path, word):
    values = without(tensors(), "threshold")
    load_foreign(sae_lens(tmp_path / "control", values, sae_lens_card("standard")))
    folder = sae_lens(tmp_path / "other", values, sae_lens_card("standard") | REFUSED[word])
    with user_error(str(folder), word):
        load_foreign(folder)


def test_our_own_folders_give_the_same_tensors(tmp_path):
    saes = varied()
    save_as_set(tmp_path, saes)
    for site, sae in saes.items():
        foreign = load_foreign(tmp_path / str(site))
        assert (foreign.site, foreign.model_name, foreign.prepend_bos, foreign.n_ctx) == (site, "m", True, 8)
        assert type(foreign.dictionary) is type(sae)
        assert foreign.dictionary.state_dict().keys() == sae.state_dict().keys()
        for name, value in sae.state_dict().items():
            assert value.numpy().tobytes() == foreign.dictionary.state_dict()[name].numpy().tobytes(), name


def test_our_cards_say_what_sae_lens_needs_to_keep_them(tmp_path):
    """It drops the metadata of a card without a version; models load with centred weights unless they are told."""
    plain = varied()[Site(0, Stream.MLP_OUT)]
    for dictionary, centred in ((plain, False), (Centred(plain), True)):
        save_as_set(tmp_path, {Site(1): dictionary})
        metadata = json.loads((tmp_path / "resid_post.1" / "cfg.json").read_text())["metadata"]
        assert metadata["sae_lens_version"] == "6.0.0" and metadata["hook_name"] == "blocks.1.hook_resid_post"
        assert metadata["model_from_pretrained_kwargs"] == {"center_writing_weights": centred}
        assert type(load_foreign(tmp_path / "resid_post.1").dictionary) is type(dictionary)


def test_a_foreign_dictionary_in_our_layout_is_the_same(tmp_path):
    from sae_core.storage import load_set

    values = tensors()
    for number, (kind, case) in enumerate(
        {
            "standard": without(values, "threshold"),
            "jumprelu": values,
            "gated": gated_values(),
            "topk": without(values, "threshold"),
        }.items()
    ):
        card = sae_lens_card(kind.split()[0], apply_b_dec_to_input=False, rescale_acts_by_decoder_norm=kind == "topk")
        first = load_foreign(sae_lens(tmp_path / kind, case, card)).dictionary
        folder = tmp_path / f"set {number}"
        save_as_set(folder, {Site(1): first})
        second, third = load_foreign(folder / "resid_post.1").dictionary, load_set(folder).dictionaries[Site(1)]
        for sae in (second, third):
            assert torch.equal(sae.encode(X.float()), first.encode(X.float()))
            assert torch.equal(sae.decode(sae.encode(X.float())), first.decode(first.encode(X.float())))


def test_gains_survive_in_our_layout(tmp_path):
    """As decoder rows of that length, which is how SAELens says it."""
    from sae_core.storage import load_set

    values = without(tensors(), "threshold")
    first = load_foreign(sae_lens(tmp_path / "theirs", values, sae_lens_card("topk"))).dictionary
    save_as_set(tmp_path / "set", {Site(1): first})
    assert torch.allclose(
        load_file(tmp_path / "set" / "resid_post.1" / "sae_weights.safetensors")["W_dec"], values["W_dec"]
    )
    for sae in (
        load_foreign(tmp_path / "set" / "resid_post.1").dictionary,
        load_set(tmp_path / "set").dictionaries[Site(1)],
    ):
        assert torch.allclose(sae.encode(X.float()), first.encode(X.float()), rtol=1e-5, atol=1e-5)


def test_normalisation_survives_in_our_layout(tmp_path):
    """As SAELens' `normalize_activations`, with the tensors of the inner dictionary."""
    from sae_core.storage import load_set

    first = load_foreign(write(tmp_path, "3.pt", openai_values("TopK")) / "3.pt").dictionary
    save_as_set(tmp_path / "set", {Site(1): first})
    for sae in (
        load_foreign(tmp_path / "set" / "resid_post.1").dictionary,
        load_set(tmp_path / "set").dictionaries[Site(1)],
    ):
        assert torch.allclose(sae.encode(X.float()), first.encode(X.float()), rtol=1e-5, atol=1e-5)
