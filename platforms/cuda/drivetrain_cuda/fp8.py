"""Which NVIDIA parts know the 8-bit type e4m3."""

from __future__ import annotations

import torch

FIRST_WITH_E4M3 = 89


def is_soft_fp8(x: torch.Tensor, arch: str) -> bool:
    """Whether a part ("sm_80") does not know the type of `x`, so that kernels read and write it as bytes."""
    return x.dtype is torch.float8_e4m3fn and int(arch.removeprefix("sm_")) < FIRST_WITH_E4M3
