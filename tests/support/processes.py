"""Commands in processes of their own, and what they leave behind."""

import json
import os
import re
import signal
from collections.abc import Sequence
from pathlib import Path

from mortal import contents
from planted import unchecked

from subrank.cli import command

TIMED, PLOT_ID = {"written", "seconds"}, re.compile(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""What differs between two runs in any case."""


def started(arguments: Sequence[str]) -> int:
    """The number of a new process that runs the command."""
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the command takes it, as of a new process
        with unchecked():
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 1), os.dup2(silence, 2)
            status = command.main([*arguments])
    finally:
        os._exit(status)


def ended(process: int) -> int:
    """Its exit status, minus the signal's number where one killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def run(arguments: Sequence[str]) -> None:
    assert ended(started(arguments)) == 0


def lasting(folder: Path) -> dict[str, object]:
    """What is in the folder, without what differs between any two runs."""

    def timeless(value: object) -> object:
        if isinstance(value, dict):
            return {key: timeless(each) for key, each in value.items() if key not in TIMED}
        return [timeless(each) for each in value] if isinstance(value, list) else value

    files: dict[str, object] = {name: PLOT_ID.sub(b"", content) for name, content in contents(folder).items()}
    for name, content in contents(folder).items():
        if name.endswith((".json", ".jsonl")):
            files[name] = (
                [timeless(json.loads(line)) for line in content.splitlines()]
                if name.endswith("l")
                else (timeless(json.loads(content)))
            )
    return files
