"""Other people's files: each format against a few lines that say, densely and in float64, what that format means."""

import json
import os
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_files import METADATA, D, K, N, linear, sae_lens_card, tensors, without, write
from handmade import normal
from safetensors.torch import load_file
from tiny import random_tokens, user_error, write_tiny
from torch import Tensor

from sae_core import files
from sae_core.dictionaries.normalised import Centred, LayerNormed, NormRescaled
from sae_core.dictionaries.saes import GatedSAE, JumpReLUSAE, ReLUSAE, TopKSAE
from sae_core.formats.readers import load_foreign
from sae_core.formats.sparsify import save_sparsify
from sae_core.sites import Site, Stream

X = 2 * normal(300, D, seed=99).double() + 0.5


def topk(pre: Tensor, k: int = K) -> Tensor:
    best = pre.topk(k)
    return torch.zeros_like(pre).scatter(-1, best.indices, best.values.relu())


def check(dictionary, codes: Tensor, x_hat: Tensor, *, norms: Tensor | None = None) -> None:
    """The dictionary gives x_hat, and the codes times the norms that the foreign decoder's rows had."""
    dictionary = dictionary.double()
    f = dictionary.encode(X)
    expected = codes if norms is None else codes * norms
    assert (f[:, : codes.shape[1]] - expected).abs().max() < 1e-6 * expected.abs().max()
    assert ((f[:, : codes.shape[1]] != 0) == (expected != 0)).all()
    assert 0 < (expected != 0).double().mean() < 0.9  # control: the test can see which latents are chosen
    for reconstruction in (dictionary.decode(f), f @ dictionary.directions + dictionary.decode(torch.zeros_like(f))):
        assert (reconstruction - x_hat).abs().max() < 1e-6 * x_hat.abs().max()
    assert (dictionary.directions.norm(dim=-1) - 1).abs().max() < 2e-5


def w64(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.double() for key, value in values.items() if isinstance(value, Tensor)}


# ---- SAELens ---------------------------------------------------------------------------------------


def sae_lens(folder: Path, values: dict[str, Tensor], card: dict) -> Path:
    return write(folder, "sae_weights.safetensors", values, card)


def gated_values(**kwargs) -> dict[str, Tensor]:
    extra = {name: 0.3 * normal(N, seed=seed) for seed, name in enumerate(("b_gate", "b_mag", "r_mag"), 50)}
    return without(tensors(**kwargs), "b_enc", "threshold") | extra


@pytest.mark.parametrize("input_bias", [True, False])
@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("kind", ["standard", "jumprelu", "topk", "rescaled topk", "gated"])
def test_sae_lens(tmp_path, kind, unit, input_bias):
    values = gated_values(unit=unit) if kind == "gated" else tensors(unit=unit)
    values = values if kind == "jumprelu" else without(values, "threshold")
    card = sae_lens_card(kind.split()[-1], apply_b_dec_to_input=input_bias)
    if "topk" in kind:
        card |= {"k": K, "rescale_acts_by_decoder_norm": kind != "topk"}
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
    card = sae_lens_card("matryoshka_batchtopk", k=K, rescale_acts_by_decoder_norm=rescaled)
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
    one = load_foreign(sae_lens(tmp_path / "old", old, sae_lens_card("jumprelu"))).dictionary
    other = load_foreign(sae_lens(tmp_path / "new", values, sae_lens_card("jumprelu"))).dictionary
    assert torch.allclose(one.threshold, other.threshold)


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
    card = sae_lens_card(kind, normalize_activations=norm, apply_b_dec_to_input=input_bias, k=K)
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


def test_a_k_without_an_architecture_is_refused(tmp_path):
    """Read as a ReLU it would be wrong in silence; an architecture that is given is believed."""
    values = without(tensors(), "threshold")
    unsaid = {name: value for name, value in sae_lens_card("standard", k=K).items() if name != "architecture"}
    folder = sae_lens(tmp_path / "unsaid", values, unsaid)
    with user_error(str(folder), "architecture", "'topk'"):
        load_foreign(folder)
    standard = load_foreign(sae_lens(tmp_path / "standard", values, sae_lens_card("standard", k=K))).dictionary
    assert type(standard) is ReLUSAE
    assert type(load_foreign(sae_lens(tmp_path / "topk", values, sae_lens_card("topk", k=K))).dictionary) is TopKSAE
    del unsaid["k"]
    assert type(load_foreign(sae_lens(tmp_path / "neither", values, unsaid)).dictionary) is ReLUSAE


# ---- how SAELens loaded the model --------------------------------------------------------------------


