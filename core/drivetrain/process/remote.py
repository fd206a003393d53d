"""An engine process that somebody else supervises."""

from __future__ import annotations

import asyncio

from drivetrain.errors import EngineDead
from drivetrain.process.link import EngineLink


class RemoteEngine(EngineLink):
    """An `EngineClient` of an engine that listens on `path`, now or later.

    When the connection ends it is made again, to the next engine that listens there; requests that had brought nothing
    are given to that one, once. It goes on until `give_up`.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        self._following: asyncio.Task[None] | None = None
        self._closing = False

    async def start(self) -> None:
        """Connect, and return once the engine is ready.

        Raises:
            EngineDead: whoever supervises it gave it up.
        """
        self._following = asyncio.create_task(self._follow(), name="engine connection")
        await self._ready.wait()
        if self._failure is not None:
            raise EngineDead(self._failure)

    def give_up(self, reason: str) -> None:
        """There will be no further engine."""
        self._failure = reason
        self._ready.set()
        if self._info is None:
            self._disconnected(EngineDead(reason), keep_unstarted=False)

    async def shutdown(self, *, drain_s: float) -> None:
        """Leave the engine, which aborts what this process still has there; `drain_s` is the supervisor's matter."""
        self._closing = True
        if self._receiver is not None:
            self._receiver.close()
        if self._following is not None:
            await self._following

    async def _follow(self) -> None:
        while not self._closing and self._failure is None:
            last_words = await self._converse(self._path, goes_on=lambda: not self._closing and self._failure is None)
            said = "" if last_words is None else f": {last_words.kind}: {last_words.message}"
            self._disconnected(EngineDead(f"the engine ended{said}"), keep_unstarted=self._failure is None)
