"""An engine process without a model: the real worker and its frames around an engine that answers by the clock.

    python bench/stream_engine.py SOCKET --step-ms 10

Every running request gets one token a step, of ids that are whole words mostly; a request ends at its `max_tokens`.
A step waits until the one before it was read, so that each token gets an event of its own; `--ahead` does not wait.
"""

from __future__ import annotations

import argparse
import fcntl
import random
import socket
import struct
import termios
import time
from collections.abc import Callable

from drivetrain.messages import EngineInfo, EngineStats, GenerateRequest, Update
from drivetrain.process.worker import Worker

INFO = EngineInfo(
    model="clock",
    architecture="none",
    backend="none",
    device="none",
    dtype="none",
    vocab_size=49152,
    max_model_len=1 << 20,
    num_pages=1 << 20,
    page_size=16,
    max_num_rows=4096,
    max_step_tokens=1 << 20,
    kv_bytes=0,
    weight_bytes=0,
)


class ClockEngine:
    """One token a request and step, and a step a tick."""

    info = INFO

    def __init__(self, step_s: float, unread: Callable[[], bool]) -> None:
        self._step_s = step_s
        self._unread = unread
        self._next = time.perf_counter()
        self._left: dict[str, int] = {}
        self._ids = [random.Random(0).randrange(1000, 40_000) for _ in range(1 << 16)]
        self._at = 0
        self._steps = 0

    @property
    def has_work(self) -> bool:
        return bool(self._left)

    def submit(self, request: GenerateRequest) -> None:
        self._left[request.request_id] = request.params.max_tokens or 1 << 20

    def abort(self, request_id: str, index: int | None = None, *, error: str | None = None) -> None:
        self._left.pop(request_id, None)

    def is_live(self, request_id: str) -> bool:
        return request_id in self._left

    def prepare_more(self) -> bool:
        return False

    def stats(self) -> EngineStats:
        return EngineStats(running=len(self._left), steps=self._steps, pages_total=1, pages_free=1)

    def step(self) -> list[Update]:
        now = time.perf_counter()
        self._next = max(self._next + self._step_s, now - self._step_s)
        if self._next > now:
            time.sleep(self._next - now)
        while self._unread():
            time.sleep(0.0002)
        self._steps += 1
        updates: list[Update] = []
        for request_id, left in list(self._left.items()):
            self._at = (self._at + 1) & 0xFFFF
            ended = left == 1
            if ended:
                del self._left[request_id]
            else:
                self._left[request_id] = left - 1
            updates.append(
                Update(
                    request_id=request_id,
                    token_ids=[self._ids[self._at]],
                    finish_reason="length" if ended else None,
                )
            )
        return updates


def unread(connection: socket.socket) -> bool:
    """Whether the other end has not taken everything that was sent."""
    return struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, b"\0" * 4))[0] > 0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("socket")
    parser.add_argument("--step-ms", type=float, default=10.0)
    parser.add_argument("--ahead", action="store_true")
    arguments = parser.parse_args()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(arguments.socket)
    listener.listen()
    worker = Worker(listener)
    worker.listen()

    def behind() -> bool:
        return not arguments.ahead and any(unread(each.connection) for each in worker.frontends.connected())

    worker.run(ClockEngine(arguments.step_ms / 1e3, behind))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
