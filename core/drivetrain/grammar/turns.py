"""Turns at something that serves one at a time, shared fairly by those who wait."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager


class Turns:
    """One inside at a time. Owners go by turns, and each owner's own in the order in which they came."""

    def __init__(self) -> None:
        self._busy = False
        self._queues: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._counts: dict[str, int] = {}
        self._total = 0

    @property
    def total(self) -> int:
        """How many are inside or wait."""
        return self._total

    def count(self, owner: str) -> int:
        """How many of one owner's are inside or wait."""
        return self._counts.get(owner, 0)

    @asynccontextmanager
    async def turn(self, owner: str) -> AsyncGenerator[None, None]:
        """Wait for the owner's turn; while inside, nobody else is."""
        self._total += 1
        self._counts[owner] = self.count(owner) + 1
        try:
            await self._wait(owner)
            try:
                yield
            finally:
                self._pass_on()
        finally:
            self._total -= 1
            self._counts[owner] -= 1
            if not self._counts[owner]:
                del self._counts[owner]

    async def _wait(self, owner: str) -> None:
        if not self._busy:
            self._busy = True
            return
        mine = asyncio.get_running_loop().create_future()
        self._queues.setdefault(owner, deque()).append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled():  # it was given the turn, and will not take it
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        """Give the turn to the first of the owner who has waited longest since their last one."""
        while self._queues:
            owner, queue = self._queues.popitem(last=False)
            first = queue.popleft()
            if queue:
                self._queues[owner] = queue
            if not first.done():
                first.set_result(None)
                return
        self._busy = False
