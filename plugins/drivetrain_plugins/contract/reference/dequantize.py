"""What a quantized weight means, in float32.

O output features, I input features, G columns of a group, B bytes of a row.
"""

# Relaxed: gguf is untyped in part.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

import torch

from drivetrain_plugins.contract.weight_formats import FP8_BLOCK, WeightFormat
from drivetrain_plugins.errors import Unsupported

if TYPE_CHECKING:
    from drivetrain_plugins.contract.ops import LinearWeight


def dequantize(weight: LinearWeight) -> torch.Tensor:
    """The values of a weight, float32 (O, I) on the weight's device; `contract.weight_formats` has their formulas.

    Raises:
        Unsupported: the contract defines no such format.
    """
    stored, parts = weight.weight, weight.parts
    match weight.quantization:
        case "none":
            return stored.float()
        case "fp8_e4m3":
            return stored.float() * _spread(parts["scale"], stored.shape)
        case "int8":
            return stored.float() * parts["scale"]
        case "int4":
            return _int4(stored, parts["scale"], parts["zero"])
        case name if name in get_args(WeightFormat):
            return _gguf(stored, name.removeprefix("gguf_").upper())
        case name:
            raise Unsupported(
                f"quantization {name!r}: the contract defines no such format, only {', '.join(get_args(WeightFormat))}"
            )


def _spread(scale: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Scales of all, of rows or of blocks, as something that multiplies a weight of this shape."""
    if scale.shape[1] == 1 and scale.shape[0] in (1, shape[0]):
        return scale
    rows, columns = (scale.repeat_interleave(FP8_BLOCK, dim=0)[: shape[0]], shape[1])
    return rows.repeat_interleave(FP8_BLOCK, dim=1)[:, :columns]


def _int4(packed: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
    values_OI = torch.stack((packed & 15, packed >> 4), dim=-1).flatten(1).float()
    grouped = values_OI.view(*scale.shape, values_OI.shape[1] // scale.shape[1])
    return ((grouped - zero.float()[:, :, None]) * scale[:, :, None]).flatten(1)


def _gguf(rows_OB: torch.Tensor, name: str) -> torch.Tensor:
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize as decoded

    values_OI = decoded(rows_OB.cpu().numpy(), GGMLQuantizationType[name])
    return torch.from_numpy(values_OI).to(rows_OB.device)
