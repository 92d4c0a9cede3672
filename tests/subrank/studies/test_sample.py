"""Contexts are drawn from all over a text, each once, and the same by the same seed."""

import torch

from subrank.studies.sample import drawn


def test_contexts_are_drawn_from_all_over_the_text():
    contexts = torch.arange(1000)[:, None].expand(1000, 4)
    few = drawn(contexts, 100, 0)
    assert len({*few[:, 0].tolist()}) == 100 and 400 < few[:, 0].double().mean() < 600
    assert torch.equal(few, drawn(contexts, 100, 0)) and not torch.equal(few, drawn(contexts, 100, 1))
    assert sorted(drawn(contexts, 5000, 0)[:, 0].tolist()) == contexts[:, 0].tolist()
    assert (few[1:, 0] - few[:-1, 0]).abs().double().median() > 100  # the one before is from elsewhere
