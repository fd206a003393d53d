"""Responses that clients may refer to later, whichever process of the server they come to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from drivetrain_server.errors import HttpError
from drivetrain_server.keys import Tenant
from drivetrain_server.peers import Peers
from drivetrain_server.response_shelves import MAX_ONE_BYTES

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """One response.

    Attributes:
        history: items of the whole conversation up to and with its output, without instructions.
        inputs: items that its own request brought.
        body: the response as it was answered.
    """

    history: list[Json]
    inputs: list[Json]
    body: Json


class KeptResponses:
    """The responses that all processes keep together; each key sees its own."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    async def add(self, tenant: Tenant, response_id: str, response: Kept) -> None:
        """Keep a response, so that every process knows it on return; one that is too large is not kept."""
        raw = orjson.dumps(response)
        if len(raw) <= MAX_ONE_BYTES:
            await self._peers.keep(tenant, response_id, raw)

    async def get(self, tenant: Tenant, response_id: str, *, param: str = "response_id") -> Kept:
        """A response of this key.

        Raises:
            HttpError: 404, it was never kept, or is gone.
        """
        raw = await self._peers.recall(tenant, response_id)
        if raw is None:
            raise _missing(response_id, param)
        return Kept(**orjson.loads(raw))

    async def delete(self, tenant: Tenant, response_id: str) -> None:
        """Forget a response.

        Raises:
            HttpError: 404, as `get`.
        """
        if not await self._peers.forget(tenant, response_id):
            raise _missing(response_id, "response_id")


def _missing(response_id: str, param: str) -> HttpError:
    return HttpError(
        404,
        f"{param}: there is no response {response_id[:100]!r}; it was not stored, was deleted, or has made room for "
        "newer ones: send the conversation itself",
        param=param,
        code="response_not_found",
    )
