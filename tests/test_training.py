"""The training loop finds planted directions, and resumes as if it had never stopped."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny import random_tokens, user_error

from sae_core.activations import ActivationStream, harvest
from sae_core.measures import quality
from sae_core.sites import Site, Stream
from sae_core.storage import load_checkpoint, save_checkpoint
from sae_core.text import Text
from sae_core.training import TrainConfig, TrainState, start, train

# ---- planted directions ----------------------------------------------------------------------------


class Planted(ActivationStream):
    """A stream whose activations are sparse positive combinations of known unit directions."""

    def __init__(self, directions: torch.Tensor, *, n_active: int = 2):
        vars(self).update(directions=directions, n_active=n_active, sites=(Site(0),), batch=256, seed=0)

    def block(self, block: int):
        for i in range(16):
            generator = torch.Generator().manual_seed(10**6 * self.seed + 100 * block + i)
            n = len(self.directions)
            active = torch.rand(self.batch, n, generator=generator).topk(self.n_active, dim=-1).indices
            size = 0.5 + torch.rand(self.batch, self.n_active, generator=generator)
            f = torch.zeros(self.batch, n).scatter(-1, active, size)
            yield dict.fromkeys(self.sites, f @ self.directions)


def planted_directions(n: int = 48, d_in: int = 20) -> torch.Tensor:
    return F.normalize(torch.randn(n, d_in, generator=torch.Generator().manual_seed(7)), dim=-1)


def mean_max_cosine(truth: torch.Tensor, found: torch.Tensor) -> float:
    return (truth @ F.normalize(found, dim=-1).T).amax(1).mean().item()


def test_training_recovers_planted_directions():
    truth = planted_directions()
    stream = Planted(truth)
    config = TrainConfig(expansion=4, k=2, tokens=1500 * 256, batch=256, lr=3e-3, dead_after=20_000)
    state = start(stream, config)
    untrained = mean_max_cosine(truth, state.dictionaries()[Site(0)].directions)
    steps = list(train(stream, state, config))
    found = state.dictionaries()[Site(0)].directions
    assert untrained < 0.6
    assert mean_max_cosine(truth, found) >= 0.95
    assert steps[-1].fvu[Site(0)] < 0.1 < steps[0].fvu[Site(0)]
    # control: other directions of the same kind are not found
    other = F.normalize(torch.randn(48, 20, generator=torch.Generator().manual_seed(8)), dim=-1)
    assert mean_max_cosine(other, found) < 0.7


# ---- the stream ------------------------------------------------------------------------------------


SITES = (Site(0), Site(2, Stream.MLP_OUT))


def make_stream(model, *, sites=SITES, budget=2**17) -> ActivationStream:
    """40 contexts of 12 tokens, the first and some later ones BOS; 21 contexts and 3 batches to a block.

    No two contexts begin alike, so that no activation occurs twice.
    """
    contexts = random_tokens(model.n_vocab, 40, 12)
    contexts[:, 1] = torch.arange(2, 42)
    contexts[:, 0] = model.bos_id
    contexts[::3, 6] = model.bos_id
    return ActivationStream(model, contexts, sites, seed=3, batch=64, budget=budget)


@pytest.fixture(scope="module")
def model(tiny_models):
    return tiny_models["neox"]


@pytest.fixture(scope="module")
def stream(model):
    return make_stream(model)


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_block_is_a_function_of_its_number(model, stream):
    once, again = list(stream.block(1)), list(make_stream(model).block(1))
    assert len(once) >= 2 and all(same(a, b) for a, b in zip(once, again, strict=True))
    assert all(x.shape == (64, 32) for batch in once for x in batch.values())


def test_batches_differ_within_and_across_blocks_and_seeds(stream):
    first, second = list(stream.block(0)), list(stream.block(1))
    assert not torch.equal(first[0][Site(0)], first[1][Site(0)])
    assert not torch.equal(first[0][Site(0)], second[0][Site(0)])
    other = next(iter(replace(stream, seed=4).block(0)))
    assert not torch.equal(first[0][Site(0)], other[Site(0)])


def test_every_context_is_used_once_per_epoch(stream):
    n, size = len(stream.contexts), stream.block_contexts
    assert n % size  # epochs do not end where blocks end
    rows = torch.cat([stream.tokens(block) for block in range(3 * n // size + 1)])
    names = [tuple(row) for row in rows.tolist()]
    whole = Counter(tuple(row) for row in stream.contexts.tolist())
    assert len(whole) == n
    epochs = [names[i * n : (i + 1) * n] for i in range(3)]
    assert all(Counter(epoch) == whole for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_tokens_of_a_batch_are_the_same_at_every_site(model):
    stream = make_stream(model, sites=(Site(0), Site(1), Site(0, Stream.MLP_OUT)))
    block = list(stream.block(0))
    rows = harvest(model, stream.tokens(0), stream.sites)
    at = {tuple(row): i for i, row in enumerate(rows[Site(0)].tolist())}
    assert len(at) == len(rows[Site(0)])
    for batch in block:
        places = [at[tuple(row)] for row in batch[Site(0)].tolist()]
        assert places != sorted(places)  # shuffled
        for site in stream.sites:
            assert torch.equal(batch[site], rows[site][places])


def test_every_block_has_its_own_order(model):
    """Two blocks of 20 contexts with 11 content tokens each make one epoch."""
    stream = make_stream(model, sites=(Site(0),), budget=2 * 20 * 12 * 32 * 4)
    stream.contexts[::3, 6] = 2
    orders = []
    for block in (0, 1):
        rows = harvest(model, stream.tokens(block), stream.sites)[Site(0)]
        at = {tuple(row): i for i, row in enumerate(rows.tolist())}
        orders.append([at[tuple(row)] for batch in stream.block(block) for row in batch[Site(0)].tolist()])
    assert len(orders[0]) == len(orders[1]) and orders[0] != orders[1]


def test_a_block_uses_each_token_at_most_once_and_no_special_token(model, stream):
    rows = harvest(model, stream.tokens(0), stream.sites)[Site(0)]
    assert len(rows) == int(model.content(stream.tokens(0)).sum()) < stream.tokens(0).numel()
    used = torch.cat([batch[Site(0)] for batch in stream.block(0)])
    assert len(rows) - 64 < len(used) <= len(rows)
    assert len(used.unique(dim=0)) == len(used)
    at_bos = model.record(stream.tokens(0), [Site(0)])[Site(0)][stream.tokens(0) == model.bos_id]
    assert len(at_bos) and torch.cdist(at_bos, used).min() > 1e-3


def test_harvest_does_not_depend_on_its_chunks(model, stream):
    a = harvest(model, stream.contexts, stream.sites, at_once=1)
    b = harvest(model, stream.contexts, stream.sites, at_once=7)
    for site in stream.sites:
        assert torch.allclose(a[site], b[site], atol=1e-4)


def test_a_block_keeps_to_its_budget(model):
    sizes = []
    for budget in (2**17, 3 * 2**16):
        stream = make_stream(model, budget=budget)
        n_bytes = stream.tokens(0).numel() * 4 * sum(model.d_in(site) for site in stream.sites)
        assert 2 * n_bytes <= budget < 4 * n_bytes  # harvesting holds the block twice for a moment
        sizes.append(n_bytes)
    assert sizes[0] < sizes[1]
    assert len(make_stream(model, budget=2**30).tokens(0)) == 40  # no block repeats a text that fits it
    least = make_stream(model, budget=1)  # two batches must fit whatever the budget
    assert least.tokens(0).numel() >= 2 * least.batch


# ---- training --------------------------------------------------------------------------------------

CONFIG = TrainConfig(k=4, expansion=2, tokens=20 * 64, batch=64, warm_up=3, dead_after=300)


def tiny_training(stream, config: TrainConfig = CONFIG) -> TrainState:
    state = start(stream, config)
    for _ in train(stream, state, config):
        pass
    return state


def weights(state: TrainState) -> dict[str, torch.Tensor]:
    return {f"{site} {name}": p for site, own in state.sites.items() for name, p in own.sae.state_dict().items()}


@pytest.fixture(scope="module")
def straight(stream):
    return tiny_training(stream)


def test_training_lowers_the_error_and_keeps_directions_unit(model, stream, straight):
    before = quality(model, start(stream, CONFIG).dictionaries(), stream.contexts)
    after = quality(model, straight.dictionaries(), stream.contexts)
    for site in stream.sites:
        assert after[site].fvu < before[site].fvu - 0.05
        assert (straight.sites[site].sae.W_dec.norm(dim=-1) - 1).abs().max() < 1e-5


def test_steps_are_counted_and_reported(stream):
    steps = list(train(stream, start(stream, CONFIG), CONFIG))
    assert [step.step for step in steps] == list(range(1, 21))
    for step in steps:
        assert set(step.loss) == set(step.fvu) == set(step.l0) == set(step.n_dead) == set(stream.sites)
        assert all(0 < step.l0[site] <= CONFIG.k and step.loss[site] >= step.fvu[site] for site in stream.sites)


def test_activations_are_scaled_to_mean_squared_norm_d_in(stream):
    state = start(stream, CONFIG)
    for site, own in state.sites.items():
        x = torch.cat([batch[site] for batch in stream.block(0)])
        assert (own.scale * x).pow(2).sum(-1).mean().item() == pytest.approx(32, rel=1e-4)
        assert torch.allclose(own.sae.b_dec, own.scale * x.mean(0), atol=1e-5)


def test_a_step_moves_directions_sideways_only(stream):
    """What the optimiser remembers is orthogonal to the directions; of the encoder's columns it is not."""
    state = start(stream, CONFIG)
    before = {site: own.sae.W_dec.detach().clone() for site, own in state.sites.items()}
    next(train(stream, state, CONFIG))
    for site, own in state.sites.items():
        memory = own.optimizer.state[own.sae.W_dec]["exp_avg"]
        size = memory.abs().max()
        assert size > 0 and (memory * before[site]).sum(-1).abs().max() < 1e-5 * size
        assert (own.optimizer.state[own.sae.W_enc]["exp_avg"].T * before[site]).sum(-1).abs().max() > 1e-3 * size


