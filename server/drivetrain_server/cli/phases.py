"""Start-up phases on stderr: bars on a terminal, else one JSON line a change."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import asdict, replace
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


class _Ages:
    """Phases with the time since they were first seen, where they do not tell their own while they run."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._began: dict[str, float] = {}

    def of(self, phase: Phase) -> Phase:
        """The phase with its age."""
        now = self._clock()
        age_s = now - self._began.setdefault(phase.name, now)
        return phase if phase.finished or phase.elapsed_s >= age_s else replace(phase, elapsed_s=round(age_s, 3))


class PhaseLines(PhaseReporter):
    """A JSON line when a phase begins and ends, and every two seconds in between."""

    def __init__(self, out: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._out = out
        self._clock = clock
        self._ages = _Ages(clock)
        self._shown: dict[str, tuple[bool, float]] = {}

    def show(self, phases: Sequence[Phase]) -> None:
        now = self._clock()
        for phase in map(self._ages.of, phases):
            finished, at = self._shown.get(phase.name, (None, 0.0))
            if finished is None or finished != phase.finished or (not finished and now - at >= LINE_INTERVAL_S):
                print(json.dumps({"phase": asdict(phase)}), file=self._out, flush=True)
                self._shown[phase.name] = (phase.finished, now)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class PhaseBars(PhaseReporter):
    """A bar for each phase that runs, with its rate, below one line for each that has ended.

    Only what runs is ever drawn again, so what others write to the terminal meanwhile leaves no half of a bar behind;
    what this process writes to `sys.stderr` comes above the bars, its lines whole however narrow the terminal is.
    """

    def __init__(self, out: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn

        columns = (
            SpinnerColumn(),
            TextColumn("{task.description:<20}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[amount]}"),
        )
        self._console = Console(file=out, soft_wrap=True)
        self._progress = Progress(*columns, console=self._console, transient=True, redirect_stdout=False)
        self._ages = _Ages(clock)
        self._running: dict[str, tuple[TaskID, Phase]] = {}
        self._ended: set[str] = set()
        self._progress.start()

    def show(self, phases: Sequence[Phase]) -> None:
        for phase in (self._ages.of(phase) for phase in phases if phase.name not in self._ended):
            if phase.finished:
                self._end(phase, "[green]✓[/green]")
                continue
            if phase.name in self._running:
                bar, _ = self._running[phase.name]
            else:
                bar = self._progress.add_task(phase.name, total=None, amount="")
            self._running[phase.name] = (bar, phase)
            self._progress.update(bar, total=phase.total or None, completed=phase.done, amount=amount(phase))

    def _end(self, phase: Phase, mark: str) -> None:
        self._ended.add(phase.name)
        if phase.name in self._running:
            self._progress.remove_task(self._running.pop(phase.name)[0])
        self._console.print(f"{mark} {phase.name:<20} {amount(phase)}", highlight=False)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _, phase in list(self._running.values()):
            self._end(phase, "[yellow]-[/yellow]")
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
    elif phase.unit and (phase.done or phase.total):
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
