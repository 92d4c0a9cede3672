"""The target that is explained when none is named."""

import pytest
import torch
from characters import BOS, Characters, Lookup
from handmade import Circuit, random_topk
from tiny import user_error

from circuits.discovery.default_target import best_predictor, default_target
from circuits.features.atlas import (
    most_predictive,
    strongest_writer,
    survey,
)
from circuits.features.predicates import next_token_ids
from circuits.features.survey import Survey
from sae_core.sites import Site, Stream


@pytest.fixture(scope="module")
def circuit() -> Circuit:
    return Circuit()


def test_the_default_target_predicts_the_given_tokens_where_they_stand_in_the_text(circuit):
    """The last residual site; without tokens, or without them in the text, the strongest writer."""
    atlas = survey(circuit.model, circuit.dictionaries, circuit.contexts().clamp_max(40))
    dictionary = circuit.dictionaries[Site(3)]
    predicts = most_predictive(atlas, Site(3), [7])
    writer = strongest_writer(circuit.model, dictionary, Site(3), atlas)
    circuit.model.to_ids = lambda text: [int(text)]
    assert default_target(circuit.model, circuit.dictionaries, atlas, ("7",)) == predicts
    for predict in ((), ("55",)):
        assert default_target(circuit.model, circuit.dictionaries, atlas, predict) == writer


def test_a_default_target_needs_a_residual_site(circuit):
    atlas = survey(circuit.model, circuit.dictionaries, circuit.contexts())
    with user_error("resid_post", "mlp_out.1"):
        default_target(circuit.model, {Site(1, Stream.MLP_OUT): random_topk(12)}, atlas)


def test_the_feature_that_predicts_a_token_is_the_one_planted():
    """Active before ")" and, weakly, elsewhere: the threshold decides; a sink never is chosen, and absence is said."""
    model = Characters(["a", "b", ")", "]"])
    contexts = model.contexts([BOS, "a", ")", "b", "a", ")"], [BOS, "b", "b", "a", ")", "b"])
    table = torch.zeros(model.n_vocab, 3)
    table[1] = torch.tensor([2.0, 1.0, 0.0])  # "a", which ")" follows
    table[2] = torch.tensor([0.5, 1.0, 1.0])  # "b"
    dictionary = Lookup(table)
    ids = next_token_ids(model, ")")
    everything = torch.ones(3, dtype=torch.bool)
    assert best_predictor(Survey(model, {Site(0): dictionary}), Site(0), contexts, ids, everything) == 0
    assert (
        best_predictor(Survey(model, {Site(0): dictionary}), Site(0), contexts, ids, torch.tensor([False, True, True]))
        == 1
    )
    assert (
        best_predictor(Survey(model, {Site(0): dictionary}), Site(0), contexts, next_token_ids(model, "]"), everything)
        is None
    )
