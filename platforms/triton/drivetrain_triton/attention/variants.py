"""What attention launches for a model, recorded from attention itself on tensors without memory, to be compiled ahead.

T tokens, X packed projections, R rows, K head size, P rotary positions, F pairs.
"""

# Relaxed: variants hold what Triton takes, which is untyped.
# pyright: basic

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from drivetrain_plugins.contract.attention import AttentionLayer, NormWeights, RotaryTable
from drivetrain_plugins.contract.executor import ExecutorLimits
from drivetrain_plugins.contract.memory import KVLayerSpec, KVSpec
from drivetrain_plugins.contract.model import AttentionSpec, DecoderSpec
from drivetrain_plugins.contract.shapes import StepShape
from drivetrain_plugins.contract.slots import StepInputs
from drivetrain_triton.attention.paged import TritonAttention
from drivetrain_triton.attention.plan import planned_rows
from drivetrain_triton.launch import Variant, recording


def attention_variants(
    attention: TritonAttention, spec: DecoderSpec, limits: ExecutorLimits, kv_dtype: torch.dtype
) -> list[Variant]:
    """Every specialisation that a model's layers launch with this attention, planning and cache writes included.

    Args:
        spec: this rank's share of the model.
        kv_dtype: that pages are stored in.
    """
    dtype = getattr(torch, limits.dtype)
    with recording() as variants:
        for mixer in dict.fromkeys(layer.mixer for layer in spec.layers):
            layer, cache = meta_layer(mixer, dtype), MetaCache.of(mixer, limits, kv_dtype)
            for shape in _shapes(limits.max_num_rows):
                inputs = meta_inputs(shape, limits.max_pages)
                plan = attention.plan(inputs, shape, None, cache)
                width = (mixer.num_heads + 2 * mixer.num_kv_heads) * mixer.head_dim
                for _ in ("first layer", "later layers"):
                    attention.attention(meta(shape.tokens, width, dtype=dtype), layer, cache, plan)
    return list({variant.key: variant for variant in variants}.values())


def _shapes(max_rows: int) -> Iterator[StepShape]:
    """A step for each size of the planning kernel, with and without prefill and shared prefixes."""
    # One row more than may run belongs to padding.
    for rows in sorted({planned_rows(rows) for rows in range(1, max_rows + 2)}):
        decode = StepShape(rows=rows, tokens=rows, pages=1, decode_only=True)
        mixed = StepShape(rows=rows, tokens=rows, pages=1)
        for shape in (decode, mixed):
            yield shape
            yield replace(shape, shared_groups=1)


def meta(*size: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    """A tensor with a type and a shape, and no memory."""
    return torch.empty(size, dtype=dtype, device="meta")


def meta_inputs(shape: StepShape, columns: int) -> StepInputs:
    """Inputs of a step of this shape, with so many columns of the page table."""
    tokens, rows, int32 = meta(shape.tokens), meta(shape.rows), torch.int32
    shared = shape.shared_groups > 0
    return StepInputs(
        ids_T=tokens,
        positions_T=tokens,
        kv_slots_T=tokens,
        token_row_T=tokens,
        row_slot_R=rows,
        row_start_R=rows,
        kv_len_R=rows,
        query_start_R1=meta(shape.rows + 1),
        sample_token_K=rows,
        sample_slot_K=rows,
        sample_position_K=rows,
        biases_N4=meta(0, 4, dtype=int32),
        page_table_SP=meta(2, columns, dtype=int32),
        shared_rows_R=meta(shape.rows, dtype=int32) if shared else None,
        shared_groups_G3=meta(shape.shared_groups, 3, dtype=int32) if shared else None,
    )


def meta_layer(mixer: AttentionSpec, dtype: torch.dtype) -> AttentionLayer:
    """A layer with everything that its spec asks for."""

    def norm(heads: int) -> NormWeights | None:
        if mixer.qk_norm is None:
            return None
        size = {"head": (mixer.head_dim,), "heads": (heads, mixer.head_dim), "full": (heads * mixer.head_dim,)}
        weights = meta(*size[mixer.qk_norm.span], dtype=dtype)
        norm_spec = mixer.qk_norm.norm
        return NormWeights(
            spec=norm_spec, weight=weights if norm_spec.weight else None, bias=weights if norm_spec.bias else None
        )

    rotary = None
    if mixer.rotary is not None:
        angles_PF = meta(1, mixer.rotary.dim // 2, dtype=torch.float32)
        rotary = RotaryTable(cos_PF=angles_PF, sin_PF=angles_PF, interleaved=mixer.rotary.style == "interleaved")
    per_head = meta(mixer.num_heads, dtype=torch.float32)
    return AttentionLayer(
        index=0,
        spec=mixer,
        rotary=rotary,
        q_norm=norm(mixer.num_heads),
        k_norm=norm(mixer.num_kv_heads),
        sinks_H=per_head if mixer.sinks else None,
        alibi_H=per_head if mixer.alibi_slopes else None,
    )


LARGE_PAGES_BYTES = 1 << 31
"""Pages of a meta cache take more, as a real cache's do: AMD's compiler makes other code for smaller tensors."""


@dataclass(frozen=True, slots=True)
class MetaCache:
    """Pages of one layer, without memory."""

    spec: KVSpec
    k: list[torch.Tensor]
    v: list[torch.Tensor]

    @staticmethod
    def of(mixer: AttentionSpec, limits: ExecutorLimits, dtype: torch.dtype) -> MetaCache:
        """The cache of one layer."""
        layer = KVLayerSpec(num_kv_heads=mixer.num_kv_heads, head_dim=mixer.head_dim, window=mixer.window)
        spec = KVSpec(layers=(layer,), dtype=limits.kv_dtype, page_size=limits.page_size)
        page_bytes = limits.page_size * mixer.num_kv_heads * mixer.head_dim * dtype.itemsize
        num_pages = LARGE_PAGES_BYTES // page_bytes + 1
        pages = meta(num_pages, limits.page_size, mixer.num_kv_heads, mixer.head_dim, dtype=dtype)
        return MetaCache(spec, [pages], [pages])
