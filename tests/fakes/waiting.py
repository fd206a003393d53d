"""Waiting for what is about to come, with a bound that no machine reaches where nothing is broken."""

from __future__ import annotations

import time
from collections.abc import Callable

LIMIT_S = 60.0


def until(condition: Callable[[], object], *, within_s: float = LIMIT_S) -> None:
    """Wait until `condition` holds."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"it did not come to pass within {within_s:g} s"
        time.sleep(0.01)
