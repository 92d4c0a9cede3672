"""dictionary_learning files of every class, against a few lines in float64."""

import pytest
import torch
from foreign_files import K, X, check, dl_card, dl_files, linear, tensors, topk, w64, write
from tiny import user_error
from torch import Tensor

from sae_core.formats.readers import load_foreign
from sae_core.sites import Site


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


@pytest.mark.parametrize("kind", dl_files())
def test_dictionary_learning(tmp_path, kind):
    values = dl_files()[kind]
    g, x_hat, norms = dl_reference(kind, values)
    folder = tmp_path / "resid_post_layer_3" / "trainer_0"
    write(folder, "ae.pt", values, dl_card(kind, submodule_name="mlp_layer_3"), at="config.json")
    write(folder / "checkpoints", "ae_100.pt", values)
    for path in (folder, folder / "ae.pt", folder / "checkpoints" / "ae_100.pt"):
        foreign = load_foreign(path)
        check(foreign.dictionary, g, x_hat, norms=norms)
        assert (foreign.format, foreign.place) == ("dictionary-learning", "blocks.3.mlp.hook_out")
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
    result = dl_files()
    for kind in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
        unset = result[kind] | {"threshold": torch.tensor(-1.0)}
        with user_error(str(tmp_path), "threshold was never set", "set it"):
            load_foreign(write(tmp_path, "ae.pt", unset, dl_card(kind), at="config.json"))
    with user_error("backup"):
        load_foreign(write(tmp_path, "ae.pt", {"step": 5, "ae": linear(), "optimizer": {}, "norm_factor": 1.0}))
    with user_error("dict_class = 'CrossCoder'"):
        load_foreign(write(tmp_path, "ae.pt", linear(), dl_card("CrossCoder"), at="config.json"))
    card = dl_card("AutoEncoder") | {"buffer": {"io": "in_and_out"}}
    with user_error("io = 'in_and_out'"):
        load_foreign(write(tmp_path, "ae.pt", linear(), card, at="config.json"))
    contradictions = {("layer = 2", "resid_post = 3"): {"layer": 2}, (f"k = {K}", f"k = {K + 1}"): {"k": K + 1}}
    for words, more in contradictions.items():
        card = dl_card("AutoEncoderTopK", submodule_name="resid_post_layer_3", **more)
        with user_error(*words, "correct the one that is wrong"):
            load_foreign(write(tmp_path, "ae.pt", result["AutoEncoderTopK"], card, at="config.json"))
    with user_error("decoder.weight is missing"):
        load_foreign(write(tmp_path, "ae.pt", tensors(), dl_card("AutoEncoder"), at="config.json"))
