"""Where responses are kept: in the memory of one process, which is the supervisor where there are several."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

MAX_KEPT = 4096
MAX_BYTES = 64 << 20
MAX_ONE_BYTES = 32 << 20
"""Of one response, so that it fits into a frame between two processes."""
MAX_IDLE_S = 30 * 24 * 3600.0


class ResponseShelves:
    """The newest responses of all keys, each as bytes; each key sees its own.

    Where there is no more room, the key that takes most of it gives up the response that it used longest ago, so that
    no key drives out what others keep.

    Args:
        max_kept: responses in all.
        max_bytes: bytes in all.
        max_idle_s: for how long a response is kept that nobody asks for.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        *,
        max_kept: int = MAX_KEPT,
        max_bytes: int = MAX_BYTES,
        max_idle_s: float = MAX_IDLE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_kept = max_kept
        self._max_bytes = max_bytes
        self._max_idle_s = max_idle_s
        self._clock = clock
        self._shelves: dict[str, _Shelf] = {}

    def keep(self, tenant: str, response_id: str, raw: bytes) -> None:
        """Keep a response; one that is larger than everything may be is not kept."""
        self._clear()
        if len(raw) > self._max_bytes:
            return
        self._shelves.setdefault(tenant, _Shelf()).put(response_id, raw, self._clock())
        while self._is_full():
            most = max(self._shelves.values(), key=self._share_of)
            most.take(next(iter(most.kept)))

    def recall(self, tenant: str, response_id: str) -> bytes | None:
        """A response of this key; None if it was never kept, or is gone."""
        self._clear()
        raw = self.forget(tenant, response_id)
        if raw is not None:
            self._shelves.setdefault(tenant, _Shelf()).put(response_id, raw, self._clock())
        return raw

    def forget(self, tenant: str, response_id: str) -> bytes | None:
        """Forget a response of this key. Returns it; None as `recall`."""
        shelf = self._shelves.get(tenant)
        return None if shelf is None else shelf.take(response_id)

    def _clear(self) -> None:
        """Forget what was not asked for in a long time, and keys that keep nothing."""
        latest = self._clock() - self._max_idle_s
        for tenant, shelf in [*self._shelves.items()]:
            while shelf.kept and (oldest := next(iter(shelf.kept.items())))[1].used <= latest:
                shelf.take(oldest[0])
            if not shelf.kept:
                del self._shelves[tenant]

    def _is_full(self) -> bool:
        shelves = self._shelves.values()
        return (
            sum(len(shelf.kept) for shelf in shelves) > self._max_kept
            or sum(shelf.num_bytes for shelf in shelves) > self._max_bytes
        )

    def _share_of(self, shelf: _Shelf) -> float:
        """The part of all room that it takes, of places or bytes, whichever is more."""
        return max(len(shelf.kept) / self._max_kept, shelf.num_bytes / self._max_bytes)


@dataclass(frozen=True, slots=True)
class _Entry:
    raw: bytes
    used: float


class _Shelf:
    """The responses of one key, the one that was used longest ago first."""

    def __init__(self) -> None:
        self.kept: OrderedDict[str, _Entry] = OrderedDict()
        self.num_bytes = 0

    def put(self, response_id: str, raw: bytes, now: float) -> None:
        self.kept[response_id] = _Entry(raw, now)
        self.num_bytes += len(raw)

    def take(self, response_id: str) -> bytes | None:
        entry = self.kept.pop(response_id, None)
        if entry is None:
            return None
        self.num_bytes -= len(entry.raw)
        return entry.raw
