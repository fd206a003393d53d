"""An engine process that is launched ahead, and torch that is imported while backends are probed."""

from __future__ import annotations

import os
import threading

import pytest

from drivetrain import assembly
from drivetrain.config import EngineConfig
from drivetrain.process.child import EngineProcess
from drivetrain.process.client import ProcessEngine
from drivetrain_plugins.spec import BackendSpec
from fakes.waiting import LIMIT_S, until


def spec(name: str, **environment: str) -> BackendSpec:
    return BackendSpec(
        name=name,
        contract=(1, 1),
        priority=0,
        probe="a:b",
        backend="a:B",
        description="for a test",
        environment=environment,
    )


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


def imported(monkeypatch: pytest.MonkeyPatch, found: list[BackendSpec]) -> bool:
    """Whether torch is imported ahead when these backends may be chosen."""
    seen: list[str] = []
    monkeypatch.setattr(assembly.importlib, "import_module", seen.append)
    assembly._import_torch_ahead(found)
    for thread in threading.enumerate():
        if thread.name == "import torch":
            thread.join(LIMIT_S)
    return seen == ["torch"]


def test_torch_is_imported_in_the_environment_of_every_backend_that_may_be_chosen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in (("ACME_A", None), ("ACME_B", None), ("ACME_C", "mine")):
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    monkeypatch.setenv("ACME_A", "")  # so that what is set here is undone
    monkeypatch.delenv("ACME_A")
    assert imported(monkeypatch, [spec("one", ACME_A="1", ACME_C="theirs"), spec("two", ACME_A="1"), spec("three")])
    assert (os.environ["ACME_A"], os.environ["ACME_C"]) == ("1", "mine")


def test_backends_that_contradict_each_other_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACME_A", raising=False)
    assert not imported(monkeypatch, [spec("one", ACME_A="1"), spec("two", ACME_A="2")])
    assert "ACME_A" not in os.environ
