"""What a backend package hands over before any device is touched: its spec, and what its probe found.

Both are plain data. They cross a process border as JSON, so fields hold strings, numbers, booleans and lists of these.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from drivetrain_plugins.import_string import check_import_string

ENTRY_POINT_GROUP = "drivetrain.backends"
BACKEND_NAME = re.compile(r"[a-z][a-z0-9_-]*")
RESERVED_NAMES = frozenset({"auto"})

Details = Mapping[str, str | int | float | bool | tuple[str, ...]]


def _no_details() -> Details:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendSpec:
    """One backend as its package lists it. Building one imports nothing of the vendor's.

    Attributes:
        name: what users write in `backend = "..."`; lowercase letters, digits, `-` and `_`.
        contract: oldest and newest contract version that the backend was written for, both included.
        priority: the highest among the ready backends is chosen when none is asked for. The embedded CPU backend has 0,
            an accelerator in the tree 100.
        probe: "module:function" that takes nothing and returns a `ProbeResult`; called in a process of its own.
        backend: "module:class" of the backend itself; imported only in processes that use the device.
        description: one line for people.
        early: "module:function" that takes nothing, for what takes long and needs no torch, such as starting processes
            of the backend's own. Called once the backend is chosen, in the process that will import `backend`, while
            torch is still being imported. It must return at once, import nothing heavy, and not raise. It returns a
            function that ends what it began, which is called when the engine is there, or when none is to be.
        options: "module:schema" of the `[backend_options.NAME]` table, if the backend takes options.
        environment: variables that the vendor's libraries read when they are loaded. Core sets those that are not set
            before it imports `backend`, in processes that use the device and nowhere else. There it may set those of
            other backends that were found too, unless two contradict each other.
        also_called: other words that people know it by, such as the vendor's name, in lowercase. None of them chooses
            it; who writes one is told the name.
        version: version of the backend, for reports; discovery puts in the distribution's if it is left empty.

    Raises:
        TypeError, ValueError: a field does not hold what is said above; the message names the field.
    """

    name: str
    contract: tuple[int, int]
    priority: int
    probe: str
    backend: str
    description: str
    early: str | None = None
    options: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    also_called: tuple[str, ...] = ()
    version: str = ""

    def __post_init__(self) -> None:
        for name, value, expected in (
            ("name", self.name, str),
            ("version", self.version, str),
            ("priority", self.priority, int),
            ("description", self.description, str),
        ):
            _check_type(name, value, expected)
        if not BACKEND_NAME.fullmatch(self.name) or self.name in RESERVED_NAMES:
            raise ValueError(
                f"name: got {self.name!r}, expected a lowercase letter, then letters, digits, '-' or '_'; not 'auto'"
            )
        _check_contract_range(self.contract)
        check_import_string("probe", self.probe)
        check_import_string("backend", self.backend)
        for name, value in (("early", self.early), ("options", self.options)):
            if value is not None:
                check_import_string(name, value)
        _check_words("also_called", self.also_called)

    def speaks(self, contract_version: int) -> bool:
        """Whether the backend was written for this version of the contract."""
        oldest, newest = self.contract
        return oldest <= contract_version <= newest


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceInfo:
    """One device as a probe sees it.

    Attributes:
        index: position among the devices of this backend, from 0.
        name: product name, for people.
        architecture: what kernels are chosen by, in the vendor's own words, such as `x86_64`.
        memory_bytes: memory that the device has in total.
        free_memory_bytes: memory that was free when probed.
        details: whatever else helps a reader of `drivetrain backends`.
    """

    index: int
    name: str
    architecture: str
    memory_bytes: int
    free_memory_bytes: int
    details: Details = field(default_factory=_no_details)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """What a probe found out. A backend is ready with at least one device, or says why not and what to do about it.

    Attributes:
        ready: the backend can serve here, now.
        reason: why it is not ready, a clause such as "no driver is loaded". Empty when ready.
        next_step: what the user can do about it. May be empty.
        devices: the devices found, by index. They may be named although the backend is not ready.
        details: versions of drivers and libraries, and the like.
        idle_hardware: the backend is not ready, but hardware that it serves is in this machine and would stand idle: a
            driver too old, a library without support for the device. Then nothing of a lower priority is chosen in its
            place unless the user asks for that by name. False for hardware that the backend could never serve on, and
            for hardware that the user hides.

    Raises:
        ValueError: ready without a device, or not ready without a reason.
    """

    ready: bool
    reason: str = ""
    next_step: str = ""
    devices: tuple[DeviceInfo, ...] = ()
    details: Details = field(default_factory=_no_details)
    idle_hardware: bool = False

    def __post_init__(self) -> None:
        if self.ready and not self.devices:
            raise ValueError("devices: got none from a probe that says ready, expected at least one")
        if not self.ready and not self.reason:
            raise ValueError("reason: got none from a probe that says not ready, expected why")
        if self.ready and self.idle_hardware:
            raise ValueError("idle_hardware: got True from a probe that says ready, expected False")


def _check_type(name: str, value: object, expected: type) -> None:
    if not isinstance(value, expected) or isinstance(value, bool):
        raise TypeError(f"{name}: got {value!r}, expected {expected.__name__}")


def _check_words(name: str, value: object) -> None:
    words = cast("tuple[object, ...]", value) if isinstance(value, tuple) else (None,)
    if not all(isinstance(word, str) and word == word.strip().lower() != "" for word in words):
        raise ValueError(f"{name}: got {value!r}, expected a tuple of words in lowercase, as in ('acme', 'acmecorp')")


def _check_contract_range(value: object) -> None:
    match value:
        case (int() as oldest, int() as newest) if 1 <= oldest <= newest:
            return
        case _:
            raise ValueError(f"contract: got {value!r}, expected (oldest, newest), as in (1, 1)")