def loaded_with(*, hook: str = "blocks.2.hook_resid_post", **kwargs) -> dict:
    return {"metadata": METADATA | {"hook_name": hook, "model_from_pretrained_kwargs": kwargs}}


@pytest.mark.parametrize("kind", ["standard", "topk"])
def test_centred_writing_weights_are_centred_activations(tmp_path, kind):
    """gpt2-small-res-jb, for one: it used to be read as an SAE of what it never saw."""
    values = without(tensors(), "threshold")
    card = sae_lens_card(kind, k=K) | loaded_with(center_writing_weights=True, fold_ln=True)
    foreign = load_foreign(sae_lens(tmp_path, values, card))
    w, mean = w64(values), X.mean(-1, keepdim=True)
    pre = (X - mean - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    g = topk(pre) if kind == "topk" else pre.relu()
    check(foreign.dictionary, g, g @ w["W_dec"] + w["b_dec"] + mean, norms=w["W_dec"].norm(dim=-1))
    assert type(foreign.dictionary) is Centred and foreign.dictionary.n_latents == N + 2
    plain = load_foreign(sae_lens(tmp_path / "plain", values, sae_lens_card(kind, k=K))).dictionary.double()
    assert (plain.encode(X) - foreign.dictionary.encode(X)[:, :N]).abs().max() > 0.1  # control


def test_what_transformer_lens_does_is_what_is_assumed(tmp_path):
    """Centred writing weights take the mean out of what goes to the residual; the other processing changes nothing."""
    from sae_core.model.language_model import load_model

    streams = Stream.RESID_POST, Stream.MLP_OUT, Stream.ATTN_OUT
    for kind in ("gpt2", "neox"):
        folder = write_tiny(tmp_path / kind, kind)
        plain, processed = load_model(folder, device="cpu"), load_model(folder, device="cpu")
        processed.bridge.process_weights(center_writing_weights=True, fold_ln=True, fold_value_biases=True)
        tokens, sites = random_tokens(plain.n_vocab, 3, 12), [Site(layer, s) for layer in range(3) for s in Stream]
        theirs = processed.record(tokens, sites)
        for site, x in plain.record(tokens, sites).items():
            expected = x - x.mean(-1, keepdim=True) if site.stream in streams else x
            assert (theirs[site] - expected).abs().max() < 1e-4
            assert site.stream not in streams or (x - expected).abs().max() > 0.1


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
    said = record.getMessage().split("add ")[1].split(" to its")[0]
    told = card | json.loads("{" + said + "}")  # as it says
    caplog.clear()
    assert type(load_foreign(sae_lens(tmp_path, values, told)).dictionary) is Centred
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
    "hook_z": {"metadata": {"hook_name": "blocks.1.attn.hook_z"}},
    "hook_resid_mid": {"metadata": {"hook_name": "blocks.1.hook_resid_mid"}},
    "blocks.0.hook_resid_pre": {"metadata": {"hook_name": "blocks.0.hook_resid_pre"}},
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


def save_as_set(folder: Path, saes: dict) -> None:
    from sae_core.data.text import Text
    from sae_core.storage import DictionarySet

    DictionarySet("m", "0", Text("storybook", 8, True), saes).save(folder)


# ---- our own sets ----------------------------------------------------------------------------------


def ours() -> dict[Site, ReLUSAE | TopKSAE | JumpReLUSAE | GatedSAE]:
    """One of each architecture, with no parameter at its initial value; SAEs train to nearly unit rows."""
    found = {}
    for layer, kind in enumerate((ReLUSAE, TopKSAE, JumpReLUSAE, GatedSAE)):
        sizes = (D, N, K) if kind is TopKSAE else (D, N)
        sae = kind(*sizes, generator=torch.Generator().manual_seed(layer)).requires_grad_(False)
        for seed, (name, value) in enumerate(sae.named_parameters()):
            value += 0.1 * normal(*value.shape, seed=seed).abs() * (name != "W_dec")
        sae.W_dec *= 1 + 1e-7 * normal(N, 1, seed=9)
        found[Site(layer, Stream.MLP_OUT)] = sae
    return found


def test_our_own_folders_give_the_same_tensors(tmp_path):
    saes = ours()
    save_as_set(tmp_path, saes)
    for site, sae in saes.items():
        foreign = load_foreign(tmp_path / str(site))
        assert (foreign.site, foreign.model_name, foreign.prepend_bos, foreign.n_ctx) == (site, "m", True, 8)
        assert type(foreign.dictionary) is type(sae)
        assert foreign.dictionary.state_dict().keys() == sae.state_dict().keys()
        for name, value in sae.state_dict().items():
            assert value.numpy().tobytes() == foreign.dictionary.state_dict()[name].numpy().tobytes(), name


def test_a_foreign_dictionary_in_our_layout_is_the_same(tmp_path):
    from sae_core.storage import load_set

    values = tensors()
    for number, (kind, own) in enumerate(
        {
            "standard": without(values, "threshold"),
            "jumprelu": values,
            "gated": gated_values(),
            "topk": without(values, "threshold"),
        }.items()
    ):
        card = sae_lens_card(
            kind.split()[0], apply_b_dec_to_input=False, k=K, rescale_acts_by_decoder_norm=kind == "topk"
        )
        first = load_foreign(sae_lens(tmp_path / kind, own, card)).dictionary
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
    first = load_foreign(sae_lens(tmp_path / "theirs", values, sae_lens_card("topk", k=K))).dictionary
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


# ---- OpenAI ----------------------------------------------------------------------------------------


def openai_values(kind: str = "TopK", **state) -> dict:
    """As `Autoencoder.state_dict()` there gives it, an OrderedDict with strings among the tensors."""
    w = tensors()
    values = OrderedDict(
        pre_bias=w["b_dec"],
        latent_bias=w["b_enc"],
        stats_last_nonzero=torch.zeros(N, dtype=torch.long),
        latents_activation_frequency=torch.ones(N),
        latents_mean_square=torch.zeros(N),
    )
    values["encoder.weight"], values["decoder.weight"] = w["W_enc"].T.clone(), w["W_dec"].T.clone()
    values["activation"] = kind
    values["activation_state_dict"] = ({"k": K, "postact_fn": "ReLU"} if kind == "TopK" else {}) | state
    return values


def openai_reference(x: Tensor, values: dict) -> tuple[Tensor, Tensor]:
    w = w64(values)
    mu = x.mean(-1, keepdim=True)
    std = (x - mu).std(-1, keepdim=True)
    pre = ((x - mu) / (std + 1e-5) - w["pre_bias"]) @ w["encoder.weight"].T + w["latent_bias"]
    g = topk(pre)
    return g, (g @ w["decoder.weight"].T + w["pre_bias"]) * std + mu


def test_openai_topk(tmp_path):
    values = openai_values()
    folder = tmp_path / "gpt2-small" / "resid_post_mlp_v5_32k" / "autoencoders"
    foreign = load_foreign(write(folder, "8.pt", values) / "8.pt")
    g, x_hat = openai_reference(X, values)
    std = X.std(-1, keepdim=True)
    check(foreign.dictionary, g * std, x_hat, norms=values["decoder.weight"].double().norm(dim=0))
    assert (foreign.format, foreign.site, foreign.model_name) == ("OpenAI", Site(8), "gpt2")
    f = foreign.dictionary.encode(X)
    assert torch.allclose(f[:, -2], std[:, 0] * values["pre_bias"].double().norm())
    assert torch.allclose(f[:, -1], X.mean(-1) * D**0.5)
    assert (foreign.dictionary.decode(torch.zeros(N + 2).double()) == 0).all()


def test_the_constants_of_the_layer_norm_matter(tmp_path):
    """Control: the biased deviation, or decoding with s + 1e-5, is another dictionary."""
    values = openai_values()
    dictionary = load_foreign(write(tmp_path, "8.pt", values) / "8.pt").dictionary.double()
    small = 1e-4 * X  # here 1e-5 is a tenth of s
    _, x_hat = openai_reference(small, values)
    error = (dictionary.decode(dictionary.encode(small)) - x_hat).abs().max()
    assert error < 1e-6 * x_hat.abs().max()
    mu, std = small.mean(-1, keepdim=True), small.std(-1, keepdim=True)
    assert ((x_hat - mu) * 1e-5 / std).abs().max() > 1e-2 * x_hat.abs().max()
    assert dictionary.decode(dictionary.encode(torch.ones(2, D).double())).isfinite().all()


def test_openai_relu_has_no_layer_norm(tmp_path):
    for values in (openai_values("ReLU"), {k: v for k, v in openai_values().items() if "activation" not in k[:11]}):
        w = w64(values)
        g = ((X - w["pre_bias"]) @ w["encoder.weight"].T + w["latent_bias"]).relu()
        foreign = load_foreign(write(tmp_path, "3.pt", values) / "3.pt")
        x_hat = g @ w["decoder.weight"].T + w["pre_bias"]
        check(foreign.dictionary, g, x_hat, norms=w["decoder.weight"].norm(dim=0))
        assert foreign.site is None


def test_openai_refusals(tmp_path):
    for values, word in (
        (openai_values("Identity"), "activation = 'Identity'"),
        (openai_values(postact_fn="Identity"), "postact_fn = 'Identity'"),
        (openai_values(k=None), "k is None"),
        (without(openai_values(), "decoder.weight"), "decoder.weight is missing"),
    ):
        with user_error(str(tmp_path), word):
            load_foreign(write(tmp_path, "3.pt", values) / "3.pt")
    with user_error("resid_post_attn"):
        load_foreign(write(tmp_path / "resid_post_attn_v5_32k" / "autoencoders", "3.pt", openai_values()) / "3.pt")


# ---- Gemma Scope -----------------------------------------------------------------------------------


def gemma_reference(values: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    w = w64(values)
    pre = X @ w["W_enc"] + w["b_enc"]
    g = pre.relu() * (pre > w["threshold"])
    return g, g @ w["W_dec"] + w["b_dec"]


@pytest.mark.parametrize("name", ["params.npz", "params.safetensors"])
def test_gemma_scope(tmp_path, name):
    values = tensors()
    g, x_hat = gemma_reference(values)
    if name == "params.npz":
        folder = write(tmp_path / "gemma-scope-2b-pt-res" / "layer_20" / "width_16k" / "average_l0_71", name, values)
        model = "google/gemma-2-2b"
    else:
        values = {key.replace("W_", "w_"): value for key, value in values.items()}
        card = {
            "architecture": "jump_relu",
            "model_name": "gemma-v3-270m-pt",
            "hf_hook_point_in": "model.layers.5.output",
        }
        folder = write(tmp_path / "resid_post" / "layer_20_width_16k_l0_small", name, values, card, at="config.json")
        model = "gemma-v3-270m-pt"
    for path in (folder, folder / name):
        foreign = load_foreign(path)
        check(foreign.dictionary, g, x_hat, norms=tensors()["W_dec"].double().norm(dim=-1))
        assert (foreign.format, foreign.site, foreign.model_name) == ("Gemma Scope", Site(20), model)
        assert (foreign.prepend_bos, foreign.n_ctx) == (True, 1024)


def test_gemma_scope_by_its_folder(tmp_path):
    values = tensors()
    assert load_foreign(write(tmp_path / "layer_20", "params.npz", values)).site is None  # which stream is not said
    place = tmp_path / "gemma-scope-9b-it-mlp" / "layer_3" / "width_16k"
    foreign = load_foreign(write(place, "params.npz", values))
    assert (foreign.site, foreign.model_name) == (Site(3, Stream.MLP_OUT), "google/gemma-2-9b-it")
    for folder, word in (
        ("gemma-scope-2b-pt-att/layer_3", "att"),
        ("gemma-scope-2b-pt-transcoders/layer_3", "transcoder"),
        ("gemma-scope-2b-pt-res/embedding/width_4k", "embedding"),
        ("attn_out/layer_3_width_16k", "attn_out"),
    ):
        with user_error(word, "no site here"):
            load_foreign(write(tmp_path / folder, "params.npz", values))
    affine = {key.replace("W_", "w_"): value for key, value in values.items()} | {
        "affine_skip_connection": torch.eye(D)
    }
    with user_error("affine_skip_connection"):
        load_foreign(write(tmp_path / "affine", "params.safetensors", affine))


# ---- sparsify --------------------------------------------------------------------------------------


def sparsify_values(*, unit: bool = False) -> dict[str, Tensor]:
    w = tensors(unit=unit)
    return {"encoder.weight": w["W_enc"].T, "encoder.bias": w["b_enc"], "W_dec": w["W_dec"], "b_dec": w["b_dec"]}


SPARSIFY = {
    "activation": "topk",
    "expansion_factor": 32,
    "normalize_decoder": True,
    "num_latents": N,
    "k": K,
    "multi_topk": False,
    "skip_connection": False,
    "transcode": False,
    "d_in": D,
}


def sparsify_reference(values: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    w = w64(values)
    g = topk(((X - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"]).relu())
    return g, g @ w["W_dec"] + w["b_dec"]


@pytest.mark.parametrize("unit", [True, False])
def test_sparsify(tmp_path, unit):
    values = sparsify_values(unit=unit)
    g, x_hat = sparsify_reference(values)
    norms = values["W_dec"].double().norm(dim=-1)
    (tmp_path / "config.json").write_text(json.dumps({"model": "EleutherAI/pythia-70m", "ctx_len": 2048, "sae": {}}))
    folder = write(tmp_path / "layers.3.mlp", "sae.safetensors", values, SPARSIFY)
    for path in (folder, folder / "sae.safetensors", folder / "cfg.json"):
        foreign = load_foreign(path)
        check(foreign.dictionary, g, x_hat, norms=norms)
        assert (foreign.format, foreign.site) == ("sparsify", Site(3, Stream.MLP_OUT))
        assert (foreign.model_name, foreign.n_ctx, foreign.prepend_bos) == ("EleutherAI/pythia-70m", 2048, None)
        assert (foreign.dictionary.gain is None) is unit
    old = without(values, "W_dec") | {"decoder.weight": values["W_dec"].T}
    card = without(SPARSIFY, "num_latents", "activation", "transcode") | {"signed": False, "normalize_decoder": False}
    foreign = load_foreign(write(tmp_path / "h.2", "sae.safetensors", old, card | {"num_latents": 0}))
    check(foreign.dictionary, g, x_hat, norms=norms)
    assert foreign.site == Site(2)


@pytest.mark.parametrize(
    "change, word",
    [
        ({"activation": "groupmax"}, "activation = 'groupmax'"),
        ({"transcode": True}, "transcode = True"),
        ({"skip_connection": True}, "skip_connection = True"),
        ({"signed": True}, "signed = True"),
        ({"num_latents": 39}, "num_latents = 40"),
        ({"k": 0}, "k is 0"),
    ],
)
def test_sparsify_refusals(tmp_path, change, word):
    values = sparsify_values()
    with user_error(str(tmp_path), word):
        load_foreign(write(tmp_path / "layers.3", "sae.safetensors", values, SPARSIFY | change))
    with user_error("W_skip"):
        load_foreign(write(tmp_path / "layers.3", "sae.safetensors", values | {"W_skip": torch.eye(D)}, SPARSIFY))
    with user_error("W_dec is missing"):
        load_foreign(write(tmp_path / "layers.3", "sae.safetensors", without(values, "W_dec"), SPARSIFY))
    with user_error("layers.3.mlp.act", "no site here"):
        load_foreign(write(tmp_path / "layers.3.mlp.act", "sae.safetensors", values, SPARSIFY))


def test_export_to_sparsify(tmp_path):
    sae = ours()[Site(1, Stream.MLP_OUT)]
    save_sparsify(sae, tmp_path / "layers.4")
    assert {path.name for path in (tmp_path / "layers.4").iterdir()} == {"cfg.json", "sae.safetensors"}
    card = json.loads((tmp_path / "layers.4" / "cfg.json").read_text())
    assert card == SPARSIFY | {"expansion_factor": N // D}
    g, x_hat = sparsify_reference(load_file(tmp_path / "layers.4" / "sae.safetensors"))
    check(sae, g, x_hat)
    again = load_foreign(tmp_path / "layers.4")
    assert again.site == Site(4) and again.dictionary.k == K
    for name, value in sae.float().state_dict().items():
        assert torch.equal(value, again.dictionary.state_dict()[name])


def test_what_sparsify_cannot_hold(tmp_path):
    gained = load_foreign(
        sae_lens(tmp_path / "a", without(tensors(), "threshold"), sae_lens_card("topk", k=K))
    ).dictionary
    normed = load_foreign(write(tmp_path, "3.pt", openai_values()) / "3.pt").dictionary
    for sae in (*without(ours(), Site(1, Stream.MLP_OUT)).values(), gained, normed):
        with user_error("not representable in sparsify"):
            save_sparsify(sae, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_interrupted_export_leaves_nothing_that_loads(tmp_path, monkeypatch):
    one, other = ours()[Site(1, Stream.MLP_OUT)], TopKSAE(D, N, K, generator=torch.Generator())
    save_sparsify(one, tmp_path)

    def fail(*args):
        raise OSError("the disk is full")

    for call in (1, 2):
        with monkeypatch.context() as patch, pytest.raises(OSError, match="disk is full"):
            calls = iter([os.replace] * (call - 1) + [fail])
            patch.setattr(os, "replace", lambda *args, calls=calls: next(calls)(*args))
            save_sparsify(other, tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {"sae.safetensors"}
        with user_error(str(tmp_path), "cfg.json"):
            load_foreign(tmp_path)
    save_sparsify(other, tmp_path)
    load_foreign(tmp_path)


# ---- dictionary_learning ---------------------------------------------------------------------------


THRESHOLDED = {"k": torch.tensor(K, dtype=torch.int), "threshold": torch.tensor(0.6)}


def gated_linear() -> dict[str, Tensor]:
    w = gated_values()
    names = {"b_gate": "gate_bias", "b_mag": "mag_bias", "r_mag": "r_mag", "b_dec": "decoder_bias"}
    weights = {"encoder.weight": w["W_enc"].T.clone(), "decoder.weight": w["W_dec"].T.clone()}
    return {new: w[old] for old, new in names.items()} | weights


def dl_files() -> dict[str, dict[str, Tensor]]:
    plain = without(tensors(), "threshold")
    return {
        "AutoEncoder": linear(),
        "AutoEncoderNew": linear("decoder.bias"),
        "GatedAutoEncoder": gated_linear(),
        "JumpReluAutoEncoder": tensors(),
        "AutoEncoderTopK": linear("b_dec") | THRESHOLDED | {"threshold": torch.tensor(-1.0)},
        "BatchTopKSAE": linear("b_dec") | THRESHOLDED,
        "MatryoshkaBatchTopKSAE": plain | THRESHOLDED | {"group_sizes": torch.tensor([N // 2, N // 2])},
    }


def dl_reference(kind: str, values: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, x_hat and decoder norms."""
    w = w64(values)
    W_enc = w["W_enc"] if "W_enc" in w else w["encoder.weight"].T
    W_dec = w["W_dec"] if "W_dec" in w else w["decoder.weight"].T
    b_dec = next(w[name] for name in ("bias", "decoder.bias", "decoder_bias", "b_dec") if name in w)
    b_enc = w.get("encoder.bias", w.get("b_enc", 0))
    reads_x = kind in ("AutoEncoderNew", "JumpReluAutoEncoder")
    pre = (X if reads_x else X - b_dec) @ W_enc + b_enc
    if kind.startswith("AutoEncoderTopK"):
        g = topk(pre.relu())
    elif kind == "GatedAutoEncoder":
        g = (pre + w["gate_bias"] > 0) * (w["r_mag"].exp() * pre + w["mag_bias"]).relu()
    elif "threshold" in w:
        g = pre.relu() * (pre.relu() > w["threshold"])
    else:
        g = pre.relu()
    return g, g @ W_dec + b_dec, W_dec.norm(dim=-1)


def dl_card(kind: str, **more) -> dict:
    trainer = {"dict_class": kind, "trainer_class": "Trainer", "layer": 3, "lm_name": "EleutherAI/pythia-70m-deduped"}
    return {"trainer": trainer | more, "buffer": {"io": "out", "ctx_len": 128}}


@pytest.mark.parametrize("kind", dl_files())
def test_dictionary_learning(tmp_path, kind):
    values = dl_files()[kind]
    g, x_hat, norms = dl_reference(kind, values)
    folder = tmp_path / "resid_post_layer_3" / "trainer_0"
    write(folder, "ae.pt", values, dl_card(kind, submodule_name="mlp_layer_2"), at="config.json")
    write(folder / "checkpoints", "ae_100.pt", values)
    for path in (folder, folder / "ae.pt", folder / "checkpoints" / "ae_100.pt"):
        foreign = load_foreign(path)
        check(foreign.dictionary, g, x_hat, norms=norms)
        assert (foreign.format, foreign.site) == ("dictionary-learning", Site(2, Stream.MLP_OUT))
        assert (foreign.model_name, foreign.n_ctx) == ("EleutherAI/pythia-70m-deduped", 128)

    write(folder, "ae.pt", values, dl_card(kind, submodule_name=None), at="config.json")
    assert load_foreign(folder).site == Site(3)  # of the folder's name

    (folder / "config.json").unlink()
    if kind in ("AutoEncoderNew", "AutoEncoderTopK", "BatchTopKSAE"):
        with user_error(str(folder), "config.json"):
            load_foreign(folder)
    else:
        check(load_foreign(folder).dictionary, g, x_hat, norms=norms)


def test_dictionary_learning_refusals(tmp_path):
    found = dl_files()
    for kind in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
        unset = found[kind] | {"threshold": torch.tensor(-1.0)}
        with user_error(str(tmp_path), "threshold was never set", "set it"):
            load_foreign(write(tmp_path, "ae.pt", unset, dl_card(kind), at="config.json"))
    with user_error("backup"):
        load_foreign(write(tmp_path, "ae.pt", {"step": 5, "ae": linear(), "optimizer": {}, "norm_factor": 1.0}))
    with user_error("dict_class = 'CrossCoder'"):
        load_foreign(write(tmp_path, "ae.pt", linear(), dl_card("CrossCoder"), at="config.json"))
    card = dl_card("AutoEncoder") | {"buffer": {"io": "in_and_out"}}
    with user_error("io = 'in_and_out'"):
        load_foreign(write(tmp_path, "ae.pt", linear(), card, at="config.json"))
    with user_error("decoder.weight is missing"):
        load_foreign(write(tmp_path, "ae.pt", tensors(), dl_card("AutoEncoder"), at="config.json"))


# ---- unit directions -------------------------------------------------------------------------------


def test_rows_that_are_nearly_unit_are_left_alone_to_the_bit(tmp_path):
    for kind in ("standard", "jumprelu", "gated", "topk"):
        values = gated_values(unit=True) if kind == "gated" else tensors(unit=True)
        values = values if kind == "jumprelu" else without(values, "threshold")
        values["W_dec"] *= 1 + 5e-6 * torch.linspace(-1, 1, N)[:, None]
        values["W_dec"][7] *= 2
        sae = load_foreign(sae_lens(tmp_path / kind, values, sae_lens_card(kind, k=K))).dictionary
        rest = torch.arange(N) != 7
        for name, value in values.items():
            own = getattr(sae, name)
            if name == "b_dec":
                assert torch.equal(own, value)
            else:
                chosen = (slice(None), rest) if name == "W_enc" else rest
                assert torch.equal(own[chosen], value[chosen]), (kind, name)
        assert (sae.W_dec[7].norm() - 1).abs() < 1e-6
        if kind == "topk":
            assert torch.equal(sae.gain[rest], torch.ones(N - 1)) and abs(sae.gain[7] - 2) < 1e-4


def test_rows_of_zeros_do_not_become_nan(tmp_path):
    for kind in ("standard", "jumprelu", "gated", "topk", "rescaled"):
        values = gated_values() if kind == "gated" else tensors()
        values = values if kind == "jumprelu" else without(values, "threshold")
        values["W_dec"][[3, 11]] = 0
        card = sae_lens_card(
            "topk" if kind == "rescaled" else kind, k=K, rescale_acts_by_decoder_norm=kind == "rescaled"
        )
        sae = load_foreign(sae_lens(tmp_path / kind, values, card | {"apply_b_dec_to_input": False})).dictionary
        assert all(value.isfinite().all() for value in sae.state_dict().values())
        assert torch.allclose(sae.directions.norm(dim=-1), torch.ones(N))
        f = sae.encode(X.float())
        assert f.isfinite().all() and (f[:, [3, 11]] == 0).all() and (f != 0).any()
        if kind == "standard":
            w = w64(values)
            g = (X @ w["W_enc"] + w["b_enc"]).relu()
            assert torch.allclose(sae.decode(f).double(), g @ w["W_dec"] + w["b_dec"], atol=1e-4)


# ---- files that are not what they should be ---------------------------------------------------------


def test_there_must_be_one_dictionary(tmp_path):
    with user_error(str(tmp_path / "gone"), "no file or folder"):
        load_foreign(tmp_path / "gone")
    with user_error(str(tmp_path), "holds no dictionary", "sae_weights.safetensors"):
        load_foreign(tmp_path)
    write(tmp_path / "layers.0", "sae.safetensors", sparsify_values(), SPARSIFY)
    with user_error(str(tmp_path / "layers.0"), "one of the folders"):
        load_foreign(tmp_path)
    write(tmp_path / "layers.0", "ae.pt", linear())
    with user_error("sae.safetensors and ae.pt"):
        load_foreign(tmp_path / "layers.0")


@pytest.mark.parametrize("length", [0, 4, 100, -8])
@pytest.mark.parametrize("name", ["sae.safetensors", "params.npz", "ae.pt"])
def test_a_truncated_file(tmp_path, name, length):
    values = {"sae.safetensors": sparsify_values(), "params.npz": tensors(), "ae.pt": linear()}[name]
    write(tmp_path, name, values, SPARSIFY)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:length])
    with user_error(str(path), "damaged"):
        load_foreign(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]"])
def test_a_damaged_card(tmp_path, content):
    write(tmp_path, "sae.safetensors", sparsify_values(), SPARSIFY)
    (tmp_path / "cfg.json").write_bytes(content)
    with user_error(str(tmp_path), "cfg.json", "damaged"):
        load_foreign(tmp_path)


@pytest.mark.parametrize("junk", [None, 3, "words", [], {}, {"x": 1}])
def test_a_card_of_other_types(tmp_path, junk):
    """Whatever stands where an object, a name or a number should be, there is one line or a dictionary."""
    keys = ("metadata", "architecture", "activation_fn", "activation_fn_kwargs", "normalize_activations", "k", "d_in")
    values = without(tensors(), "threshold")
    for key in (*keys, "reshape_activations", "apply_b_dec_to_input", "finetuning_scaling_factor"):
        folder = sae_lens(tmp_path / key, values, sae_lens_card("standard") | {key: junk})
        survives(folder)
    for key in (
        "hook_name",
        "hook_name_out",
        "model_name",
        "prepend_bos",
        "context_size",
        "model_from_pretrained_kwargs",
    ):
        card = sae_lens_card("standard") | {"metadata": METADATA | {key: junk}}
        survives(sae_lens(tmp_path / key, values, card))
    for key in ("trainer", "buffer"):
        survives(write(tmp_path / key, "ae.pt", linear(), dl_card("AutoEncoder") | {key: junk}, at="config.json"))
    for key in ("dict_class", "submodule_name", "k", "lm_name"):
        survives(write(tmp_path / key, "ae.pt", linear(), dl_card("AutoEncoder", **{key: junk}), at="config.json"))
    survives(write(tmp_path / "openai", "3.pt", openai_values() | {"activation": junk}) / "3.pt")
    survives(write(tmp_path / "openai", "3.pt", openai_values() | {"activation_state_dict": junk}) / "3.pt")


def survives(path: Path) -> None:
    try:
        load_foreign(path)
    except files.UserError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"W_enc": normal(D, N - 1)}, ("W_enc", f"[{D}, {N - 1}]", f"[{D}, {N}]")),
        ({"W_enc": normal(N, D)}, ("W_enc", f"[{N}, {D}]", f"[{D}, {N}]")),
        ({"b_dec": normal(D + 1)}, ("b_dec", f"[{D + 1}]", f"[{D}]")),
        ({"b_enc": normal(1, N)}, ("b_enc", f"[1, {N}]", f"[{N}]")),
        ({"W_dec": normal(N)}, ("W_dec", f"[{N}]", "[any, any]")),
        ({"b_enc": torch.full((N,), float("nan"))}, ("b_enc", "NaN")),
        ({"W_dec": torch.full((N, D), float("inf"))}, ("W_dec", "infinity")),
        ({"W_other": normal(D)}, ("W_other", "cannot be represented")),
    ],
)
def test_tensors_that_do_not_fit(tmp_path, wrong, words):
    values = without(tensors(), "threshold")
    sae_lens(tmp_path, values | wrong, sae_lens_card("standard"))
    with user_error(str(tmp_path), *words):
        load_foreign(tmp_path)
    for name in values:
        sae_lens(tmp_path, without(values, name), sae_lens_card("standard"))
        with user_error(str(tmp_path), f"{name} is missing"):
            load_foreign(tmp_path)


class Thing:
    """What only a full unpickling could make."""


@pytest.mark.filterwarnings("ignore:.*pickle")
def test_nothing_that_needs_more_than_tensors_is_loaded(tmp_path):
    torch.save(linear() | {"config": Thing()}, tmp_path / "ae.pt")
    with user_error(str(tmp_path / "ae.pt"), "not loaded"):
        load_foreign(tmp_path)
    torch.save([1, 2], tmp_path / "ae.pt")
    with user_error("list"):
        load_foreign(tmp_path)
    (tmp_path / "ae.pt").unlink()
    np.savez(tmp_path / "params.npz", W_enc=np.array([{"a": 1}], dtype=object))
    with user_error(str(tmp_path / "params.npz"), "damaged"):
        load_foreign(tmp_path)
    np.savez(tmp_path / "params.npz", W_enc=np.array(["text"]))
    with user_error(str(tmp_path / "params.npz"), "damaged"):
        load_foreign(tmp_path)


def test_unknown_schemas(tmp_path):
    with user_error("schema", "weight", "no cfg.json"):
        load_foreign(write(tmp_path / "a", "sae.safetensors", {"weight": normal(3, 3)}))
    with user_error("schema"):
        load_foreign(write(tmp_path / "b", "sae.safetensors", without(tensors(), "threshold"), {"l1": 0.1}))
    # Llama Scope: names like AutoEncoderNew's, but a JumpReLU with its numbers in hyperparams.json
    with user_error("schema", "encoder.weight"):
        load_foreign(write(tmp_path / "c", "final.safetensors", linear("decoder.bias")) / "final.safetensors")


# ---- the packages themselves -----------------------------------------------------------------------

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


@pytest.mark.parametrize("norm", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("kind", ["standard", "jumprelu", "topk", "gated"])
@THEIRS
def test_we_read_what_sae_lens_itself_writes(tmp_path, kind, norm):
    package = pytest.importorskip("sae_lens")
    values = gated_values() if kind == "gated" else without(tensors(), *([] if kind == "jumprelu" else ["threshold"]))
    card = sae_lens_card(kind, k=K, rescale_acts_by_decoder_norm=True, normalize_activations=norm)
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
