"""The backend under test: opened when first needed, with seeded random inputs and poisoned memory."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import torch

from drivetrain_plugins.conformance.check import NotClaimed, require
from drivetrain_plugins.conformance.closeness import listed
from drivetrain_plugins.contract.backend import Backend, Device, RankInfo
from drivetrain_plugins.contract.batch import Int32Array
from drivetrain_plugins.contract.capabilities import Capabilities, Dtype, KVDtype

_KV_TORCH: dict[KVDtype, str] = {"fp8_e4m3": "float8_e4m3fn", "fp8_e5m2": "float8_e5m2"}
_KV_TORCH_FNUZ: dict[KVDtype, str] = {"fp8_e4m3": "float8_e4m3fnuz", "fp8_e5m2": "float8_e5m2fnuz"}


class Subject:
    """One backend and what checks need to examine it.

    Args:
        make: gives a new backend.
        options: its options, as its schema leaves them.
        seed: of every random input; checks draw independently of each other.
        world: ranks of the parallel checks; None takes two where the capabilities have room for them.
        target: the backend's import string, for child processes; empty if it has none.
    """

    def __init__(
        self,
        make: Callable[[], Backend],
        options: Mapping[str, Any],
        *,
        seed: int,
        world: int | None = None,
        target: str = "",
    ) -> None:
        self.make = make
        self.options = options
        self.seed = seed
        self._world = world
        self.target = target
        self._device: Device | None = None
        self._generator = torch.Generator().manual_seed(seed)

    @property
    def device(self) -> Device:
        """The device that most checks share."""
        if self._device is None:
            self._device = self.open()
        return self._device

    @property
    def parts(self) -> Device:
        """The shared device, for checks of its parts.

        Raises:
            NotClaimed: it brings its own executor, so core drives none of its parts.
        """
        if self.device.executor() is not None:
            raise NotClaimed("the device brings its own executor; core drives no parts of it")
        return self.device

    @property
    def capabilities(self) -> Capabilities:
        return self.device.capabilities

    @property
    def world(self) -> int:
        """Ranks of the parallel checks."""
        return min(2, self.capabilities.max_ranks) if self._world is None else self._world

    @property
    def dtypes(self) -> tuple[Dtype, ...]:
        return self.capabilities.dtypes

    def open(self) -> Device:
        """Open a further device of its own."""
        return self.make().open(RankInfo(), self.options)

    def close(self) -> None:
        """Close the shared device; it opens again when needed."""
        if self._device is not None:
            self._device.close()
            self._device = None

    def reseed(self, name: str) -> None:
        """Begin the random inputs of the check `name`."""
        self._generator.manual_seed(self.seed ^ zlib.crc32(name.encode()))

    def randn(self, *shape: int, scale: float = 1.0) -> torch.Tensor:
        """Normal float32 on the host."""
        return torch.randn(*shape, generator=self._generator) * scale

    def randint(self, low: int, high: int, *shape: int) -> torch.Tensor:
        """Integers in [low, high) on the host."""
        return torch.randint(low, high, shape, generator=self._generator)

    def pick(self, low: int, high: int) -> int:
        """One integer in [low, high)."""
        return int(torch.randint(low, high, (1,), generator=self._generator))

    def permutation(self, size: int) -> list[int]:
        """0 to size - 1 in random order."""
        return listed(torch.randperm(size, generator=self._generator))

    def put(self, host: torch.Tensor, dtype: Dtype | None = None) -> torch.Tensor:
        """A host tensor on the device, in `dtype` if given."""
        typed = host if dtype is None else host.to(torch_dtype(dtype))
        return typed.to(self.parts.torch_device, copy=True)

    def get(self, tensor: torch.Tensor) -> torch.Tensor:
        """A device tensor on the host, once everything issued has finished."""
        self.device.runtime.synchronize()
        return tensor.to("cpu", copy=True)

    def stage(self, host: Int32Array, destination: torch.Tensor) -> None:
        """Stage an int32 array, then spoil the host's copy as a caller may."""
        spoiled = host.copy()
        self.device.runtime.stage(spoiled, destination)
        spoiled[:] = -7

    def poison(self, numel: int, dtype: Dtype) -> None:
        """Leave NaN in freed memory of this size, so that an output that is not written shows."""
        for _ in range(3):
            torch.full((numel,), float("nan"), dtype=torch_dtype(dtype), device=self.parts.torch_device)

    def kv_torch_dtype(self, dtype: KVDtype) -> torch.dtype:
        """The torch type whose rounding a KV type has on this device."""
        names = _KV_TORCH_FNUZ if self.capabilities.fp8 == "fnuz" else _KV_TORCH
        found: Any = getattr(torch, names.get(dtype, dtype))
        require(isinstance(found, torch.dtype), f"capabilities.kv_dtypes: {dtype!r} is no storage type")
        return found


def from_ints(host: Int32Array) -> torch.Tensor:
    """A copy of an int32 array as a host tensor."""
    return torch.from_numpy(host.copy())  # pyright: ignore[reportUnknownMemberType]


def torch_dtype(dtype: Dtype) -> torch.dtype:
    """The torch type of an activation type."""
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[dtype]
