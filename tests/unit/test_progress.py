"""What is told while something takes long: start-up phases, and the bar of offline work."""

from __future__ import annotations

import io
import sys

import pytest

from drivetrain import phases
from drivetrain.messages import Phase
from drivetrain.phases import PhaseClock
from drivetrain.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Now:
    """A clock that is moved by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 50.0
        monkeypatch.setattr(phases.time, "monotonic", lambda: self.now_s)


def test_a_phase_without_progress_is_told_when_it_begins_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    now, told = Now(monkeypatch), list[Phase]()
    with PhaseClock(told.append).phase("open device"):
        now.now_s += 2.0
    assert told == [Phase(name="open device"), Phase(name="open device", elapsed_s=2.0, finished=True)]


def test_a_phase_that_fails_is_not_told_as_finished() -> None:
    told: list[Phase] = []
    with pytest.raises(OSError, match="gone"), PhaseClock(told.append).phase("read model"):
        raise OSError("gone")
    assert [phase.finished for phase in told] == [False]


def test_progress_is_told_seldom_but_its_begin_and_end_always(monkeypatch: pytest.MonkeyPatch) -> None:
    now, told = Now(monkeypatch), list[Phase]()
    clock = PhaseClock(told.append)
    for done in range(101):
        clock.progress("weights", done, 100, "MB")
        now.now_s += 0.01
    assert told[0] == Phase(name="weights", done=0, total=100, unit="MB")
    assert told[-1] == Phase(
        name="weights", done=100, total=100, unit="MB", elapsed_s=pytest.approx(1.0), finished=True
    )
    assert 15 <= len(told) <= 22
    assert [phase.done for phase in told] == sorted(phase.done for phase in told)


def test_phases_have_their_own_times(monkeypatch: pytest.MonkeyPatch) -> None:
    now, told = Now(monkeypatch), list[Phase]()
    clock = PhaseClock(told.append)
    clock.progress("weights", 0, 2, "MB")
    now.now_s += 3.0
    clock.progress("warm up", 0, 1, "shapes")
    now.now_s += 1.0
    clock.progress("warm up", 1, 1, "shapes")
    clock.progress("weights", 2, 2, "MB")
    assert [(phase.name, phase.elapsed_s) for phase in told if phase.finished] == [("warm up", 1.0), ("weights", 4.0)]


def test_nobody_listens_and_nothing_breaks() -> None:
    clock = PhaseClock(None)
    with clock.phase("open device"):
        clock.progress("weights", 1, 2, "MB")


def test_a_terminal_shows_requests_and_tokens_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar(3, enabled=True) as advance:
        for _ in range(3):
            advance(40)
    shown = terminal.getvalue()
    assert "3/3" in shown
    assert "tok/s" in shown


@pytest.mark.parametrize(("stream", "enabled"), [(Terminal(), False), (io.StringIO(), True)])
def test_nothing_is_drawn_where_nobody_looks(
    stream: io.StringIO, enabled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar(3, enabled=enabled) as advance:
        advance(40)
    assert stream.getvalue() == ""
