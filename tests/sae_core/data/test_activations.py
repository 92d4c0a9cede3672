"""A stream's blocks are functions of their numbers, use every token once, and mix contexts better than chance."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import SITES, make_stream, same
from tiny import random_tokens

from sae_core.data import activations
from sae_core.data.activations import ActivationStream, harvest, spread
from sae_core.model.language_model import load_model
from sae_core.sites import Site, Stream


@pytest.fixture(scope="module")
def model(tiny_models):
    return tiny_models["neox"]


@pytest.fixture(scope="module")
def stream(model):
    return make_stream(model)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- blocks ----------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("budget", [1, 2**16, 2**30])
def test_every_context_is_used_once_per_epoch(model, budget):
    stream = make_stream(model, budget=budget)
    n, size = len(stream.contexts), stream.block_contexts
    rows = torch.cat([stream.tokens(block) for block in range(3 * n // size + 1)])
    names = [tuple(row) for row in rows.tolist()]
    whole = Counter(tuple(row) for row in stream.contexts.tolist())
    assert len(whole) == n
    epochs = [names[i * n : (i + 1) * n] for i in range(3)]
    assert all(Counter(epoch) == whole for epoch in epochs)
    if size < n:
        assert epochs[0] != epochs[1] != epochs[2]


def test_a_text_that_fits_is_read_once_and_mixed_anew_in_every_epoch(model, monkeypatch):
    stream, read, record = make_stream(model, budget=2**30), [], model.record
    monkeypatch.setattr(model, "record", lambda tokens, sites: read.append(len(tokens)) or record(tokens, sites))
    epochs = [[batch[Site(0)] for batch in stream.block(block)] for block in range(3)]
    assert sum(read) == len(stream.contexts)
    assert not torch.equal(epochs[0][0], epochs[1][0]) and not torch.equal(epochs[1][0], epochs[2][0])
    read.clear()
    small = make_stream(model, budget=1)
    for block in (0, 0, 1, 0):  # of the others the last block is kept: asked for twice, it is read once
        next(iter(small.block(block)))
    assert sum(read) == 3 * small.block_contexts


def test_a_text_shorter_than_a_block_is_repeated_within_it(model):
    short = replace(make_stream(model), batch=300)
    assert short.block_contexts == 50 > len(short.contexts)
    counts = Counter(tuple(row) for row in short.tokens(0).tolist())
    assert len(counts) == 40 and set(counts.values()) == {1, 2}


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
    stream = make_stream(model, sites=(Site(0),), budget=20 * 12 * 32 * 4)
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


def test_a_block_keeps_to_its_budget(model):
    sizes = []
    for budget in (2**16, 3 * 2**15):
        stream = make_stream(model, budget=budget)
        n_bytes = stream.tokens(0).numel() * 4 * sum(model.d_in(site) for site in stream.sites)
        assert n_bytes <= budget < 2 * n_bytes
        sizes.append(n_bytes)
    assert sizes[0] < sizes[1]
    assert len(make_stream(model, budget=2**30).tokens(0)) == 40  # no block repeats a text that fits it
    least = make_stream(model, budget=1)  # two batches must fit whatever the budget
    assert least.tokens(0).numel() >= 2 * least.batch


def test_batches_wait_for_nothing_on_a_gpu(checkpoints, device):
    """Nor are they other numbers than a CPU's."""
    there, here = (make_stream(load_model(checkpoints["neox"], device=name)) for name in (device.name, "cpu"))
    batches, expected = there.block(0), list(here.block(0))
    first = next(batches)  # harvests
    with device.unread():
        rest = list(batches)
    assert len(rest) + 1 == len(expected) > 1
    for batch, other in zip([first, *rest], expected, strict=True):
        for site, x in batch.items():
            assert x.device.type == device.name
            torch.testing.assert_close(x.cpu(), other[site])


def part(model, **options) -> ActivationStream:
    """100 contexts of 12 tokens, 40 to a block of 10 batches."""
    contexts = random_tokens(model.n_vocab, 100, 12)
    contexts[:, 0] = model.bos_id
    contexts[:, 1] = torch.arange(100) // 10 + 2
    contexts[:, 2] = torch.arange(100) % 10 + 2
    how = {"seed": 3, "batch": 44, "budget": 40 * 12 * 32 * 4, "at_once": 4}
    return ActivationStream(model, contexts, (Site(0),), **(how | options))


