"""Steps on disk: an interrupted search goes on, and steps of another set, text or target are not taken over."""

from dataclasses import replace
from itertools import islice

import pytest
from handmade import Circuit

from circuits.discovery.circuit import circuit_steps
from circuits.discovery.edges import EdgeConfig
from circuits.discovery.request import CircuitRequest, ResolvedRequest
from circuits.discovery.steps_file import remembered, steps_card
from circuits.discovery.target_causes import CauseSearch, DiscoveryConfig
from circuits.features.atlas import survey
from sae_core.dictionaries.baselines import Basis
from sae_core.sites import FeatureId, Site


@pytest.fixture(scope="module")
def circuit() -> Circuit:
    circuit = Circuit()
    circuit.model.fingerprint = lambda: "handmade"
    return circuit


def resolved(circuit: Circuit, dictionaries=None, contexts=None, **request) -> ResolvedRequest:
    dictionaries = dictionaries or circuit.dictionaries
    atlas = survey(circuit.model, dictionaries, circuit.contexts() if contexts is None else contexts)
    config = DiscoveryConfig(EdgeConfig(n_null=0, errors=False), max_targets=3)
    search = CauseSearch(circuit.model, dictionaries, atlas, config)
    target = search.feature(FeatureId(Site(3), 0))
    return ResolvedRequest(CircuitRequest(**request), search, target, None, None, atlas, prepend_bos=True)


def interrupted(path, search: ResolvedRequest, n: int) -> list:
    """The first `n` steps; the search is then abandoned while the next is computed."""
    return list(islice(remembered(path, steps_card(search), lambda done: circuit_steps(search, done=done)), n))


def taken_over(path, search: ResolvedRequest) -> tuple[int, list]:
    """How many steps `path` gives to the search, and all of its steps."""
    taken = []

    def steps(done):
        taken.extend(done)
        return circuit_steps(search, done=done)

    result = list(remembered(path, steps_card(search), steps))
    return len(taken), result


def test_an_interrupted_search_goes_on_and_the_file_goes_when_it_is_done(circuit, tmp_path):
    search = resolved(circuit)
    whole, path = list(circuit_steps(search)), tmp_path / "steps.jsonl"
    assert interrupted(path, search, 3) == whole[:3]
    path.write_text(path.read_text() + '{"target": "2_0", "ed')  # cut off while it was written
    assert taken_over(path, resolved(circuit)) == (2, whole) and not path.exists()


@pytest.mark.slow
def test_steps_of_other_dictionaries_text_or_requests_are_discarded(circuit, tmp_path):
    """A circuit of one set used to take over the steps of another, killed in the same folder."""
    path = tmp_path / "steps.jsonl"
    basis = circuit.dictionaries[Site(1)]
    turned = circuit.dictionaries | {Site(1): Basis(basis.directions, basis.mean + 1e-3)}
    others = (
        resolved(circuit, turned),
        resolved(circuit, contexts=circuit.contexts(seed=7)),
        resolved(circuit, target="logit: a", prompts=("another prompt",)),
    )
    for other in others:
        interrupted(path, resolved(circuit), 2)
        assert taken_over(path, other)[0] == 0
    interrupted(path, resolved(circuit), 2)
    assert taken_over(path, resolved(circuit))[0] == 1  # control


def test_a_card_names_the_settings_of_the_search(circuit):
    search = resolved(circuit)
    config = replace(search.search.config, min_examples=3)
    other = replace(search, search=replace(search.search, config=config))
    assert steps_card(search) == steps_card(resolved(circuit)) != steps_card(other)
