"""AMD's two encodings of 8-bit floats, and how numbers go from one to the other.

OCP's e4m3 and e5m2 are everyone's; gfx94x has encodings of its own, "fnuz" (finite, NaN, unsigned zero). The same bits
mean half of OCP's value there, since the exponent's bias is one more, and 0x80 is no negative zero but NaN. So OCP
weights become fnuz ones by zeroing every 0x80 and doubling the scale: no number changes, none is rounded.
"""

# Relaxed: torch's stubs leave methods half typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Mapping

import torch

from drivetrain_plugins.contract.capabilities import KVDtype
from drivetrain_rocm.parts import Part
from drivetrain_triton.device.cache import KV_DTYPES

FNUZ_OF: Mapping[torch.dtype, torch.dtype] = {
    torch.float8_e4m3fn: torch.float8_e4m3fnuz,
    torch.float8_e5m2: torch.float8_e5m2fnuz,
}
"""fnuz types by the OCP ones with the same layout of bits."""

_NEGATIVE_ZERO = 0x80


def kv_dtypes(part: Part) -> Mapping[KVDtype, torch.dtype]:
    """How pages are stored on a part: in the encoding that its instructions convert."""
    if part.fp8 != "fnuz":
        return KV_DTYPES
    return {name: FNUZ_OF.get(dtype, dtype) for name, dtype in KV_DTYPES.items()}


def to_fnuz(weight: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """OCP numbers and their scale as fnuz ones: (weight, scale) with the same products.

    Args:
        weight: float8_e4m3fn or float8_e5m2; not changed. NaN stays NaN; so does infinity, which fnuz has not.
        scale: what the numbers are multiplied by.

    Raises:
        TypeError: `weight` is of another type.
    """
    dtype = FNUZ_OF.get(weight.dtype)
    if dtype is None:
        raise TypeError(f"no fnuz encoding of {weight.dtype}; expected {', '.join(map(str, FNUZ_OF))}")
    bits = weight.view(torch.uint8)
    lost = ~weight.float().isfinite()
    bits = bits.masked_fill(bits == _NEGATIVE_ZERO, 0).masked_fill(lost, _NEGATIVE_ZERO)
    return bits.view(dtype), scale * 2
