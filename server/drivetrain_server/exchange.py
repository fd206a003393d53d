"""One HTTP request and its answer, as raw ASGI."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol, cast

from starlette.types import Receive, Scope, Send

from drivetrain_server.answers.answer import PromptRun
from drivetrain_server.errors import ANTHROPIC_HEADER, HttpError, error_body
from drivetrain_server.keys import Tenant

Headers = list[tuple[bytes, bytes]]
JSON_TYPE = (b"content-type", b"application/json")
EVENTS_TYPE = (b"content-type", b"text/event-stream; charset=utf-8")
ABORT_EXTENSION = "drivetrain.abort"
"""ASGI extension of our HTTP protocol: a callable that drops the connection at once."""

DIRECT_EXTENSION = "drivetrain.direct"
"""ASGI extension of our HTTP protocol: a `DirectWriter`."""


class FlowState(Protocol):
    """What a connection says about the bytes that it has not sent yet."""

    write_paused: bool
    """More of them are waiting than is allowed."""


@dataclass(frozen=True, slots=True)
class DirectWriter:
    """Writes to a connection without a coroutine in between.

    Only for chunks in the middle of a body: the first part and the last one go through ASGI's `send`. Nothing may be
    written while `flow.write_paused`.

    Attributes:
        write: takes bytes that are framed as chunks already.
    """

    write: Callable[[bytes], None]
    flow: FlowState


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamFormat:
    """How the answers of a route are streamed.

    Attributes:
        content_type: the header.
        comment: what an idle stream sends so that proxies keep it open; empty where the format has no comments.
    """

    content_type: tuple[bytes, bytes]
    comment: bytes


EVENT_STREAM = StreamFormat(content_type=EVENTS_TYPE, comment=b": waiting\n\n")
JSON_LINES = StreamFormat(content_type=(b"content-type", b"application/x-ndjson"), comment=b"")


LINE_ENDS = ((b"\xc2\x85", b"\\u0085"), (b"\xe2\x80\xa8", b"\\u2028"), (b"\xe2\x80\xa9", b"\\u2029"))
"""Characters, in UTF-8, that JSON may hold as they are, and their escapes."""


def escaped_line_ends(events: bytes) -> bytes:
    """Events in which nothing within JSON ends a line for any client: many, Ollama's own among them, split streams by
    all that Unicode calls a line end."""
    if not events.isascii():
        for raw, escape in LINE_ENDS:
            events = events.replace(raw, escape)
    return events


def error_event(error: HttpError) -> bytes:
    """An error as OpenAI's streams tell it."""
    return b"data: " + error.body() + b"\n\n"


class ClientGone(Exception):
    """The client closed the connection before its answer was complete."""


class SlowReader(Exception):
    """The client stopped reading its stream for longer than the limit."""


class Exchange:
    """One request and its answer.

    Attributes:
        tenant: whose key came with it; set by the guard.
        status: status of the answer, None until it starts.
        complete: the whole answer was handed to the connection.
        stream_format: how the answer is streamed, if it is.
        error_event: how a stream that has begun tells of an error.
        sending_since: when a write began that the connection has not taken yet.
        runs: the prompts that are answered, for traces.
        last_sent: when the last byte was handed over, or the request arrived.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, *, request_id: str) -> None:
        self.scope = scope
        self.receive = receive
        self.request_id = scope["request_id"] = request_id
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.tenant = Tenant(name="", salt="")
        self.extra_headers: Headers = [(b"x-request-id", request_id.encode())]
        self.status: int | None = None
        self.complete = False
        self.events = False
        self.stream_format = EVENT_STREAM
        self.error_event: Callable[[HttpError], bytes] = error_event
        self.arrived = perf_counter()
        self.last_sent = self.arrived
        self.sending_since: float | None = None
        self.runs: Sequence[PromptRun] = ()
        self._send = send
        self._headers: dict[bytes, bytes] | None = None
        self._interruption: Exception | None = None
        self._task: asyncio.Task[object] | None = None

    @property
    def elapsed_ns(self) -> int:
        """Nanoseconds since the request arrived."""
        return int((perf_counter() - self.arrived) * 1e9)

    def header(self, name: bytes) -> bytes | None:
        """A request header by its lower-case name; the last one counts."""
        if self._headers is None:
            self._headers = dict(cast("Iterable[tuple[bytes, bytes]]", self.scope["headers"]))
        return self._headers.get(name)

    async def start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Send status line and headers."""
        self.status = status
        await self._send({"type": "http.response.start", "status": status, "headers": [*headers, *self.extra_headers]})

    async def write(self, body: bytes, *, more: bool = True) -> None:
        """Send a part of the body; waits while the connection's buffer is full."""
        self.complete = not more
        self.sending_since = perf_counter()
        await self._send({"type": "http.response.body", "body": body, "more_body": more})
        self.last_sent = perf_counter()
        self.sending_since = None

    @property
    def direct(self) -> DirectWriter | None:
        """The way around ASGI for events of a stream that has begun; None where the HTTP server has none."""
        if not self.events or self.complete:
            return None
        extensions = cast("dict[str, object]", self.scope.get("extensions") or {})
        return cast("DirectWriter | None", extensions.get(DIRECT_EXTENSION))

    async def event(self, events: bytes, *, more: bool = True) -> None:
        """Send rendered events; the first one starts the answer."""
        if self.status is None:
            self.events = True
            await self.start(
                200, [self.stream_format.content_type, (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
            )
        await self.write(escaped_line_ends(events), more=more)

    async def answer(self, body: bytes, *, status: int = 200, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """Send a whole JSON answer."""
        await self.start(status, [JSON_TYPE, (b"content-length", b"%d" % len(body)), *headers])
        await self.write(body, more=False)

    async def fail(self, error: HttpError) -> None:
        """Answer with an error: as a body, or as an event where the stream has begun."""
        if self.complete:
            return
        if self.status is None:
            anthropic = self.header(ANTHROPIC_HEADER.encode()) is not None
            body = error_body(self.path, error, anthropic=anthropic)
            await self.answer(body, status=error.status, headers=error.headers())
        elif self.events:
            await self.write(escaped_line_ends(self.error_event(error)), more=False)
        else:
            await self.abort()

    async def abort(self) -> None:
        """Drop the connection with what is still unsent."""
        drop = cast("dict[str, object]", self.scope.get("extensions") or {}).get(ABORT_EXTENSION)
        if drop is None:
            return
        cast("Callable[[], None]", drop)()
        with suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                while (await self.receive())["type"] != "http.disconnect":
                    pass

    def interrupt(self, reason: Exception) -> None:
        """End the work on this request from outside: `attended` raises `reason` where the work stands."""
        if self._task is not None and self._interruption is None and not self.complete:
            self._interruption = reason
            self._task.cancel()

    @asynccontextmanager
    async def attended(self) -> AsyncGenerator[None, None]:
        """While inside, the connection is watched: the work is cancelled as soon as the client goes away.

        Enter it once the body has been read, because it takes over `receive`.

        Raises:
            ClientGone: the client went away.
            Exception: whatever `interrupt` was given.
        """
        task = self._task = asyncio.current_task()
        assert task is not None
        watcher = asyncio.create_task(self._watch(), name=f"watch-{self.request_id}")
        try:
            yield
        except asyncio.CancelledError:
            if self._interruption is None or task.uncancel() > 0:
                raise
            raise self._interruption from None
        finally:
            self._task = None
            watcher.cancel()

    async def _watch(self) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass
        self.interrupt(ClientGone())
