"""Shuffling loses nothing, repeats by its seed, and mixes files."""

import random
from itertools import islice
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from sae_core.data.shuffling import interleaved, shuffled

ITEMS = st.lists(st.text("ab", min_size=1, max_size=5), max_size=40)


@given(ITEMS, st.integers(1, 60), st.integers(0, 3))
def test_all_items_come_out_once_and_again_in_the_same_order(items, room, seed):
    order = list(shuffled(items, random.Random(seed), room))
    assert sorted(order) == sorted(items)
    assert order == list(shuffled(items, random.Random(seed), room))


def test_what_fits_is_shuffled_evenly():
    """Of three items each of the six orders comes as often: 100 times of 600, with a deviation of 9."""
    orders = ["".join(shuffled("abc", random.Random(seed))) for seed in range(600)]
    counts = [orders.count(order) for order in set(orders)]
    assert len(counts) == 6 and all(60 < count < 140 for count in counts)


def test_a_buffer_reads_no_further_than_it_has_room():
    read = []

    def items():
        for i in range(1000):
            read.append(i)
            yield "four"

    first = list(islice(shuffled(items(), random.Random(0), room=40), 5))
    assert len(first) == 5 and len(read) == 15


def test_items_of_all_files_are_mixed(tmp_path):
    sizes = {"a": 400, "b": 100, "c": 100}
    files = [tmp_path / name for name in sizes]
    for path in files:
        path.write_text(path.name * sizes[path.name])
    order = "".join(interleaved(files, lambda path: iter(path.read_text()), random.Random(0)))
    assert sorted(order) == sorted("".join(name * n for name, n in sizes.items()))
    start = order[:120]
    assert 60 < start.count("a") < 100 and start.count("b") > 8 and start.count("c") > 8


def test_few_files_are_open_together():
    started, ended = [], []

    class Named(type(Path())):
        def stat(self, **_):
            return type("Size", (), {"st_size": 3})()

    def read(path):
        started.append(path)
        assert len(started) - len(ended) <= 4
        yield from "abc"
        ended.append(path)

    files = [Named(str(i)) for i in range(50)]
    assert len(list(interleaved(files, read, random.Random(0), at_once=4))) == 150 and len(ended) == 50
