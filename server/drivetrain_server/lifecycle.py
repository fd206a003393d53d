"""From start to end: which phase the server is in, who is being served, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Literal

from drivetrain.client import EngineClient
from drivetrain.errors import Draining, EngineDead
from drivetrain.frontend import Frontend
from drivetrain_server.errors import HttpError, http_error
from drivetrain_server.exchange import Exchange

State = Literal["starting", "ready", "draining", "failed"]
FrontendFactory = Callable[[EngineClient], Frontend]
STARTING_RETRY_S = 2.0


class Lifecycle:
    """The one owner of engine and frontend.

    Args:
        frontend_factory: loads tokenizer and template; called in a thread while the engine starts.
    """

    def __init__(self, engine: EngineClient, frontend_factory: FrontendFactory) -> None:
        self.engine = engine
        self.failure: str | None = None
        self._factory = frontend_factory
        self._frontend: Frontend | None = None
        self._draining = False
        self._open: set[Exchange] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def state(self) -> State:
        """Where the server stands."""
        if self._draining:
            return "draining"
        if self.failure is not None or self.engine.failure is not None:
            return "failed"
        return "ready" if self._frontend is not None and self.engine.info is not None else "starting"

    @property
    def num_open(self) -> int:
        """Requests that are being answered."""
        return len(self._open)

    async def start(self) -> None:
        """Start the engine and the frontend beside it; returns when both are ready.

        Raises:
            DrivetrainError: one of them could not start; `/ready` tells why.
        """
        try:
            loading = asyncio.to_thread(self._factory, self.engine)
            async with asyncio.TaskGroup() as group:
                group.create_task(self.engine.start())
                frontend = group.create_task(loading)
        except BaseExceptionGroup as errors:
            first = _first(errors)
            self.failure = str(first) or type(first).__name__
            raise first from None
        self._frontend = frontend.result()

    def frontend(self) -> Frontend:
        """The text layer, for a new request.

        Raises:
            HttpError: 503 while the server starts, drains or has failed.
        """
        state = self.state
        if state == "ready" and self._frontend is not None:
            return self._frontend
        if state == "draining":
            raise http_error(_draining())
        if state == "failed":
            raise http_error(EngineDead(f"the engine ended: {self.failure or self.engine.failure}"))
        raise HttpError(
            503,
            "the server is starting; /ready shows how far it is",
            type="service_unavailable",
            code="starting",
            retry_after_s=STARTING_RETRY_S,
        )

    @contextmanager
    def serving(self, exchange: Exchange) -> Generator[None, None, None]:
        """Count a request among those that a drain waits for."""
        self._open.add(exchange)
        self._idle.clear()
        try:
            yield
        finally:
            self._open.discard(exchange)
            if not self._open:
                self._idle.set()

    def refuse_new(self) -> None:
        """Take no new work from now on."""
        self._draining = True

    async def drain(self, limit_s: float) -> int:
        """Refuse new work, wait for open requests, and end those that are left after `limit_s` with an error.

        Returns:
            How many were ended that way.
        """
        self.refuse_new()
        try:
            async with asyncio.timeout(limit_s):
                await self._idle.wait()
        except TimeoutError:
            pass
        left = list(self._open)
        for exchange in left:
            exchange.interrupt(http_error(_draining()))
        if left:
            try:
                async with asyncio.timeout(1.0):
                    await self._idle.wait()
            except TimeoutError:
                pass
        if self._frontend is not None:
            self._frontend.close()
        return len(left)


def _draining() -> Draining:
    return Draining("the server is shutting down; send the request to another replica or try again later")


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    first = errors.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first  # pyright: ignore[reportUnknownArgumentType]
