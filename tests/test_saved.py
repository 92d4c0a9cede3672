"""Edits on disk and as plain hooks: what is loaded is what was saved, and others' code does the same with it."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from handmade import complete_basis, random_topk
from test_models import close
from tiny import random_tokens, user_error

from editing import plain_hook
from editing.erase import mean_difference
from editing.hook_export import export_hook, module_of
from editing.patch import ErrorPatch, ablate, clamp, patch_features
from editing.saved import CARD, TENSORS, load_edit, save_edit
from editing.scaled import Scaled, Spared, spare_bos
from sae_core.dictionaries import Rectified, Unmixing
from sae_core.models import load_model
from sae_core.normed import LayerNormed, NormRescaled
from sae_core.saes import GatedSAE, JumpReLUSAE, ReLUSAE
from sae_core.sites import Site, Stream

SITE = Site(1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shaken(sae):
    """No parameter at the value that it is born with."""
    with torch.no_grad():
        for number, parameter in enumerate(sae.parameters()):
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator(number))
        sae.normalise()
    return sae.requires_grad_(False)


def gained(sae):
    sae.gain = torch.rand(sae.n_latents, generator=generator()) + 0.5
    return sae


BASIS = complete_basis(32)
DICTIONARIES = {
    "topk": random_topk(32),
    "topk with gains": gained(random_topk(32)),
    "relu": shaken(ReLUSAE(32, 48, generator=generator())),
    "jumprelu": shaken(JumpReLUSAE(32, 48, generator=generator())),
    "gated": shaken(GatedSAE(32, 48, generator=generator())),
    "layer norm": LayerNormed(random_topk(32)),
    "rescaled": NormRescaled(random_topk(32)),
    "basis": BASIS,
    "rectified": Rectified(BASIS.directions, BASIS.mean),
    "unmixing": Unmixing(BASIS.directions, BASIS.directions.T.contiguous() * 1.5, BASIS.mean),
}


@pytest.fixture(params=DICTIONARIES, ids=str)
def edit(request):
    dictionary = DICTIONARIES[request.param]
    last = len(dictionary.directions) - 1
    return Spared(Scaled(clamp(SITE, dictionary, [0, 3, 7, 20, last], 0.7), 1.3), torch.full((32,), 2.0))


def activations() -> torch.Tensor:
    h = torch.randn(3, 7, 32, generator=generator(5))
    h[:, 0] = 2.0
    return h


def an_erasure():
    return mean_difference(Site(2), torch.randn(40, 32, generator=generator(2)), torch.arange(40) % 2)


def test_a_saved_edit_is_the_edit_to_the_bit(edit, tmp_path):
    save_edit(edit, tmp_path)
    (loaded,) = load_edit(tmp_path)
    h = activations()
    assert torch.equal(loaded(h), edit(h)) and loaded.site == SITE
    assert (loaded(h) - h).norm(dim=-1)[:, 1:].min() > 0 and torch.equal(loaded(h)[:, 0], h[:, 0])


def test_a_plain_hook_does_the_same_as_the_edit(edit, tmp_path, tiny_models):
    """Every dictionary kind, by the code that is exported."""
    export_hook(edit, tiny_models["neox"], tmp_path / "hook.py")
    space: dict = {"__file__": str(tmp_path / "hook.py"), "__name__": "hook"}
    exec((tmp_path / "hook.py").read_text(), space)
    tensors = {k[2:]: v for k, v in space["load_file"](tmp_path / "hook.safetensors").items()}
    close(space["edited"](space["EDITS"][0], tensors, activations()), edit(activations()), 1e-5)


def test_several_edits_keep_their_order(tmp_path):
    edits = [ablate(SITE, DICTIONARIES["topk"], range(20)), an_erasure()]
    save_edit(edits, tmp_path)
    loaded = load_edit(tmp_path)
    assert [one.site for one in loaded] == [SITE, Site(2)]
    for one, other in zip(loaded, edits, strict=True):
        assert torch.equal(one(activations()), other(activations()))


SCRIPT = """
import importlib.util, sys, torch
for name in ("sae_core", "editing", "transformer_lens"):
    sys.modules[name] = None  # an import of ours would fail
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
spec = importlib.util.spec_from_file_location("hook", sys.argv[2])
hook = importlib.util.module_from_spec(spec)
spec.loader.exec_module(hook)
tokens = torch.load(sys.argv[3], weights_only=True)
with torch.no_grad():
    before = model(tokens).logits
    handles = hook.attach(model)
    after, written = model(tokens).logits, model.generate(tokens[:1], max_new_tokens=8, do_sample=False, pad_token_id=0)
    for handle in handles:
        handle.remove()
    again = model(tokens).logits
