"""Ops of the Gaudi backend. Recorded steps are compiled whole, so the graph compiler fuses what is elementwise; only
what it does not put together by itself is named here.

T tokens, D features.
"""

from __future__ import annotations

import torch

from drivetrain_gaudi.habana import Applied
from drivetrain_plugins.contract.attention import NormWeights
from drivetrain_plugins.contract.ops import Ops


class GaudiOps(Ops):
    """Torch's ops, and Habana's root-mean-square norm where it means the same.

    Args:
        fused_rms_norm: Habana's, or None.
    """

    def __init__(self, fused_rms_norm: Applied | None) -> None:
        self._fused_rms_norm = fused_rms_norm

    def norm(self, x_TD: torch.Tensor, weights: NormWeights) -> torch.Tensor:
        spec, weight = weights.spec, weights.weight
        plain = spec.kind == "rms" and weights.bias is None and spec.weight_offset == 0.0
        if self._fused_rms_norm is None or not plain or weight is None or weight.ndim != 1:
            return super().norm(x_TD, weights)
        return self._fused_rms_norm.apply(x_TD, weight, spec.eps)
