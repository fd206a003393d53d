"""Staging and results. Activations rest on the host between layers, so steps have ended when their calls return."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

from drivetrain_opencl.queue import DeviceQueue
from drivetrain_plugins.contract.batch import Int32Array
from drivetrain_plugins.contract.runtime import Fetch, Replay, Runtime


class HostResults:
    """Results that are on the host already."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self._arrays = arrays

    def ready(self) -> bool:
        """Always."""
        return True

    def wait(self) -> dict[str, np.ndarray]:
        """The results."""
        return self._arrays


class OpenclRuntime(Runtime):
    """Order is the queue's: it runs one command after the other."""

    device = torch.device("cpu")

    def __init__(self, queue: DeviceQueue) -> None:
        self._queue = queue

    def stage(self, host: Int32Array, destination: torch.Tensor) -> None:
        destination[: host.size].copy_(torch.from_numpy(host))  # pyright: ignore[reportUnknownMemberType]

    def fetch(self, tensors: Mapping[str, torch.Tensor]) -> Fetch:
        # Cloned: core may overwrite the tensors at once.
        return HostResults({name: tensor.clone().numpy() for name, tensor in tensors.items()})

    def capture(self, step: Callable[[], None]) -> Replay:
        return step

    def synchronize(self) -> None:
        self._queue.finish()
