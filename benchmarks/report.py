"""What benchmarks print, as it is kept in RESULTS.md."""

import os
import platform
import shlex
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import torch


class Report:
    """Lines of Markdown, printed as they come and kept for the record."""

    def __init__(self):
        self.lines: list[str] = []

    def say(self, line: str = "") -> None:
        print(line, flush=True)
        self.lines.append(line)

    def table(self, head: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
        rows = [tuple(head), *(tuple(row) for row in rows)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in rows]
        lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
        for line in ("", *lines, ""):
            self.say(line)


def record(path: Path, report: Report, arguments: list[str], *, script: str) -> None:
    """Append a section: date, machine, versions, command, figures."""
    head = "" if path.exists() else "# Results\n\nWritten by `--record`; newest last.\n"
    shown = [f"PYTHON{number}" if Path(a).is_file() else a for number, a in enumerate(arguments)]
    facts = (
        f"## {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "",
        f"- machine: {_processor()}, {os.cpu_count()} cores, {_vector_unit()}",
        f"- torch {torch.__version__}, Python {platform.python_version()}",
        f"- command: `python benchmarks/{script} {shlex.join(shown)}`",
        "",
    )
    with path.open("a", encoding="utf-8") as file:
        file.write("\n".join((head, *facts, *report.lines, "")))


def _processor() -> str:
    source = Path("/proc/cpuinfo")
    lines = source.read_text().splitlines() if source.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _vector_unit() -> str:
    return torch.backends.cpu.get_cpu_capability()
