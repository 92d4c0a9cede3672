"""SIGTERM ends a run as Ctrl-C does."""

import signal
from signal import SIGINT, SIGTERM, raise_signal

import pytest

from subrank.cli import command
from subrank.cli.stopping import Stopped, finishing_a_step, stoppable

SIGNALS = pytest.mark.parametrize(("signum", "status"), [(SIGINT, 130), (SIGTERM, 143)])


@SIGNALS
def test_a_verb_ends_with_one_line_and_the_status_of_the_signal(capsys, monkeypatch, tmp_path, signum, status):
    def run(options) -> None:
        """`subrank demo`: ends at once."""
        raise_signal(signum)

    before = signal.getsignal(signum)
    monkeypatch.setattr("subrank.cli.demo.run", run)
    assert command.main(["demo", "--out", str(tmp_path)]) == status
    assert capsys.readouterr().err == "subrank: stopped\n" and signal.getsignal(signum) is before


@SIGNALS
def test_the_first_signal_lets_a_step_end_and_the_second_is_immediate(signum, status):
    with finishing_a_step() as stopped:
        assert not stopped()
        raise_signal(signum)
        assert stopped() == signum
        with pytest.raises(Stopped) as stop:
            raise_signal(SIGTERM)
    assert stop.value.status == 143


def test_what_is_ignored_stays_ignored():
    """A shell starts jobs in the background like this, so that Ctrl-C ends those in the foreground only."""
    before = signal.signal(SIGINT, signal.SIG_IGN)
    try:
        with stoppable():
            raise_signal(SIGINT)
            with pytest.raises(Stopped):
                raise_signal(SIGTERM)  # control
    finally:
        signal.signal(SIGINT, before)
