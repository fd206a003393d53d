"""What is settled of a chosen backend before its device opens: environment, options, and torch on the way."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest

from drivetrain import assembly, devices
from drivetrain.config import EngineConfig
from drivetrain.errors import ConfigError, Unsupported
from drivetrain_plugins.spec import BackendSpec
from fakes.fresh_python import printed_by
from fakes.tiny_model import write_tiny_model
from fakes.waiting import LIMIT_S


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    threads: int = 0
    share: float = 0.5


def spec(
    name: str, *, options: str | None = None, backend: str = "a:B", early: str | None = None, **environment: str
) -> BackendSpec:
    return BackendSpec(
        name=name,
        contract=(1, 1),
        priority=0,
        probe="a:b",
        backend=backend,
        description="for a test",
        options=options,
        early=early,
        environment=environment,
    )


def imported(monkeypatch: pytest.MonkeyPatch, found: list[BackendSpec]) -> bool:
    """Whether torch is imported ahead when these backends may be chosen."""
    seen: list[str] = []
    monkeypatch.setattr(devices.importlib, "import_module", seen.append)
    devices._import_torch_ahead(found)
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


def test_the_environment_that_a_backend_asks_for_is_set_where_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACME_A", "")  # so that what is set here is undone
    monkeypatch.delenv("ACME_A")
    monkeypatch.setenv("ACME_C", "mine")
    with pytest.raises(Unsupported, match="backend 'acme': builtins:int is <class 'int'>, expected a subclass of Back"):
        devices.open_device(EngineConfig(model="m"), spec("acme", backend="builtins:int", ACME_A="1", ACME_C="theirs"))
    assert (os.environ["ACME_A"], os.environ["ACME_C"]) == ("1", "mine")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"treads": 2}, r'^backend_options\.acme: unknown option "treads"; did you mean "threads"\?$'),
        ({"zzz": 2}, r'^backend_options\.acme: unknown option "zzz"; known are threads, share$'),
        ({"threads": "two"}, r"^backend_options\.acme\.threads: got 'two'; expected `int`, got `str`$"),
    ],
)
def test_options_that_a_backend_does_not_have_are_refused_by_name(table: dict[str, Any], message: str) -> None:
    config = EngineConfig(model="m", backend_options={"acme": table, "other": {"anything": 1}})
    with pytest.raises(ConfigError, match=message):
        devices.open_device(config, spec("acme", options=f"{__name__}:Options"))


class Begun:
    """What a backend did early, in order."""

    events: ClassVar[list[str]] = []

    @classmethod
    def begin(cls) -> Callable[[], None]:
        cls.events.append(f"begun with ACME_A={os.environ['ACME_A']}")
        return lambda: cls.events.append("ended")

    @classmethod
    def begin_for_ever(cls) -> None:
        cls.events.append("begun")


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.delenv("ACME_A", raising=False)
    monkeypatch.setattr(Begun, "events", [])
    return Begun.events


def test_what_a_backend_begins_early_ends_with_an_engine_that_is_refused(
    events: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = spec("acme", backend="drivetrain.no_such_module:Backend", early=f"{__name__}:Begun.begin", ACME_A="1")
    monkeypatch.setattr(assembly, "choose", lambda *_: chosen)
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        assembly.assemble(EngineConfig(model=str(write_tiny_model(tmp_path))))
    assert events == ["begun with ACME_A=1", "ended"]


def test_what_a_backend_begins_early_goes_on_until_its_engine_is_ready(events: list[str]) -> None:
    chosen = spec("acme", early=f"{__name__}:Begun.begin", ACME_A="1")
    with devices.begun_early(EngineConfig(model="m"), chosen):
        assert events == ["begun with ACME_A=1"]
    assert events[1:] == ["ended"]


def test_a_backend_must_say_what_ends_what_it_began(events: list[str]) -> None:
    chosen = spec("acme", early=f"{__name__}:Begun.begin_for_ever")
    with pytest.raises(Unsupported, match="returned None, expected what ends it"):
        devices.begun_early(EngineConfig(model="m"), chosen).__enter__()
    assert events == ["begun"]


def test_nothing_is_begun_for_options_that_are_refused(events: list[str]) -> None:
    config = EngineConfig(model="m", backend_options={"acme": {"threads": 2}})
    with pytest.raises(ConfigError, match="takes no options"):
        devices.begun_early(config, spec("acme", early=f"{__name__}:Begun.begin")).__enter__()
    assert not events


def test_a_backend_without_options_takes_none() -> None:
    config = EngineConfig(model="m", backend_options={"acme": {"threads": 2}})
    with pytest.raises(ConfigError, match=r"got \['threads'\], but this backend takes no options"):
        devices.open_device(config, spec("acme"))


STARTED = """
import os, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("torch", os.environ.get("GOMP_SPINCOUNT"))

sys.meta_path.insert(0, Watch())
import drivetrain.assembly, drivetrain.process.worker
print("modules")
from drivetrain.config import EngineConfig
from drivetrain.devices import choose, open_device

config = EngineConfig(model="m", backend="cpu")
open_device(config, choose(config, print))
"""


def test_an_engine_process_imports_torch_only_in_its_backends_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    assert printed_by(STARTED).splitlines() == ["modules", "torch 50000"]
