"""Norms in as few calls as torch's processor kernels allow. It has no fused root-mean-square norm.

T tokens, D features.
"""

# Relaxed: torch's stubs leave methods untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import torch
import torch.nn.functional as F

from drivetrain_plugins.contract import reference
from drivetrain_plugins.contract.attention import NormWeights

FEW_TOKENS = 8
"""Up to so many tokens the number of calls decides, above it their memory traffic."""


class Norms:
    """Norms with what can be computed from their weights once."""

    def __init__(self) -> None:
        self._prepared: dict[int, tuple[NormWeights, _Prepared]] = {}

    def __call__(self, x_TD: torch.Tensor, weights: NormWeights) -> torch.Tensor:
        """Norm of each row, in fp32, rounded once to the type of `x_TD`."""
        if x_TD.ndim != 2 or (weights.weight is not None and weights.weight.ndim != 1):
            return reference.norm(x_TD, weights)
        known = self._prepared.get(id(weights))
        # The pair keeps the weights alive, so an id is never met again for others.
        if known is None:
            known = self._prepared[id(weights)] = (weights, _Prepared(weights, x_TD.shape[1]))
        prepared = known[1]
        if weights.spec.kind == "layer":
            width = (x_TD.shape[1],)
            return F.layer_norm(x_TD, width, prepared.weight_D, prepared.bias_D, weights.spec.eps)
        if x_TD.shape[0] <= FEW_TOKENS and prepared.bias_D is None:
            return _rms_of_few(x_TD, prepared)
        return _rms_of_many(x_TD, prepared)


class _Prepared:
    """Float32 weights of one norm.

    Attributes:
        twice_2D: the weight twice in a row.
    """

    def __init__(self, weights: NormWeights, width: int) -> None:
        weight = torch.ones(width) if weights.weight is None else weights.weight.float() + weights.spec.weight_offset
        self.weight_D = weight
        self.bias_D = None if weights.bias is None else weights.bias.float()
        self.twice_2D = torch.cat((weight, weight))
        self.eps = weights.spec.eps
        self.eps_tensor = torch.tensor(self.eps)


def _rms_of_few(x_TD: torch.Tensor, prepared: _Prepared) -> torch.Tensor:
    """Next to its own negative a row has mean 0, so a layer norm of both is the root-mean-square norm: three calls."""
    width = x_TD.shape[1]
    both_T2D = torch.cat((x_TD, x_TD.neg()), dim=-1)
    return F.layer_norm(both_T2D, (2 * width,), prepared.twice_2D, None, prepared.eps)[:, :width]


def _rms_of_many(x_TD: torch.Tensor, prepared: _Prepared) -> torch.Tensor:
    y_TD = x_TD.float()
    length_T1 = torch.linalg.vector_norm(y_TD, dim=-1, keepdim=True)
    scale_T1 = torch.addcmul(prepared.eps_tensor, length_T1, length_T1, value=1 / x_TD.shape[1]).rsqrt_()
    y_TD = y_TD * scale_T1 if y_TD is x_TD else y_TD.mul_(scale_T1)
    y_TD.mul_(prepared.weight_D)
    if prepared.bias_D is not None:
        y_TD.add_(prepared.bias_D)
    return y_TD.to(x_TD.dtype)
