"""Linear layers in oneDNN's own weight layout, with what follows them fused in.

Packed, a product of one row reads its weights at memory bandwidth: twice as fast as `F.linear` in bfloat16.

T tokens, D inputs, O outputs.
"""

# Relaxed: torch's stubs leave methods untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import torch

from drivetrain_plugins.contract.model import Activation
from drivetrain_plugins.contract.ops import LinearWeight

FUSED_ACTIVATIONS: dict[Activation, tuple[str, str]] = {
    "silu": ("swish", ""),
    "gelu": ("gelu", "none"),
    "gelu_tanh": ("gelu", "tanh"),
    "relu": ("relu", ""),
}
"""Activation -> oneDNN's name and algorithm."""


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this build of torch packs weights of this type for this processor."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if dtype is torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype is torch.float32


class PackedLinear:
    """A linear layer whose weight is packed for the processor.

    A gated MLP's first layer is split into its two halves when it first runs, so that activation and gating can be
    fused into the products.
    """

    def __init__(self, weight: LinearWeight) -> None:
        self._parts = [_pack(weight.weight)]
        self._biases = [weight.bias]

    def __call__(self, x_TD: torch.Tensor) -> torch.Tensor:
        """x W^T + b, (T, O)."""
        outputs = [
            torch.ops.mkldnn._linear_pointwise(x_TD, part, bias, "none", [], "")
            for part, bias in zip(self._parts, self._biases, strict=True)
        ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)

    def add(self, x_TD: torch.Tensor, other_TO: torch.Tensor) -> torch.Tensor:
        """x W^T + b + other, rounded once."""
        (part,), (bias,) = self._parts, self._biases
        return torch.ops.mkldnn._linear_pointwise.binary(x_TD, other_TO, part, bias, "add")

    def activated(self, x_TD: torch.Tensor, activation: Activation) -> torch.Tensor:
        """activation(x W^T + b) for one of `FUSED_ACTIVATIONS`."""
        name, algorithm = FUSED_ACTIVATIONS[activation]
        (part,), (bias,) = self._parts, self._biases
        return torch.ops.mkldnn._linear_pointwise(x_TD, part, bias, name, [], algorithm)

    def gated(self, x_TD: torch.Tensor, activation: Activation) -> torch.Tensor:
        """activation(x W1^T + b1) * (x W2^T + b2), (T, O / 2), where W1 and b1 are the first half of the outputs."""
        if len(self._parts) == 1:
            self._split()
        name, algorithm = FUSED_ACTIVATIONS[activation]
        gate, up = self._parts
        gate_TF = torch.ops.mkldnn._linear_pointwise(x_TD, gate, self._biases[0], name, [], algorithm)
        return torch.ops.mkldnn._linear_pointwise.binary(x_TD, gate_TF, up, self._biases[1], "mul")

    def _split(self) -> None:
        (whole,), (bias,) = self._parts, self._biases
        self._parts = [_pack(half) for half in whole.to_dense().chunk(2)]
        self._biases = [None, None] if bias is None else [half.contiguous() for half in bias.chunk(2)]


def _pack(weight_OD: torch.Tensor) -> torch.Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight_OD.contiguous())
