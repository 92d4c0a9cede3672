"""What was planted is found: training recovers known directions, alone and many at once."""

import pytest
import torch
from planted import Planted, mean_max_cosine, planted_directions, unchecked
from tiny import random_tokens, user_error
from torch import Tensor
from trained import BATCH, PLACES, config, every, finish, memory, same, small

from sae_core.data.activations import ActivationStream
from sae_core.evaluation.reconstruction import fvu, l0
from sae_core.sites import Site, Stream
from sae_core.training.config import TrainConfig
from sae_core.training.loop import start, train
from sae_core.training.penalty_recipes import Gated, JumpReLU, ReLU
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
    result = state.dictionaries()[Site(0)]
    assert untrained < 0.6
    assert mean_max_cosine(truth, result.directions) > 0.9
    # control: other directions of the same kind are not found
    assert mean_max_cosine(planted_directions(seed=8), result.directions) < 0.7
    # what the loop reported of scaled activations holds of the finished dictionary on new ones
    x = torch.cat([batch[Site(0)] for batch in stream.block(10**4)])
    f = result.encode(x)
    ((now,),) = (member.values() for member in last.numbers())
    assert now["fvu"] == pytest.approx(fvu(x, result.decode(f)), abs=0.03)
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
    result = state.dictionaries()[Site(0)]
    assert mean_max_cosine(truth, result.directions) > 0.9
    assert torch.equal(result.W_enc, result.W_dec.T)


# ---- many in one pass ------------------------------------------------------------------------------


def trained(stream, *configs: TrainConfig) -> TrainState:
    state = start(stream, *configs)
    finish(stream, state)
    return state


@pytest.mark.slow
def test_members_train_together_as_they_train_alone():
    stream = small(dtype=torch.float64)
    together = memory(trained(stream, *every()))
    for recipe in every():
        alone = memory(trained(stream, recipe))
        for name, tensor in alone.items():
            assert torch.allclose(tensor.double(), together[name].double(), atol=1e-10, rtol=0), name
    assert any(len(tensor) for name, tensor in together.items() if "topk" in name and name.endswith(" dead"))
    assert sum(name.endswith("W_dec") for name in together) == 2 * len(every())


@pytest.mark.slow
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


@pytest.mark.slow
def test_sites_of_other_widths_train_in_one_pass(tiny_models):
    """The MLP's hidden layer is twice as wide as the residual: its dictionary is as well, and each is as alone."""
    model = tiny_models["neox"]
    tokens, places = random_tokens(model.n_vocab, 60, 16), (Site(0, Stream.MLP_HIDDEN), Site(1))
    configs = config(steps=30), config(ReLU(0.1), steps=30)

    def weights(*sites: Site) -> dict[tuple[str, str], Tensor]:
        """By kind, and by site and name: names of members hold the width where there is one."""
        result = memory(trained(ActivationStream(model, tokens, sites, 0, BATCH), *configs))
        return {(name.split("-")[0], name.split(" ", 1)[1]): tensor for name, tensor in result.items()}

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
