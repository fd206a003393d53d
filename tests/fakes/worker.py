"""Both sides of an engine process's socket, in this process."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from drivetrain.messages import Update
from drivetrain.process.frames import HEADER, AskStats, FromEngine, Stats, ToEngine, Updates, frame
from drivetrain.process.worker import Worker
from fakes.waiting import LIMIT_S


class FrontendConnection:
    """A connection as an API process has it."""

    def __init__(self, path: Path) -> None:
        self.connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.connection.settimeout(LIMIT_S)
        self.connection.connect(str(path))
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(FromEngine)

    def send(self, message: ToEngine) -> None:
        self.connection.sendall(frame(self._encoder, message))

    def receive(self) -> FromEngine | None:
        """The next message; None at the end."""
        header = self._read(HEADER.size)
        return None if header is None else self._decoder.decode(self._read(HEADER.unpack(header)[0]) or b"")

    def until(self, wanted: Callable[[FromEngine], bool]) -> list[FromEngine]:
        """Everything up to and with the first message that is `wanted`."""
        seen: list[FromEngine] = []
        while not seen or not wanted(seen[-1]):
            message = self.receive()
            assert message is not None, f"the connection ended after {seen}"
            seen.append(message)
        return seen

    def answer(self, request_id: str) -> list[Update]:
        """Every update of a request, to its end."""
        seen = self.until(
            lambda message: (
                isinstance(message, Updates)
                and any(each.request_id == request_id and each.finish_reason for each in message.updates)
            )
        )
        updates = [update for message in seen if isinstance(message, Updates) for update in message.updates]
        return [update for update in updates if update.request_id == request_id]

    def stats(self) -> Stats:
        self.send(AskStats())
        found = self.until(lambda message: isinstance(message, Stats))[-1]
        assert isinstance(found, Stats)
        return found

    def _read(self, size: int) -> bytes | None:
        data = b""
        while len(data) < size:
            part = self.connection.recv(size - len(data))
            if not part:
                return None
            data += part
        return data


@contextmanager
def listening_worker(path: Path) -> Iterator[Worker]:
    """A worker that frontends can connect to at `path`; at the end it lets go of all that are left."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        worker = Worker(listener)
        accepting = threading.Thread(target=_accept, args=(worker,), daemon=True)
        accepting.start()
        try:
            yield worker
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join(LIMIT_S)
            assert not accepting.is_alive()
            for frontend in worker.frontends.connected():
                with suppress(OSError):  # the other side may have closed it
                    frontend.connection.shutdown(socket.SHUT_RDWR)
                frontend.connection.close()


def _accept(worker: Worker) -> None:
    with suppress(OSError):  # the listener was shut down
        worker.frontends.accept()
