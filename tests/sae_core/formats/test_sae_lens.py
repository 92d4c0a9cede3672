"""SAELens files, each against a few lines that say densely and in float64 what they mean."""

import json

import pytest
import torch
from foreign_files import (
    METADATA,
    D,
    K,
    N,
    X,
    check,
    gated_values,
    sae_lens,
    sae_lens_card,
    tensors,
    topk,
    w64,
    without,
)
from handmade import normal
from tiny import user_error

from sae_core.dictionaries.normalised import LayerNormed, NormRescaled
from sae_core.dictionaries.saes import GatedSAE, JumpReLUSAE, ReLUSAE, TopKSAE
from sae_core.formats.readers import load_foreign
from sae_core.sites import Site


@pytest.mark.parametrize("input_bias", [True, False])
@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("kind", ["standard", "jumprelu", "topk", "rescaled topk", "gated"])
def test_sae_lens(tmp_path, kind, unit, input_bias):
    values = gated_values(unit=unit) if kind == "gated" else tensors(unit=unit)
    values = values if kind == "jumprelu" else without(values, "threshold")
    rescaled = {"rescale_acts_by_decoder_norm": kind != "topk"} if "topk" in kind else {}
    card = sae_lens_card(kind.split()[-1], apply_b_dec_to_input=input_bias, **rescaled)
    foreign = load_foreign(sae_lens(tmp_path, values, card))

    w = w64(values)
    norms = w["W_dec"].norm(dim=-1)
    pre = (X - w["b_dec"] * input_bias) @ w["W_enc"] + w.get("b_enc", 0)
    if kind == "standard":
        g = pre.relu()
    elif kind == "jumprelu":
        g = pre.relu() * (pre > w["threshold"])
    elif kind == "topk":
        g = topk(pre)
    elif kind == "rescaled topk":
        g = topk(pre * norms) / norms
    else:
        g = (pre + w["b_gate"] > 0) * (pre * w["r_mag"].exp() + w["b_mag"]).relu()
    check(foreign.dictionary, g, g @ w["W_dec"] + w["b_dec"], norms=norms)
    assert (foreign.format, foreign.site, foreign.model_name) == ("SAELens", Site(2), "pythia-70m")
    assert (foreign.prepend_bos, foreign.n_ctx) == (False, 64)
    expected = {"standard": ReLUSAE, "jumprelu": JumpReLUSAE, "gated": GatedSAE}.get(kind, TopKSAE)
    assert type(foreign.dictionary) is expected


