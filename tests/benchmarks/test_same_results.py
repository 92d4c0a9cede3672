"""The comparison of results sees what differs, and nothing else."""

import json
from pathlib import Path

import pytest
import same_results


def results(folder: Path, number: float = 0.25, weights: bytes = b"weights", **more) -> Path:
    """A folder as `same_results.py run` leaves it, with one number in every result."""
    for name in same_results.SETS:
        (folder / name).mkdir(parents=True)
        (folder / name / "sae_weights.safetensors").write_bytes(weights)
    for name in same_results.RUNS:
        (folder / name).mkdir(parents=True)
        (folder / name / "result.json").write_text(json.dumps({"figure": number, "text": "same"} | more))
    return folder


@pytest.mark.parametrize(
    ("after", "status", "words"),
    [
        ({}, 0, "nothing differs"),
        ({"number": 0.25 + 1e-9}, 0, "nothing differs"),
        ({"another": 3}, 0, "1 values only after, such as /another"),
        ({"number": 0.2501}, 1, "/figure: 0.25 before, 0.2501 after"),
        ({"weights": b"other"}, 1, "has other bytes"),
        ({"text": "other"}, 1, "/text: same before, other after"),
    ],
)
def test_what_differs_is_the_exit_status(tmp_path, capsys, after, status, words):
    arguments = ["compare", str(results(tmp_path / "before")), str(results(tmp_path / "after", **after))]
    assert same_results.main(arguments) == status
    assert words in capsys.readouterr().out


def test_what_is_missing_is_a_difference(tmp_path, capsys):
    before, after = results(tmp_path / "before"), results(tmp_path / "after")
    (after / "ioi" / "result.json").unlink()
    (after / "set" / "sae_weights.safetensors").unlink()
    assert same_results.main(["compare", str(before), str(after)]) == 1
    assert capsys.readouterr().out.count("is missing") == 2


def test_an_interval_has_the_same_paths_in_every_form():
    forms = ({"value": 1.0, "low": 0.5, "high": 2.0}, {"mean": 1.0, "low": 0.5, "high": 2.0}, [1.0, 0.5, 2.0])
    assert len({tuple(same_results.leaves({"kl": form})) for form in forms}) == 1
