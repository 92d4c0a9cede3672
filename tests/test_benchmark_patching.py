"""The patching benchmark works, and both of its ways give the same numbers. No speed is asserted."""

from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.mark.parametrize("name", ["storybook", "Pythia-70M shape"])
def test_one_pass_per_point_and_stacked_rows_give_the_same_numbers(name, tmp_path, monkeypatch, storybook):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from patching import TOLERANCE, Size, compare, ioi_pairs, pythia
    from train_throughput import Report

    model, report = storybook if name == "storybook" else pythia(tmp_path, quick=True), Report()
    compare(report, name, model, ioi_pairs(model, 6), Size(6, 5, 2, 2, pca=True))
    (line,) = (line for line in report.lines if line.startswith("Same numbers to"))
    assert float(line.split()[3].rstrip(";")) < TOLERANCE
    assert sum("TopK" in line for line in report.lines) == 3 and sum("PCA" in line for line in report.lines) == 3
