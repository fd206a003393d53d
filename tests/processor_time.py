"""Limits of processor time that suit the machine: what is too slow on a fast one may be all that a slow one can."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

# Takes 0.1 s where `drivetrain --version` takes 0.17 s.
YARDSTICK = (sys.executable, "-c", "import asyncio, typer")

LOOP_S = 0.04
"""What the loop of `slowness` takes where `YARDSTICK` takes 0.1 s."""


def slowness() -> float:
    """How much longer a plain loop takes than on the machine for which limits are set; at least 1."""
    began = time.thread_time()
    sum(at * at for at in range(1_000_000))
    return max(1.0, (time.thread_time() - began) / LOOP_S)


def processor_s(command: Sequence[str], environment: Mapping[str, str] | None = None) -> float:
    """Processor time that a command took."""
    before = os.times()
    subprocess.run(command, check=True, capture_output=True, env=environment)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def answers_at_once(
    command: Sequence[str], environment: Mapping[str, str] | None = None, *, limit_s: float = 0.3
) -> bool:
    """Whether a command takes at most `limit_s`, or thrice as long as the yardstick on a machine that is slower."""
    return any(
        processor_s(command, environment) <= max(limit_s, 3 * processor_s(YARDSTICK, environment)) for _ in range(5)
    )
