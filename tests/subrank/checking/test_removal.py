"""What a removal reports, by full forward passes, in a model in which all is known; and faults are seen."""

from dataclasses import replace

import pytest
from checks import agree, wrong
from planted import unchecked
from removal_world import CONFIG, World

from editing.removal.measurement.evaluation import Method
from editing.removal.result import RemovalResult
from sae_core.sites import Site
from subrank.checking.removal import recomputed


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def result(world) -> RemovalResult:
    with unchecked():
        return world.removed({Site(1): world.whole})


def numbers(world: World, result: RemovalResult):
    return recomputed(world.model, world.capability(), world.whole, world.contexts, CONFIG, result)


def test_every_number_agrees(world, result):
    of = agree(numbers(world, result))
    assert len(of) == 10 and {f"damage, {method} at resid_post.1" for method in ("features", "LEACE")} <= {*of}


def test_wrong_numbers_are_named(world, result):
    rows = {row.method: row for row in result.methods}
    leace = rows[Method.LEACE]
    rows[Method.LEACE] = replace(leace, damage=replace(leace.damage, value=leace.damage.value * 1.01))
    named = wrong(numbers(world, replace(result, own_auroc=0.99, methods=tuple(rows.values()))))
    assert named == ["AUROC of the unedited model", "damage, LEACE at resid_post.1"]


def test_an_edit_of_other_strength_than_reported_is_seen(world, result):
    """As where the fast path had scaled it twice."""
    rows = [replace(row, strength=1.1 * row.strength) for row in result.methods]
    named = wrong(numbers(world, replace(result, methods=tuple(rows))))
    assert {f"edit size, {method} at resid_post.1" for method in ("features", "LEACE", "mean difference")} <= {*named}
