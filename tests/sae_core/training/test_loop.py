"""The training loop finds planted directions, trains many as it trains one, and resumes as if it had never stopped."""

import json
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from planted import Planted, Rows, generator, mean_max_cosine, planted_directions, unchecked
from tiny import random_tokens, user_error
from torch import Tensor
from trained import BATCH, EVERY, PLACES, config, every, finish, memory, same, small

from editing.engine.batching import peak_bytes
from sae_core.data.activations import ActivationStream
from sae_core.data.text import Text
from sae_core.dictionaries import sparse
from sae_core.dictionaries.saes import JumpReLUSAE
from sae_core.evaluation.reconstruction import fvu, l0
from sae_core.sites import Site, Stream
from sae_core.training.calibration import calibrate, geometric_median
from sae_core.training.checkpoint import load_checkpoint, save_checkpoint
from sae_core.training.config import TrainConfig
from sae_core.training.loop import LOOK, start, train
from sae_core.training.penalty_recipes import Gated, JumpReLU, ReLU
from sae_core.training.recipe import LossContext
from sae_core.training.state import TrainState
from sae_core.training.topk_recipes import BatchTopK, Matryoshka, TopK

# ---- planted directions ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "steps", "lr"),
    [
        (TopK(2), 400, 3e-3),
        (BatchTopK(2), 500, 3e-3),
        (Matryoshka(2, (0.5, 1.0)), 700, 5e-3),
        (JumpReLU(2), 1200, 5e-3),
        (Gated(3.0), 900, 1e-2),
        (ReLU(2.0), 700, 1e-2),
    ],
    ids=lambda value: type(value).__name__,
)
def test_training_recovers_planted_directions(recipe, steps, lr, training_seed):
    truth = planted_directions()
    stream = Planted(truth)
    state = start(
        stream, TrainConfig(recipe, tokens=steps * 256, batch=256, lr=lr, dead_after=20_000, seed=training_seed)
    )
    untrained = mean_max_cosine(truth, state.dictionaries()[Site(0)].directions)
    with unchecked():
        *_, last = train(stream, state)
    found = state.dictionaries()[Site(0)]
    assert untrained < 0.6
    assert mean_max_cosine(truth, found.directions) > 0.95
    # control: other directions of the same kind are not found
    assert mean_max_cosine(planted_directions(seed=8), found.directions) < 0.7
    # what the loop reported of scaled activations holds of the finished dictionary on new ones
    x = torch.cat([batch[Site(0)] for batch in stream.block(10**4)])
    f = found.encode(x)
    ((now,),) = (member.values() for member in last.numbers())
    assert now["fvu"] == pytest.approx(fvu(x, found.decode(f)), abs=0.03)
    assert now["l0"] == pytest.approx(l0(f), rel=0.15)


def test_tied_encoders_are_found_with_their_directions(training_seed):
    """Weights tied, fewer directions: with many in few dimensions a tied encoder hears too much else."""
    truth = planted_directions(24, 20)
    stream = Planted(truth)
    state = start(
        stream, TrainConfig(ReLU(2.0, tied=True), expansion=2, tokens=900 * 256, batch=256, lr=1e-2, seed=training_seed)
    )
    with unchecked():
        assert len(list(train(stream, state))) == 900
    found = state.dictionaries()[Site(0)]
    assert mean_max_cosine(truth, found.directions) > 0.95
    assert torch.equal(found.W_enc, found.W_dec.T)


# ---- many in one pass ------------------------------------------------------------------------------


def trained(stream, *configs: TrainConfig) -> TrainState:
    state = start(stream, *configs)
    finish(stream, state)
    return state


def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


@pytest.mark.slow
def test_members_train_together_as_they_train_alone():
    stream = small(dtype=torch.float64)
    together = memory(trained(stream, *every()))
    for one in every():
        alone = memory(trained(stream, one))
        for name, tensor in alone.items():
            assert torch.allclose(tensor.double(), together[name].double(), atol=1e-10, rtol=0), name
    assert any(len(tensor) for name, tensor in together.items() if "topk" in name and name.endswith(" dead"))
    assert sum(name.endswith("W_dec") for name in together) == 2 * len(every())


