"""Staging, results and order. This device finishes each op before its call returns, so all of it is simple."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

from drivetrain_plugins.contract.batch import Int32Array
from drivetrain_plugins.contract.runtime import Fetch, Replay, Runtime


class RelicFetch:
    """Results that are on the host already."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self._arrays = arrays

    def ready(self) -> bool:
        """Always."""
        return True

    def wait(self) -> dict[str, np.ndarray]:
        """The results."""
        return self._arrays


class RelicRuntime(Runtime):
    """Yours: pinned buffers and a stream in `stage` and `fetch`, a graph in `capture`, a wait in `synchronize`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def stage(self, host: Int32Array, destination: torch.Tensor) -> None:
        # The copy ends before this returns: core may change `host` at once.
        destination[: host.size].copy_(torch.from_numpy(host))  # pyright: ignore[reportUnknownMemberType]

    def fetch(self, tensors: Mapping[str, torch.Tensor]) -> Fetch:
        # Cloned: core may overwrite the tensors at once.
        return RelicFetch({name: tensor.clone().numpy() for name, tensor in tensors.items()})

    def capture(self, step: Callable[[], None]) -> Replay:
        return step

    def synchronize(self) -> None:
        return None
