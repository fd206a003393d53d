"""Ops that every GPU backend with Triton shares: norms, activations, embedding, step inputs and sampling.

Products and the decoder layer are in `layers`. A norm with a weight of its own for each head falls to the reference, as
do norms wider than a program's registers (`norms.MAX_FEATURES`).

T tokens, D hidden size, F inner size, K samples, Q scored rows, V vocabulary.
"""

# Relaxed: torch's stubs leave methods untyped, and the kernels' modules are Triton's.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import torch

from drivetrain_plugins.contract.attention import NormWeights
from drivetrain_plugins.contract.batch import BatchLayout, SampleFeatures
from drivetrain_plugins.contract.model import Activation
from drivetrain_plugins.contract.slots import SampledTokens, SlotState, StepInputs
from drivetrain_triton import activations, embedding, norms, prepare
from drivetrain_triton.arch import GpuArch
from drivetrain_triton.layers import LayerOps
from drivetrain_triton.sampling.sampler import Sampler


class TritonOps(LayerOps):
    """Ops around the products."""

    def __init__(self, arch: GpuArch) -> None:
        super().__init__(arch)
        self._sampler = Sampler(arch)

    def prepare(self, packed: torch.Tensor, layout: BatchLayout, slots: SlotState, page_size: int) -> StepInputs:
        return prepare.prepare(packed, layout, slots, page_size, self.arch)

    def embed(self, ids_T: torch.Tensor, weight_VD: torch.Tensor) -> torch.Tensor:
        return embedding.embed(ids_T, weight_VD, self.arch)

    def norm(self, x_TD: torch.Tensor, weights: NormWeights) -> torch.Tensor:
        if not norms.can_norm(x_TD, weights):
            return super().norm(x_TD, weights)
        return norms.norm(x_TD, weights, self.arch)

    def add_norm(
        self, delta_TD: torch.Tensor, residual_TD: torch.Tensor, weights: NormWeights
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not norms.can_norm(residual_TD, weights):
            return super().add_norm(delta_TD, residual_TD, weights)
        return norms.add_norm(delta_TD, residual_TD, weights, self.arch)

    def activate(self, x_TF: torch.Tensor, activation: Activation) -> torch.Tensor:
        return activations.activate(x_TF, activation, self.arch)

    def activate_gate(self, x_T2F: torch.Tensor, activation: Activation) -> torch.Tensor:
        return activations.activate_gate(x_T2F, activation, self.arch)

    def sample(
        self, logits_KV: torch.Tensor, inputs: StepInputs, slots: SlotState, features: SampleFeatures
    ) -> SampledTokens:
        return self._sampler.sample(logits_KV, inputs, slots, features)

    def token_logprobs(
        self, logits_QV: torch.Tensor, targets_Q: torch.Tensor, top: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        return self._sampler.token_logprobs(logits_QV, targets_Q, top)
