"""A digest changes with every part of a value, and with nothing else."""

from dataclasses import dataclass, replace

import pytest
import torch
from handmade import random_topk

from sae_core.dictionaries.normalised import LayerNormed
from sae_core.digest import differences, digest
from sae_core.sites import Site

X = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Value:
    name: str = "a"
    sizes: tuple[int, ...] = (1, 2)


def test_every_bit_of_a_tensor_counts_and_its_shape():
    flipped = [X.clone() for _ in range(32)]
    for bit, x in enumerate(flipped):
        x.view(torch.int32)[3, 4] ^= torch.tensor(1 << bit if bit < 31 else -(2**31), dtype=torch.int32)
    other = [X.T, X.reshape(7, 5), X[:4], X.double(), X.roll(1, 0)]
    assert len({digest(x) for x in [X, *flipped, *other]}) == 1 + 32 + 5


def test_numbers_count_not_how_they_lie_in_memory():
    half = X.bfloat16()
    assert digest(X.T.contiguous().T) == digest(X) == digest(torch.stack([X, X])[1])
    assert digest(half.float()) == digest(half) != digest(X)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (["ab", "c"], ["a", "bc"]),
        ([["a"], "b"], [["a", "b"]]),
        ([1], [1.0]),
        ([1], [True]),
        ([None], ["None"]),
        ({"a": 1}, {"a": 2}),
        ({"a": 1}, {"b": 1}),
        ([torch.zeros(0), torch.zeros(1)], [torch.zeros(1), torch.zeros(0)]),
        (torch.tensor([1]), torch.tensor([1.0])),
        (Value(), replace(Value(), name="b")),
        (Value(), replace(Value(), sizes=(1, 3))),
        (Site(1), Site(2)),
    ],
)
def test_different_values_have_different_digests(first, second):
    assert digest(first) != digest(second)
    assert digest(first) == digest(first) and len(digest(first)) == 32


def test_the_order_of_a_mapping_or_a_set_is_no_part_of_it():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest({Site(1), Site(0)}) == digest({Site(0), Site(1)})
    assert digest((1, 2)) == digest([1, 2]) != digest([2, 1])


def test_the_digest_of_a_dictionary_is_of_its_kind_its_settings_and_every_tensor():
    sae = random_topk(12, 24, 3)
    same, fewer, moved, limited = (random_topk(12, 24, k) for k in (3, 2, 3, 3))
    moved.b_enc.data[5] += 1e-6
    limited.outlier_norm = 7.0
    digests = [digest({Site(0): each}) for each in (sae, fewer, moved, limited, LayerNormed(random_topk(12, 24, 3)))]
    digests.append(digest({Site(1): sae}))
    assert len(set(digests)) == 6 and digest({Site(0): same}) == digests[0]


def test_differences_are_named_of_a_model_by_its_parts():
    card = {"model": "config:1 weights:2", "text": "a", "seed": 0}
    assert differences(card, card) == []
    assert differences(card | {"model": "config:1 weights:3", "seed": 1}, card) == ["model weights", "seed"]
    assert differences({"model": "0123456789abcdef"}, card) == ["model", "text", "seed"]
