"""Other people's files, written as their libraries write them."""

import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from handmade import normal
from safetensors.torch import save_file
from torch import Tensor

from sae_core.dictionaries.saes import GatedSAE, JumpReLUSAE, ReLUSAE, TopKSAE
from sae_core.sites import Site, Stream

D, N, K = 12, 40, 5


def tensors(*, unit: bool = False, d_in: int = D, seed: int = 0) -> dict[str, Tensor]:
    """W_enc, b_enc, W_dec, b_dec and a threshold, with decoder norms between 0.3 and 3 unless `unit`."""
    W_dec = torch.nn.functional.normalize(normal(N, d_in, seed=seed), dim=-1)
    if not unit:
        W_dec *= (0.3 * 10 ** torch.linspace(0, 1, N))[:, None]
    return {
        "W_enc": 0.3 * normal(d_in, N, seed=seed + 1),
        "b_enc": 0.3 * normal(N, seed=seed + 2),
        "W_dec": W_dec,
        "b_dec": 0.5 * normal(d_in, seed=seed + 3),
        "threshold": 0.4 * normal(N, seed=seed + 4).abs(),
    }


def write(folder: Path, name: str, values: dict[str, Tensor], card: dict | None = None, *, at="cfg.json") -> Path:
    """A folder as another tool writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    if name.endswith(".safetensors"):
        save_file({key: value.contiguous() for key, value in values.items()}, folder / name)
    elif name.endswith(".npz"):
        np.savez(folder / name, **{key: value.numpy() for key, value in values.items()})
    else:
        torch.save(values, folder / name)
    if card is not None:
        (folder / at).write_text(json.dumps(card))
    return folder


METADATA = {
    "sae_lens_version": "6.54.12",
    "model_name": "pythia-70m",
    "hook_name": "blocks.2.hook_resid_post",
    "hook_head_index": None,
    "prepend_bos": False,
    "context_size": 64,
}


def sae_lens_card(architecture: str, **more) -> dict:
    return {
        "architecture": architecture,
        "d_in": D,
        "d_sae": N,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": METADATA,
        **({"k": K} if "topk" in architecture else {}),
    } | more


def without(values: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: value for name, value in values.items() if name not in names}


def linear(bias: str = "bias", *, d_in: int = D) -> dict[str, Tensor]:
    w = tensors(d_in=d_in)
    values = {
        "encoder.weight": w["W_enc"].T.clone(),
        "encoder.bias": w["b_enc"],
        "decoder.weight": w["W_dec"].T.clone(),
    }
    return values | {bias: w["b_dec"]}


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


def sae_lens(folder: Path, values: dict[str, Tensor], card: dict) -> Path:
    return write(folder, "sae_weights.safetensors", values, card)


def gated_values(**kwargs) -> dict[str, Tensor]:
    extra = {name: 0.3 * normal(N, seed=seed) for seed, name in enumerate(("b_gate", "b_mag", "r_mag"), 50)}
    return without(tensors(**kwargs), "b_enc", "threshold") | extra


def save_as_set(folder: Path, saes: dict) -> None:
    from sae_core.data.text import Text
    from sae_core.storage import DictionarySet

    DictionarySet("m", "0", Text("storybook", 8, True), saes).save(folder)


def varied() -> dict[Site, ReLUSAE | TopKSAE | JumpReLUSAE | GatedSAE]:
    """One of each architecture, with no parameter at its initial value; SAEs train to nearly unit rows."""
    saes = {}
    for layer, kind in enumerate((ReLUSAE, TopKSAE, JumpReLUSAE, GatedSAE)):
        sizes = (D, N, K) if kind is TopKSAE else (D, N)
        sae = kind(*sizes, generator=torch.Generator().manual_seed(layer)).requires_grad_(False)
        for seed, (name, value) in enumerate(sae.named_parameters()):
            value += 0.1 * normal(*value.shape, seed=seed).abs() * (name != "W_dec")
        sae.W_dec *= 1 + 1e-7 * normal(N, 1, seed=9)
        saes[Site(layer, Stream.MLP_OUT)] = sae
    return saes


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


def dl_card(kind: str, **more) -> dict:
    trainer = {"dict_class": kind, "trainer_class": "Trainer", "layer": 3, "lm_name": "EleutherAI/pythia-70m-deduped"}
    return {"trainer": trainer | more, "buffer": {"io": "out", "ctx_len": 128}}
