"""Tests of the device that stands for a GPU, run in a process that has it."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


def passed_far(folder: Path, *files: str) -> None:
    """All tests in these files that need the device have passed; they leave what they write in `folder`."""
    call = [sys.executable, "-m", "pytest", "-q", "-k", "far", "-m", "", "-p", "no:xdist", "-p", "no:cacheprovider"]
    call += ["--basetemp", str(folder / "far"), *(str(TESTS / file) for file in files)]
    ran = subprocess.run(call, cwd=TESTS.parent, env=os.environ | {"SUBRANK_FAR": "1"}, capture_output=True, text=True)
    assert ran.returncode == 0 and " passed" in ran.stdout, ran.stdout[-5000:] + ran.stderr[-2000:]
