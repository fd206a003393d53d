"""Norms, rotary, activations and the plain linear layer.

T tokens, H heads, K head size, D features, F rotary pairs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from drivetrain_plugins.contract.model import Activation
from drivetrain_plugins.errors import Unsupported

if TYPE_CHECKING:
    from drivetrain_plugins.contract.attention import NormWeights, RotaryTable
    from drivetrain_plugins.contract.ops import LinearWeight


def norm(x: torch.Tensor, weights: NormWeights) -> torch.Tensor:
    """Root-mean-square or layer norm over the last dimension, in fp32; weights broadcast from the right."""
    spec = weights.spec
    y = x.float()
    if spec.kind == "layer":
        y = y - y.mean(dim=-1, keepdim=True)
    y = y * torch.rsqrt(y.square().mean(dim=-1, keepdim=True) + spec.eps)
    if weights.weight is not None:
        scale = weights.weight.float() + spec.weight_offset
        y = (y.to(x.dtype).float() if spec.late_weight else y) * scale
    if weights.bias is not None:
        y = y + weights.bias.float()
    return y.to(x.dtype)


def qk_norm(x_TX: torch.Tensor, weights: NormWeights, num_heads: int) -> torch.Tensor:
    """Norm of projected queries or keys, (T, H K) to (T, H, K).

    The weight's shape says the span: (H K) norms all heads together, (K) and (H, K) each head.
    """
    width = x_TX.shape[-1]
    weight = weights.weight
    if weight is not None and weight.ndim == 1 and weight.shape[0] == width and num_heads > 1:
        return norm(x_TX, weights).view(-1, num_heads, width // num_heads)
    return norm(x_TX.view(-1, num_heads, width // num_heads), weights)


def rotate(
    q_THK: torch.Tensor, k_TGK: torch.Tensor, positions_T: torch.Tensor, table: RotaryTable
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotary position embedding of queries and keys, in fp32."""
    cos_T1F = table.cos_PF[positions_T].unsqueeze(1)
    sin_T1F = table.sin_PF[positions_T].unsqueeze(1)
    return _rotate(q_THK, cos_T1F, sin_T1F, table), _rotate(k_TGK, cos_T1F, sin_T1F, table)


def _rotate(x_THK: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, table: RotaryTable) -> torch.Tensor:
    dim = table.dim
    turned, rest = x_THK[..., :dim].float(), x_THK[..., dim:]
    if table.interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
        out = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)
    else:
        a, b = turned.chunk(2, dim=-1)
        out = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
    out = out.to(x_THK.dtype)
    return out if dim == x_THK.shape[-1] else torch.cat((out, rest), dim=-1)


def activate(x: torch.Tensor, activation: Activation) -> torch.Tensor:
    """Elementwise activation, computed in the type of `x`."""
    match activation:
        case "silu":
            return F.silu(x)
        case "gelu":
            return F.gelu(x)
        case "gelu_tanh":
            return F.gelu(x, approximate="tanh")
        case "gelu_quick":
            return x * torch.sigmoid(1.702 * x)
        case "relu":
            return F.relu(x)
        case "relu2":
            return F.relu(x).square()


def prepare_linear(weight: LinearWeight) -> LinearWeight:
    """An unquantized linear layer needs no repacking."""
    if weight.quantization != "none":
        raise Unsupported(f"quantization {weight.quantization!r}: the torch reference serves only unquantized weights")
    return weight
