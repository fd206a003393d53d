"""The frontends that are connected to an engine process: what they send, and what is sent to them."""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from drivetrain.messages import Phase
from drivetrain.process.frames import HEADER, MAX_FRAME_BYTES, FromEngine, Progress, ToEngine, frame

SEND_TIMEOUT_S = 10.0
"""How long a frontend may take nothing of what is sent to it."""
_SEND_BUFFER_BYTES = 4 << 20


@dataclass(slots=True, eq=False)
class Frontend:
    """A connected API process, and the requests of it that the engine has."""

    connection: socket.socket
    requests: set[str] = field(default_factory=set[str])


class Gone(msgspec.Struct, frozen=True):
    """Received when a frontend's connection has ended."""


class Frontends:
    """Accepts frontends, each with a thread that reads it. Any thread may send.

    Args:
        listener: a listening socket.
        received: takes each message of a frontend, in that frontend's thread; `Gone` is its last.
    """

    def __init__(self, listener: socket.socket, received: Callable[[Frontend, ToEngine | Gone], None]) -> None:
        self._listener = listener
        self._received = received
        self._frontends: list[Frontend] = []
        self._encoder = msgspec.msgpack.Encoder()
        self._lock = threading.Lock()
        self._greeting: list[FromEngine] = []
        self._greeted = threading.Event()

    def connected(self) -> list[Frontend]:
        """Those that are here."""
        with self._lock:
            return list(self._frontends)

    def accept(self) -> None:
        """Accept frontends until the listener is closed.

        Raises:
            OSError: it was.
        """
        while True:
            connection, _ = self._listener.accept()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(SEND_TIMEOUT_S))
            frontend = Frontend(connection)
            with self._lock:
                self._frontends.append(frontend)
                greeting = list(self._greeting)
            for message in greeting:
                self.send(frontend, message)
            self._greeted.set()
            threading.Thread(target=self._read, args=(frontend,), name="frontend", daemon=True).start()

    def send(self, frontend: Frontend, message: FromEngine) -> None:
        """Send to one. Where that fails, its reader thread reports the end."""
        try:
            frontend.connection.sendall(frame(self._encoder, message))
        except OSError:
            # Part of a frame may be sent, so nothing may follow it. The reader thread wakes up and reports the end;
            # closing instead would leave it, and the requests of this frontend, waiting.
            with contextlib.suppress(OSError):
                frontend.connection.shutdown(socket.SHUT_RDWR)

    def announce(self, message: FromEngine) -> None:
        """Send to every frontend, and to those that come later."""
        with self._lock:
            self._greeting.append(message)
            frontends = list(self._frontends)
        for frontend in frontends:
            self.send(frontend, message)

    def announce_progress(self, phase: Phase) -> None:
        """As `announce`; of each phase, those that come later are told the latest only."""
        with self._lock:
            self._greeting = [
                told for told in self._greeting if not (isinstance(told, Progress) and told.phase.name == phase.name)
            ]
        self.announce(Progress(phase))

    def wait_for_one(self, timeout_s: float) -> None:
        """Until some frontend was told all that has been announced, or so long."""
        self._greeted.wait(timeout_s)

    def drop(self, frontend: Frontend) -> None:
        """Let go of one whose connection has ended."""
        with self._lock:
            self._frontends.remove(frontend)
        frontend.connection.close()

    def _read(self, frontend: Frontend) -> None:
        decoder = msgspec.msgpack.Decoder(ToEngine)
        try:
            with frontend.connection.makefile("rb") as stream:
                while header := stream.read(HEADER.size):
                    (size,) = HEADER.unpack(header)
                    if size > MAX_FRAME_BYTES:
                        break
                    self._received(frontend, decoder.decode(stream.read(size)))
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            print(f"engine: a frontend's connection broke: {error}", file=sys.stderr)
        self._received(frontend, Gone())


def _timeval(seconds: float) -> bytes:
    return struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
