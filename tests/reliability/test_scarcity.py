"""A whole verb where something runs out, or another one works in its folder: one line, and nothing is lost."""

import io
import os
import re
import resource
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from functools import partial
from pathlib import Path

import pytest
from mortal import WHOLE, at_every_moment, contents, fill_disk
from planted import unchecked
from processes import ended, lasting, run, started
from tiny import write_tiny
from verbs import LONG_VERBS

import subrank
from subrank.cli import command
from subrank.cli.lock import LOCK
from subrank.experiments import evaluation

PACKAGES = [Path(subrank.__file__).parents[1] / name for name in ("sae_core", "editing", "circuits", "subrank")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A set of a tiny model."""
    folder = tmp_path_factory.mktemp("scarce")
    run(["train", str(write_tiny(folder / "model", "neox")), "--out", str(folder / "set"), *LONG_VERBS["train"]])
    return folder / "set"


def answer(arguments: Sequence[str]) -> tuple[int, str]:
    """Exit status of a command, and what it says on standard error."""
    with unchecked(), redirect_stderr(io.StringIO()) as said, redirect_stdout(io.StringIO()):
        status = command.main([*arguments])
    return status, said.getvalue()


def limited(limit: Callable[[], object], arguments: Sequence[str]) -> tuple[int, str]:
    """`answer` in a process in which `limit` was called before; what it returns is kept."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        status, said = 70, "it ended otherwise"
        try:
            _kept = limit()
            status, said = answer(arguments)
        finally:
            os.write(writes, said.encode())
            os._exit(status)
    os.close(writes)
    with os.fdopen(reads, "rb") as pipe:
        said = pipe.read().decode()
    return ended(child), said


def is_one_line(said: str) -> bool:
    return said.startswith("subrank: ") and len(said.splitlines()) == 1


# ---- disk ------------------------------------------------------------------------------------------


class Refused(Exception):
    """The command ended with status 2 and one line."""


def fill_but_rename(event: str) -> None:
    """At a change on the disk: it is full. Files can still be renamed and removed."""
    if event != "os.rename":
        fill_disk(event)


@pytest.mark.slow
def test_a_disk_that_is_full_from_any_moment_on(trained, tmp_path, monkeypatch):
    """The earlier result stays as it was; once there is room the same command does what it should.

    What is written is the result of one run, and its page is drawn once: it is the writing that is tried.
    """
    out, earlier, results = tmp_path / "out", tmp_path / "earlier", []
    arguments = ["evaluate", str(trained), "--out", str(out), *LONG_VERBS["evaluate"]]
    run_evaluate = evaluation.run_evaluate

    def once(*values, **how):
        if not results:
            results.append(run_evaluate(*values, **how))
            body = results[0].saved_body()
            monkeypatch.setattr(type(results[0]), "saved_body", lambda result: body)
        return results[0]

    def action() -> None:
        status, said = answer(arguments)
        if status:
            assert status == 2 and is_one_line(said), said
            raise Refused

    def prepare() -> None:
        shutil.rmtree(out)
        shutil.copytree(earlier, out)

    def look() -> tuple[bool, bool]:
        kept = contents(out) == contents(earlier)
        action()
        return kept, contents(out) == new

    monkeypatch.setattr(evaluation, "run_evaluate", once)
    action()
    monkeypatch.setattr("sae_core.model.language_model.load_model", lambda *a, **k: None)
    new = contents(out)
    shutil.copytree(out, earlier)
    for path in filter(Path.is_file, earlier.rglob("*[!j][!s]")):
        path.write_bytes(path.read_bytes() + b"\n")
    seen = at_every_moment(fill_but_rename, action, prepare, look)
    assert seen == [("Refused", (True, True))] * (len(seen) - 1) + [(WHOLE, (False, True))]
    assert len(seen) > 10


# ---- memory, open files ----------------------------------------------------------------------------


def spare(mebibytes: int) -> list[bytearray]:
    """Takes all large pieces of memory that the process has, and lets it have but so much more."""
    size, taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize(), []
    resource.setrlimit(resource.RLIMIT_AS, (size, -1))
    with suppress(MemoryError):
        while True:
            taken.append(bytearray(2**20))
    resource.setrlimit(resource.RLIMIT_AS, (size + mebibytes * 2**20, -1))
    return taken


@pytest.mark.slow
def test_memory_that_ends_anywhere_is_one_line_with_what_takes_less(trained, tmp_path):
    arguments = ["evaluate", str(trained), "--out", str(tmp_path), *LONG_VERBS["evaluate"]]
    assert answer(arguments) == (0, "")  # control; and what is loaded for it takes none of it
    answers = [limited(partial(spare, mebibytes), arguments) for mebibytes in (0, 4, 9, 12, 16, 24, 48)]
    for status, said in answers:
        assert status == 0 or (status == 2 and is_one_line(said) and "not enough memory" in said), said
    assert answers[0][0] == 2 and len({said for _, said in answers}) > 1, answers  # it ended, at several places


def open_files(n_free: int) -> None:
    """Lets the process open so many more files."""
    taken = {int(name) for name in os.listdir("/proc/self/fd")}
    free = [number for number in range(1024) if number not in taken]
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[n_free], resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


@pytest.mark.slow
def test_few_open_files_are_enough_and_fewer_are_one_line(trained, tmp_path):
    arguments = ["evaluate", str(trained), "--out", str(tmp_path), *LONG_VERBS["evaluate"]]
    answers = [limited(partial(open_files, n_free), arguments) for n_free in (0, 1, 2, 3, 32)]
    for status, said in answers:
        assert status == 0 or (status == 2 and is_one_line(said)), said
    assert answers[0][0] == 2 and answers[-1] == (0, "")


# ---- others, and time ------------------------------------------------------------------------------


@pytest.mark.slow
def test_of_two_runs_in_one_folder_the_second_is_told_and_the_first_is_whole(trained, tmp_path):
    arguments = ["evaluate", str(trained), *LONG_VERBS["evaluate"], "--out"]
    run([*arguments, str(tmp_path / "alone")])
    first = started([*arguments, str(tmp_path / "out")])
    while not (tmp_path / "out" / LOCK).exists():
        time.sleep(0.001)
    status, said = answer([*arguments, str(tmp_path / "out")])
    assert status == 2 and is_one_line(said) and f"process {first} on" in said, said
    assert ended(first) == 0 and lasting(tmp_path / "out") == lasting(tmp_path / "alone")


def test_nothing_depends_on_the_clock():
    """It may jump: durations are of a clock that does not, and what is newer is never asked."""
    files = [path for package in PACKAGES for path in package.rglob("*.py")]
    asked = re.compile(r"time\.time\(|time_ns|datetime(?! import timedelta\b)|st_[mac]time|getmtime")
    assert len(files) > 100 and not [path for path in files if asked.search(path.read_text())]
    assert asked.search("time.time()") and asked.search("from datetime import datetime")  # control
