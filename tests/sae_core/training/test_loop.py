"""The loop: steps, rates, dead latents and resumption, as plain code says."""

from functools import cache

import pytest
import torch
from planted import Rows, generator, unchecked
from tiny import random_tokens
from torch import Tensor
from trained import BATCH, EVERY, PLACES, config, every, finish, memory, same, small

from editing.engine.batching import peak_bytes
from sae_core.data.activations import ActivationStream
from sae_core.data.text import Text
from sae_core.dictionaries import sparse
from sae_core.evaluation.reconstruction import fvu
from sae_core.sites import Site
from sae_core.training.calibration import geometric_median
from sae_core.training.checkpoint import load_checkpoint, save_checkpoint
from sae_core.training.config import TrainConfig
from sae_core.training.loop import LOOK, start, train
from sae_core.training.recipe import LossContext
from sae_core.training.state import TrainState
from sae_core.training.topk_recipes import TopK


def trained(stream, *configs: TrainConfig) -> TrainState:
    state = start(stream, *configs)
    finish(stream, state)
    return state


def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


# ---- the loop --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_steps_are_counted_and_reported():
    stream = small()
    state = start(stream, *every(steps=12))
    steps = list(train(stream, state))
    assert [step.step for step in steps] == list(range(1, 13)) and state.step == 12
    for step in steps:
        numbers = step.numbers()
        assert len(numbers) == len(state.members)
        for member, at_site in zip(state.members, numbers, strict=True):
            assert list(at_site) == list(PLACES)
            for now in at_site.values():
                assert set(now) == {"loss", "fvu", "l0", "dead"} and now["loss"] > 0 < now["fvu"]
                if member.config.recipe == TopK(2):
                    assert 0 < now["l0"] <= 2 and now["loss"] >= now["fvu"]


def test_activations_are_scaled_to_mean_squared_norm_d_in_and_biases_begin_in_their_middle():
    stream = small()
    state = start(stream, *every())
    for site in PLACES:
        x = torch.cat([batch[site] for batch in stream.block(0)])
        for member in state.members:
            at_site = member.sites[site]
            assert (at_site.scale * x).pow(2).sum(-1).mean().item() == pytest.approx(12, rel=1e-4)
            assert torch.allclose(at_site.sae.b_dec, at_site.scale * geometric_median(x), atol=1e-5)
            assert not torch.allclose(at_site.sae.b_dec, at_site.scale * x.mean(0), atol=1e-3)


@pytest.mark.slow
def test_a_start_takes_little_beside_the_block(tiny_models):
    """It used to hold a copy of up to 2^17 tokens at all sites."""
    model = tiny_models["neox"]
    stream = ActivationStream(model, random_tokens(model.n_vocab, 500, 64), tuple(model.sites()), 0, 256)
    block = sum(x.nbytes for x in stream.rows(0).values())  # kept from here on
    assert block == 3 * 500 * 64 * 32 * 4
    weights = 3 * 2 * 32 * 32 * 4
    assert peak_bytes(lambda: start(stream, config(expansion=1, batch=256, tokens=256))) < 0.25 * block + 2 * weights


def test_the_scale_at_the_start_is_that_of_all_tokens_it_reads():
    """The second half of the block is three times as large, and lies beyond the tokens that the median is of."""
    x = torch.randn(2**13, 12, generator=generator())
    x[2**12 :] *= 3
    state = start(Rows(x, 2**10), config(batch=2**10, tokens=2**10))
    (at_site,) = state.members[0].sites.values()
    assert (at_site.scale * x).pow(2).sum(-1).mean().item() == pytest.approx(12, rel=1e-5)
    assert torch.allclose(at_site.sae.b_dec, at_site.scale * geometric_median(x[: 2**12]), atol=1e-6)


@pytest.mark.slow
def test_directions_are_unit_vectors_after_every_step():
    stream = small()
    state = start(stream, *every(lr=0.03, steps=20))
    before = {name: w for name, w in copied(memory(state)).items() if name.endswith("W_dec")}
    for _ in train(stream, state):
        for name, w in memory(state).items():
            if name.endswith("W_dec"):
                assert (w.norm(dim=-1) - 1).abs().max() < 1e-6
    assert all((memory(state)[name] - w).abs().max() > 0.01 for name, w in before.items())


