"""What start-up shows: JSON lines where nobody looks, bars where somebody does."""

from __future__ import annotations

import asyncio
import io
import json

from drivetrain.messages import Phase
from drivetrain_server.cli.phases import PhaseBars, PhaseLines, amount, following, phase_reporter


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


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


def test_bars_show_each_phase_with_its_rate():
    out = Terminal()
    with PhaseBars(out) as bars:
        bars.show([Phase(name="weights", done=1e8, total=2e8, unit="B", elapsed_s=0.1)])
        bars.show([Phase(name="weights", done=2e8, total=2e8, unit="B", elapsed_s=0.2, finished=True)])
    assert "weights" in out.getvalue()
    assert "0.20/0.20 GB, 1.00 GB/s, 0.2 s" in out.getvalue()


def test_reporter_fits_where_it_writes():
    assert isinstance(phase_reporter(io.StringIO()), PhaseLines)
    with phase_reporter(Terminal()) as reporter:
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
