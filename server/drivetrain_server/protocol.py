"""uvicorn's HTTP protocol with the limits that it lacks: bytes and seconds of a request head, unread output."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from drivetrain_server.errors import HttpError
from drivetrain_server.exchange import ABORT_EXTENSION, DIRECT_EXTENSION, DirectWriter

HEAD_TIMEOUT_S = 30.0


class LimitedHttpProtocol(HttpToolsProtocol):
    """One connection. Subclasses set the limits; `limited` makes them.

    Counted is what arrives without being body: the request line and headers, and the framing of chunks and trailers,
    which a client could otherwise send without end.
    """

    max_head_bytes = 64 * 1024
    max_unread_bytes = 1024 * 1024

    _unframed = 0
    _in_head = True
    _refused = False
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=self.max_unread_bytes)
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._unframed += len(data)
        super().data_received(data)
        if self._unframed > self.max_head_bytes:
            self._refuse_head()
        elif self._in_head and self._head_timer is None:
            self._arm()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        cast("dict[str, object]", self.scope)["extensions"] = {
            ABORT_EXTENSION: self.transport.abort,
            DIRECT_EXTENSION: DirectWriter(self.transport.write, self.flow),
        }

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._disarm()
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self.max_head_bytes:
            self._refuse_head()
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unframed = 0
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._unframed = 0
        if not self._refused:
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self._write_error(HttpError(400, f"{msg} Check what speaks HTTP here.", code="invalid_http"))

    def _refuse_head(self) -> None:
        if self._refused:
            return
        self._refused = True
        answered = self.cycle is not None and self.cycle.response_started  # pyright: ignore[reportUnnecessaryComparison]
        if answered or self.transport.is_closing():
            self.transport.abort()
            return
        message = f"the request head is larger than {self.max_head_bytes} bytes; send fewer or shorter headers"
        self._write_error(HttpError(431, message, code="request_head_too_large"))

    def _write_error(self, error: HttpError) -> None:
        body = error.body()
        head = [STATUS_LINE[error.status]]
        head += [b"%b: %b\r\n" % pair for pair in (*self.server_state.default_headers, *error.headers())]
        head.append(b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body))
        self.transport.write(b"".join(head) + body)
        self.transport.close()

    def _arm(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._head_timed_out)

    def _disarm(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_timed_out(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()


def limited(*, max_head_bytes: int, max_unread_bytes: int) -> type[LimitedHttpProtocol]:
    """The protocol with these limits; uvicorn makes its protocols itself, so they are values of a class."""
    limits: Mapping[str, int] = {"max_head_bytes": max_head_bytes, "max_unread_bytes": max_unread_bytes}
    return cast("type[LimitedHttpProtocol]", type("LimitedHttpProtocol", (LimitedHttpProtocol,), dict(limits)))