def test_a_step_moves_directions_sideways_only():
    """What the optimiser remembers is orthogonal to the directions; of the encoder's columns it is not."""
    stream = small()
    state = start(stream, *every())
    before = [at_site.sae.W_dec.detach().clone() for member in state.members for at_site in member.sites.values()]
    next(train(stream, state))
    after = [at_site for member in state.members for at_site in member.sites.values()]
    for d, at_site in zip(before, after, strict=True):
        moved = at_site.optimizer.state[at_site.weights["W_dec"]]["exp_avg"]
        size = moved.abs().max()
        assert size > 0 and (moved * d).sum(-1).abs().max() < 1e-5 * size
        if "W_enc" in at_site.weights:
            moved = at_site.optimizer.state[at_site.weights["W_enc"]]["exp_avg"].view(d.shape)
            assert (moved * d).sum(-1).abs().max() > 1e-3 * moved.abs().max()


def gradient_norms(clip: float | None) -> list[float]:
    stream, norms = small((Site(0),)), []
    state = start(stream, config(clip=clip, steps=10))
    (at_site,) = state.members[0].sites.values()

    def note(optimizer, *_):
        weights = [weight.grad for group in optimizer.param_groups for weight in group["params"]]
        norms.append(torch.cat([grad.flatten() for grad in weights]).norm().item())

    at_site.optimizer.register_step_pre_hook(note)
    for _ in train(stream, state):
        pass
    return norms


def test_gradients_are_clipped():
    free = gradient_norms(None)
    assert min(free) > 0.01
    clipped = gradient_norms(0.01)
    assert max(clipped) <= 0.01 * (1 + 1e-5) and clipped == pytest.approx([0.01] * 10, rel=1e-3)
    assert gradient_norms(10.0) == pytest.approx(free)  # control: nothing to clip


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_looking_at_what_has_been_trained_changes_nothing(name):
    stream = small()
    state = start(stream, config(EVERY[name], steps=40))
    run = train(stream, state)
    for _ in range(35):
        step = next(run)
    before = copied(memory(state))
    for dictionary in state.dictionaries().values():
        dictionary.decode(dictionary.encode(torch.randn(9, 12, generator=generator())))
    step.numbers()
    (at_site, *_), x = state.members[0].sites.values(), next(stream.block(3))[Site(0)]
    EVERY[name].loss(at_site.sae, at_site.scale * x, LossContext(at_site.dead))
    assert same(before, memory(state))
    rest = list(run)
    assert rest[-1].step == 40 and same(memory(state), memory(trained(stream, state.members[0].config)))


def test_a_finished_run_stays_finished():
    state = trained(small(), config(steps=7))
    before = copied(memory(state))
    assert list(train(small(), state)) == []
    assert same(before, memory(state))


@pytest.mark.slow
def test_training_in_bfloat16_is_nearly_that_in_float32():
    """Only the choice of latents is in bfloat16: nearly the same are chosen, and it explains as much."""
    stream, result = small((Site(0),), batches=20), {}
    for name in ("topk", "batchtopk", "jumprelu", "gated", "relu"):
        both = []
        for bfloat16 in (False, True):
            state = trained(stream, config(EVERY[name], steps=90, bfloat16=bfloat16))
            assert state.members[0].bfloat16 is bfloat16
            both.append(state.dictionaries()[Site(0)])
        x = torch.cat([batch[Site(0)] for batch in stream.block(9)])
        codes = [sae.encode(x) for sae in both]
        result[name] = ((codes[0] != 0) == (codes[1] != 0)).float().mean().item()
        fvus = [fvu(x, sae.decode(f)) for sae, f in zip(both, codes, strict=True)]
        assert fvus[1] == pytest.approx(fvus[0], abs=0.02) and fvus[0] < 0.6
        assert not torch.equal(both[0].W_dec, both[1].W_dec)  # control: it was not float32 again
    assert min(result.values()) > 0.99, result


def test_codes_chosen_in_bfloat16_are_mostly_those_in_float32():
    """Of one dictionary and batch: at least 97 of 100 chosen latents are the same, and their values to the bit."""
    recipe, x = TopK(8), torch.randn(2000, 64, generator=generator())
    sae = recipe.new(64, 512, generator=generator(1))
    codes = []
    for scratch in (sparse.Scratch(), sparse.Scratch(torch.bfloat16)):
        pre = scratch.pre(x, sae.W_enc, sae.b_enc, sae.b_dec)
        chosen = sparse.top(pre, 8)[1]
        codes.append(torch.zeros(2000, 512).scatter(-1, chosen, 1.0) * sae.pre(x))
    both = (codes[0] != 0) & (codes[1] != 0)
    assert 0.97 < both.sum() / (codes[0] != 0).sum() < 1
    assert torch.equal(codes[0][both], codes[1][both])


