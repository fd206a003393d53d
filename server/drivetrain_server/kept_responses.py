"""Responses that clients may refer to later, kept in this process's memory."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import orjson

from drivetrain_server.errors import HttpError

Json = dict[str, Any]
MAX_KEPT = 4096
MAX_BYTES = 64 << 20


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
    """The newest responses of all keys; each key sees its own.

    Args:
        max_kept: responses in all; the one that was used longest ago goes first.
        max_bytes: bytes of JSON in all.
    """

    def __init__(self, *, max_kept: int = MAX_KEPT, max_bytes: int = MAX_BYTES) -> None:
        self._max_kept = max_kept
        self._max_bytes = max_bytes
        self._kept: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._bytes = 0

    def add(self, tenant: str, response_id: str, response: Kept) -> None:
        """Keep a response; one that is larger than everything may be is not kept."""
        raw = orjson.dumps(response)
        if len(raw) > self._max_bytes:
            return
        self._kept[tenant, response_id] = raw
        self._bytes += len(raw)
        while len(self._kept) > self._max_kept or self._bytes > self._max_bytes:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= len(oldest)

    def get(self, tenant: str, response_id: str, *, param: str | None = None) -> Kept:
        """A response of this key.

        Raises:
            HttpError: 404, it was never kept, or is gone.
        """
        raw = self._kept.get((tenant, response_id))
        if raw is None:
            raise HttpError(
                404,
                f"{param or 'response_id'}: there is no response {response_id[:100]!r}; it was not stored, was "
                "deleted, or has made room for newer ones: send the conversation itself",
                param=param or "response_id",
                code="response_not_found",
            )
        self._kept.move_to_end((tenant, response_id))
        return Kept(**orjson.loads(raw))

    def delete(self, tenant: str, response_id: str) -> None:
        """Forget a response.

        Raises:
            HttpError: 404, as `get`.
        """
        self.get(tenant, response_id)
        self._bytes -= len(self._kept.pop((tenant, response_id)))
