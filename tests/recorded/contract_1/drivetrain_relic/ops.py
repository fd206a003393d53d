"""The ops that the device does better. Whatever is not overridden keeps its torch reference, and works."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from drivetrain_plugins.contract.model import Activation
from drivetrain_plugins.contract.ops import Ops


class RelicOps(Ops):
    """Yours: norms, activations, linear layers, sampling, or whole layers. `drivetrain backends --ops` lists them."""

    def activate_gate(self, x_T2F: torch.Tensor, activation: Activation) -> torch.Tensor:
        if activation != "silu":
            return super().activate_gate(x_T2F, activation)
        half = x_T2F.shape[-1] // 2
        return F.silu(x_T2F[:, :half]).mul_(x_T2F[:, half:])
