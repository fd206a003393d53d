"""What an API process needs to know of the others that serve the same address."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from drivetrain_server.keys import KeyRing, Tenant
from drivetrain_server.lifecycle import Lifecycle
from drivetrain_server.response_shelves import ResponseShelves
from drivetrain_server.telemetry import Reading, Telemetry


class Peers(Protocol):
    """All API processes of one server, seen from one of them."""

    @property
    def ready(self) -> bool:
        """Whether every one of them has got as far as to take requests."""
        ...

    async def enter(self, tenant: Tenant) -> None:
        """Count a request of a key in, whichever process it came to.

        Raises:
            HttpError: 429, this key has too many open.
        """
        ...

    def leave(self, tenant: Tenant) -> None:
        """Count it out."""
        ...

    async def keep(self, tenant: Tenant, response_id: str, raw: bytes) -> None:
        """Keep a response of a key for all of them; each knows it on return."""
        ...

    async def recall(self, tenant: Tenant, response_id: str) -> bytes | None:
        """A response of this key that one of them kept; None where there is none any more."""
        ...

    async def forget(self, tenant: Tenant, response_id: str) -> bool:
        """Forget a response of this key; False where there is none."""
        ...

    async def readings(self) -> Sequence[Reading]:
        """What each of them has counted, and what those that ended had."""
        ...


class Alone:
    """A server of one API process."""

    ready = True

    def __init__(self, keys: KeyRing, telemetry: Telemetry, lifecycle: Lifecycle) -> None:
        self._keys = keys
        self._telemetry = telemetry
        self._lifecycle = lifecycle
        self._shelves = ResponseShelves()

    async def enter(self, tenant: Tenant) -> None:
        self._keys.enter(tenant)

    def leave(self, tenant: Tenant) -> None:
        self._keys.leave(tenant)

    async def keep(self, tenant: Tenant, response_id: str, raw: bytes) -> None:
        self._shelves.keep(tenant.name, response_id, raw)

    async def recall(self, tenant: Tenant, response_id: str) -> bytes | None:
        return self._shelves.recall(tenant.name, response_id)

    async def forget(self, tenant: Tenant, response_id: str) -> bool:
        return self._shelves.forget(tenant.name, response_id) is not None

    async def readings(self) -> Sequence[Reading]:
        return [self._telemetry.reading(open_requests=self._lifecycle.num_open)]
