"""An engine process that is launched ahead."""

from __future__ import annotations

import os

from drivetrain.config import EngineConfig
from drivetrain.process.child import EngineProcess
from drivetrain.process.client import ProcessEngine
from fakes.waiting import until


def ended(process: EngineProcess) -> int | None:
    until(lambda: process.returncode is not None)
    return process.returncode


def test_a_process_that_nobody_takes_over_ends() -> None:
    engine = ProcessEngine(EngineConfig(model="absent"))
    engine.launch()
    process = engine._launched
    assert process is not None and process.returncode is None
    engine.abandon()
    assert ended(process) != 0
    assert not os.path.exists(os.path.dirname(process.socket_path))
    engine.abandon()
