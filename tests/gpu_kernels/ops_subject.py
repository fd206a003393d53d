"""The conformance suite's subject with nothing of a backend but its ops."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, get_args

import torch

from drivetrain_plugins.conformance.subject import Subject, from_ints
from drivetrain_plugins.contract.batch import Int32Array
from drivetrain_plugins.contract.capabilities import Dtype, SamplingFeature
from drivetrain_plugins.contract.ops import Ops


class OpsSubject(Subject):
    """Ops under test on a device that only stages and waits."""

    def __init__(self, ops: Ops, device: torch.device, *, seed: int, dtypes: tuple[Dtype, ...]) -> None:
        super().__init__(lambda: (_ for _ in ()).throw(AssertionError("no backend")), {}, seed=seed)
        self._parts: Any = SimpleNamespace(
            ops=ops,
            torch_device=device,
            runtime=SimpleNamespace(stage=self._stage, synchronize=self._synchronize),
            capabilities=SimpleNamespace(dtypes=dtypes, sampling=frozenset(get_args(SamplingFeature))),
        )

    @property
    def device(self) -> Any:
        return self._parts

    @property
    def parts(self) -> Any:
        return self._parts

    def _stage(self, host: Int32Array, destination: torch.Tensor) -> None:
        destination[: len(host)].copy_(from_ints(host))

    def _synchronize(self) -> None:
        if self._parts.torch_device.type == "cuda":
            torch.cuda.synchronize()
