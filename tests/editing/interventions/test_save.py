"""Edits on disk and as plain hooks: what is loaded is what was saved, and others' code does the same with it."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from comparing import close
from handmade import random_topk
from random_saes import every_dictionary
from tiny import random_tokens, user_error

from editing.interventions import plain_hook
from editing.interventions.compose import Scaled, Spared, spare_bos
from editing.interventions.erase import Erasure, mean_difference
from editing.interventions.hook_export import export_hook, module_of
from editing.interventions.patch import ErrorPatch, ablate, clamp, patch_features
from editing.interventions.save import CARD, TENSORS, describe_edit, load_edit, save_edit
from sae_core.data.text import Text
from sae_core.model.generation import Sampling, generate
from sae_core.model.language_model import load_model
from sae_core.sites import Site, Stream
from subrank.experiments.removal import write_edit

SITE = Site(1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


EVERY = every_dictionary(32)
TOPK = random_topk(32)


@pytest.fixture(params=EVERY, ids=str)
def edit(request):
    dictionary = EVERY[request.param]
    last = len(dictionary.directions) - 1
    return Spared(Scaled(clamp(SITE, dictionary, [0, 3, 7, 20, last], 0.7), 1.3), torch.full((32,), 2.0), radius=0.5)


def activations() -> torch.Tensor:
    h = torch.randn(3, 7, 32, generator=generator(5))
    h[:, 0], h[1, 3] = 2.0, 2.05
    return h


def an_erasure():
    return mean_difference(Site(2), torch.randn(40, 32, generator=generator(2)), torch.arange(40) % 2)


def test_a_saved_edit_is_the_edit_to_the_bit(edit, tmp_path, request):
    save_edit(edit, str(tmp_path))
    (loaded,) = load_edit(str(tmp_path))
    h = activations()
    assert loaded.site == SITE
    if "tied" in request.node.name:  # saved as what it is once trained, with a product of its own
        close(loaded(h), edit(h), 1e-5)
    else:
        assert torch.equal(loaded(h), edit(h))
    kept = torch.zeros(3, 7, dtype=torch.bool)
    kept[:, 0] = kept[1, 3] = True  # within the radius of the anchor
    assert torch.equal(((loaded(h) - h).norm(dim=-1) == 0), kept)


def test_a_plain_hook_does_the_same_as_the_edit(edit, tmp_path, tiny_models):
    """Every dictionary kind, by the code that is exported."""
    export_hook(edit, tiny_models["neox"], tmp_path / "hook.py")
    space: dict = {"__file__": str(tmp_path / "hook.py"), "__name__": "hook"}
    exec((tmp_path / "hook.py").read_text(), space)
    tensors = {k[2:]: v for k, v in space["load_file"](tmp_path / "hook.safetensors").items()}
    close(space["edited"](space["EDITS"][0], tensors, activations()), edit(activations()), 1e-5)


def test_several_edits_keep_their_order(tmp_path):
    edits = [ablate(SITE, TOPK, range(20)), an_erasure()]
    save_edit(edits, tmp_path)
    loaded = load_edit(tmp_path)
    assert [part.site for part in loaded] == [SITE, Site(2)]
    for part, other in zip(loaded, edits, strict=True):
        assert torch.equal(part(activations()), other(activations()))


SCRIPT = """
import importlib.util, sys, torch
for name in ("sae_core", "editing", "transformer_lens"):
    sys.modules[name] = None  # an import of ours would fail
from transformers import AutoModelForCausalLM
for folder, path, given, out in zip(*[iter(sys.argv[1:])] * 4):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    spec = importlib.util.spec_from_file_location("hook", path)
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    tokens = torch.load(given, weights_only=True)
    with torch.no_grad():
        before = model(tokens).logits
        handles = hook.attach(model)
        after = model(tokens).logits
        written = model.generate(tokens[:1], max_new_tokens=8, do_sample=False, pad_token_id=0)
        for handle in handles:
            handle.remove()
        again = model(tokens).logits
    torch.save({"before": before, "after": after, "again": again, "written": written}, out)
