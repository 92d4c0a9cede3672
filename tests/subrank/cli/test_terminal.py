"""How training shows its progress."""

import sys
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from sae_core.sites import Site
from subrank.cli.terminal import steps_shown

ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Step:
    """A step of training as `steps_shown` reads it."""

    step: int

    def numbers(self) -> list[dict]:
        return [{Site(i): {"fvu": 1 / self.step, "l0": 8.0, "dead": i} for i in range(3)}] * 2


def test_progress_is_a_line_per_tenth_or_a_bar(capsys, monkeypatch):
    steps = [Step(number) for number in range(21, 41)]
    assert list(steps_shown(iter(steps), 40, 20)) == steps
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"  step {n}/40: FVU {1 / n:.3f}, L0 8.0, dead 6" for n in (24, 28, 32, 36, 40)]

    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    assert list(steps_shown(iter(steps), 40, 20)) == steps
    shown = sys.stderr.getvalue()
    assert "40/40" in shown and f"FVU {1 / 32:.3f}, L0 8.0, dead 6" in shown
    assert not capsys.readouterr().out
