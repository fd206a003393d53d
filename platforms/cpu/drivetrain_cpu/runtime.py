"""Synchronous execution: a step has finished when its call returns."""

# Relaxed: torch's stubs leave methods untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

from drivetrain_plugins.contract.batch import Int32Array
from drivetrain_plugins.contract.runtime import Fetch, Replay, Runtime


class Fetched:
    """Results that are on the host already."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self._arrays = arrays

    def ready(self) -> bool:
        """Always."""
        return True

    def wait(self) -> dict[str, np.ndarray]:
        """The results."""
        return self._arrays


class CpuRuntime(Runtime):
    """Staging is a copy, capturing keeps the step as it is, fetching copies at once."""

    device = torch.device("cpu")

    def stage(self, host: Int32Array, destination: torch.Tensor) -> None:
        destination[: host.size].copy_(torch.as_tensor(host.reshape(-1)))

    def fetch(self, tensors: Mapping[str, torch.Tensor]) -> Fetch:
        # Cloned: the caller may overwrite the tensors before it reads the result.
        return Fetched({name: tensor.detach().clone().numpy() for name, tensor in tensors.items()})

    def capture(self, step: Callable[[], None]) -> Replay:
        return step

    def synchronize(self) -> None:
        return None
