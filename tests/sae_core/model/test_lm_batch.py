"""`lm_batch`: how many contexts go through the model together changes no number beyond rounding."""

import pytest
import torch
from planted import unchecked
from random_saes import random_sae
from tiny import random_tokens, user_error

from editing.loss_recovered import splice_costs
from sae_core.data.activations import harvest
from sae_core.evaluation.profiles import quality
from sae_core.model.language_model import load_model
from sae_core.sites import Site


@pytest.fixture
def model(checkpoints):
    """A model of its own: its batch is set."""
    return load_model(checkpoints["neox"], device="cpu", lm_batch=3)


def test_so_many_contexts_go_through_together(model, monkeypatch):
    rows, record = [], model.record
    monkeypatch.setattr(model, "record", lambda tokens, sites: rows.append(len(tokens)) or record(tokens, sites))
    with unchecked():
        harvest(model, random_tokens(model.n_vocab, 8, 12), (Site(1),))
    assert rows == [3, 3, 2]


def test_numbers_do_not_depend_on_it(model):
    contexts, saes = random_tokens(model.n_vocab, 70, 12), {Site(1): random_sae(d_in=32)}
    results = []
    for n in (3, None):
        model.lm_batch = n
        with unchecked():
            fvu = quality(model, saes, contexts)[Site(1)].fvu
            cost = splice_costs(model, saes, contexts)[Site(1)]
            results.append((harvest(model, contexts, (Site(1),))[Site(1)], fvu, cost.spliced, cost.zeroed))
    (x, *few), (y, *many) = results
    assert torch.allclose(x, y, atol=1e-5) and few == pytest.approx(many, rel=1e-4)


def test_none_at_all_is_refused(checkpoints):
    with user_error("lm_batch", "at least 1"):
        load_model(checkpoints["neox"], device="cpu", lm_batch=0)