def test_where_bfloat16_is_fast_is_found_out_once_at_the_start(tiny_models, tmp_path, monkeypatch):
    """A run goes on in the precision in which it began, on whatever machine."""
    for fast in (True, False):
        monkeypatch.setattr(sparse, "multiplies_bfloat16", lambda device, fast=fast: fast)
        state = start(small(), config(bfloat16=None, steps=9))
        next(train(small(), state))
        save_checkpoint(state, Text("storybook", 12, True), tiny_models["gpt2"], tmp_path, contexts="")
        monkeypatch.setattr(sparse, "multiplies_bfloat16", lambda device, fast=fast: not fast)
        again = load_checkpoint(tmp_path, device=torch.device("cpu"))
        assert (state.members[0].bfloat16, again.members[0].bfloat16) == (fast, fast)
        finish(small(), state)
        finish(small(), again)
        assert same(memory(state), memory(again))


# ---- dead latents ----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [32, 64, 128])
def test_silence_is_counted_in_tokens_whatever_the_batch(batch):
    """A quarter of the tokens varied, the others four tokens again and again; the learning rate moves nothing."""
    x = torch.cat([rows[Site(0)] for rows in small((Site(0),)).block(0)])
    x = torch.cat([x[:256], x[300:304].repeat(192, 1)])
    at_site = config(TopK(2), tokens=2 * 1024, batch=batch, lr=1e-30, dead_after=700)
    at_site = trained(Rows(x, batch), at_site).members[0].sites[Site(0)]
    active = (at_site.sae.encode(at_site.scale * x) > 0).repeat(2, 1)
    last = torch.where(active.any(0), 2047 - active.flip(0).long().argmax(0), -1)
    assert torch.equal(at_site.silent, 2048 - batch * (last // batch + 1))
    assert torch.equal(at_site.dead, (at_site.silent >= 700).nonzero().squeeze(-1))
    assert at_site.silent.unique().numel() > 2 and 0 < len(at_site.dead) < at_site.sae.n_latents


def test_latents_become_dead_at_the_next_look():
    stream = small()
    state = start(stream, config(TopK(1), dead_after=128, steps=2 * LOOK))
    counts = [step.n_dead[0][Site(0)] for step in train(stream, state)]
    assert counts[: LOOK - 1] == [0] * (LOOK - 1)
    assert counts[LOOK - 1 : 2 * LOOK - 1] == [counts[LOOK - 1]] * LOOK and counts[LOOK - 1] > 0
    at_site = state.members[0].sites[Site(0)]
    assert counts[-1] == int((at_site.silent >= 128).sum())
    assert (at_site.silent % BATCH == 0).all()


# ---- resuming --------------------------------------------------------------------------------------

LONG = 2 * LOOK + 11


@cache
def straight() -> TrainState:
    return trained(small(PLACES[1:]), *every(steps=LONG))


def interrupted(model, folder, stop: int) -> TrainState:
    stream = small(PLACES[1:])
    state = start(stream, *every(steps=LONG))
    run = train(stream, state)
    with unchecked():
        for _ in range(stop):
            next(run)
    save_checkpoint(state, Text("storybook", 12, True), model, folder, contexts="")
    assert state.step == stop
    return load_checkpoint(folder, device=torch.device("cpu"))


@pytest.mark.slow
@pytest.mark.parametrize("stop", [13, LOOK + 3, 2 * LOOK])
def test_a_resumed_run_equals_an_uninterrupted_one(tiny_models, tmp_path, stop):
    """Every architecture at once, interrupted inside a block or at its end, with latents dead or not yet."""
    state = interrupted(tiny_models["gpt2"], tmp_path, stop)
    assert (state.step, state.block, state.position) == (stop, (stop - 1) // 5, (stop - 1) % 5 + 1)
    assert any(len(at_site.dead) for member in state.members for at_site in member.sites.values()) == (stop > LOOK)
    finish(small(PLACES[1:]), state)
    assert same(memory(state), memory(straight()))
    for a, b in zip(state.members, straight().members, strict=True):
        assert a.name == b.name
        for site, dictionary in a.dictionaries().items():
            assert same(dictionary.state_dict(), b.dictionaries()[site].state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["optimizer", "dead", "position"])
def test_a_resumed_run_without_all_of_its_state_would_differ(tiny_models, tmp_path, lost):
    """Control: the weights alone are not enough to go on exactly."""
    state = interrupted(tiny_models["gpt2"], tmp_path, LOOK + 1)
    if lost == "position":
        state.position += 1
    for member in state.members:
        for at_site in member.sites.values():
            if lost == "optimizer":
                at_site.optimizer.state.clear()
            if lost == "dead":
                at_site.dead = at_site.dead[:0]
    finish(small(PLACES[1:]), state)
    assert not same(memory(state), memory(straight()))
