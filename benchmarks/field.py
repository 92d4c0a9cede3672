"""Who takes part in a benchmark of training: a worker for each contestant that is installed."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from report import Report
from worker import Worker


class Field:
    """Who takes part, and where each one's interpreter is."""

    def __init__(self, pythons: Mapping[str, str | None], folder: Path, report: Report):
        self.pythons, self.folder, self.report = pythons, folder, report
        self.versions: dict[str, str] = {}

    def open(self, stack: ExitStack, entries: Mapping[str, object], threads: int) -> dict[str, Worker]:
        """A worker for each that is installed; says once which are not."""
        workers = {}
        for name, entry in entries.items():
            python = self.pythons[entry.environment]
            if python is None:
                self._absent(name, f"not installed: no --python-{entry.environment}")
                continue
            log = self.folder / f"{name.replace(' ', '-')}.log"
            worker = stack.enter_context(Worker(name, python, threads, log))
            answer = worker.ask("hello", package=entry.package)
            if "missing" in answer:
                self._absent(name, f"not installed: {answer['missing']}")
                continue
            self.versions[name], workers[name] = answer["version"], worker
        return workers

    def _absent(self, name: str, why: str) -> None:
        if self.versions.setdefault(name, "") != why:
            self.versions[name] = why
            self.report.say(f"{name}: {why}")
