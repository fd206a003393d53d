"""One clock for all streams: comment lines for idle ones, an end for those that nobody reads."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from time import perf_counter

from drivetrain_server.exchange import Exchange, SlowReader

STALL_S = 30.0


class Pulse:
    """Looks at every open stream a few times within `keepalive_s`.

    Args:
        keepalive_s: silence after which a comment line is sent, so that proxies keep the connection.
        stall_s: how long the connection may refuse to take a write before the stream is ended.
    """

    def __init__(self, *, keepalive_s: float, stall_s: float = STALL_S) -> None:
        self._keepalive_s = keepalive_s
        self._stall_s = stall_s
        self._streams: set[Exchange] = set()
        self._clock: asyncio.Task[None] | None = None
        self._comments: set[asyncio.Task[None]] = set()

    @contextmanager
    def watching(self, exchange: Exchange) -> Generator[None, None, None]:
        """Look after a stream while inside."""
        self._streams.add(exchange)
        if self._clock is None or self._clock.done():
            self._clock = asyncio.create_task(self._run(), name="stream-pulse")
        try:
            yield
        finally:
            self._streams.discard(exchange)

    async def _run(self) -> None:
        period = min(1.0, self._keepalive_s / 4, self._stall_s / 4)
        while self._streams:
            await asyncio.sleep(period)
            now = perf_counter()
            for exchange in list(self._streams):
                if exchange.sending_since is not None:
                    if now - exchange.sending_since > self._stall_s:
                        exchange.interrupt(SlowReader(f"nothing was read for {self._stall_s:g} s"))
                elif exchange.stream_format.comment and now - exchange.last_sent >= self._keepalive_s:
                    task = asyncio.create_task(_comment(exchange))
                    self._comments.add(task)
                    task.add_done_callback(self._comments.discard)


async def _comment(exchange: Exchange) -> None:
    if exchange.sending_since is None and not exchange.complete:
        await exchange.event(exchange.stream_format.comment)
