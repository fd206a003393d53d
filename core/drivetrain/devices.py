"""Which backend serves, and its device, opened in the environment and with the options that are its own."""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import msgspec

from drivetrain.config import EngineConfig
from drivetrain.config.schema import suggestion
from drivetrain.errors import ConfigError, Unsupported
from drivetrain_plugins.import_string import import_object
from drivetrain_plugins.selection import choose_backend
from drivetrain_plugins.spec import BackendSpec

if TYPE_CHECKING:  # what imports torch is imported once the backend's environment is set
    from drivetrain_plugins.contract.backend import Device


def choose(config: EngineConfig, on_warning: Callable[[str], None] | None = None) -> BackendSpec:
    """Choose the backend. Imports nothing of it.

    Args:
        on_warning: told of each setting about backends that has no effect here.

    Raises:
        BackendError: none can serve, or the one asked for cannot.
    """
    spec = choose_backend(
        config.backend,
        blocked=config.blocked_backends,
        configured=config.backend_options,
        on_found=_import_torch_ahead,
        on_warning=on_warning,
    ).spec
    assert spec is not None, "a selected backend has a spec"
    return spec


def _import_torch_ahead(found: Sequence[BackendSpec]) -> None:
    """Import torch while backends are probed, which takes seconds.

    Its libraries read the environment only when they are loaded. So that of every backend that may be chosen is set
    before; where two contradict each other, torch is imported once the choice is made.
    """
    wanted: dict[str, str] = {}
    for spec in found:
        if any(wanted.setdefault(name, value) != value for name, value in spec.environment.items()):
            return
    for name, value in wanted.items():
        os.environ.setdefault(name, value)
    # No daemon: libraries must not be loaded while a process that found no backend ends.
    threading.Thread(target=importlib.import_module, args=("torch",), name="import torch").start()


@contextmanager
def begun_early(config: EngineConfig, spec: BackendSpec) -> Generator[None, None, None]:
    """Let a chosen backend begin what takes long, in its environment, and end it on leaving.

    Inside, its device is opened and its engine made ready.

    Raises:
        ConfigError: the backend refuses its options, so nothing is begun.
    """
    _set_environment(spec)
    _checked_options(config, spec)
    if spec.early is None:
        yield
        return
    end = cast("Callable[[], object]", import_object(spec.early))()
    if not callable(end):
        raise Unsupported(f"backend {spec.name!r}: {spec.early} returned {end!r}, expected what ends it")
    try:
        yield
    finally:
        end()


def open_device(config: EngineConfig, spec: BackendSpec) -> Device:
    """Open the device of a chosen backend, in the environment that it asks for.

    Raises:
        BackendError: it cannot be opened.
        ConfigError: the backend refuses its options.
    """
    _set_environment(spec)
    options = _checked_options(config, spec)
    from drivetrain_plugins.contract.backend import Backend, RankInfo

    made = import_object(spec.backend)
    if not isinstance(made, type) or not issubclass(made, Backend):
        raise Unsupported(f"backend {spec.name!r}: {spec.backend} is {made!r}, expected a subclass of Backend")
    return made().open(RankInfo(), options)


def _set_environment(spec: BackendSpec) -> None:
    for name, value in spec.environment.items():
        os.environ.setdefault(name, value)


def _checked_options(config: EngineConfig, spec: BackendSpec) -> dict[str, Any]:
    table = dict(config.options_of(spec.name))
    if spec.options is None:
        if table:
            raise ConfigError(f"backend_options.{spec.name}: got {sorted(table)}, but this backend takes no options")
        return {}
    schema: Any = import_object(spec.options)
    try:
        return msgspec.to_builtins(msgspec.convert(table, schema))
    except msgspec.ValidationError as error:
        raise ConfigError(_refused_options(spec.name, table, schema, str(error))) from error


def _refused_options(backend: str, table: dict[str, Any], schema: Any, said: str) -> str:
    """What is wrong with a table, by the option's name; `said` is msgspec's own message."""
    if isinstance(schema, type) and issubclass(schema, msgspec.Struct):
        known = [option.encode_name for option in msgspec.structs.fields(schema)]
        for name in table:
            if name not in known:
                near = suggestion(name, known) or f"; known are {', '.join(known)}"
                return f'backend_options.{backend}: unknown option "{name}"{near}'
    reason, _, place = said.partition(" - at `$.")
    option = place.rstrip("`")
    if option not in table:
        return f"backend_options.{backend}: {said}"
    expected = reason[:1].lower() + reason[1:]
    return f"backend_options.{backend}.{option}: got {table[option]!r}; {expected}"
