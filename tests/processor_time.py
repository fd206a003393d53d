"""Processor time of commands: what they wait for whatever else the machine does, and limits that suit the machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

# Takes 0.1 s where `drivetrain --version` takes 0.17 s.
YARDSTICK = (sys.executable, "-c", "import asyncio, typer")


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
