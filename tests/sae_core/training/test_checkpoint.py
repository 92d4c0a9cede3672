"""A checkpoint reads back to the bit, replaces the one before whole, and damage is one line."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mortal import NAMED, WHOLE, at_every_moment, fill_disk, kill
from planted import unchecked
from safetensors.torch import load_file, save_file
from tiny import user_error
from trained import PLACES, config, every, finish, memory, same, small

from sae_core.data.text import Text
from sae_core.files import write_tensors
from sae_core.training.checkpoint import (
    has_checkpoint,
    load_checkpoint,
    read_checkpoint,
    remove_checkpoint,
    save_checkpoint,
)
from sae_core.training.loop import start, train

TEXT = Text("storybook", 12, True)


@pytest.fixture(scope="module")
def model(tiny_models):
    return tiny_models["gpt2"]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


STOP = 35


@pytest.fixture(scope="module")
def half_way():
    """Every architecture at two sites, some latents dead, between blocks and inside one."""
    stream = small()
    state = start(stream, *every(steps=40))
    run = train(stream, state)
    with unchecked():
        for _ in range(STOP - 1):
            next(run)
    return state


@pytest.fixture
def out(half_way, model, tmp_path) -> Path:
    save_checkpoint(half_way, TEXT, model, tmp_path / "run", contexts="abc")
    return tmp_path / "run"


CPU = torch.device("cpu")


def test_a_checkpoint_reads_back_to_the_bit(half_way, model, out):
    loaded = load_checkpoint(out, device=CPU)
    assert (loaded.step, loaded.block, loaded.position) == (STOP - 1, half_way.block, half_way.position)
    assert half_way.block > 0 and half_way.position > 0
    assert same(memory(loaded), memory(half_way))
    assert any(len(tensor) for name, tensor in memory(loaded).items() if name.endswith(" dead"))
    assert [member.name for member in loaded.members] == [member.name for member in half_way.members]
    for a, b in zip(half_way.members, loaded.members, strict=True):
        assert list(b.sites) == list(PLACES)
        for site, at_site in a.sites.items():
            assert b.sites[site].scale == at_site.scale
            for name, weight in b.sites[site].weights.items():
                assert weight.data_ptr() == getattr(b.sites[site].sae, name).data_ptr()
                # the fused optimiser pairs elements by memory order
                assert weight.stride() == at_site.weights[name].stride()
                moments = b.sites[site].optimizer.state[weight]
                assert weight.stride() == moments["exp_avg"].stride() == moments["exp_avg_sq"].stride()
    card = read_checkpoint(out)
    assert card.text == TEXT and card.configs == every(steps=40)
    assert card.fingerprint == model.fingerprint() and card.contexts == "abc"
    assert [member.bfloat16 for member in loaded.members] == card.bfloat16 == [False] * len(loaded.members)


def test_a_state_before_its_first_step_can_be_saved(model, tmp_path):
    state = start(small(), config())
    save_checkpoint(state, TEXT, model, tmp_path, contexts="abc")
    resumed = load_checkpoint(tmp_path, device=CPU)
    assert same(memory(resumed), memory(state))
    finish(small(), resumed)
    finish(small(), state)
    assert same(memory(resumed), memory(state))


def test_a_new_checkpoint_replaces_the_old_one(half_way, model, out):
    save_checkpoint(replace(half_way, step=5), TEXT, model, out, contexts="abc")
    assert set(files(out)) == {"checkpoint/state.json", "checkpoint/state-5.safetensors"}
    assert load_checkpoint(out, device=CPU).step == 5


@pytest.mark.slow
@pytest.mark.parametrize(("happen", "end"), [(kill, "Killed"), (fill_disk, NAMED)])
@pytest.mark.parametrize("earlier", [True, False])
def test_killed_at_any_moment_training_goes_on_from_a_whole_checkpoint_or_begins(
    half_way, model, tmp_path, happen, end, earlier
):
    """A run that was killed inside its first checkpoint could neither start nor resume."""
    folder = tmp_path / "run"

    def prepare():
        shutil.rmtree(folder, ignore_errors=True)
        if earlier:
            save_checkpoint(half_way, TEXT, model, folder, contexts="abc")

    def look() -> tuple[int, bool]:
        if not has_checkpoint(folder):
            return 0, True
        loaded = load_checkpoint(folder, device=CPU)
        return loaded.step, same(memory(replace(loaded, step=0)), memory(replace(half_way, step=0)))

    def action():
        save_checkpoint(replace(half_way, step=5), TEXT, model, folder, contexts="abc")

    with unchecked():
        seen = at_every_moment(happen, action, prepare, look)
    before = STOP - 1 if earlier else 0
    assert [step for _, (step, _) in seen] == sorted((step for _, (step, _) in seen), key=lambda step: step != before)
    assert all(whole for _, (_, whole) in seen)
    assert {seen[0][1][0], seen[-1][1][0]} == {before, 5}
    assert [ended for ended, _ in seen] == [end] * (len(seen) - 1) + [WHOLE]


def test_folders_without_a_checkpoint(out, tmp_path):
    remove_checkpoint(out)
    (tmp_path / "begun" / "checkpoint").mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "gone", tmp_path / "begun", out):
        assert not has_checkpoint(folder)
        with user_error(str(folder), "no checkpoint"):
            load_checkpoint(folder, device=CPU)


@pytest.mark.parametrize(
    "change",
    [
        {"scales": {"resid_post.9": 1.0}},
        {"scales": {"nowhere": 1.0}},
        {"scales": None},
        {"training": [{"recipe": {"kind": "gru"}}]},
        {"training": [{"k": 3}]},
        {"training": None},
        {"bfloat16": []},
        {"bfloat16": None},
        {"file": "state-99.safetensors"},
        {"file": 3},
        {"step": -1},
        {"step": 41},
        {"step": "34"},
        {"position": 1.5},
        {"block": -2},
        {"scales": {"resid_post.0": -1.0}},
        {"scales": {}},
        {"contexts": None},
        {"digest": "0" * 32},
    ],
)
def test_checkpoint_cards_with_wrong_values(out, change):
    path = out / "checkpoint" / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with user_error(), unchecked():
        load_checkpoint(out, device=CPU)


def test_damaged_checkpoints(out, tmp_path):
    file = f"state-{STOP - 1}.safetensors"

    def damaged(change) -> Path:
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(out, copy)
        change(copy / "checkpoint")
        return copy

    def without(part: str, instead: torch.Tensor | None = None):
        def change(folder):
            tensors = load_file(folder / file)
            (name,) = [name for name in tensors if name.startswith("0/resid_post.0/") and name.endswith(part)]
            del tensors[name]
            save_file(tensors if instead is None else tensors | {name: instead}, folder / file)

        return change

    for change in (
        lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:500]),
        lambda folder: (folder / file).unlink(),
        lambda folder: (folder / "state.json").write_text("{"),
        lambda folder: (folder / "state.json").write_text("{}"),
        lambda folder: (folder / "state.json").write_text("[]"),
        without("0/b_dec"),
        without("state/silent"),
        without("exp_avg/W_dec"),
        without("0/W_dec", torch.zeros(5)),
        without("0/W_enc", torch.zeros(3, 4)),
    ):
        copy = damaged(change)
        with user_error(str(copy)):
            load_checkpoint(copy, device=CPU)
    load_checkpoint(damaged(lambda folder: None), device=CPU)  # control


FIRST = "0/resid_post.0"
WRONG = {
    "too small for the fused optimiser": {f"{FIRST}/exp_avg/W_enc": torch.zeros(3)},
    "of other precision": {f"{FIRST}/exp_avg_sq/W_dec": torch.float64},
    "missing": {f"{FIRST}/exp_avg/W_dec": None},
    "moments of some": {f"{FIRST}/{moment}/W_dec": None for moment in ("exp_avg", "exp_avg_sq")},
    "of a member that there is not": {"99/resid_post.0/b_dec": torch.zeros(3)},
    "not a number": {f"{FIRST}/b_dec": math.nan},
    "dead latents that there are not": {f"{FIRST}/state/dead": torch.tensor([10**6])},
    "dead latents below zero": {f"{FIRST}/state/dead": torch.tensor([-1])},
    "counted in floats": {f"{FIRST}/state/silent": torch.float32},
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_whole_tensors_of_another_run_are_refused_before_any_is_used(out, change):
    """Shapes of moments that were not those of their weights once ended in a segmentation fault."""
    card = json.loads((out / "checkpoint" / "state.json").read_text())
    path = out / "checkpoint" / card["file"]
    tensors = load_file(path)
    for name, value in change.items():
        before = tensors.pop(name, torch.zeros(0))
        if value is not None:
            like = before.clone().fill_(value) if isinstance(value, float) else value
            tensors[name] = before.to(value) if isinstance(value, torch.dtype) else like
    card["digest"] = write_tensors(path, tensors)
    (out / "checkpoint" / "state.json").write_text(json.dumps(card))
    with user_error(str(path), next(iter(change))[:5]):
        load_checkpoint(out, device=CPU)


def test_a_flipped_bit_is_found(out):
    path = next((out / "checkpoint").glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with user_error(str(path), "damaged"):
        load_checkpoint(out, device=CPU)