def test_of_the_last_block_no_more_is_read_than_its_steps_need(model, monkeypatch):
    stream, reads, record = part(model), [], model.record
    monkeypatch.setattr(model, "record", lambda tokens, sites: reads.append(len(tokens)) or record(tokens, sites))
    few = list(stream.block(1, steps=3))
    assert sum(reads) == 16 and len(few) >= 3  # 132 tokens of 11 each, and what is spare, in passes of 4
    rows = {tuple(row) for row in record(stream.tokens(1)[:16], [Site(0)])[Site(0)].flatten(0, 1).tolist()}
    assert all({*map(tuple, batch[Site(0)].tolist())} <= rows for batch in few)
    assert stream.n_read(40 * 12 + 3 * 44) == (40 + 16) * 12


@pytest.mark.parametrize(("block", "steps"), [(0, 3), (1, 10), (1, 99), (1, None)])
def test_blocks_that_are_used_whole_are_what_they_were(model, block, steps):
    """And the first one, on which scales are taken."""
    whole = list(part(model).block(block))
    assert len(whole) == 10
    assert all(same(a, b) for a, b in zip(whole, part(model).block(block, steps=steps), strict=True))


def test_a_text_that_fits_is_read_whole_whatever_the_steps(model):
    stream = part(model, budget=2**30)
    for block in (0, 1):
        assert len(list(stream.block(block, steps=2))) == 25


def test_so_many_tokens_of_a_context_may_meet_in_a_batch(model):
    """One step of 44 tokens needs 4 contexts, but 6 are read, in passes of 2."""
    stream = part(model, at_once=2)
    assert stream.n_contexts(1, 1) == 6 and part(model, at_once=2, batch=11).n_contexts(1, 1) == 2


# ---- mixing ----------------------------------------------------------------------------------------


