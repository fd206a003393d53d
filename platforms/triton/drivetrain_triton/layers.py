"""The usual decoder layer in few kernels, over the products of `linear`.

T tokens, D hidden size, F inner size, K kept tokens.
"""

from __future__ import annotations

import torch

from drivetrain_plugins.contract.attention import NormWeights
from drivetrain_plugins.contract.model import DecoderSpec, LayerSpec, MlpSpec
from drivetrain_plugins.contract.ops import LayerWeights, LinearWeight, Ops, StepContext, kept
from drivetrain_triton import logits
from drivetrain_triton.arch import GpuArch
from drivetrain_triton.linear import Linears


class LayerOps(Ops):
    """Linear layers and the decoder layer around them; norms and activations are a subclass's."""

    def __init__(self, arch: GpuArch) -> None:
        self.arch = arch
        self.linears = Linears(arch)

    def prepare_linear(self, weight: LinearWeight) -> LinearWeight:
        return self.linears.prepare(weight)

    def linear(self, x_TD: torch.Tensor, handle: LinearWeight) -> torch.Tensor:
        return self.linears.product(x_TD, handle)

    def decoder_layer(
        self,
        delta_TD: torch.Tensor | None,
        residual_TD: torch.Tensor,
        layer: LayerWeights,
        step: StepContext,
        keep_K: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        if not _sequential(layer.spec) or step.communicator.world > 1:
            return super().decoder_layer(delta_TD, residual_TD, layer, step, keep_K)
        if delta_TD is not None:
            residual_TD = residual_TD + delta_TD
        qkv_TX = self._norm_linear(residual_TD, layer.norms["attn_norm"], layer.qkv)
        mixed_TD = step.attention.attention(qkv_TX, layer.attention, step.cache, step.plan)
        residual_TD = self.linears.add_product(kept(mixed_TD, keep_K), layer.out, kept(residual_TD, keep_K))
        inner_TF = self._norm_mlp_up(residual_TD, layer.norms["mlp_norm"], layer.spec.mlp, layer.up)
        return None, self.linears.add_product(inner_TF, layer.down, residual_TD)

    def logits(self, x_KD: torch.Tensor, lm_head: LinearWeight, spec: DecoderSpec) -> torch.Tensor:
        logits_KV = self.linears.product(x_KD, LinearWeight(weight=lm_head.weight), torch.float32)
        return logits.finish(logits_KV, lm_head.bias, spec.logits_scale, spec.logits_soft_cap, self.arch)

    def _norm_linear(self, x_TD: torch.Tensor, norm: NormWeights, handle: LinearWeight) -> torch.Tensor:
        joined = self.linears.norm_product(x_TD, norm, handle)
        return joined if joined is not None else self.linear(self.norm(x_TD, norm), handle)

    def _norm_mlp_up(self, x_TD: torch.Tensor, norm: NormWeights, spec: MlpSpec, up: LinearWeight) -> torch.Tensor:
        """What the down projection takes, (T, F)."""
        if not spec.gated:
            return self.activate(self._norm_linear(x_TD, norm, up), spec.activation)
        joined = self.linears.norm_gate(x_TD, norm, up, spec.activation)
        if joined is not None:
            return joined
        normed_TD = self.norm(x_TD, norm)
        gated = self.linears.gate_product(normed_TD, up, spec.activation)
        return gated if gated is not None else self.activate_gate(self.linear(normed_TD, up), spec.activation)


def _sequential(spec: LayerSpec) -> bool:
    """Whether each branch reads the normed stream and is added to it as it is."""
    return (
        spec.parallel == "no"
        and spec.pre_norm
        and not spec.branch_norm
        and not spec.sum_norm
        and spec.residual_scale == 1.0
    )
