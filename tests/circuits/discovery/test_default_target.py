"""The target that is explained when none is named."""

import pytest
from handmade import Circuit, random_topk
from tiny import user_error

from circuits.discovery.default_target import default_target
from circuits.features.atlas import (
    most_predictive,
    strongest_writer,
    survey,
)
from sae_core.sites import Site, Stream


@pytest.fixture(scope="module")
def circuit() -> Circuit:
    return Circuit()


def test_the_default_target_predicts_the_given_tokens_where_they_stand_in_the_text(circuit):
    """The last residual site; without tokens, or without them in the text, the strongest writer."""
    atlas = survey(circuit.model, circuit.dictionaries, circuit.contexts().clamp_max(40))
    dictionary = circuit.dictionaries[Site(3)]
    predicts = most_predictive(circuit.model, dictionary, Site(3), atlas, [7])
    writer = strongest_writer(circuit.model, dictionary, Site(3), atlas)
    circuit.model.to_ids = lambda text: [int(text)]
    assert default_target(circuit.model, circuit.dictionaries, atlas, ("7",)) == predicts
    for predict in ((), ("55",)):
        assert default_target(circuit.model, circuit.dictionaries, atlas, predict) == writer


def test_a_default_target_needs_a_residual_site(circuit):
    atlas = survey(circuit.model, circuit.dictionaries, circuit.contexts())
    with user_error("resid_post", "mlp_out.1"):
        default_target(circuit.model, {Site(1, Stream.MLP_OUT): random_topk(12)}, atlas)
