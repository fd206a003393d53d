"""Random weights that come as fast as memory is written, for benchmarks without a checkpoint."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from drivetrain.weights.source import TensorInfo, check_range, missing_tensor

if TYPE_CHECKING:
    import torch

BLOCK = 1 << 20
"""Values of noise drawn once a dtype; every tensor is this block, repeated from an offset of its own."""


class DummyWeights:
    """A `WeightSource` of small normal noise, the same for the same name and seed.

    One-dimensional `*norm*.weight` tensors are near one, so that activations keep their scale.

    Args:
        tensors: name to shape and dtype (floating point including float8, or integer).
        seed: another seed gives other values.
        std: standard deviation of floating-point values; integers are uniform over their range.
        device: where the tensors are made; their values are the same on each.
    """

    def __init__(
        self,
        tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
        *,
        seed: int = 0,
        std: float = 0.02,
        device: torch.device | None = None,
    ) -> None:
        self._tensors = dict(tensors)
        self._seed = seed
        self._std = std
        self._device = device
        self._blocks: dict[torch.dtype, torch.Tensor] = {}

    @property
    def total_bytes(self) -> int:
        return sum(self.stored_bytes(name) for name in self._tensors)

    def names(self) -> list[str]:
        return list(self._tensors)

    def stored_bytes(self, name: str) -> int:
        info = self.info(name)
        return math.prod(info.shape) * info.dtype.itemsize

    def info(self, name: str) -> TensorInfo:
        try:
            shape, dtype = self._tensors[name]
        except KeyError:
            raise missing_tensor("dummy weights", name, list(self._tensors)) from None
        return TensorInfo(shape=shape, dtype=dtype)

    def get(self, name: str) -> torch.Tensor:
        info = self.info(name)
        return self._values(name, info, 0, math.prod(info.shape)).view(info.shape)

    def get_slice(self, name: str, dim: int, start: int, stop: int) -> torch.Tensor:
        info = self.info(name)
        check_range("dummy weights", name, info.shape, dim, start, stop)
        if dim:
            return self.get(name).narrow(dim, start, stop - start)
        row = math.prod(info.shape[1:])
        return self._values(name, info, start * row, stop * row).view(stop - start, *info.shape[1:])

    def close(self) -> None:
        self._blocks.clear()

    def _values(self, name: str, info: TensorInfo, start: int, stop: int) -> torch.Tensor:
        """Values `start:stop` of the flat tensor: the noise block from a name's own offset, wrapped around."""
        import torch

        block = self._block(info.dtype)
        digest = hashlib.blake2b(f"{self._seed}/{name}".encode(), digest_size=8).digest()
        position = (int.from_bytes(digest, "little") + start) % BLOCK
        values = torch.empty(stop - start, dtype=info.dtype, device=self._device)
        head = min(BLOCK - position, len(values))
        values[:head] = block[position : position + head]
        num_whole = (len(values) - head) // BLOCK
        middle = values[head : head + num_whole * BLOCK]
        middle.view(num_whole, BLOCK)[:] = block
        tail = values[head + num_whole * BLOCK :]
        tail[:] = block[: len(tail)]
        if len(info.shape) == 1 and "norm" in name and name.endswith("weight") and info.dtype.is_floating_point:
            values = (values.float() + 1).to(info.dtype)
        return values

    def _block(self, dtype: torch.dtype) -> torch.Tensor:
        import torch

        block = self._blocks.get(dtype)
        if block is None:
            generator = torch.Generator().manual_seed(self._seed)
            if dtype.is_floating_point:
                block = (torch.randn(BLOCK, generator=generator) * self._std).to(dtype)
            elif dtype == torch.bool:
                block = torch.randint(0, 2, (BLOCK,), generator=generator).bool()
            else:
                limits = torch.iinfo(dtype)
                # `high` is exclusive and a signed 64-bit number.
                high = min(limits.max, 2**63 - 2) + 1
                block = torch.randint(limits.min, high, (BLOCK,), generator=generator).to(dtype)
            block = self._blocks[dtype] = block.to(self._device)
        return block
