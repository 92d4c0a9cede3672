"""What a configuration refuses, and how training says what went wrong."""

import json
from dataclasses import dataclass

import pytest
import torch
from planted import Planted, Rows, planted_directions, unchecked
from tiny import user_error
from trained import BATCH, EVERY, PLACES, config, finish, small

from sae_core.outliers import NO_LIMITS
from sae_core.sites import Site
from sae_core.training.config import TrainConfig
from sae_core.training.loop import LOOK, start, train
from sae_core.training.penalty_recipes import Gated, JumpReLU, ReLU
from sae_core.training.state import TrainState
from sae_core.training.topk_recipes import BatchTopK, Matryoshka, TopK


def trained(stream, *configs: TrainConfig) -> TrainState:
    state = start(stream, *configs)
    finish(stream, state)
    return state


# ---- mistakes --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Poisoned(Planted):
    """Activations at the last site hold one NaN from batch `bad` of block 1 on."""

    bad: int = 2

    def block(self, block: int, limits=NO_LIMITS, steps=None):
        for number, batch in enumerate(super().block(block, limits)):
            if block > 1 or (block == 1 and number >= self.bad):
                batch[self.sites[-1]] = batch[self.sites[-1]].index_fill(0, torch.tensor(7), torch.nan)
            yield batch


@pytest.mark.slow
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
        trained(small(), config(EVERY[name], steps=60, lr=1e6))


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
        def block(self, block: int, limits=NO_LIMITS, steps=None):
            return super().block(block, limits) if block < 2 else iter(())

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
    for training in (TrainConfig(EVERY[name]), config(EVERY[name], clip=1.0, kl=0.5, seed=3, lr=None)):
        assert TrainConfig.from_json(json.loads(json.dumps(training.to_json()))) == training


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
    training = TrainConfig(tokens=100 * 64, batch=64, warm_up=10, lr=1.0)
    rates = [training.rate(step, 64) for step in range(training.steps)]
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
    training = state.members[0].sites[Site(0)]
    before = training.sae.b_dec.detach().clone()
    next(train(stream, state))
    assert (training.sae.b_dec - before).abs().max().item() == pytest.approx(1e-2 / 50, rel=1e-3)