torch.save({"before": before, "after": after, "again": again, "written": written}, sys.argv[4])
"""


def test_a_hook_runs_without_this_package(checkpoints, tiny_models, kind, tmp_path):
    """A fresh interpreter with transformers only, on each architecture; logits equal ours."""
    model = tiny_models[kind]
    edits = spare_bos(model, [Scaled(ablate(SITE, random_topk(32), range(40)), 1.7), an_erasure()])
    export_hook(edits, model, tmp_path / "hook.py")
    tokens = random_tokens(model.n_vocab, 2, 9, seed=3)
    tokens[:, 0] = model.bos_id
    torch.save(tokens, tmp_path / "tokens.pt")
    files = [checkpoints[kind], tmp_path / "hook.py", tmp_path / "tokens.pt", tmp_path / "out.pt"]
    done = subprocess.run([sys.executable, "-c", SCRIPT, *map(str, files)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    theirs = torch.load(tmp_path / "out.pt", weights_only=True)
    with torch.no_grad(), model.hooks(*edits):
        ours, written = model.logits(tokens), tokens[:1]
        for _ in range(8):  # without a cache: each pass sees the whole text again
            written = torch.cat([written, model.logits(written)[:, -1:].argmax(-1)], 1)
    close(theirs["after"], ours, 1e-4)
    assert (theirs["before"] - theirs["after"]).abs().max() > 0.05 and torch.equal(theirs["before"], theirs["again"])
    assert torch.equal(theirs["written"], written)


def test_bos_keeps_its_activation_and_nothing_else_does(tiny):
    erasure = an_erasure()
    (spared,) = spare_bos(tiny, [erasure])
    tokens = random_tokens(tiny.n_vocab, 2, 6, seed=1)
    tokens[:, 0] = tiny.bos_id
    h = tiny.record(tokens, [erasure.site])[erasure.site]
    assert torch.equal(spared(h)[:, 0], h[:, 0]) and torch.equal(spared(h)[:, 1:], erasure(h)[:, 1:])
    assert not torch.equal(erasure(h)[:, 0], h[:, 0])


def test_what_cannot_be_saved_or_exported_is_said(tmp_path, tiny_models):
    dictionary, x = DICTIONARIES["topk"], activations()
    patch = ablate(SITE, dictionary, [1])
    with user_error("mask", "resid_post.1"):
        save_edit(replace(patch, mask=torch.ones(3, 7, dtype=torch.bool)), tmp_path)
    with user_error("ErrorPatch", "cannot be saved"):
        save_edit(ErrorPatch(SITE, dictionary, x), tmp_path)
    with user_error("FeaturePatch", "cannot be saved"):
        save_edit(patch_features(SITE, dictionary, [1], x), tmp_path)
    with user_error("mlp_out.1", "resid_post"):
        export_hook(ablate(Site(1, Stream.MLP_OUT), dictionary, [1]), tiny_models["neox"], tmp_path / "hook.py")
    with user_error(".py"):
        export_hook(patch, tiny_models["neox"], tmp_path / "hook")
    with user_error("layers run from 0 to 2"):
        module_of(tiny_models["neox"], Site(7))
    assert not list(tmp_path.iterdir())


def test_a_damaged_edit_is_said(tmp_path):
    with user_error("missing"):
        load_edit(tmp_path)
    save_edit(ablate(SITE, DICTIONARIES["topk"], [1]), tmp_path)
    card = json.loads((tmp_path / CARD).read_text())
    card["edits"][0]["kind"] = "spell"
    (tmp_path / CARD).write_text(json.dumps(card))
    with user_error("spell", "damaged"):
        load_edit(tmp_path)
    save_edit(ablate(SITE, DICTIONARIES["topk"], [1]), tmp_path)
    (tmp_path / TENSORS).write_bytes(b"nothing")
    with user_error("damaged"):
        load_edit(tmp_path)


def test_the_hook_file_imports_torch_and_safetensors_only():
    source = Path(plain_hook.__file__).read_text(encoding="utf-8")
    lines = {line.split()[1].split(".")[0] for line in source.splitlines() if line.startswith(("import ", "from "))}
    assert lines == {"torch", "safetensors", "pathlib"}


def test_three_lines_apply_a_saved_edit(tmp_path, checkpoints):
    model = load_model(checkpoints["neox"], device="cpu")
    save_edit(spare_bos(model, [ablate(SITE, random_topk(32), range(40))]), tmp_path)
    tokens = random_tokens(model.n_vocab, 1, 6)
    plain = model.logits(tokens)
    edits = load_edit(tmp_path)
    with model.hooks(*edits):
        edited = model.logits(tokens)
    assert (plain - edited).abs().max() > 0.01
