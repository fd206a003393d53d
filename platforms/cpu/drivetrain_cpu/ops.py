"""Ops of the CPU backend: weights packed once for the matrix units, fewer and fused calls.

T tokens, D hidden size, F inner size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from drivetrain_plugins.contract import reference
from drivetrain_plugins.contract.ops import LinearWeight, Ops


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedLinear:
    """A linear layer in oneDNN's own weight layout."""

    weight: torch.Tensor
    bias: torch.Tensor | None


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this build of torch packs weights of this type for this processor."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if dtype is torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype is torch.float32


class CpuOps(Ops):
    """Linear layers run on packed weights where torch can pack them."""

    def prepare_linear(self, weight: LinearWeight) -> PackedLinear | LinearWeight:
        plain = reference.prepare_linear(weight)
        if not can_pack(plain.weight.dtype):
            return plain
        return PackedLinear(weight=torch.ops.mkldnn._reorder_linear_weight(plain.weight.contiguous()), bias=plain.bias)

    def linear(self, x_TD: torch.Tensor, handle: PackedLinear | LinearWeight) -> torch.Tensor:
        if isinstance(handle, LinearWeight):
            return torch.nn.functional.linear(x_TD, handle.weight, handle.bias)
        return torch.ops.mkldnn._linear_pointwise(x_TD, handle.weight, handle.bias, "none", [], "")
