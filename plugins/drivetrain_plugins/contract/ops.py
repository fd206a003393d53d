"""The ops of a forward pass, fine to coarse. Each has its plain torch meaning here, built from `contract.reference`.

A backend subclasses `Ops` and overrides what it does better, at any grain: a norm, a whole MLP, a whole decoder layer.
Whatever it leaves alone keeps its decomposition, so a new backend is right before it is fast.

T tokens, D hidden size, F inner size, V vocabulary, K samples.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from drivetrain_plugins.contract import reference
from drivetrain_plugins.contract.attention import AttentionLayer, NormWeights, PagedAttention
from drivetrain_plugins.contract.batch import BatchLayout, Int32Array, SampleFeatures
from drivetrain_plugins.contract.communicator import Communicator
from drivetrain_plugins.contract.memory import KVCache
from drivetrain_plugins.contract.model import Activation, DecoderSpec, LayerSpec, MlpSpec
from drivetrain_plugins.contract.slots import SampledTokens, SlotState, StepInputs


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearWeight:
    """Weights of one linear layer as they come from the checkpoint, several outputs packed in order.

    Attributes:
        weight: (out, in) on the device, in the activation type unless quantized.
        bias: (out,) or None.
        quantization: "none", or one of `weight_formats.WEIGHT_FORMATS`, which also say how `weight` lies then.
        parts: the format's further tensors, by name.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    quantization: str = "none"
    parts: dict[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWeights:
    """One decoder layer, ready to run. `qkv`, `out`, `up` and `down` are what `prepare_linear` returned.

    Attributes:
        norms: by canonical name, those that `spec.norm_names` lists.
        up: gate and up packed, gate first, if the MLP is gated.
    """

    spec: LayerSpec
    norms: dict[str, NormWeights]
    qkv: Any
    out: Any
    up: Any
    down: Any
    attention: AttentionLayer


@dataclass(frozen=True, slots=True, kw_only=True)
class StepContext:
    """What every layer of one step shares."""

    attention: PagedAttention
    plan: Any
    cache: KVCache
    communicator: Communicator


def kept(x_TD: torch.Tensor, keep_K: torch.Tensor | None) -> torch.Tensor:
    """The rows of `keep_K`, (K, D); everything if it is None."""
    return x_TD if keep_K is None else x_TD.index_select(0, keep_K)


class Ops:
    """Torch reference of every op. Stateless but for what a backend adds."""

    def prepare(self, packed: torch.Tensor, layout: BatchLayout, slots: SlotState, page_size: int) -> StepInputs:
        """Apply a packed batch's differences to the slots and derive the step's inputs.

        Args:
            packed: int32 on the device, at least `layout.size` long.
        """
        return reference.prepare(packed, layout, slots, page_size)

    def embed(self, ids_T: torch.Tensor, weight_VD: torch.Tensor) -> torch.Tensor:
        """Rows of the embedding, (T, D)."""
        return torch.nn.functional.embedding(ids_T, weight_VD)

    def norm(self, x_TD: torch.Tensor, weights: NormWeights) -> torch.Tensor:
        """Norm over the last dimension, in fp32, returned in the type of `x_TD`."""
        return reference.norm(x_TD, weights)

    def add_norm(
        self, delta_TD: torch.Tensor, residual_TD: torch.Tensor, weights: NormWeights
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(norm(delta + residual), delta + residual). May overwrite `residual_TD`."""
        total_TD = residual_TD + delta_TD
        return self.norm(total_TD, weights), total_TD

    def prepare_linear(self, weight: LinearWeight) -> Any:
        """Repack a weight once, at load. The result is opaque to core and goes to `linear`.

        Raises:
            Unsupported: a quantization that this backend has not.
        """
        return reference.prepare_linear(weight)

    def linear(self, x_TD: torch.Tensor, handle: Any) -> torch.Tensor:
        """x W^T + b for a handle of `prepare_linear`."""
        return torch.nn.functional.linear(x_TD, handle.weight, handle.bias)

    def activate(self, x_TF: torch.Tensor, activation: Activation) -> torch.Tensor:
        """Elementwise activation."""
        return reference.activate(x_TF, activation)

    def activate_gate(self, x_T2F: torch.Tensor, activation: Activation) -> torch.Tensor:
        """activation(first half) * second half, (T, F)."""
        gate_TF, up_TF = x_T2F.chunk(2, dim=-1)
        return reference.activate(gate_TF, activation) * up_TF

    def mlp(self, x_TD: torch.Tensor, spec: MlpSpec, up: Any, down: Any) -> torch.Tensor:
        """The feed-forward part, before its all-reduce."""
        inner = self.linear(x_TD, up)
        inner = self.activate_gate(inner, spec.activation) if spec.gated else self.activate(inner, spec.activation)
        return self.linear(inner, down)

    def mix(
        self, x_TD: torch.Tensor, layer: LayerWeights, step: StepContext, keep_K: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The attention part: projections, paged attention, output projection; before its all-reduce.

        Args:
            keep_K: as in `decoder_layer`: only these tokens are projected out.
        """
        mixed_TX = step.attention.attention(self.linear(x_TD, layer.qkv), layer.attention, step.cache, step.plan)
        return self.linear(kept(mixed_TX, keep_K), layer.out)

    def decoder_layer(
        self,
        delta_TD: torch.Tensor | None,
        residual_TD: torch.Tensor,
        layer: LayerWeights,
        step: StepContext,
        keep_K: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        """One decoder layer.

        The residual stream is `residual + delta`: the last branch is added by the next norm, so that a backend can
        fuse the two. Both may be overwritten.

        Args:
            keep_K: int64 indices of the only tokens whose results are wanted, or None for all. Keys and values of all
                tokens are written all the same.

        Returns:
            (delta, residual) for the next layer, of all tokens or of the kept ones in the order of `keep_K`.
        """
        spec = layer.spec
        reduce = step.communicator.all_reduce
        if spec.parallel != "no":
            x_TD, residual_TD = self._enter(delta_TD, residual_TD, layer.norms.get("attn_norm"))
            mixed_TD = self.mix(x_TD, layer, step, keep_K)
            x_TD, residual_TD = kept(x_TD, keep_K), kept(residual_TD, keep_K)
            mlp_in_TD = x_TD if spec.parallel == "shared" else self.norm(residual_TD, layer.norms["mlp_norm"])
            total_TD = mixed_TD + self.mlp(mlp_in_TD, spec.mlp, layer.up, layer.down)
            return self._leave(reduce(total_TD), layer, None), residual_TD
        if spec.sum_norm:
            mixed_TD = self._leave(reduce(self.mix(residual_TD, layer, step, keep_K)), layer, None)
            x_TD, _ = self.add_norm(mixed_TD, kept(residual_TD, keep_K), layer.norms["attn_norm"])
            inner_TD = self._leave(reduce(self.mlp(x_TD, spec.mlp, layer.up, layer.down)), layer, None)
            y_TD, _ = self.add_norm(inner_TD, x_TD, layer.norms["mlp_norm"])
            return None, y_TD
        x_TD, residual_TD = self._enter(delta_TD, residual_TD, layer.norms.get("attn_norm"))
        delta_TD = self._leave(reduce(self.mix(x_TD, layer, step, keep_K)), layer, "attn_post_norm")
        x_TD, residual_TD = self._enter(delta_TD, kept(residual_TD, keep_K), layer.norms.get("mlp_norm"))
        delta_TD = reduce(self.mlp(x_TD, spec.mlp, layer.up, layer.down))
        return self._leave(delta_TD, layer, "mlp_post_norm"), residual_TD

    def _enter(
        self, delta_TD: torch.Tensor | None, residual_TD: torch.Tensor, norm: NormWeights | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(branch input, residual stream) once the pending branch has been added."""
        if delta_TD is None:
            return (residual_TD if norm is None else self.norm(residual_TD, norm)), residual_TD
        if norm is None:
            total_TD = residual_TD + delta_TD
            return total_TD, total_TD
        return self.add_norm(delta_TD, residual_TD, norm)

    def _leave(self, branch_TD: torch.Tensor, layer: LayerWeights, norm: str | None) -> torch.Tensor:
        """A branch's output as it is added to the residual stream."""
        if norm is not None and norm in layer.norms:
            branch_TD = self.norm(branch_TD, layer.norms[norm])
        scale = layer.spec.residual_scale
        return branch_TD if scale == 1.0 else branch_TD * scale

    def logits(self, x_KD: torch.Tensor, lm_head: Any, spec: DecoderSpec) -> torch.Tensor:
        """Scaled and capped logits, float32 (K, V)."""
        logits_KV = self.linear(x_KD, lm_head).float()
        if spec.logits_scale != 1.0:
            logits_KV = logits_KV * spec.logits_scale
        if spec.logits_soft_cap is not None:
            logits_KV = torch.tanh(logits_KV / spec.logits_soft_cap) * spec.logits_soft_cap
        return logits_KV

    def sample(
        self, logits_KV: torch.Tensor, inputs: StepInputs, slots: SlotState, features: SampleFeatures
    ) -> SampledTokens:
        """Choose a token for each sampled row and remember it in the row's slot.

        Args:
            logits_KV: float32; may be overwritten.
            inputs: with the masks of `TokenMasks` where `features.masks` is set.
        """
        return reference.sample(logits_KV, inputs, slots, features)

    def pool(self, x_TD: torch.Tensor, spans_P2: Int32Array) -> torch.Tensor:
        """Sums of hidden states, float32 (P, D).

        Args:
            spans_P2: on the host: first and behind the last token of each sum.
        """
        return torch.stack([x_TD[first:last].sum(0, dtype=torch.float32) for first, last in spans_P2.tolist()])

    def token_logprobs(
        self, logits_QV: torch.Tensor, targets_Q: torch.Tensor, top: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """(logprobs_Q, ranks_Q, top_ids_Qk, top_logprobs_Qk) of given tokens under float32 logits."""
        return reference.token_logprobs(logits_QV, targets_Q, top)