def pairs(owners: torch.Tensor) -> int:
    """Pairs of tokens with the same owner."""
    counts = owners.unique(return_counts=True)[1]
    return int((counts * (counts - 1) // 2).sum())


def pairs_by_chance(n_contexts: int, n_tokens: int, batch: int) -> float:
    """Expected in a batch from a perfect shuffle of contexts of equal length."""
    return batch * (batch - 1) / 2 * (n_tokens - 1) / (n_contexts * n_tokens - 1)


def owners_of_batches(stream: ActivationStream) -> list[torch.Tensor]:
    """The contexts that the tokens of each batch of the first epoch belong to."""
    result = []
    for block in range(len(stream.contexts) // stream.block_contexts):
        tokens = stream.tokens(block)
        owner = torch.arange(len(tokens))[:, None].expand_as(tokens)[stream.model.content(tokens)]
        rows = {Site(0): owner}
        result += [batch[Site(0)] for batch in stream.batches(block, lambda rows=rows: rows)]
    return result


def mixed(model, *, n_contexts: int = 400, block: int, batch: int = 64) -> ActivationStream:
    """Contexts of 64 content tokens, `block` of them to a block."""
    contexts = random_tokens(model.n_vocab, n_contexts, 64)
    return ActivationStream(model, contexts, (Site(0),), seed=0, batch=batch, budget=block * 64 * 32 * 4)


@pytest.mark.parametrize("block", [64, 100, 130])
def test_no_two_tokens_of_a_context_meet_in_a_batch_where_a_block_has_enough_contexts(model, block):
    stream = mixed(model, block=block)
    assert stream.block_contexts == block
    batches = owners_of_batches(stream)
    assert len(batches) > 100
    assert sum(map(pairs, batches)) == 0


def test_a_plain_shuffle_of_each_block_does_worse_than_the_text_allows(model):
    """Control for the test above: what the stream used to do."""
    stream = mixed(model, block=64)
    owner = torch.arange(64).repeat_interleave(64)
    chance = pairs_by_chance(400, 64, 64)
    plain = torch.tensor([pairs(part) for part in owner[torch.randperm(64 * 64, generator=generator())].split(64)])
    assert plain.float().mean() > 4 * chance
    assert sum(map(pairs, owners_of_batches(stream))) < 2 * chance


def test_contexts_of_many_lengths_meet_less_than_twice_as_often_as_by_chance(model):
    """3 to 63 content tokens; here pairs cannot all be avoided."""
    stream = mixed(model, block=100)
    lengths = torch.randint(3, 64, (400, 1), generator=generator())
    stream.contexts[torch.arange(64) >= lengths] = model.bos_id
    batches = owners_of_batches(stream)
    total = int(lengths.sum())
    chance = 64 * 63 / 2 * float((lengths * (lengths - 1)).sum()) / (total * (total - 1))
    result = sum(map(pairs, batches)) / len(batches)
    assert 0 < result < 2 * chance


@pytest.mark.parametrize("block", [20, 33])
def test_a_batch_takes_from_all_contexts_alike_where_they_are_few(model, block):
    for owners in owners_of_batches(mixed(model, block=block)):
        counts = owners.bincount(minlength=block)
        assert counts.max() - counts.min() <= 1 and counts.max() == -(-64 // block)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.integers(0, 10**6))
def test_spread_orders_exactly_the_content_tokens(lengths, seed):
    content = torch.arange(9) < torch.tensor(lengths)[:, None]
    order = spread(content, generator=generator(seed))
    assert sorted(order.tolist()) == list(range(sum(lengths)))
    assert torch.equal(order, spread(content, generator=generator(seed)))


def test_every_token_is_as_likely_anywhere_in_a_block():
    """Else a batch would hold many early or late tokens of contexts."""
    content = torch.ones(6, 8, dtype=torch.bool)
    orders = torch.stack([spread(content, generator=generator(i)) for i in range(2000)])
    place = orders.argsort(-1).float()
    assert (place.mean(0) - 23.5).abs().max() < 5 * 13.9 / 2000**0.5
    assert (place.std(0) - 13.85).abs().max() < 1


# ---- harvest ---------------------------------------------------------------------------------------


def test_harvest_is_what_record_gives_without_special_tokens(model, stream):
    sites = (*SITES, Site(1, Stream.MLP_HIDDEN))
    rows, content = harvest(model, stream.contexts, sites), model.content(stream.contexts)
    for site, h in model.record(stream.contexts, sites).items():
        assert torch.allclose(rows[site], h[content], atol=1e-5)
    assert tuple(rows) == sites


def test_harvest_does_not_depend_on_its_chunks(model, stream, monkeypatch):
    harvests, passes, record = [], [], type(model).record

    def counted(self, tokens, sites):
        passes.append(len(tokens))
        return record(self, tokens, sites)

    monkeypatch.setattr(type(model), "record", counted)
    for at_once in (1, 7, 64):
        harvests.append(harvest(model, stream.contexts, stream.sites, at_once=at_once))
    assert passes == [1] * 40 + [7] * 5 + [5] + [40]
    for site in stream.sites:
        assert torch.allclose(harvests[0][site], harvests[1][site], atol=1e-4)
        assert torch.allclose(harvests[0][site], harvests[2][site], atol=1e-4)


def test_as_many_contexts_at_once_as_keep_the_widest_activation_small(model):
    """On a CPU 8 MiB; here the MLP's hidden layer is widest, with 64 numbers per token."""
    assert activations._contexts_at_once(model, 128) == 2**23 // (4 * 64 * 128)
    assert activations._contexts_at_once(model, 10**9) == 1


def test_a_copy_of_a_stream_has_kept_nothing(model, monkeypatch):
    stream = make_stream(model)
    rows = stream.rows(0)
    assert stream.rows(0) is rows
    other = replace(stream)
    monkeypatch.setattr(activations, "harvest", lambda *_, **__: {})
    assert stream.rows(0) is rows and other.rows(0) == {}
    assert stream.rows(1) == {}


def test_blocks_share_their_memory_and_may_be_read_in_turns(model):
    """Every block overwrites the one before, yet what is read of it is its own, whoever else reads."""
    stream = make_stream(model)
    first_block, other = ([batch[Site(0)] for batch in stream.block(b)] for b in (0, 1))
    assert len(first_block) > 1 and not torch.equal(first_block[0], other[0])
    first, second = stream.block(0), stream.block(1)
    for a, b in zip(first_block, other, strict=True):
        assert torch.equal(next(first)[Site(0)], a) and torch.equal(next(second)[Site(0)], b)
    place = stream.rows(0)[Site(0)].data_ptr()
    assert stream.rows(1)[Site(0)].data_ptr() == place
    stream.forget()
    assert stream.rows(1)[Site(0)].data_ptr() == place
