"""One end of the socket pair between the supervisor and a member."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from typing import Generic, TypeVar

import msgspec

HEADER = struct.Struct("<I")
MAX_FRAME_BYTES = 64 << 20

M = TypeVar("M")


class Channel(Generic[M]):
    """Sends any message and receives those of one union.

    Args:
        decoder: of the messages that come in.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, decoder: msgspec.msgpack.Decoder[M]
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = decoder
        self._encoder = msgspec.msgpack.Encoder()

    @classmethod
    async def open(cls, end: socket.socket, decoder: msgspec.msgpack.Decoder[M]) -> Channel[M]:
        """A channel over a connected Unix socket, which it owns from now on."""
        reader, writer = await asyncio.open_unix_connection(sock=end)
        return cls(reader, writer, decoder)

    def send(self, message: msgspec.Struct) -> None:
        """Send a message; nothing happens where the other end is gone."""
        if not self._writer.is_closing():
            body = self._encoder.encode(message)
            self._writer.write(HEADER.pack(len(body)) + body)

    async def receive(self) -> M | None:
        """The next message; None once the other end is gone."""
        try:
            (size,) = HEADER.unpack(await self._reader.readexactly(HEADER.size))
            if size > MAX_FRAME_BYTES:
                return None
            return self._decoder.decode(await self._reader.readexactly(size))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    async def close(self) -> None:
        """Send what is written and close."""
        self._writer.close()
        with suppress(ConnectionError):  # the other end went first
            await self._writer.wait_closed()
