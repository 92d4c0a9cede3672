"""A step whose latents and rows are spread over processes is the step of one process: in float64, to 1e-12.

Four processes work through all cases on four meshes, and leave the largest differences.
"""

import pytest
from ranked import MESHES, on_ranks
from spread_steps import IN_ONE_PASS, KINDS, NAMES, STEPPED, work


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[dict]:
    return on_ranks(4, work, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", NAMES)
def test_loss_codes_and_gradients_are_those_of_one_process(results, name):
    for rank, measured in enumerate(results):
        assert max(measured[name].values()) < 1e-12, (rank, measured[name])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mesh", STEPPED)
def test_three_clipped_steps_of_adam_are_those_of_one_process(results, mesh, kind):
    for rank, measured in enumerate(results):
        assert max(measured[f"{mesh}/{kind}/steps"].values()) < 1e-12, (rank, measured[f"{mesh}/{kind}/steps"])


@pytest.mark.parametrize("kind", IN_ONE_PASS)
def test_three_steps_in_one_pass_are_those_of_one_process(results, kind):
    for rank, measured in enumerate(results):
        assert max(measured[f"{kind}/one pass"].values()) < 1e-12, (rank, measured[f"{kind}/one pass"])


@pytest.mark.parametrize("mesh", [mesh for mesh, (_, shards) in MESHES.items() if shards > 1])
def test_of_equal_values_the_lower_latent_is_active(results, mesh):
    assert all(all(measured[f"{mesh}/ties"].values()) for measured in results), results[0][f"{mesh}/ties"]


@pytest.mark.parametrize("mesh", [mesh for mesh, (_, shards) in MESHES.items() if shards > 1])
def test_a_candidate_less_would_be_seen(results, mesh):
    """Control for the tests above."""
    assert all(measured[f"{mesh}/control"]["x_hat"] > 1e-3 for measured in results)
