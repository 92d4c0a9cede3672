"""Two runs never write into one folder, and a lock goes with its owner."""

import errno
import fcntl
import os
import signal

import pytest
from tiny import user_error
from verbs import one_line

from sae_core.partial import partial_file
from subrank.cli.lock import LOCK, locked


def test_a_second_run_is_told_who_writes_there(tmp_path, capsys):
    with locked(tmp_path):
        with user_error(str(tmp_path), f"process {os.getpid()} on", "another --out"), locked(tmp_path):
            pass
        assert f"process {os.getpid()}" in one_line(capsys, "train", "storybook", "--out", tmp_path)
        with locked(tmp_path.parent):  # control: that of another folder
            pass
    assert not (tmp_path / LOCK).exists()
    with locked(tmp_path):
        pass
    with pytest.raises(KeyboardInterrupt), locked(tmp_path):
        raise KeyboardInterrupt
    assert not [*tmp_path.iterdir()]


def test_the_lock_of_a_process_that_was_killed_is_taken_over(tmp_path):
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        with locked(tmp_path):
            os.write(writes, b"locked")
            signal.pause()
        os._exit(0)
    assert os.read(reads, 6) == b"locked"
    with user_error(f"process {child} on"), locked(tmp_path):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert (tmp_path / LOCK).exists()
    # its number is another's by now, and the clock was moved
    (tmp_path / LOCK).write_text(f"process {os.getpid()} on this machine, since 2999-01-01 00:00:00")
    with locked(tmp_path):
        assert "2999" not in (tmp_path / LOCK).read_text()


def test_a_lock_that_its_owner_removes_while_another_waits_is_no_lock(tmp_path, monkeypatch):
    """Or the waiting one would hold a file without a name, and a third one the next with that name."""
    real, path = fcntl.flock, tmp_path / LOCK

    def late(descriptor, operation):
        monkeypatch.setattr(fcntl, "flock", real)
        path.unlink()
        return real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with locked(tmp_path), user_error("is written by"), locked(tmp_path):
        pass


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def refuse(descriptor, operation):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path):
        pass
    assert not [*tmp_path.iterdir()]


def test_a_verb_that_ends_in_a_mistake_leaves_no_lock_and_nothing_of_those_that_were_killed(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    child = os.fork()
    if child == 0:
        partial_file(tmp_path / "out")
        os._exit(0)
    os.waitpid(child, 0)
    assert [*(tmp_path / "out").iterdir()]
    for _ in range(2):
        assert "no model directory" in one_line(capsys, "train", tmp_path / "none", "--out", tmp_path / "out")
    assert not [*(tmp_path / "out").iterdir()]