"""


def continued(model, tokens: torch.Tensor, n_new: int) -> torch.Tensor:
    """Greedy, without a cache: each pass sees the whole text again."""
    for _ in range(n_new):
        tokens = torch.cat([tokens, model.logits(tokens)[:, -1:].argmax(-1)], 1)
    return tokens


@pytest.mark.slow
def test_a_hook_runs_without_this_package(checkpoints, tiny_models, tmp_path):
    """A fresh interpreter with transformers only, on each architecture; logits equal ours, BOS in the middle too."""
    files, edits, tokens = [], {}, {}
    for kind, model in tiny_models.items():
        text = random_tokens(model.n_vocab, 2, 9, seed=3)
        text[:, 0] = text[1, 4] = model.bos_id
        edits[kind] = spare_bos(model, [Scaled(ablate(SITE, random_topk(32), range(40)), 1.7), an_erasure()], text)
        tokens[kind] = text
        (tmp_path / kind).mkdir()
        export_hook(edits[kind], model, tmp_path / kind / "hook.py")
        torch.save(text, tmp_path / kind / "tokens.pt")
        files += [checkpoints[kind], *(tmp_path / kind / name for name in ("hook.py", "tokens.pt", "out.pt"))]
    done = subprocess.run([sys.executable, "-c", SCRIPT, *map(str, files)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for kind, model in tiny_models.items():
        hooked = torch.load(tmp_path / kind / "out.pt", weights_only=True)
        with torch.no_grad(), model.hooks(*edits[kind]):
            logits, written = model.logits(tokens[kind]), continued(model, tokens[kind][:1], 8)
        close(hooked["after"], logits, 1e-4)
        assert (hooked["before"] - hooked["after"]).abs().max() > 0.05
        assert torch.equal(hooked["before"], hooked["again"]) and torch.equal(hooked["written"], written)


class Counted:
    """A tensor that counts how often it is moved."""

    def __init__(self, tensor: torch.Tensor):
        self.tensor, self.moves = tensor, 0

    def to(self, device):
        self.moves += 1
        return self.tensor.to(device)


def test_a_hook_moves_its_tensors_once_to_a_device():
    """Once it moved them with every token."""
    card, tensors = describe_edit(an_erasure())
    counted, h = {name: Counted(tensor) for name, tensor in tensors.items()}, activations()
    hook = plain_hook._hook(card, counted)
    for _ in range(3):
        close(hook(None, None, (h,))[0], an_erasure()(h), 1e-5)
    assert [part.moves for part in counted.values()] == [1, 1, 1]


def test_bos_keeps_its_activation_and_nothing_else_does(tiny):
    erasure = an_erasure()
    (spared,) = spare_bos(tiny, [erasure])
    tokens = random_tokens(tiny.n_vocab, 2, 6, seed=1)
    tokens[:, 0] = tiny.bos_id
    h = tiny.record(tokens, [erasure.site])[erasure.site]
    assert torch.equal(spared(h)[:, 0], h[:, 0]) and torch.equal(spared(h)[:, 1:], erasure(h)[:, 1:])
    assert not torch.equal(erasure(h)[:, 0], h[:, 0])


@pytest.mark.slow
def test_bos_in_the_middle_of_a_text_is_spared_as_it_was_when_the_edit_was_measured(storybook):
    """Contexts are filled with documents, each behind a BOS; the measurement leaves every BOS alone.

    Once only the first was: the others are off the anchor by what stands before them.
    """
    texts = Text("storybook", 96, True, 32 * 96).contexts(storybook)
    measured, applied = texts[:16], texts[16:]
    edits = [Erasure(site, *projection(128)) for site in storybook.sites()]
    content = storybook.content(applied)
    assert int((~content).sum()) > len(applied) + 20 and content.any()
    recorded = storybook.record(applied, {edit.site for edit in edits})
    for spared, blind in zip(spare_bos(storybook, edits, measured), spare_bos(storybook, edits), strict=True):
        h = recorded[spared.site]
        assert torch.equal((spared(h) != h).any(-1), content)
        assert not torch.equal((blind(h) != h).any(-1), content)  # control


def projection(d: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    direction = torch.nn.functional.normalize(torch.randn(d, 1, generator=generator()), dim=0)
    return direction, direction.T.contiguous(), torch.full((d,), 50.0)


def test_what_cannot_be_saved_or_exported_is_said(tmp_path, tiny_models):
    dictionary, x = TOPK, activations()
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
    save_edit(ablate(SITE, TOPK, [1]), tmp_path)
    card = json.loads((tmp_path / CARD).read_text())
    card["edits"][0]["kind"] = "spell"
    (tmp_path / CARD).write_text(json.dumps(card))
    with user_error("spell", "damaged"):
        load_edit(tmp_path)
    save_edit(ablate(SITE, TOPK, [1]), tmp_path)
    (tmp_path / TENSORS).write_bytes(b"nothing")
    with user_error("damaged"):
        load_edit(tmp_path)


def test_an_edit_is_of_its_model_and_its_tensors_are_those_that_were_written(tiny_models, tmp_path):
    save_edit(ablate(SITE, TOPK, [1]), tmp_path / "edit", tiny_models["gpt2"])
    assert len(load_edit(tmp_path / "edit", tiny_models["gpt2"])) == 1
    with user_error("another model", "config and weights differ"):
        load_edit(tmp_path / "edit", tiny_models["neox"])
    save_edit(ablate(SITE, TOPK, [2]), tmp_path / "other")
    (tmp_path / "other" / TENSORS).rename(tmp_path / "edit" / TENSORS)
    with user_error(TENSORS, "other tensors"):
        load_edit(tmp_path / "edit")


def test_the_hook_file_imports_torch_and_safetensors_only():
    source = Path(plain_hook.__file__).read_text(encoding="utf-8")
    lines = {line.split()[1].split(".")[0] for line in source.splitlines() if line.startswith(("import ", "from "))}
    assert lines == {"torch", "safetensors", "pathlib"}


def test_three_lines_apply_a_saved_edit_while_text_is_generated(tmp_path, checkpoints):
    model = load_model(checkpoints["neox"], device="cpu")
    save_edit(spare_bos(model, [Scaled(ablate(SITE, random_topk(32), range(40)), 1.5), an_erasure()]), tmp_path)
    prompts = [[model.bos_id, *random_tokens(model.n_vocab, n, seed=n).tolist()] for n in (6, 3)]
    greedy = Sampling(temperature=0.0)
    plain = generate(model, prompts, 8, seed=0, sampling=greedy)
    edits = load_edit(tmp_path, device=model.device)
    with model.hooks(*edits):
        edited = generate(model, prompts, 8, seed=0, sampling=greedy)
    with torch.no_grad(), model.hooks(*edits):
        slow = [continued(model, torch.tensor([row]), len(new)) for row, new in zip(prompts, edited, strict=True)]
    assert [row + new for row, new in zip(prompts, edited, strict=True)] == [text[0].tolist() for text in slow]
    assert edited != plain


def test_what_cannot_be_exported_is_still_saved(tmp_path, tiny_models):
    """Once it was written into `edit/`, and said not to be saved."""
    model, site = tiny_models["neox"], Site(1, Stream.MLP_OUT)
    edits = (ablate(site, random_topk(32), [1, 2]),)
    text = random_tokens(model.n_vocab, 4, 9)
    (problem,) = write_edit(tmp_path, model, spare_bos(model, list(edits), text))
    assert [part.site for part in load_edit(tmp_path / "edit")] == [site]
    assert "mlp_out.1" in problem and "hook/" in problem and not (tmp_path / "hook").exists()
