"""Frames of an engine as they come off a Unix socket: all that have arrived are handed over together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from drivetrain.process.frames import HEADER, MAX_FRAME_BYTES, Died, FromEngine

FrameHandler = Callable[[list[FromEngine]], None]


class FrameReceiver(asyncio.Protocol):
    """One connection to an engine.

    Handing over whatever has arrived lets the reader put several steps of one stream into one event when it is behind,
    and costs no task switch a frame.

    Args:
        handle: given every message that a read completed, in order.

    Attributes:
        ended: done when the connection has ended.
        last_words: why the engine ended, where it could still say so.
    """

    def __init__(self, handle: FrameHandler) -> None:
        self._handle = handle
        self._decoder = msgspec.msgpack.Decoder(FromEngine)
        self._rest = bytearray()
        self._transport: asyncio.WriteTransport | None = None
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.last_words: Died | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def data_received(self, data: bytes) -> None:
        rest = self._rest
        rest += data
        messages: list[FromEngine] = []
        at = 0
        try:
            with memoryview(rest) as view:
                while len(rest) - at >= HEADER.size:
                    (size,) = HEADER.unpack_from(rest, at)
                    if size > MAX_FRAME_BYTES:
                        raise msgspec.DecodeError(f"{size} bytes are more than a frame may have")
                    end = at + HEADER.size + size
                    if len(rest) < end:
                        break
                    messages.append(self._decoder.decode(view[at + HEADER.size : end]))
                    at = end
        except msgspec.MsgspecError as error:
            self.last_words = Died(type(error).__name__, f"a frame of the engine could not be read: {error}")
            self.close()
        del rest[:at]
        for message in messages:
            if isinstance(message, Died):
                self.last_words = message
        if messages:
            self._handle(messages)

    def write(self, data: bytes) -> None:
        """Send bytes; nothing happens once the connection is closing."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        """End the connection; what was written before is still sent."""
        if self._transport is not None:
            self._transport.close()
