"""What Habana's management library says of the cards, without opening any: names, memory, temperature, power.

`pyhlml` binds it. Its handles are one object that each call overwrites, so that a card is read whole before the next
one is asked for; its strings arrive as bytes.
"""

# Relaxed: pyhlml has no types.
# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

_T = TypeVar("_T")


class TelemetryUnavailable(Exception):
    """The cards cannot be asked. The message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One card as the management library sees it; None is what it does not tell.

    Attributes:
        memory_bytes, used_bytes: of its HBM, all processes together.
        utilization: percent of the last second.
        temperature: of the chip in degrees Celsius.
        power_mw: milliwatts.
    """

    index: int
    name: str
    uuid: str
    memory_bytes: int
    used_bytes: int
    module_id: int | None
    utilization: int | None
    temperature: int | None
    power_mw: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The cards of this host and the version of their driver."""

    driver: str
    cards: tuple[Card, ...]


def read_host(library: Callable[[], Any] = lambda: importlib.import_module("pyhlml")) -> Host:
    """Ask for every card.

    Args:
        library: imports `pyhlml`.

    Raises:
        TelemetryUnavailable: it is not installed, its library or the driver is not there, or a card does not answer.
    """
    try:
        hlml = library()
    except ImportError as error:
        raise TelemetryUnavailable(f"the package pyhlml is not installed ({error})") from error
    failure: type[Exception] = hlml.HLMLError
    try:
        # It prints when its library is missing, where a report may be expected.
        with contextlib.redirect_stdout(io.StringIO()):
            hlml.hlmlInit()
    except failure as error:
        raise TelemetryUnavailable(f"hlml does not start: {_told(error)}") from error
    try:
        cards = tuple(_read_card(hlml, failure, index) for index in range(hlml.hlmlDeviceGetCount()))
        driver = _optional(hlml.hlmlGetDriverVersion, failure)
        return Host(driver=_text(driver) if driver else "unknown", cards=cards)
    except failure as error:
        raise TelemetryUnavailable(f"hlml does not answer: {_told(error)}") from error
    finally:
        with contextlib.suppress(failure):
            hlml.hlmlShutdown()


def _read_card(hlml: Any, failure: type[Exception], index: int) -> Card:
    handle = hlml.hlmlDeviceGetHandleByIndex(index)
    memory = hlml.hlmlDeviceGetMemoryInfo(handle)
    return Card(
        index=index,
        name=_text(hlml.hlmlDeviceGetName(handle)),
        uuid=_text(hlml.hlmlDeviceGetUUID(handle)),
        memory_bytes=int(memory.total),
        used_bytes=int(memory.used),
        module_id=_optional(lambda: hlml.hlmlDeviceGetModuleID(handle), failure),
        utilization=_optional(lambda: hlml.hlmlDeviceGetUtilizationRates(handle), failure),
        temperature=_optional(lambda: hlml.hlmlDeviceGetTemperature(handle, 0), failure),
        power_mw=_optional(lambda: hlml.hlmlDeviceGetPowerUsage(handle), failure),
    )


def _optional(ask: Callable[[], _T], failure: type[Exception]) -> _T | None:
    """What some cards and drivers do not tell; the card is served all the same."""
    try:
        return ask()
    except failure:
        return None


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _told(error: Exception) -> str:
    """The library's words for a code; its own message has the number alone."""
    code = getattr(error, "value", None)
    words = getattr(type(error), "_errcodes", {}).get(code)
    return f"{words} ({error})" if words else str(error)