@pytest.mark.parametrize(
    "hook_key, activation_key", [("hook_point", "activation_fn_str"), ("hook_name", "activation_fn")]
)
def test_sae_lens_before_version_six(tmp_path, hook_key, activation_key):
    """One flat card, no `metadata`; TopK is an activation function of the standard architecture."""
    values = without(tensors(), "threshold")
    card = {
        hook_key: "blocks.3.hook_resid_pre",
        f"{hook_key}_head_index": None,
        activation_key: "topk",
        "activation_fn_kwargs": {"k": K},
        "d_in": D,
        "d_sae": N,
        "dtype": "torch.float32",
        "model_name": "gpt2-small",
        "normalize_activations": False,
        "context_size": 128,
    }
    w = w64(values)
    pre = (X - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    foreign = load_foreign(sae_lens(tmp_path / "topk", values, card))
    check(foreign.dictionary, topk(pre), topk(pre) @ w["W_dec"] + w["b_dec"], norms=w["W_dec"].norm(dim=-1))
    assert (foreign.site, foreign.prepend_bos, foreign.n_ctx) == (Site(2), True, 128)

    card |= {activation_key: "relu", "activation_fn_kwargs": {}}
    foreign = load_foreign(sae_lens(tmp_path / "relu", values, card))
    check(foreign.dictionary, pre.relu(), pre.relu() @ w["W_dec"] + w["b_dec"], norms=w["W_dec"].norm(dim=-1))


def test_sae_lens_factors_fitted_to_the_codes(tmp_path):
    factor = 1 + 0.3 * normal(N, seed=8).abs()
    values = without(tensors(), "threshold") | {"scaling_factor": factor}
    card = sae_lens_card("standard", finetuning_scaling_factor=True)
    w = w64(values)
    g = ((X - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu() * factor.double()
    foreign = load_foreign(sae_lens(tmp_path / "used", values, card))
    check(foreign.dictionary, g, g @ w["W_dec"] + w["b_dec"], norms=w["W_dec"].norm(dim=-1))
    with user_error("scaling_factor", "not used"):
        load_foreign(sae_lens(tmp_path / "unused", values, sae_lens_card("standard")))
    ones = load_foreign(
        sae_lens(tmp_path / "ones", values | {"scaling_factor": torch.ones(N)}, sae_lens_card("standard"))
    )
    assert torch.allclose(ones.dictionary.decode(torch.zeros(N)), values["b_dec"])


@pytest.mark.parametrize("rescaled", [True, False])
def test_sae_lens_checkpoints_of_batch_topk(tmp_path, rescaled):
    """Its threshold is one number; with rescaling it is on the scale of unit directions."""
    values = without(tensors(), "threshold") | {"topk_threshold": torch.tensor(0.7)}
    card = sae_lens_card("matryoshka_batchtopk", rescale_acts_by_decoder_norm=rescaled)
    w = w64(values)
    norms = w["W_dec"].norm(dim=-1)
    pre = ((X - w["b_dec"]) @ w["W_enc"] + w["b_enc"]) * (norms if rescaled else 1)
    g = pre.relu() * (pre > 0.7) / (norms if rescaled else 1)
    foreign = load_foreign(sae_lens(tmp_path / "set", values, card))
    check(foreign.dictionary, g, g @ w["W_dec"] + w["b_dec"], norms=norms)
    with user_error("topk_threshold", "never set"):
        load_foreign(sae_lens(tmp_path / "unset", values | {"topk_threshold": torch.tensor(0.0)}, card))


def test_sae_lens_checkpoints_with_log_threshold(tmp_path):
    values = tensors()
    old = without(values, "threshold") | {"log_threshold": values["threshold"].log()}
    old_dictionary = load_foreign(sae_lens(tmp_path / "old", old, sae_lens_card("jumprelu"))).dictionary
    other = load_foreign(sae_lens(tmp_path / "new", values, sae_lens_card("jumprelu"))).dictionary
    assert torch.allclose(old_dictionary.threshold, other.threshold)


def test_sae_lens_activations_scaled_by_a_constant(tmp_path):
    """Folding means W_enc * s, W_dec / s, b_dec / s, with biases as they are."""
    scale, values = 1.7, tensors()
    card = sae_lens_card("jumprelu", normalize_activations="expected_average_only_in")
    folder = sae_lens(tmp_path, values, card)
    with user_error(str(folder), "expected_average_only_in", "activation_scaler.json"):
        load_foreign(folder)
    (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": scale, "has_whitening": False}))
    w = w64(values)
    pre = (X - w["b_dec"] / scale) @ (w["W_enc"] * scale) + w["b_enc"]
    g = pre.relu() * (pre > w["threshold"])
    x_hat = g @ (w["W_dec"] / scale) + w["b_dec"] / scale
    check(load_foreign(folder).dictionary, g, x_hat, norms=w["W_dec"].norm(dim=-1) / scale)


@pytest.mark.parametrize("kind", ["standard", "topk"])
@pytest.mark.parametrize("norm", ["layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("input_bias", [True, False])
def test_sae_lens_activations_normalised_per_token(tmp_path, kind, norm, input_bias):
    values = without(tensors(), "threshold")
    card = sae_lens_card(kind, normalize_activations=norm, apply_b_dec_to_input=input_bias)
    foreign = load_foreign(sae_lens(tmp_path, values, card))
    w = w64(values)
    mean = X.mean(-1, keepdim=True) if norm == "layer_norm" else 0
    if norm == "layer_norm":
        scale = (X - mean).std(-1, keepdim=True)
        z = (X - mean) / (scale + 1e-5)
    else:
        scale = X.norm(dim=-1, keepdim=True) / D**0.5
        z = X / scale
    pre = (z - w["b_dec"] * input_bias) @ w["W_enc"] + w["b_enc"]
    g = topk(pre) if kind == "topk" else pre.relu()
    check(
        foreign.dictionary,
        g * scale,
        (g @ w["W_dec"] + w["b_dec"]) * scale + mean,
        norms=w["W_dec"].norm(dim=-1),
    )
    assert type(foreign.dictionary) is (LayerNormed if norm == "layer_norm" else NormRescaled)
    assert foreign.dictionary.n_latents == N + (2 if norm == "layer_norm" else 1)
    assert foreign.dictionary.d_in == D


CONTRADICTIONS = {
    "architecture = 'standard', but it has k = 5": {"k": K},
    "architecture = None, but it has k = 5": {"architecture": None, "k": K},
    "architecture = 'gated', but it has k = 5": {"architecture": "gated", "k": K},
    "architecture = 'jumprelu', but it has activation_fn": {"architecture": "jumprelu", "activation_fn": "topk"},
    "k = 5, but it has activation_fn_kwargs.k = 6": {"architecture": "topk", "k": K, "activation_fn_kwargs": {"k": 6}},
    "hook_layer = 3, but it has the layer of blocks.2.hook_resid_post = 2": {"metadata": METADATA | {"hook_layer": 3}},
    "hook_name = 'blocks.2": {"metadata": METADATA | {"hook_point": "blocks.1.hook_resid_post"}},
}


@pytest.mark.parametrize("words", CONTRADICTIONS)
def test_a_card_that_contradicts_itself_is_refused(tmp_path, words):
    """Read as a ReLU, a TopK would be wrong in silence."""
    values, card = without(tensors(), "threshold"), sae_lens_card("standard")
    assert type(load_foreign(sae_lens(tmp_path / "control", values, card)).dictionary) is ReLUSAE
    folder = sae_lens(tmp_path / "card", values, card | CONTRADICTIONS[words])
    with user_error(str(folder), words, "correct the one that is wrong"):
        load_foreign(folder)


def test_tensors_say_which_kind_it_is_where_the_card_does_not(tmp_path):
    gated, jumping = gated_values(), tensors()
    for kind, values, stated in ((GatedSAE, gated, "standard"), (JumpReLUSAE, jumping, "topk")):
        card = sae_lens_card(stated)
        with user_error(f"architecture = '{stated}'", "a tensor"):
            load_foreign(sae_lens(tmp_path / "other", values, card))
        silent = without(card, "architecture", "k")
        assert type(load_foreign(sae_lens(tmp_path / "silent", values, silent)).dictionary) is kind


def test_the_name_of_a_hugging_face_module_is_kept(tmp_path):
    """SAELens trains on such models too, and then names their modules."""
    values = without(tensors(), "threshold")
    for hook, site in (("model.layers.2", Site(2)), ("transformer.h.2", Site(2)), ("model.layers.2.mlp", None)):
        card = sae_lens_card("standard", metadata=METADATA | {"hook_name": hook})
        foreign = load_foreign(sae_lens(tmp_path, values, card))
        assert (foreign.place, foreign.site) == (hook, site)