def test_sites_train_together_as_they_do_alone():
    together = memory(trained(small(), *every(steps=20)))
    for site in PLACES:
        alone = memory(trained(small((site,)), *every(steps=20)))
        assert same(alone, {name: tensor for name, tensor in together.items() if str(site) in name})


def test_the_same_seed_gives_the_same_weights():
    once, again, other = (memory(trained(small(), config(seed=seed, steps=10))) for seed in (0, 0, 1))
    assert same(once, again)
    weights = [[tensor for name, tensor in run.items() if name.endswith("W_dec")] for run in (once, other)]
    assert not any(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_names_of_members():
    state = start(small(), *every(), config(kl=0.5), config(ReLU(0.25)), config(expansion=2))
    names = [member.name for member in state.members]
    assert names == [
        "topk-n48-k2-seed0",
        "batchtopk-n48-k2-seed0",
        "matryoshka-n48-k2-seed0",
        "jumprelu-n48-k2-seed0",
        "gated-n48-l11-seed0",
        "relu-n48-l11-seed0",
        "tied-n48-l11-seed0",
        "topk-n36-k2-seed1",
        "topk-n48-k2-kl0.5-seed0",
        "relu-n48-l10.25-seed0",
        "topk-n24-k2-seed0",
    ]


def test_sites_of_other_widths_train_in_one_pass(tiny_models):
    """The MLP's hidden layer is twice as wide as the residual: its dictionary is as well, and each is as alone."""
    model = tiny_models["neox"]
    tokens, places = random_tokens(model.n_vocab, 60, 16), (Site(0, Stream.MLP_HIDDEN), Site(1))
    configs = config(steps=30), config(ReLU(0.1), steps=30)

    def weights(*sites: Site) -> dict[tuple[str, str], Tensor]:
        """By kind, and by site and name: names of members hold the width where there is one."""
        found = memory(trained(ActivationStream(model, tokens, sites, 0, BATCH), *configs))
        return {(name.split("-")[0], name.split(" ", 1)[1]): tensor for name, tensor in found.items()}

    together = weights(*places)
    assert together["topk", "mlp_hidden.0 W_dec"].shape == (4 * 64, 64)
    assert together["relu", "resid_post.1 W_dec"].shape == (4 * 32, 32)
    for site in places:
        assert same(weights(site), {name: tensor for name, tensor in together.items() if str(site) in name[1]})
    state = start(ActivationStream(model, tokens, places, 0, BATCH), *configs)
    assert [member.name for member in state.members] == ["topk-x4-k2-seed0", "relu-x4-l10.1-seed0"]
    first, *_, last = (step.numbers() for step in train(ActivationStream(model, tokens, places, 0, BATCH), state))
    for before, after in zip(first, last, strict=True):
        assert all(after[site]["fvu"] < 0.9 * before[site]["fvu"] for site in places)


def test_members_must_differ_and_take_the_same_tokens():
    with user_error("must differ"):
        start(small(), config(), config())
    for other in (config(steps=51), config(batch=2 * BATCH)):
        with user_error("one pass", "same"):
            start(small(), config(), other)
    with user_error("same batches"):
        start(small(), config(batch=2 * BATCH))


# ---- the loop --------------------------------------------------------------------------------------


def test_steps_are_counted_and_reported():
    stream = small()
    state = start(stream, *every(steps=12))
    steps = list(train(stream, state))
    assert [step.step for step in steps] == list(range(1, 13)) and state.step == 12
    for step in steps:
        numbers = step.numbers()
        assert len(numbers) == len(state.members)
        for member, own in zip(state.members, numbers, strict=True):
            assert list(own) == list(PLACES)
            for now in own.values():
                assert set(now) == {"loss", "fvu", "l0", "dead"} and now["loss"] > 0 < now["fvu"]
                if member.config.recipe == TopK(2):
                    assert 0 < now["l0"] <= 2 and now["loss"] >= now["fvu"]


def test_activations_are_scaled_to_mean_squared_norm_d_in_and_biases_begin_in_their_middle():
    stream = small()
    state = start(stream, *every())
    for site in PLACES:
        x = torch.cat([batch[site] for batch in stream.block(0)])
        for member in state.members:
            own = member.sites[site]
            assert (own.scale * x).pow(2).sum(-1).mean().item() == pytest.approx(12, rel=1e-4)
            assert torch.allclose(own.sae.b_dec, own.scale * geometric_median(x), atol=1e-5)
            assert not torch.allclose(own.sae.b_dec, own.scale * x.mean(0), atol=1e-3)


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
    (own,) = state.members[0].sites.values()
    assert (own.scale * x).pow(2).sum(-1).mean().item() == pytest.approx(12, rel=1e-5)
    assert torch.allclose(own.sae.b_dec, own.scale * geometric_median(x[: 2**12]), atol=1e-6)


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
    before = [own.sae.W_dec.detach().clone() for member in state.members for own in member.sites.values()]
    next(train(stream, state))
    after = [own for member in state.members for own in member.sites.values()]
    for d, own in zip(before, after, strict=True):
        moved = own.optimizer.state[own.weights["W_dec"]]["exp_avg"]
        size = moved.abs().max()
        assert size > 0 and (moved * d).sum(-1).abs().max() < 1e-5 * size
        if "W_enc" in own.weights:
            moved = own.optimizer.state[own.weights["W_enc"]]["exp_avg"].view(d.shape)
            assert (moved * d).sum(-1).abs().max() > 1e-3 * moved.abs().max()


def gradient_norms(clip: float | None) -> list[float]:
    stream, norms = small((Site(0),)), []
    state = start(stream, config(clip=clip, steps=10))
    (own,) = state.members[0].sites.values()

    def note(optimizer, *_):
        weights = [weight.grad for group in optimizer.param_groups for weight in group["params"]]
        norms.append(torch.cat([grad.flatten() for grad in weights]).norm().item())

    own.optimizer.register_step_pre_hook(note)
    for _ in train(stream, state):
        pass
    return norms


def test_gradients_are_clipped():
    free = gradient_norms(None)
    assert min(free) > 0.01
    clipped = gradient_norms(0.01)
    assert max(clipped) <= 0.01 * (1 + 1e-5) and clipped == pytest.approx([0.01] * 10, rel=1e-3)
    assert gradient_norms(10.0) == pytest.approx(free)  # control: nothing to clip


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
    (own, *_), x = state.members[0].sites.values(), next(stream.block(3))[Site(0)]
    EVERY[name].loss(own.sae, own.scale * x, LossContext(own.dead))
    assert same(before, memory(state))
    rest = list(run)
    assert rest[-1].step == 40 and same(memory(state), memory(trained(stream, state.members[0].config)))


def test_a_finished_run_stays_finished():
    state = trained(small(), config(steps=7))
    before = copied(memory(state))
    assert list(train(small(), state)) == []
    assert same(before, memory(state))


def test_training_in_bfloat16_is_nearly_that_in_float32():
    """Only the choice of latents is in bfloat16: nearly the same are chosen, and it explains as much."""
    stream, found = small((Site(0),), batches=20), {}
    for name in ("topk", "batchtopk"):
        both = []
        for bfloat16 in (False, True):
            state = trained(stream, config(EVERY[name], steps=90, bfloat16=bfloat16))
            assert state.members[0].bfloat16 is bfloat16
            both.append(state.dictionaries()[Site(0)])
        x = torch.cat([batch[Site(0)] for batch in stream.block(9)])
        codes = [sae.encode(x) for sae in both]
        found[name] = ((codes[0] != 0) == (codes[1] != 0)).float().mean().item()
        fvus = [fvu(x, sae.decode(f)) for sae, f in zip(both, codes, strict=True)]
        assert fvus[1] == pytest.approx(fvus[0], abs=0.02) and fvus[0] < 0.6
        assert not torch.equal(both[0].W_dec, both[1].W_dec)  # control: it was not float32 again
    assert min(found.values()) > 0.99, found


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
    own = config(TopK(2), tokens=2 * 1024, batch=batch, lr=1e-30, dead_after=700)
    own = trained(Rows(x, batch), own).members[0].sites[Site(0)]
    active = (own.sae.encode(own.scale * x) > 0).repeat(2, 1)
    last = torch.where(active.any(0), 2047 - active.flip(0).long().argmax(0), -1)
    assert torch.equal(own.silent, 2048 - batch * (last // batch + 1))
    assert torch.equal(own.dead, (own.silent >= 700).nonzero().squeeze(-1))
    assert own.silent.unique().numel() > 2 and 0 < len(own.dead) < own.sae.n_latents


def test_latents_become_dead_at_the_next_look():
    stream = small()
    state = start(stream, config(TopK(1), dead_after=128, steps=2 * LOOK))
    counts = [step.n_dead[0][Site(0)] for step in train(stream, state)]
    assert counts[: LOOK - 1] == [0] * (LOOK - 1)
    assert counts[LOOK - 1 : 2 * LOOK - 1] == [counts[LOOK - 1]] * LOOK and counts[LOOK - 1] > 0
    own = state.members[0].sites[Site(0)]
    assert counts[-1] == int((own.silent >= 128).sum())
    assert (own.silent % BATCH == 0).all()


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
    assert any(len(own.dead) for member in state.members for own in member.sites.values()) == (stop > LOOK)
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
        for own in member.sites.values():
            if lost == "optimizer":
                own.optimizer.state.clear()
            if lost == "dead":
                own.dead = own.dead[:0]
    finish(small(PLACES[1:]), state)
    assert not same(memory(state), memory(straight()))


# ---- mistakes --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Poisoned(Planted):
    """Activations at the last site hold one NaN from batch `bad` of block 1 on."""

    bad: int = 2

    def block(self, block: int):
        for number, batch in enumerate(super().block(block)):
            if block > 1 or (block == 1 and number >= self.bad):
                batch[self.sites[-1]] = batch[self.sites[-1]].index_fill(0, torch.tensor(7), torch.nan)
            yield batch


@pytest.mark.parametrize("name", EVERY)
def test_nan_in_activations_stops_with_member_site_and_step(name):
    stream = Poisoned(planted_directions(30, 12), PLACES, batch=BATCH, batches=5)
    state = start(stream, config(EVERY[name], steps=60))
    run = train(stream, state)
    with user_error(name, "mlp_out.2", "step 8:", "NaN"):
        for step in run:
            assert step.step < LOOK
    bad = state.members[0].sites[PLACES[1]]
    assert all(tensor.isfinite().all() for tensor in state.members[0].sites[PLACES[0]].sae.state_dict().values())
    assert bad.lost == 7


@pytest.mark.parametrize("name", ["topk", "jumprelu", "relu", "gated"])
def test_an_absurd_learning_rate_stops(name):
    with user_error(name, "resid_post.0", "step", "learning rate"):
        trained(small(), config(EVERY[name], steps=60, lr=1e25))


@pytest.mark.parametrize("recipe", [ReLU(1e4), ReLU(1e4, tied=True), Gated(1e5)], ids=["relu", "tied", "gated"])
def test_a_collapse_stops_with_its_cause(recipe):
    with user_error("l1", "resid_post.0", "no latent is active", "penalty"):
        trained(small((Site(0),)), config(recipe, steps=200, lr=1e-2))


def test_activations_that_are_nan_or_zero_at_once_are_refused():
    for value in (torch.nan, torch.inf, 0.0):
        with user_error("resid_post.0", "NaN"):
            start(Rows(torch.full((256, 12), value), BATCH), config())


def test_a_block_smaller_than_a_batch_is_refused():
    with user_error("--batch", str(BATCH)):
        start(Rows(torch.ones(BATCH - 1, 12), BATCH), config())

    class Ends(Planted):
        def block(self, block: int):
            return super().block(block) if block < 2 else iter(())

    with user_error("block 2", "more text"):
        trained(Ends(planted_directions(30, 12), batch=BATCH, batches=5), config())


@pytest.mark.parametrize("kind", [TopK, BatchTopK, Matryoshka, JumpReLU])
def test_k_larger_than_the_dictionary(kind):
    with user_error("between 1 and", "48"):
        start(small(), config(kind(49)))


@pytest.mark.parametrize("name", ["expansion", "tokens", "batch", "dead_after"])
def test_config_values_below_one_are_refused(name):
    with user_error(name, "at least 1", "0"):
        TrainConfig(**{name: 0})


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (("100", "1024"), {"tokens": 100}),
        (("expansion", "whole number", "4.0"), {"expansion": 4.0}),
        (("tokens", "whole number", "'many'"), {"tokens": "many"}),
        (("batch", "whole number", "True"), {"batch": True}),
        (("warm_up", "at least 0", "-1"), {"warm_up": -1}),
        (("seed", "whole number", "0.5"), {"seed": 0.5}),
        *((("learning rate", str(rate)), {"lr": rate}) for rate in (0.0, -1e-3, float("nan"), float("inf"))),
        (("gradient norm", "0"), {"clip": 0.0}),
        *((("KL", str(kl)), {"kl": kl}) for kl in (-1.0, float("nan"), float("inf"))),
    ],
)
def test_other_config_mistakes(words, values):
    with user_error(*words), unchecked():
        TrainConfig(**values)


def test_training_on_the_divergence_needs_the_model():
    with user_error("downstream"):
        trained(small(), config(kl=0.1))


# ---- configurations --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_configurations_come_back_from_json(name):
    for own in (TrainConfig(EVERY[name]), config(EVERY[name], clip=1.0, kl=0.5, seed=3, lr=None)):
        assert TrainConfig.from_json(json.loads(json.dumps(own.to_json()))) == own


def test_configurations_say_what_they_do_not_know():
    assert TrainConfig.from_json({}) == TrainConfig()
    with user_error("no option", "epochs, lrr"):
        TrainConfig.from_json({"lrr": 1.0, "epochs": 3})
    with user_error("'gru'"):
        TrainConfig.from_json({"recipe": {"kind": "gru"}})
    with user_error("topk", "l1"):
        TrainConfig.from_json({"recipe": {"kind": "topk", "l1": 3.0}})
    with user_error("batch", "0"):
        TrainConfig.from_json({"batch": 0})


def test_learning_rate_rises_stays_and_falls():
    own = TrainConfig(tokens=100 * 64, batch=64, warm_up=10, lr=1.0)
    rates = [own.rate(step, 64) for step in range(own.steps)]
    assert rates[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert rates[10:80] == [1.0] * 70
    assert rates[80:] == pytest.approx([1 - 0.05 * i for i in range(20)]) and rates[-1] > 0
    assert TrainConfig().rate(1000, 2**14) == pytest.approx(5e-4)
    assert TrainConfig().rate(1000, 2**12) == pytest.approx(1e-3)
    assert TrainConfig(warm_up=0).rate(0, 2**14) == pytest.approx(5e-4)


def test_penalties_rise_over_four_times_the_warm_up():
    ramps = [TrainConfig(warm_up=10).ramp(step) for step in range(60)]
    assert ramps[:40] == pytest.approx([i / 40 for i in range(1, 41)]) and ramps[40:] == [1.0] * 20


def test_the_rate_and_the_ramp_reach_the_optimiser():
    """At the first step of a warm-up of 50 a weight moves by a 50th of the learning rate, as Adam's first step does."""
    stream = small((Site(0),))
    state = start(stream, config(warm_up=50, lr=1e-2))
    own = state.members[0].sites[Site(0)]
    before = own.sae.b_dec.detach().clone()
    next(train(stream, state))
    assert (own.sae.b_dec - before).abs().max().item() == pytest.approx(1e-2 / 50, rel=1e-3)


# ---- thresholds ------------------------------------------------------------------------------------


def test_the_running_threshold_of_equal_batches_is_theirs():
    """Bias-corrected: a mean that started from zero would be far too small."""
    x = torch.cat([batch[Site(0)] for batch in small((Site(0),)).block(0)])[:BATCH]
    state = start(Rows(x, BATCH), config(BatchTopK(2), lr=1e-30, steps=9))
    (own,) = state.members[0].sites.values()
    kept = BatchTopK(2).loss(own.sae, own.scale * x, LossContext(own.dead)).threshold.item()
    for step in train(Rows(x, BATCH), state):
        sae = state.dictionaries()[Site(0)]
        assert sae.threshold[0].item() * own.scale == pytest.approx(kept, rel=1e-5), step.step
        assert l0(sae.encode(x)) == pytest.approx(2, abs=2 / BATCH)
    assert own.threshold[1] < 0.1  # what must be corrected for


def test_the_running_threshold_is_a_weighted_mean_of_the_batches():
    stream, kept = small((Site(0),)), []
    state = start(stream, config(BatchTopK(2), steps=40))
    for step in train(stream, state):
        kept.append(step.outcomes[0][Site(0)].threshold.item())
    weights = [0.99 ** (39 - i) for i in range(40)]
    expected = sum(w * t for w, t in zip(weights, kept, strict=True)) / sum(weights)
    own = state.members[0].sites[Site(0)]
    assert own.scale * state.dictionaries()[Site(0)].threshold[0].item() == pytest.approx(expected, rel=1e-5)
    assert min(kept) < 0.95 * max(kept)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_calibration_gives_the_wanted_l0(k):
    """Exactly on the rows it saw, within 2% on others of their kind."""
    sae = JumpReLUSAE(12, 24, generator=generator()).double()
    x, other = (torch.randn(30_000, 12, generator=generator(seed)).double() for seed in (1, 2))
    threshold = calibrate(sae, x, k)
    assert (sae.threshold == threshold).all() and threshold > 0
    assert (sae.encode(x) != 0).sum() == k * len(x)
    assert l0(sae.encode(other)) == pytest.approx(k, rel=0.02)


def test_thresholds_that_fall_below_zero_come_back():
    """Below zero they got no gradient, and stayed whatever L0 was."""
    stream, recipe = small((Site(0),)), JumpReLU(1, l0=1.0)
    state = start(stream, config(recipe, steps=60, warm_up=1, lr=1e-2))
    (own,) = state.members[0].sites.values()
    with torch.no_grad():
        own.sae.threshold.fill_(-1.0)
    first, *_, last = ((step.step, own.sae.threshold.min().item(), step.numbers()) for step in train(stream, state))
    assert first[1] >= 0 and (own.sae.threshold > 0).float().mean() > 0.5
    assert last[2][0][Site(0)]["l0"] < 0.5 * first[2][0][Site(0)]["l0"]


def test_calibration_where_not_enough_is_positive():
    sae, x = JumpReLUSAE(12, 24, generator=generator()), torch.randn(100, 12, generator=generator())
    with torch.no_grad():
        sae.b_enc.fill_(-3)
    assert calibrate(sae, x, 12) == 0
    assert torch.equal(sae.encode(x), sae.pre(x).relu())


def test_calibration_of_a_trained_dictionary():
    stream = small((Site(0),), batches=100)
    sae = trained(stream, config(BatchTopK(2))).dictionaries()[Site(0)]
    x, other = (torch.cat([batch[Site(0)] for batch in stream.block(block)]) for block in (2, 3))
    running = sae.threshold[0].item()
    assert calibrate(sae, x, 2) != running
    assert l0(sae.encode(x)) == pytest.approx(2, abs=1e-3)
    assert l0(sae.encode(other)) == pytest.approx(2, rel=0.02)


# ---- the geometric median --------------------------------------------------------------------------


def test_outliers_do_not_move_the_geometric_median():
    x = torch.randn(200, 5, generator=generator()).double()
    far = torch.cat([x, 1000 + torch.zeros(20, 5).double()])
    assert (geometric_median(far) - geometric_median(x)).norm() < 0.5
    assert (far.mean(0) - x.mean(0)).norm() > 100  # control: the mean


def test_the_geometric_median_is_the_middle_of_what_is_symmetric():
    x = torch.randn(100, 5, generator=generator()).double()
    middle = torch.tensor([1.0, -2.0, 3.0, 0.0, 5.0]).double()
    assert torch.allclose(geometric_median(torch.cat([middle + x, middle - x])), middle, atol=1e-4)
    assert torch.allclose(geometric_median(middle.expand(9, -1)), middle)


def test_no_other_point_has_a_smaller_summed_distance():
    x = torch.randn(60, 4, generator=generator()).double().exp()
    best = geometric_median(x)
    cost = (x - best).norm(dim=-1).sum()
    for seed in range(20):
        other = best + 0.05 * torch.randn(4, generator=generator(seed)).double()
        assert (x - other).norm(dim=-1).sum() > cost
    assert (x - x.mean(0)).norm(dim=-1).sum() > cost
