"""OpenAI's files, against a few lines in float64."""

import torch
from foreign_files import D, N, X, check, openai_values, topk, w64, without, write
from tiny import user_error
from torch import Tensor

from sae_core.formats.readers import load_foreign
from sae_core.sites import Site


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
        (openai_values("ReLU", k=3), "activation = 'ReLU', but it has k = 3"),
        (without(openai_values(), "decoder.weight"), "decoder.weight is missing"),
    ):
        with user_error(str(tmp_path), word):
            load_foreign(write(tmp_path, "3.pt", values) / "3.pt")
    folder = write(tmp_path / "resid_post_attn_v5_32k" / "autoencoders", "3.pt", openai_values())
    assert load_foreign(folder / "3.pt").place == "blocks.3.hook_resid_mid"
