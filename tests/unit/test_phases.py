"""What start-up shows: JSON lines where nobody looks, bars where somebody does."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import sys
from contextlib import redirect_stderr

import pytest

from drivetrain.messages import EngineInfo, Phase
from drivetrain_server.cli.phases import PhaseBars, PhaseLines, amount, following, phase_reporter
from drivetrain_server.cli.serve import _phases_shown
from drivetrain_server.logs import set_up_logs
from fakes.screen import Screen

LONG = "Try:   curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' -d '" + "x" * 99


@pytest.fixture
def narrow_screen(monkeypatch) -> Screen:
    """A terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    return Screen()


def test_lines_tell_begin_progress_and_end_once():
    out, now = io.StringIO(), [0.0]
    with PhaseLines(out, clock=lambda: now[0]) as lines:
        for second, done in ((0.0, 0.0), (0.5, 1.0), (2.5, 5.0), (2.6, 5.5)):
            now[0] = second
            lines.show([Phase(name="weights", done=done, total=10.0, unit="B")])
        finished = Phase(name="weights", done=10.0, total=10.0, unit="B", elapsed_s=3.0, finished=True)
        for _ in range(3):
            now[0] += 5.0
            lines.show([finished, Phase(name="warm-up", finished=True)])
    shown = [json.loads(line)["phase"] for line in out.getvalue().splitlines()]
    assert [(phase["name"], phase["done"], phase["finished"]) for phase in shown] == [
        ("weights", 0.0, False),
        ("weights", 5.0, False),
        ("weights", 10.0, True),
        ("warm-up", 0.0, True),
    ]


def test_lines_of_a_phase_without_progress_tell_its_age():
    out, now = io.StringIO(), [0.0]
    with PhaseLines(out, clock=lambda: now[0]) as lines:
        for now[0] in (5.0, 6.0, 7.5):
            lines.show([Phase(name="open device")])
    assert [json.loads(line)["phase"]["elapsed_s"] for line in out.getvalue().splitlines()] == [0.0, 2.5]


def test_bars_leave_one_line_for_each_phase_that_ended(narrow_screen):
    with PhaseBars(narrow_screen) as bars:
        bars.show([Phase(name="weights", done=1e8, total=2e8, unit="B", elapsed_s=0.1)])
        bars.show([Phase(name="weights", done=2e8, total=2e8, unit="B", elapsed_s=0.2, finished=True)])
        bars.show([Phase(name="weights", finished=True), Phase(name="warm up", done=1, total=3, unit="steps")])
    assert narrow_screen.lines() == [
        "✓ weights              0.20/0.20 GB, 1.00 GB/s, 0.2 s",
        "- warm up              1/3 steps",
    ]


def test_what_is_written_meanwhile_stays_whole_and_above_the_bars(narrow_screen, monkeypatch):
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", logging.WARNING)
    set_up_logs("text")
    with PhaseBars(narrow_screen) as bars:
        bars.show([Phase(name="find device", finished=True), Phase(name="open device")])
        print(LONG, file=sys.stderr, flush=True)
        logging.getLogger("drivetrain.server").warning("%s", LONG)
        bars.show([Phase(name="open device", finished=True, elapsed_s=1.0)])
    found, said, logged, opened = narrow_screen.lines()
    assert found.startswith("✓ find device")
    assert said == LONG
    assert logged.endswith(f"WARNING {LONG}")
    assert opened == "✓ open device          1.0 s"


def test_ready_is_told_below_the_last_phase(narrow_screen):
    class Started:
        info: EngineInfo | None = None
        failure = None
        phases = (Phase(name="warm up"),)

    engine = Started()
    with redirect_stderr(narrow_screen), _phases_shown(engine) as announce:
        announce("Listening")
        engine.phases = (Phase(name="warm up", finished=True, elapsed_s=2.0),)
        engine.info = object()
        announce(LONG)
    assert narrow_screen.lines() == ["Listening", "✓ warm up              2.0 s", LONG]


def test_reporter_fits_where_it_writes():
    assert isinstance(phase_reporter(io.StringIO()), PhaseLines)
    with phase_reporter(Screen()) as reporter:
        assert isinstance(reporter, PhaseBars)


def test_amount_says_what_is_known():
    assert amount(Phase(name="x")) == ""
    assert amount(Phase(name="capture", done=3, total=8, unit="graphs", elapsed_s=1.25)) == "3/8 graphs, 1.2 s"
    assert amount(Phase(name="load", done=5e8, unit="B", elapsed_s=1.0)) == "0.50 GB, 0.50 GB/s, 1.0 s"


async def test_following_shows_the_last_state_also_when_the_block_fails(capsys):
    phases = [Phase(name="probe")]
    try:
        async with following(lambda: phases):
            await asyncio.sleep(0)
            phases[:] = [Phase(name="probe", finished=True)]
            raise RuntimeError("no")
    except RuntimeError:
        pass
    lines = [json.loads(line)["phase"] for line in capsys.readouterr().err.splitlines()]
    assert lines[-1]["finished"] is True
