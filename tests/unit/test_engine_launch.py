"""An engine process that is launched ahead."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

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


def test_a_process_imports_nothing_from_the_folder_that_it_is_started_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "msgspec.py").write_text("open('imported', 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    with EngineProcess(EngineConfig(model="absent")) as process:
        pass
    assert ended(process) != 0
    assert not Path("imported").exists()
