"""Frontends of an engine process: what late ones are told, and how each connection ends."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from drivetrain.messages import Phase
from drivetrain.process.frames import HEADER, MAX_FRAME_BYTES, Abort, AskStats, Died, Progress, ToEngine
from drivetrain.process.frontends import Frontend, Frontends, Gone
from fakes.waiting import LIMIT_S, until
from fakes.worker import FrontendConnection

Received = queue.SimpleQueue[tuple[Frontend, ToEngine | Gone]]


@pytest.fixture
def received() -> Received:
    return queue.SimpleQueue()


@pytest.fixture
def frontends(tmp_path: Path, received: Received) -> Iterator[Frontends]:
    """Frontends that may connect to `tmp_path / "s"`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        made = Frontends(listener, lambda frontend, message: received.put((frontend, message)))

        def accept() -> None:
            with suppress(OSError):  # the listener was shut down
                made.accept()

        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()
        yield made
        listener.shutdown(socket.SHUT_RDWR)
        accepting.join(LIMIT_S)
        assert not accepting.is_alive()
        for frontend in made.connected():
            made.drop(frontend)


@pytest.fixture
def one(frontends: Frontends, tmp_path: Path) -> Iterator[FrontendConnection]:
    """The first that connects."""
    connection = FrontendConnection(tmp_path / "s")
    until(frontends.connected)
    yield connection
    connection.connection.close()


def test_messages_come_with_whose_they_are_and_the_end_last(
    frontends: Frontends, one: FrontendConnection, received: Received
) -> None:
    one.send(Abort("r", 1))
    one.send(AskStats())
    one.connection.close()
    (frontend,) = frontends.connected()
    assert [received.get(timeout=LIMIT_S) for _ in range(3)] == [
        (frontend, Abort("r", 1)),
        (frontend, AskStats()),
        (frontend, Gone()),
    ]
    frontends.send(frontend, Died("E", "nobody is told")), "one that has left is no error"
    frontends.drop(frontend)
    assert frontends.connected() == []


@pytest.mark.parametrize(
    "data", [HEADER.pack(MAX_FRAME_BYTES + 1), HEADER.pack(1) + b"\xc1", HEADER.pack(9) + b"half"], ids=repr
)
def test_what_is_no_message_ends_the_connection(
    frontends: Frontends, one: FrontendConnection, received: Received, data: bytes
) -> None:
    one.connection.sendall(data)
    one.connection.shutdown(socket.SHUT_WR)
    (frontend,) = frontends.connected()
    assert received.get(timeout=LIMIT_S) == (frontend, Gone())


def test_late_ones_are_told_all_that_was_announced_and_of_each_phase_the_latest(
    frontends: Frontends, tmp_path: Path
) -> None:
    for done in (1.0, 2.0):
        frontends.announce_progress(Phase(name="weights", done=done))
    frontends.announce_progress(Phase(name="warm up"))
    frontends.announce(Died("E", "words"))
    late = FrontendConnection(tmp_path / "s")
    frontends.wait_for_one(LIMIT_S)
    assert [late.receive() for _ in range(3)] == [
        Progress(Phase(name="weights", done=2.0)),
        Progress(Phase(name="warm up")),
        Died("E", "words"),
    ]
    late.connection.close()
