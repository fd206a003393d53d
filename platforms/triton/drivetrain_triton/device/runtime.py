"""Order, staging, results and recorded steps on one stream of a GPU that torch calls "cuda", NVIDIA's or AMD's.

Everything runs on torch's current stream, so the order of the calls is the order on the device. Host memory that the
device reads later is pinned and belongs to a ring whose slots are not written again before their copy has run.
"""

# Relaxed: torch's stubs leave events and graphs half typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import contextlib
import gc
import time
import warnings
from collections.abc import Callable, Generator, Mapping
from typing import Protocol

import numpy as np
import torch

from drivetrain_plugins.contract.batch import Int32Array
from drivetrain_plugins.contract.runtime import Fetch, Replay, Runtime
from drivetrain_triton.device.faults import FaultSigns, classify
from drivetrain_triton.device.upload import Uploader

STAGING_SLOTS = 8
"""Stagings that may be under way before one has to wait; two steps are, and a few uploads of histories."""

CAPTURE_MODE = "thread_local"
"""Other threads may compile and load kernels meanwhile; only the recording one is held to what a graph can record."""

SPIN_S = 20e-6
"""How long a waiting host asks again and again before it sleeps until the device's interrupt."""

_SMALLEST_SLOT = 1 << 14


_POLL_S = 100e-6


class Watch(Protocol):
    """Who limits the time that the device may take, because it may be waiting for other ranks."""

    limit_s: float

    def overdue(self) -> Exception:
        """What to raise when the limit has passed."""
        ...


class Waiter:
    """How the host waits for an event: it spins briefly, then sleeps, under a time limit if there are other ranks."""

    def __init__(self, device: torch.device, signs: FaultSigns, spin_s: float, watch: Watch | None) -> None:
        self._device = device
        self._signs = signs
        self._spin_s = spin_s
        self._watch = watch

    def __call__(self, event: torch.cuda.Event) -> None:
        """Return when `event` has happened.

        Raises:
            BackendError: the device failed or, with other ranks, did not come to it in time.
        """
        begin = time.perf_counter()
        try:
            while not event.query():
                waited = time.perf_counter() - begin
                if waited < self._spin_s:
                    continue
                if self._watch is None:
                    event.synchronize()
                    return
                if waited > self._watch.limit_s:
                    raise self._watch.overdue()
                time.sleep(_POLL_S)
        except RuntimeError as error:
            meaning = classify(error, self._device, self._signs)
            if meaning is None:
                raise
            raise meaning from error


class PinnedFetch:
    """Tensors on their way into pinned memory."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], wait_for: Waiter) -> None:
        self._wait_for = wait_for
        self._host = {
            # torch keeps pinned blocks for reuse and does not hand one out while a copy into it is under way.
            name: torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)
            for name, x in tensors.items()
        }
        # Blocking: a host that waits sleeps instead of keeping a core busy.
        self._event = torch.cuda.Event(blocking=True)
        self._event.record()

    def ready(self) -> bool:
        """Whether `wait` would return at once; also when it would raise."""
        try:
            return self._event.query()
        except RuntimeError:
            return True

    def wait(self) -> dict[str, np.ndarray]:
        """The results."""
        self._wait_for(self._event)
        return {name: x.numpy() for name, x in self._host.items()}


class _Slot:
    """Pinned memory of one staging."""

    def __init__(self, size: int) -> None:
        self.pinned = torch.empty(size, dtype=torch.int32, pin_memory=True)
        self.array: Int32Array = self.pinned.numpy()
        self.copied = torch.cuda.Event(blocking=True)


class _Pool:
    """Memory that recordings share. torch forgets a pool when its last graph goes, so one graph stays."""

    def __init__(self, device: torch.device) -> None:
        self.handle = torch.cuda.graph_pool_handle()
        self._anchor = torch.cuda.CUDAGraph()
        mark = torch.zeros(1, device=device)
        self._anchor.capture_begin(pool=self.handle, capture_error_mode=CAPTURE_MODE)
        mark.zero_()
        self._anchor.capture_end()


class StreamRuntime(Runtime):
    """One device's stream.

    Args:
        signs: of the vendor's errors.
        watch: limits every wait where there are other ranks.
        spin_s: see `SPIN_S`.
    """

    def __init__(
        self, device: torch.device, signs: FaultSigns, *, watch: Watch | None = None, spin_s: float = SPIN_S
    ) -> None:
        self.device = device
        self._wait_for = Waiter(device, signs, spin_s, watch)
        self._ring = [_Slot(_SMALLEST_SLOT) for _ in range(STAGING_SLOTS)]
        self._next = 0
        self._uploader: Uploader | None = None
        self._recorder = torch.cuda.Stream(device)
        self._pool: _Pool | None = None

    def stage(self, host: Int32Array, destination: torch.Tensor) -> None:
        size = host.size
        if not size:
            return
        slot = self._ring[self._next]
        self._wait_for(slot.copied)  # no wait unless this slot's last copy has not run yet
        if slot.array.size < size:
            slot = self._ring[self._next] = _Slot(max(size, 2 * slot.array.size))
        self._next = (self._next + 1) % STAGING_SLOTS
        slot.array[:size] = host.reshape(-1)
        destination[:size].copy_(slot.pinned[:size], non_blocking=True)
        slot.copied.record()

    def upload(self, host: torch.Tensor, destination: torch.Tensor) -> None:
        if self._uploader is None:
            self._uploader = Uploader()
        self._uploader(host, destination)

    def fetch(self, tensors: Mapping[str, torch.Tensor]) -> Fetch:
        return PinnedFetch(tensors, self._wait_for)

    def capture(self, step: Callable[[], None]) -> Replay:
        """Record `step` in a graph.

        It must have run once before: kernels that are loaded or compiled while recording would end it. All graphs
        share one memory pool, which outlives them, as replays never overlap; what a step keeps alive is not shared.
        """
        # Memory of the pool may still be read by work that was issued before.
        self.synchronize()
        graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream(self.device)
        self._recorder.wait_stream(current)
        with torch.cuda.stream(self._recorder), _collector_paused():
            if self._pool is None:
                self._pool = _Pool(self.device)
            graph.capture_begin(pool=self._pool.handle, capture_error_mode=CAPTURE_MODE)
            try:
                step()
            except BaseException:
                # Ends the recording; it fails too if the step broke it, and what broke it says more. torch may think
                # that the pool is in use for ever after, so later recordings get a new one.
                with contextlib.suppress(RuntimeError), warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # that the recording is empty
                    graph.capture_end()
                self._pool = None
                raise
            graph.capture_end()
        current.wait_stream(self._recorder)
        return graph.replay

    def synchronize(self) -> None:
        event = torch.cuda.Event(blocking=True)
        event.record()
        self._wait_for(event)

    def close(self) -> None:
        self.synchronize()
        self._ring.clear()
        self._uploader = None
        self._pool = None


@contextlib.contextmanager
def _collector_paused() -> Generator[None]:
    """No garbage collection: what it frees on the device (an old graph, say) would end a recording."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()
