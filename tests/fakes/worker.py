"""The engine process's side of its socket, in this process."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from drivetrain.process.worker import Worker
from fakes.waiting import LIMIT_S


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
            for frontend in worker._frontends:
                with suppress(OSError):  # the other side may have closed it
                    frontend.connection.shutdown(socket.SHUT_RDWR)
                frontend.connection.close()


def _accept(worker: Worker) -> None:
    with suppress(OSError):  # the listener was shut down
        worker._accept()
