"""Start-up phases on stderr: bars on a terminal, else one JSON line a change."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import asdict
from types import TracebackType
from typing import Protocol, TextIO

from drivetrain.messages import Phase

REFRESH_S = 0.1
LINE_INTERVAL_S = 2.0


class PhaseReporter(AbstractContextManager["PhaseReporter", None], Protocol):
    """Shows the phases of a start-up as far as they have come."""

    def show(self, phases: Sequence[Phase]) -> None:
        """Bring what is shown up to date; `phases` are all so far, in order."""
        ...


class PhaseLines(PhaseReporter):
    """A JSON line when a phase begins and ends, and every two seconds in between."""

    def __init__(self, out: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._out = out
        self._clock = clock
        self._shown: dict[str, tuple[bool, float]] = {}

    def show(self, phases: Sequence[Phase]) -> None:
        now = self._clock()
        for phase in phases:
            finished, at = self._shown.get(phase.name, (None, 0.0))
            if finished is None or finished != phase.finished or (not finished and now - at >= LINE_INTERVAL_S):
                print(json.dumps({"phase": asdict(phase)}), file=self._out, flush=True)
                self._shown[phase.name] = (phase.finished, now)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class PhaseBars(PhaseReporter):
    """One bar a phase, with its rate; a phase of unknown length pulses."""

    def __init__(self, out: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn

        columns = (
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description:<20}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[amount]}"),
        )
        self._progress = Progress(*columns, console=Console(file=out))
        self._bars: dict[str, TaskID] = {}
        self._progress.start()

    def show(self, phases: Sequence[Phase]) -> None:
        for phase in phases:
            if phase.name not in self._bars:
                self._bars[phase.name] = self._progress.add_task(phase.name, total=phase.total or None, amount="")
            total = phase.total or (1.0 if phase.finished else None)
            done = (total or 0.0) if phase.finished else phase.done
            self._progress.update(self._bars[phase.name], total=total, completed=done, amount=amount(phase))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()


def phase_reporter(out: TextIO | None = None) -> PhaseReporter:
    """Bars where `out` (stderr) is a terminal, JSON lines elsewhere."""
    stream = sys.stderr if out is None else out
    return PhaseBars(stream) if stream.isatty() else PhaseLines(stream)


def amount(phase: Phase) -> str:
    """How far a phase is, in words: `0.20/0.27 GB, 1.31 GB/s, 0.2 s`."""
    parts: list[str] = []
    if phase.unit == "B" and phase.done:
        whole = f"/{phase.total / 1e9:.2f}" if phase.total else ""
        parts.append(f"{phase.done / 1e9:.2f}{whole} GB")
        if phase.elapsed_s:
            parts.append(f"{phase.done / 1e9 / phase.elapsed_s:.2f} GB/s")
    elif phase.done and phase.unit:
        whole = f"/{phase.total:g}" if phase.total else ""
        parts.append(f"{phase.done:g}{whole} {phase.unit}")
    if phase.elapsed_s:
        parts.append(f"{phase.elapsed_s:.1f} s")
    return ", ".join(parts)


@asynccontextmanager
async def following(phases: Callable[[], Sequence[Phase]]) -> AsyncGenerator[None, None]:
    """Show what `phases()` says while the block runs, typically `async with following(lambda: engine.phases)`."""

    async def follow(reporter: PhaseReporter) -> None:
        while True:
            reporter.show(phases())
            await asyncio.sleep(REFRESH_S)

    with phase_reporter() as reporter:
        task = asyncio.create_task(follow(reporter))
        try:
            yield
        finally:
            task.cancel()
            reporter.show(phases())
