"""`FusedRMSNorm` with the signature of version 1.19."""

from __future__ import annotations

import torch


class FusedRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, data_in, gamma, eps, use_stages=True, bwd_mode=0, fast_math=False):
        if fast_math:
            raise RuntimeError("FusedRMSNorm: this reference serves exact arithmetic")
        return torch.ops.hpu.rms_norm(data_in, gamma, eps)[0]
