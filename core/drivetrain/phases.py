"""Start-up as people see it: named phases with progress and time."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from drivetrain.messages import Phase

OnPhase = Callable[[Phase], None]

_LEAST_INTERVAL_S = 0.05


class PhaseClock:
    """Tells a listener about phases, often enough to be smooth and seldom enough to cost nothing.

    Args:
        listener: called with every new state of a phase.
    """

    def __init__(self, listener: OnPhase | None) -> None:
        self._listener = listener
        self._started: dict[str, float] = {}
        self._told_s = 0.0

    @contextmanager
    def phase(self, name: str) -> Generator[None, None, None]:
        """A phase without progress of its own."""
        self.progress(name, 0.0, 0.0, "")
        yield
        self.finish(name)

    def progress(self, name: str, done: float, total: float, unit: str) -> None:
        """How far a phase is; the first call starts it, `done == total` ends it."""
        now = time.monotonic()
        first = name not in self._started
        started = self._started.setdefault(name, now)
        finished = total > 0 and done >= total
        if self._listener is not None and (first or finished or now - self._told_s > _LEAST_INTERVAL_S):
            self._told_s = now
            self._listener(
                Phase(name=name, done=done, total=total, unit=unit, elapsed_s=now - started, finished=finished)
            )

    def finish(self, name: str) -> None:
        """End a phase that has no total."""
        elapsed_s = time.monotonic() - self._started.setdefault(name, time.monotonic())
        if self._listener is not None:
            self._listener(Phase(name=name, elapsed_s=elapsed_s, finished=True))
