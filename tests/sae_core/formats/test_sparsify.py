"""sparsify files, read and written, against a few lines in float64."""

import json
import os

import pytest
import torch
from foreign_files import (
    SPARSIFY,
    D,
    K,
    N,
    X,
    check,
    openai_values,
    sae_lens,
    sae_lens_card,
    sparsify_values,
    tensors,
    topk,
    varied,
    w64,
    without,
    write,
)
from safetensors.torch import load_file
from tiny import user_error
from torch import Tensor

from sae_core.dictionaries.saes import TopKSAE
from sae_core.formats.readers import load_foreign
from sae_core.formats.sparsify import save_sparsify
from sae_core.sites import Site, Stream


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
        assert (foreign.format, foreign.place, foreign.site) == ("sparsify", "layers.3.mlp", None)
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


def test_export_to_sparsify(tmp_path):
    sae = varied()[Site(1, Stream.MLP_OUT)]
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
    gained = load_foreign(sae_lens(tmp_path / "a", without(tensors(), "threshold"), sae_lens_card("topk"))).dictionary
    normed = load_foreign(write(tmp_path, "3.pt", openai_values()) / "3.pt").dictionary
    for sae in (*without(varied(), Site(1, Stream.MLP_OUT)).values(), gained, normed):
        with user_error("not representable in sparsify"):
            save_sparsify(sae, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_interrupted_export_leaves_nothing_that_loads(tmp_path, monkeypatch):
    first, other = varied()[Site(1, Stream.MLP_OUT)], TopKSAE(D, N, K, generator=torch.Generator())
    save_sparsify(first, tmp_path)

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