def test_the_same_seed_gives_the_same_weights(model, stream, straight):
    assert same(weights(tiny_training(make_stream(model))), weights(straight))
    assert not same(weights(tiny_training(stream, replace(CONFIG, seed=1))), weights(straight))
    assert not same(weights(tiny_training(replace(stream, seed=9))), weights(straight))


def test_sites_train_together_as_they_do_alone(model, stream, straight):
    """Blocks must be of equal size for equal batches, hence the budget per site."""
    for site in stream.sites:
        alone = replace(make_stream(model, sites=(site,)), budget=stream.budget // 2)
        assert alone.block_contexts == stream.block_contexts
        got = weights(tiny_training(alone))
        assert same(got, {name: w for name, w in weights(straight).items() if name in got})


@pytest.mark.parametrize("stop", [1, 9, 10, 13])
def test_a_resumed_run_equals_an_uninterrupted_one(model, stream, straight, tmp_path, stop):
    """Interrupted at the end of a block and in the middle of one."""
    state = start(stream, CONFIG)
    run = train(stream, state, CONFIG)
    for _ in range(stop):
        next(run)
    text = Text("storybook", 12, True)
    save_checkpoint(state, text, model, CONFIG, tmp_path)
    resumed = load_checkpoint(tmp_path, device=torch.device("cpu"))
    assert (resumed.step, resumed.block, resumed.position) == (state.step, state.block, state.position)
    for _ in train(make_stream(model), resumed, CONFIG):
        pass
    assert same(weights(resumed), weights(straight))
    for site, own in resumed.sites.items():
        assert torch.equal(own.silent, straight.sites[site].silent)
    contexts = stream.contexts[:8]
    assert quality(model, resumed.dictionaries(), contexts) == quality(model, straight.dictionaries(), contexts)


def test_the_interruptions_above_lie_inside_blocks_and_between_them(stream):
    per_block = len(list(stream.block(0)))
    assert per_block > 1 and CONFIG.steps > 2 * per_block
    assert {stop % per_block == 0 for stop in (1, 9, 10, 13)} == {True, False}


def test_a_resumed_run_without_the_optimiser_would_differ(model, stream, straight, tmp_path):
    """Control: the weights alone are not enough to go on exactly."""
    state = start(stream, CONFIG)
    run = train(stream, state, CONFIG)
    for _ in range(9):
        next(run)
    save_checkpoint(state, Text("storybook", 12, True), model, CONFIG, tmp_path)
    resumed = load_checkpoint(tmp_path, device=torch.device("cpu"))
    for own in resumed.sites.values():
        own.optimizer.state.clear()
    for _ in train(stream, resumed, CONFIG):
        pass
    assert not same(weights(resumed), weights(straight))


def test_a_finished_run_stays_finished(stream, straight):
    before = {name: w.clone() for name, w in weights(straight).items()}
    assert list(train(stream, straight, CONFIG)) == []
    assert same(before, weights(straight))


def test_latents_count_as_dead_after_silence(stream):
    config = replace(CONFIG, dead_after=128, k=1)
    state = start(stream, config)
    steps = list(train(stream, state, config))
    assert all(n == 0 for n in steps[0].n_dead.values())
    for site, own in state.sites.items():
        assert (own.silent % 64 == 0).all()
        assert steps[-1].n_dead[site] == int((own.silent >= 128).sum())
    assert any(steps[-1].n_dead.values())


# ---- mistakes --------------------------------------------------------------------------------------


class Poisoned(Planted):
    """Activations that hold NaN from the third batch on."""

    def block(self, block: int):
        for number, batch in enumerate(super().block(block)):
            x = batch[Site(0)]
            yield {Site(0): x / 0 * 0 if number >= 2 and block > 0 else x}


def test_nan_in_activations_stops_with_site_and_step():
    stream = Poisoned(planted_directions())
    config = TrainConfig(expansion=2, k=2, tokens=40 * 256, batch=256)
    state = start(stream, config)
    with user_error("resid_post.0", "step 18", "NaN"):
        for _ in train(stream, state, config):
            pass
    assert state.step == 18
    assert all(torch.isfinite(w).all() for w in weights(state).values())


def test_activations_that_are_nan_at_once_are_refused():
    class AllNan(Planted):
        def block(self, block: int):
            yield from ({Site(0): torch.full((256, 20), torch.nan)} for _ in range(4))

    config = TrainConfig(expansion=2, k=2, tokens=40 * 256, batch=256)
    stream = AllNan(planted_directions())
    with user_error("resid_post.0", "NaN"):
        state = start(stream, config)
        next(train(stream, state, config))


def test_a_block_smaller_than_a_batch_is_refused(model):
    contexts = torch.full((10, 12), model.bos_id)
    contexts[:, 1] = 5  # enough tokens, almost all of them special
    stream = ActivationStream(model, contexts, (Site(0),), seed=0, batch=64, budget=1)
    with user_error("--batch"):
        start(stream, CONFIG)


@pytest.mark.parametrize("name", ["expansion", "k", "tokens", "batch", "dead_after"])
def test_config_values_below_one_are_refused(name):
    with user_error(name, "at least 1", "0"):
        TrainConfig(**{name: 0})


def test_other_config_mistakes():
    with user_error("100", "1024"):
        TrainConfig(tokens=100)
    for rate in (0.0, -1e-3, float("nan")):
        with user_error("learning rate", str(rate)):
            TrainConfig(lr=rate)


def test_k_larger_than_the_dictionary(stream):
    with user_error("between 1 and", "64"):
        start(stream, replace(CONFIG, k=65))


def test_learning_rate_rises_stays_and_falls():
    config = TrainConfig(tokens=100 * 64, batch=64, warm_up=10, lr=1.0)
    rates = [config.rate(step, 64) for step in range(config.steps)]
    assert rates[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert rates[10:80] == [1.0] * 70
    assert rates[80:] == pytest.approx([1 - 0.05 * i for i in range(20)]) and rates[-1] > 0
    assert TrainConfig().rate(1000, 2**14) == pytest.approx(2e-4)
    assert TrainConfig().rate(1000, 2**12) == pytest.approx(4e-4)
