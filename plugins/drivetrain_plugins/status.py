"""What Drivetrain knows about one backend: the record that listing, selection and reports share."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from drivetrain_plugins.spec import BackendSpec, Details, DeviceInfo


class Status(enum.StrEnum):
    """Where a backend stands.

    `ready`: can serve here. `unavailable`: sound, but something that it needs is missing, or it is not installed.
    `broken`: its package or its probe failed. `incompatible`: written for another contract version.
    `blocked`: the configuration says so.
    """

    READY = "ready"
    UNAVAILABLE = "unavailable"
    BROKEN = "broken"
    INCOMPATIBLE = "incompatible"
    BLOCKED = "blocked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Which entry point of which distribution something came from.

    Attributes:
        distribution: name of the distribution, as pip knows it.
        version: version of the distribution.
        entry_point: name of the entry point; empty if its list could not be read.
        target: what the entry point names, "module" or "module:object".
    """

    distribution: str
    version: str
    entry_point: str
    target: str

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}".rstrip()


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendState:
    """One backend, whether it can serve, and if not why and what to do.

    Attributes:
        name: name of the backend; of the entry point, if the package was not able to list its backends.
        status: see `Status`.
        reason: why it is not ready, a clause without a full stop; empty when ready.
        next_step: what the user can do about it; may be empty.
        origin: where it is installed from; None if it is not installed.
        spec: what its package lists; None if it did not come so far.
        devices: what its probe found.
        details: more of what its probe found.
        output: the last lines that a failed child printed.
        seconds: how long its listing or its probe took.
        idle_hardware: it cannot serve, but its hardware is here; see `ProbeResult.idle_hardware`.
    """

    name: str
    status: Status
    reason: str = ""
    next_step: str = ""
    origin: Origin | None = None
    spec: BackendSpec | None = None
    devices: tuple[DeviceInfo, ...] = ()
    details: Details = field(default_factory=lambda: {})
    output: tuple[str, ...] = ()
    seconds: float = 0.0
    idle_hardware: bool = False

    @property
    def installed(self) -> bool:
        return self.origin is not None

    @property
    def priority(self) -> int | None:
        return self.spec.priority if self.spec else None

    def summary(self) -> str:
        """Name, status and reason in one line, as error messages show it."""
        return f"{self.name} ({self.status}){': ' if self.reason else ''}{self.reason}"
