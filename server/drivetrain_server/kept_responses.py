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

    Where there is no more room, the key that takes most of it gives up the response that it used longest ago, so that
    no key drives out what others keep.

    Args:
        max_kept: responses in all.
        max_bytes: bytes of JSON in all.
    """

    def __init__(self, *, max_kept: int = MAX_KEPT, max_bytes: int = MAX_BYTES) -> None:
        self._max_kept = max_kept
        self._max_bytes = max_bytes
        self._shelves: dict[str, _Shelf] = {}

    def add(self, tenant: str, response_id: str, response: Kept) -> None:
        """Keep a response; one that is larger than everything may be is not kept."""
        raw = orjson.dumps(response)
        if len(raw) > self._max_bytes:
            return
        self._shelves.setdefault(tenant, _Shelf()).put(response_id, raw)
        while self._is_full():
            most = max(self._shelves.values(), key=self._share_of)
            most.take(next(iter(most.kept)))

    def get(self, tenant: str, response_id: str, *, param: str | None = None) -> Kept:
        """A response of this key.

        Raises:
            HttpError: 404, it was never kept, or is gone.
        """
        shelf = self._shelves.get(tenant)
        if shelf is None or response_id not in shelf.kept:
            raise HttpError(
                404,
                f"{param or 'response_id'}: there is no response {response_id[:100]!r}; it was not stored, was "
                "deleted, or has made room for newer ones: send the conversation itself",
                param=param or "response_id",
                code="response_not_found",
            )
        shelf.kept.move_to_end(response_id)
        return Kept(**orjson.loads(shelf.kept[response_id]))

    def delete(self, tenant: str, response_id: str) -> None:
        """Forget a response.

        Raises:
            HttpError: 404, as `get`.
        """
        self.get(tenant, response_id)
        self._shelves[tenant].take(response_id)

    def _is_full(self) -> bool:
        shelves = self._shelves.values()
        return (
            sum(len(shelf.kept) for shelf in shelves) > self._max_kept
            or sum(shelf.num_bytes for shelf in shelves) > self._max_bytes
        )

    def _share_of(self, shelf: _Shelf) -> float:
        """The part of all room that it takes, of places or bytes, whichever is more."""
        return max(len(shelf.kept) / self._max_kept, shelf.num_bytes / self._max_bytes)


class _Shelf:
    """The responses of one key, the one that was used longest ago first."""

    def __init__(self) -> None:
        self.kept: OrderedDict[str, bytes] = OrderedDict()
        self.num_bytes = 0

    def put(self, response_id: str, raw: bytes) -> None:
        self.kept[response_id] = raw
        self.num_bytes += len(raw)

    def take(self, response_id: str) -> None:
        self.num_bytes -= len(self.kept.pop(response_id))
