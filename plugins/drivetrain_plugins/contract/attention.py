"""Paged attention: from packed projections to the mixed values, keys and values kept in pages.

T tokens, R rows (sequences), H query heads, G key-value heads, K head size, P rotary positions, F rotary pairs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch

from drivetrain_plugins.contract import reference
from drivetrain_plugins.contract.batch import StepBatch
from drivetrain_plugins.contract.memory import KVCache
from drivetrain_plugins.contract.model import AttentionSpec, NormSpec
from drivetrain_plugins.contract.shapes import StepShape
from drivetrain_plugins.contract.slots import StepInputs


@dataclass(frozen=True, slots=True, kw_only=True)
class NormWeights:
    """A norm with its weights, in the activation type on the device."""

    spec: NormSpec
    weight: torch.Tensor | None
    bias: torch.Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RotaryTable:
    """Precomputed rotary angles.

    Attributes:
        cos_PF, sin_PF: float32 (positions, dim / 2), scaling and attention factor included.
        interleaved: pairs are (2 j, 2 j + 1) instead of (j, j + dim / 2).
    """

    cos_PF: torch.Tensor
    sin_PF: torch.Tensor
    interleaved: bool

    @property
    def dim(self) -> int:
        """Rotated elements of each head."""
        return 2 * self.cos_PF.shape[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionLayer:
    """Attention of one layer on this rank.

    Attributes:
        index: layer number; selects the layer's part of the KV cache.
        spec: head counts are this rank's share.
        sinks_H: float32 or None. alibi_H: float32 or None.
    """

    index: int
    spec: AttentionSpec
    rotary: RotaryTable | None
    q_norm: NormWeights | None
    k_norm: NormWeights | None
    sinks_H: torch.Tensor | None
    alibi_H: torch.Tensor | None


class PagedAttention(ABC):
    """A backend's attention. `attention` is what core calls; its default composes the smaller parts below.

    A backend overrides `write` and `attend` at least, and may override `attention` to fuse all of it.
    """

    @abstractmethod
    def plan(self, inputs: StepInputs, shape: StepShape, batch: StepBatch | None, cache: KVCache) -> Any:
        """Decide once a step what all layers share: splits, masks, gathered indices.

        Args:
            inputs: the batch on the device.
            shape: padded upper bounds; all that may be relied on while capturing.
            batch: the host's view, or None while capturing. A plan made with None must stay right for every batch of
                this shape.
            cache: pages of all layers.
        """

    @abstractmethod
    def write(self, k_TGK: torch.Tensor, v_TGK: torch.Tensor, layer: AttentionLayer, cache: KVCache, plan: Any) -> None:
        """Store keys and values of this step's tokens at `inputs.kv_slots_T`."""

    @abstractmethod
    def attend(self, q_THK: torch.Tensor, layer: AttentionLayer, cache: KVCache, plan: Any) -> torch.Tensor:
        """Causal attention of this step's queries over their rows' pages.

        Returns:
            (T, H, K) in the type of `q_THK`. Rows of padding may hold anything finite.
        """

    def positions(self, plan: Any) -> torch.Tensor:
        """`inputs.positions_T` of the step that `plan` was made for."""
        return plan.inputs.positions_T

    def attention(self, qkv_TX: torch.Tensor, layer: AttentionLayer, cache: KVCache, plan: Any) -> torch.Tensor:
        """Norm and rotate queries and keys, write keys and values, attend.

        Args:
            qkv_TX: (T, (H + 2 G) K), queries first, then keys, then values. May be overwritten.

        Returns:
            (T, H K) in the type of `qkv_TX`.
        """
        spec = layer.spec
        heads, kv_heads, size = spec.num_heads, spec.num_kv_heads, spec.head_dim
        if spec.clip_qkv is not None:
            qkv_TX = qkv_TX.clamp(-spec.clip_qkv, spec.clip_qkv)
        q_end, k_end = heads * size, (heads + kv_heads) * size
        q, k, v = qkv_TX[:, :q_end], qkv_TX[:, q_end:k_end], qkv_TX[:, k_end:]
        q_THK = reference.qk_norm(q, layer.q_norm, heads) if layer.q_norm else q.view(-1, heads, size)
        k_TGK = reference.qk_norm(k, layer.k_norm, kv_heads) if layer.k_norm else k.view(-1, kv_heads, size)
        v_TGK = v.view(-1, kv_heads, size)
        if layer.rotary is not None:
            q_THK, k_TGK = reference.rotate(q_THK, k_TGK, self.positions(plan), layer.rotary)
        self.write(k_TGK, v_TGK, layer, cache, plan)
        return self.attend(q_THK, layer, cache, plan).flatten(1)
