"""What prefill attention of a model will launch, for compiling ahead.

T tokens, R rows, H query heads, G key-value heads, K head size, S slots.
"""

# Relaxed: variants hold what Triton takes, which is untyped.
# pyright: basic

from __future__ import annotations

from dataclasses import MISSING, fields

import torch

from drivetrain_cuda.kernels.prefill import plan_prefill, prefill_attention
from drivetrain_plugins.contract.attention import AttentionLayer
from drivetrain_plugins.contract.executor import ExecutorLimits
from drivetrain_plugins.contract.model import AttentionSpec, DecoderSpec
from drivetrain_plugins.contract.shapes import StepShape
from drivetrain_plugins.contract.slots import StepInputs
from drivetrain_triton.arch import GpuArch
from drivetrain_triton.launch import Variant, recording

_KV_DTYPES = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}


def prefill_variants(spec: DecoderSpec, limits: ExecutorLimits, arch: GpuArch) -> list[Variant]:
    """Every specialisation that the model's prefill attention launches, planning included.

    Raises:
        ValueError: no configuration for this architecture or head size.
    """
    dtype = getattr(torch, limits.dtype)
    kv_dtype = _KV_DTYPES.get(limits.kv_dtype) or getattr(torch, limits.kv_dtype)
    with recording() as variants:
        for mixer in dict.fromkeys(layer.mixer for layer in spec.layers):
            _record(mixer, dtype, kv_dtype, limits, arch)
    return list({variant.key: variant for variant in variants}.values())


def _record(
    mixer: AttentionSpec, dtype: torch.dtype, kv_dtype: torch.dtype, limits: ExecutorLimits, arch: GpuArch
) -> None:
    heads, kv_heads, size = mixer.num_heads, mixer.num_kv_heads, mixer.head_dim
    per_head_H = _meta(heads, dtype=torch.float32)
    layer = AttentionLayer(
        index=0,
        spec=mixer,
        rotary=None,
        q_norm=None,
        k_norm=None,
        sinks_H=per_head_H if mixer.sinks else None,
        alibi_H=per_head_H if mixer.alibi_slopes else None,
    )
    shape = StepShape(rows=1, tokens=2, pages=1)
    inputs = _inputs(shape, num_slots=limits.max_num_rows, max_pages=limits.max_pages)
    plan = plan_prefill(
        inputs,
        shape,
        None,
        group=heads // kv_heads,
        head_dim=size,
        dtype=dtype,
        arch=arch.name,
        pdl=arch.pdl,
    )
    q_THK = _meta(shape.tokens, heads + 2 * kv_heads, size, dtype=dtype)[:, :heads]
    out_THK = _meta(shape.tokens, heads, size, dtype=dtype)
    pages_PSGK = _meta(2, limits.page_size, kv_heads, size, dtype=kv_dtype)
    prefill_attention(
        q_THK, out_THK, layer, pages_PSGK, pages_PSGK, inputs, plan, pdl=arch.pdl, arch=arch.name
    )  # fmt: skip


def _inputs(shape: StepShape, *, num_slots: int, max_pages: int) -> StepInputs:
    required = [part.name for part in fields(StepInputs) if part.default is MISSING]
    tensors = dict.fromkeys(required, _meta(shape.rows))
    tensors |= {
        "query_start_R1": _meta(shape.rows + 1),
        "page_table_SP": _meta(num_slots + 1, max_pages, dtype=torch.int32),
    }
    return StepInputs(**tensors)


def _meta(*size: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.empty(size, dtype=dtype, device="meta")
