"""Batches, first weights, checkpoints and what is trained do not depend on how many processes there are."""

import pytest
from ranked import MESHES, on_ranks
from spread_runs import CHANGES, endless, talk, work


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    return on_ranks(4, work, folder, folder)


@pytest.mark.parametrize("what", ["batches", "weights", "finished"])
@pytest.mark.parametrize("mesh", MESHES)
def test_batches_first_weights_and_finished_ones_are_those_of_one_process_to_the_bit(results, mesh, what):
    for measured in results:
        assert all(measured[f"{mesh}/{what}"].values()), measured[f"{mesh}/{what}"]


@pytest.mark.parametrize("mesh", CHANGES)
def test_a_run_over_ranks_ends_where_one_process_does(results, mesh):
    assert results[0]["dead"].keys() - {"0"}  # some latents had died
    for measured in results:
        assert measured[f"{mesh}/straight"]["distance"] < 1e-10


@pytest.mark.parametrize("mesh", CHANGES)
def test_a_checkpoint_reads_back_and_goes_on_to_the_bit(results, mesh):
    assert all(measured[f"{mesh}/{name}"]["all"] for measured in results for name in ("read back", "again"))


@pytest.mark.parametrize("change", [f"{mesh} to {other}" for mesh in CHANGES for other in CHANGES[mesh]])
def test_a_checkpoint_goes_on_with_another_number_of_ranks(results, change):
    for measured in results:
        assert measured[change]["distance"] < 1e-10


def test_ranks_talk_wait_as_long_as_they_are_told_and_find_out_who_reads_another_text(tmp_path):
    for rank, said in enumerate(on_ranks(4, talk, tmp_path)):
        assert said["largest"] == [3, 0] and said["first"] == "rank 0" and said["all"] == [0, 1, 2, 3]
        row, column = divmod(rank, 2)
        assert said["shards"] == ([2 * row, 2 * row + 1], 7.0) and said["replicas"] == ([column, column + 2], 7.0)
        assert said["error"] == "rank 2 has another text than rank 0; give all ranks the same files"


def test_processes_that_do_not_end_are_ended(tmp_path):
    with pytest.raises(AssertionError, match="1 of 2 processes were not done after 3 s"):
        on_ranks(2, endless, tmp_path, limit=3.0)
