"""`torch.hpu` on the processor: the names that are used, and synchronous streams."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from habana_frameworks.torch import hpu_state


def is_available() -> bool:
    return True


def device_count() -> int:
    return 2


def get_device_name(device: int | None = None) -> str:
    return "GAUDI2"


def synchronize() -> None:
    return None


def mem_get_info(device: int | None = None) -> tuple[int, int]:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return hpu_state.free_bytes or total // 2, total


class Event:
    """Happens when it is recorded, as nothing is asynchronous here."""

    def __init__(self) -> None:
        self._recorded = False

    def record(self) -> None:
        self._recorded = True

    def query(self) -> bool:
        return self._recorded and not hpu_state.hangs

    def synchronize(self) -> None:
        if not self._recorded:
            raise RuntimeError("the event was never recorded")


class Stream:
    def wait_stream(self, stream: Stream) -> None:
        if not isinstance(stream, Stream):
            raise TypeError(f"wait_stream: got {type(stream).__name__}, expected a Stream")


_default = Stream()


def current_stream() -> Stream:
    return _default


@contextlib.contextmanager
def stream(stream: Stream) -> Iterator[None]:
    if not isinstance(stream, Stream):
        raise TypeError(f"stream: got {type(stream).__name__}, expected a Stream")
    yield
