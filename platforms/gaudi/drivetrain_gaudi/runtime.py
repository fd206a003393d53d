"""Order, staging, results and recorded steps on one card.

Work is issued in order and runs behind the host. There is no pinned memory: results are copied to the host on a stream
of their own, so that waiting for a step does not wait for the next one.
"""

# Relaxed: torch's stubs leave methods untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
import torch

from drivetrain_gaudi.faults import classify
from drivetrain_gaudi.habana import Event, Habana
from drivetrain_gaudi.ledger import ShapeLedger
from drivetrain_gaudi.recorder import record
from drivetrain_plugins.contract.batch import Int32Array
from drivetrain_plugins.contract.runtime import Fetch, Replay, Runtime
from drivetrain_plugins.errors import CommunicatorError

_POLL_S = 100e-6


class Waiter:
    """How the host waits for an event: without a limit if there is one rank, else as long as a collective may take.

    Args:
        limit_s: None waits for ever.
    """

    def __init__(self, limit_s: float | None) -> None:
        self._limit_s = limit_s

    def __call__(self, event: Event) -> None:
        """Return when `event` has happened.

        Raises:
            CommunicatorError: it did not come in time, so another rank is lost.
            BackendError: the device failed.
        """
        try:
            if self._limit_s is None:
                event.synchronize()
                return
            begin = time.perf_counter()
            while not event.query():
                if time.perf_counter() - begin > self._limit_s:
                    raise CommunicatorError(
                        f"the card did not finish a step within the time limit of {self._limit_s:g} s; look for the "
                        "rank that ended or stopped first"
                    )
                time.sleep(_POLL_S)
        except RuntimeError as error:
            meaning = classify(error)
            if meaning is None:
                raise
            raise meaning from error


class GaudiFetch:
    """Tensors on their way to the host. They are cloned first, so that later work may overwrite them."""

    def __init__(self, habana: Habana, copies: object, tensors: Mapping[str, torch.Tensor], wait_for: Waiter) -> None:
        hpu = habana.hpu
        self._wait_for = wait_for
        # Kept until the copies have run: the other stream does not keep them.
        self._clones = {name: tensor.clone() for name, tensor in tensors.items()}
        computing = hpu.current_stream()
        self._event = hpu.Event()
        with hpu.stream(copies):  # pyright: ignore[reportArgumentType]
            copies.wait_stream(computing)  # pyright: ignore[reportAttributeAccessIssue]
            self._host = {name: tensor.to("cpu", non_blocking=True) for name, tensor in self._clones.items()}
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
        self._clones.clear()
        return {name: tensor.numpy() for name, tensor in self._host.items()}


class GaudiRuntime(Runtime):
    """One card's streams.

    Args:
        limit_s: how long a step may take, where there are other ranks.
    """

    def __init__(self, habana: Habana, ledger: ShapeLedger, *, limit_s: float | None = None) -> None:
        self.device = habana.device
        self._habana = habana
        self._ledger = ledger
        self._wait_for = Waiter(limit_s)
        self._copies = habana.hpu.Stream()

    def stage(self, host: Int32Array, destination: torch.Tensor) -> None:
        if host.size:
            # Copied on the host first: the device may read it after `host` has changed.
            destination[: host.size].copy_(torch.from_numpy(host.reshape(-1).copy()))

    def fetch(self, tensors: Mapping[str, torch.Tensor]) -> Fetch:
        return GaudiFetch(self._habana, self._copies, tensors, self._wait_for)

    def capture(self, step: Callable[[], None]) -> Replay:
        """Write down the step's ops, compile them, and run the result once, as the first run costs more than others."""
        replay = record(step, self._habana.compilation)
        replay()
        return replay

    def preparing(self, active: bool) -> None:
        self._ledger.preparing(active)

    def synchronize(self) -> None:
        event = self._habana.hpu.Event()
        event.record()
        self._wait_for(event)
