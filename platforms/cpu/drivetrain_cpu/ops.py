"""Ops of the CPU backend: packed weights, and few calls where a call costs as much as its work.

T tokens, D hidden size, F inner size, K samples, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from drivetrain_cpu.linear import FUSED_ACTIVATIONS, PackedLinear, can_pack
from drivetrain_cpu.norms import Norms
from drivetrain_cpu.sampling import Sampler
from drivetrain_plugins.contract import reference
from drivetrain_plugins.contract.attention import NormWeights
from drivetrain_plugins.contract.batch import SampleFeatures
from drivetrain_plugins.contract.model import MlpSpec
from drivetrain_plugins.contract.ops import LayerWeights, LinearWeight, Ops, StepContext, kept
from drivetrain_plugins.contract.slots import SampledTokens, SlotState, StepInputs

Linear = PackedLinear | LinearWeight


class CpuOps(Ops):
    """What torch's own composition leaves on the table on a processor."""

    def __init__(self) -> None:
        self._norms = Norms()
        self._sampler = Sampler()

    def norm(self, x_TD: torch.Tensor, weights: NormWeights) -> torch.Tensor:
        return self._norms(x_TD, weights)

    def prepare_linear(self, weight: LinearWeight) -> Linear:
        plain = reference.prepare_linear(weight)
        return PackedLinear(plain) if can_pack(plain.weight.dtype) else plain

    def linear(self, x_TD: torch.Tensor, handle: Linear) -> torch.Tensor:
        if isinstance(handle, PackedLinear):
            return handle(x_TD)
        return F.linear(x_TD, handle.weight, handle.bias)

    def mlp(self, x_TD: torch.Tensor, spec: MlpSpec, up: Linear, down: Linear) -> torch.Tensor:
        return self.linear(self._inner(x_TD, spec, up), down)

    def decoder_layer(
        self,
        delta_TD: torch.Tensor | None,
        residual_TD: torch.Tensor,
        layer: LayerWeights,
        step: StepContext,
        keep_K: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        spec = layer.spec
        out, down = layer.out, layer.down
        # The residual stream joins a product's accumulator where nothing stands between the two.
        joins = isinstance(out, PackedLinear) and isinstance(down, PackedLinear) and step.communicator.world == 1
        if not joins or not spec.pre_norm or spec.branch_norm or spec.parallel != "no" or spec.residual_scale != 1.0:
            return super().decoder_layer(delta_TD, residual_TD, layer, step, keep_K)
        if delta_TD is not None:
            residual_TD = residual_TD + delta_TD
        x_TD = self.norm(residual_TD, layer.norms["attn_norm"])
        mixed_TD = step.attention.attention(self.linear(x_TD, layer.qkv), layer.attention, step.cache, step.plan)
        residual_TD = out.add(kept(mixed_TD, keep_K), kept(residual_TD, keep_K))
        x_TD = self.norm(residual_TD, layer.norms["mlp_norm"])
        return None, down.add(self._inner(x_TD, spec.mlp, layer.up), residual_TD)

    def sample(
        self, logits_KV: torch.Tensor, inputs: StepInputs, slots: SlotState, features: SampleFeatures
    ) -> SampledTokens:
        return self._sampler.sample(logits_KV, inputs, slots, features)

    def _inner(self, x_TD: torch.Tensor, spec: MlpSpec, up: Linear) -> torch.Tensor:
        """What the MLP's second product reads."""
        if isinstance(up, PackedLinear) and spec.activation in FUSED_ACTIVATIONS:
            return up.gated(x_TD, spec.activation) if spec.gated else up.activated(x_TD, spec.activation)
        inner = self.linear(x_TD, up)
        return self.activate_gate(inner, spec.activation) if spec.gated else self.activate(inner, spec.activation)
