"""The patching benchmark works, and both of its ways give the same numbers. No speed is asserted."""

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("name", ["storybook", "Pythia-70M shape"])
def test_one_pass_per_point_and_stacked_rows_give_the_same_numbers(name, tmp_path, storybook):
    from patching import TOLERANCE, Size, compare, ioi_pairs, pythia
    from report import Report

    model, report = storybook if name == "storybook" else pythia(tmp_path, quick=True), Report()
    worst = compare(report, name, model, ioi_pairs(model, 6), Size(6, 5, 2, 2, pca=True))
    (line,) = (line for line in report.lines if line.startswith("Same numbers to"))
    assert float(line.split()[3].rstrip(";")) == pytest.approx(worst, rel=0.1) and worst < TOLERANCE
    assert sum("TopK" in line for line in report.lines) == 3 and sum("PCA" in line for line in report.lines) == 3


@pytest.mark.parametrize(("apart", "status"), [(1e-6, 0), (2e-5, 1), (float("nan"), 1)])
def test_numbers_that_differ_are_the_exit_status(apart, status, monkeypatch, capsys):
    import patching

    monkeypatch.setattr(patching, "compare", lambda *arguments: apart)
    assert patching.main(["--quick", "--models", "storybook", "--threads", "1"]) == status
