"""Activations, alone or multiplied with a gate's other half.

T tokens, F inner size.
"""

# Relaxed: Triton's language is untyped; what it declares about itself holds for its compiler only.
# pyright: basic, reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl

from drivetrain_plugins.contract.model import Activation
from drivetrain_triton.arch import GpuArch
from drivetrain_triton.launch import launch

_BLOCK = 1024


@triton.jit
def activated(x, KIND: tl.constexpr):
    """An activation of float32 values, by its name in `contract.model.Activation`."""
    if KIND == "silu":
        return x * tl.sigmoid(x)
    elif KIND == "gelu":
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif KIND == "gelu_tanh":
        # 0.5 (1 + tanh u) is the logistic function of 2 u.
        return x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    elif KIND == "gelu_quick":
        return x * tl.sigmoid(1.702 * x)
    elif KIND == "relu":
        return tl.maximum(x, 0.0)
    else:
        tl.static_assert(KIND == "relu2")
        y = tl.maximum(x, 0.0)
        return y * y


@triton.jit
def activate_kernel(
    x_TX, out_TF, x_stride, F, KIND: tl.constexpr, GATED: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    """A block of one token's features a program. With `GATED`, a row holds the gate's half first."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    token = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = f < F
    y = activated(tl.load(x_TX + token * x_stride + f, mask, other=0.0).to(tl.float32), KIND)
    if GATED:
        y = y * tl.load(x_TX + token * x_stride + F + f, mask, other=0.0).to(tl.float32)
    tl.store(out_TF + token * F + f, y.to(out_TF.dtype.element_ty), mask)


def activate(x_TF: torch.Tensor, activation: Activation, arch: GpuArch) -> torch.Tensor:
    """Elementwise activation, computed in float32."""
    return _launch(x_TF, activation, x_TF.shape[1], arch, gated=False)


def activate_gate(x_T2F: torch.Tensor, activation: Activation, arch: GpuArch) -> torch.Tensor:
    """activation(first half) * second half, (T, F), computed in float32."""
    return _launch(x_T2F, activation, x_T2F.shape[1] // 2, arch, gated=True)


def _launch(x_TX: torch.Tensor, activation: Activation, width: int, arch: GpuArch, *, gated: bool) -> torch.Tensor:
    x_TX = x_TX if x_TX.stride(1) == 1 else x_TX.contiguous()
    out_TF = torch.empty((x_TX.shape[0], width), dtype=x_TX.dtype, device=x_TX.device)
    grid = (x_TX.shape[0], triton.cdiv(width, _BLOCK))
    args = (x_TX, out_TF, x_TX.stride(0), width)
    launch(activate_kernel, grid, *args, pdl=arch.pdl, KIND=activation, GATED=gated, BLOCK=_BLOCK)
    return out_TF
