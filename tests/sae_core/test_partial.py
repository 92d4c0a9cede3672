"""Temporary files of dead processes are swept, those of living ones stay."""

import os
import subprocess
import sys
from pathlib import Path

from sae_core.partial import final, partial_file, partial_folder, sweep


def left_by_another(folder: Path, *, then: str) -> subprocess.Popen:
    """A process that leaves a half-written file and folder, and then waits or ends."""
    code = "import sys\nfrom pathlib import Path\nfrom sae_core.partial import partial_file, partial_folder\n"
    code += "folder = Path(sys.argv[1])\npartial_file(folder).write_text('half')\n"
    code += "(partial_folder(folder) / 'a').write_text('half')\nprint('left', flush=True)\n"
    process = subprocess.Popen([sys.executable, "-c", code + then, str(folder)], stdout=subprocess.PIPE, stdin=-1)
    assert process.stdout is not None and process.stdout.readline() == b"left\n"
    return process


def test_what_the_dead_left_is_swept_and_what_the_living_write_is_not(tmp_path):
    (tmp_path / ".partial-notes").write_text("a name of somebody else's")
    strangers = [tmp_path / f".partial-{machine}-{pid}-x" for machine, pid in (("othermachine", 1), ("", ""))]
    for path in strangers:
        path.write_text("of another machine, or damaged")
    living = [partial_file(tmp_path), partial_folder(tmp_path)]
    others = {*tmp_path.iterdir()}
    process = left_by_another(tmp_path, then="sys.stdin.read()")
    sweep(tmp_path)
    assert len({*tmp_path.iterdir()} - others) == 2 and all(path.exists() for path in living)
    process.kill()
    process.communicate()
    sweep(tmp_path)
    assert {*tmp_path.iterdir()} == others


def test_a_process_of_another_user_lives(tmp_path, monkeypatch):
    partial_file(tmp_path)

    def forbidden(pid, signum):
        raise PermissionError

    monkeypatch.setattr(os, "kill", forbidden)
    sweep(tmp_path)
    assert len([*tmp_path.iterdir()]) == 1
    sweep(tmp_path / "there is none")


def test_messages_name_what_is_meant_in_the_end(tmp_path):
    assert final(partial_folder(tmp_path) / "a" / "b.txt") == tmp_path / "a" / "b.txt"
