"""From canonical weights, on the host or made on the device, to prepared ones, one tensor at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from drivetrain.errors import WeightError
from drivetrain.models.sharding import shards
from drivetrain_plugins.contract.attention import NormWeights
from drivetrain_plugins.contract.backend import Device
from drivetrain_plugins.contract.executor import Progress, Weights
from drivetrain_plugins.contract.model import DecoderSpec, NormSpec, weight_shapes
from drivetrain_plugins.contract.ops import LinearWeight


class WeightLoader:
    """Reads weights by canonical name, keeps this rank's share and puts it on the device.

    Each host tensor is let go as soon as it has been copied.

    Args:
        spec: of the whole model.
        dtype: type of everything on the device but attention sinks.
    """

    def __init__(
        self, spec: DecoderSpec, weights: Weights, device: Device, dtype: torch.dtype, progress: Progress
    ) -> None:
        self._weights = weights
        self._device = device
        self._dtype = dtype
        self._progress = progress
        self._shapes = dict(weight_shapes(spec))
        self._shards = shards(spec, device.communicator.rank, device.communicator.world)
        self._num_elements = sum(math.prod(shape) for shape in self._shapes.values())
        self._read_elements = 0
        progress("load weights", 0, weights.total_bytes, "B")

    def has(self, name: str) -> bool:
        """Whether the model has this weight and this rank a part of it."""
        if name not in self._shapes:
            return False
        kept = self._shards[name]
        return kept is None or kept.stop > kept.start

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """This rank's share of a weight, on the device."""
        source = self._source(name)
        out = torch.empty(source.shape, dtype=dtype or self._dtype, device=self._device.torch_device)
        self._copy(source, out)
        return out

    def norm(self, name: str, spec: NormSpec) -> NormWeights:
        """A norm's weight and bias, those that it has."""
        return NormWeights(
            spec=spec,
            weight=self.tensor(f"{name}.weight") if spec.weight else None,
            bias=self.tensor(f"{name}.bias") if spec.bias else None,
        )

    def linear(self, *modules: str) -> Any:
        """Modules with the same input packed into one linear layer, in order; what `prepare_linear` returned."""
        weight = self._packed([f"{module}.weight" for module in modules])
        biases = [f"{module}.bias" for module in modules]
        bias = self._packed(biases) if all(self.has(name) for name in biases) else None
        return self._device.ops.prepare_linear(LinearWeight(weight=weight, bias=bias))

    def _packed(self, names: Sequence[str]) -> torch.Tensor:
        if len(names) == 1:
            return self.tensor(names[0])
        rows = [self._share(name)[0] for name in names]
        out = torch.empty(sum(rows), *self._share(names[0])[1:], dtype=self._dtype, device=self._device.torch_device)
        start = 0
        for name, count in zip(names, rows, strict=True):
            self._copy(self._source(name), out[start : start + count])
            start += count
        return out

    def _share(self, name: str) -> tuple[int, ...]:
        """Shape of this rank's share."""
        shape, kept = list(self._shapes[name]), self._shards[name]
        if kept is not None:
            shape[kept.dim] = kept.stop - kept.start
        return tuple(shape)

    def _copy(self, source: torch.Tensor, destination: torch.Tensor) -> None:
        if source.device == destination.device:
            destination.copy_(source)
        else:
            self._device.runtime.upload(source, destination)

    def _source(self, name: str) -> torch.Tensor:
        """This rank's share of a weight, as it was read or made."""
        whole = self._weights.load(name)
        expected, kept = self._shapes[name], self._shards[name]
        if tuple(whole.shape) != expected:
            raise WeightError(f"weight {name}: got shape {list(whole.shape)}, expected {list(expected)}")
        self._read_elements += whole.numel()
        total = self._weights.total_bytes
        self._progress("load weights", total * self._read_elements / self._num_elements, total, "B")
        return whole if kept is None else whole.narrow(kept.dim, kept.start, kept.stop - kept.start)
