"""How core moves host data, captures steps and gets results, without knowing streams, events or pinned memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
import torch

from drivetrain_plugins.contract.batch import Int32Array


class Replay(Protocol):
    """A captured step."""

    def __call__(self) -> None:
        """Run the captured work again, on the same buffers."""
        ...


class Fetch(Protocol):
    """Device tensors on their way to the host."""

    def ready(self) -> bool:
        """Whether `wait` would return at once."""
        ...

    def wait(self) -> dict[str, np.ndarray]:
        """Block until all have arrived.

        Raises:
            OutOfMemory: the work that makes them ran out of memory.
            DeviceLost: the device is gone.
        """
        ...


class Runtime(ABC):
    """Ordering, staging, capture and results of one device.

    Everything issued through it, and every op called between, happens in the order of the calls.
    """

    device: torch.device

    @abstractmethod
    def stage(self, host: Int32Array, destination: torch.Tensor) -> None:
        """Copy an int32 array into the first elements of a device buffer, in order with the steps.

        `host` may be changed as soon as this returns.
        """

    def upload(self, host: torch.Tensor, destination: torch.Tensor) -> None:
        """Copy a host tensor into a device tensor of the same shape, converting its type; meant for weights.

        In order with the steps. `host` may be changed or freed as soon as this returns.
        """
        destination.copy_(host)

    @abstractmethod
    def fetch(self, tensors: Mapping[str, torch.Tensor]) -> Fetch:
        """Start copying tensors to the host. They may be overwritten by work issued after this call."""

    @abstractmethod
    def capture(self, step: Callable[[], None]) -> Replay:
        """Record what `step` does to device buffers. A backend without graphs returns `step` itself."""

    def preparing(self, active: bool) -> None:
        """Core says True before it runs steps on padding to prepare shapes, and False when requests may come again.

        A device for which a new shape is costly can tell by it which shapes nobody has prepared. Does nothing here.
        """
        del active

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until everything issued has finished.

        Raises:
            DeviceLost: the device is gone.
        """

    def close(self) -> None:
        """Wait, then free streams and pinned memory."""
        self.synchronize()
