"""The script for a GPU runs, at tiny sizes on a CPU. No speed is asserted."""

from planted import unchecked


def test_every_section_of_the_gpu_script_works(capsys):
    from gpu import main

    with unchecked():
        assert main(["--cpu-check"]) == 0
    printed = capsys.readouterr().out
    assert "FAILED" not in printed and "left out" not in printed
    for expected in ("1. the card", "3. correctness", "| kernels", "AuxK, products, 10% dead", "5. several GPUs"):
        assert expected in printed


def test_it_ends_by_its_clock(capsys):
    """Control: without time it measures the card, and leaves all else out."""
    from gpu import main

    assert main(["--cpu-check", "--minutes", "0"]) == 0
    assert capsys.readouterr().out.count("left out: ") >= 5
