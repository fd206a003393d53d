"""Paged attention of the CUDA backend: the shared decode kernels, and prefill of its own.

T tokens, H query heads, G key-value heads, K head size.
"""

# Relaxed: Triton is untyped; caches and plans are always this backend's own.
# pyright: basic, reportIncompatibleMethodOverride=false

from __future__ import annotations

import torch

from drivetrain_cuda.fp8 import is_soft_fp8
from drivetrain_cuda.kernels.prefill import plan_prefill, prefill_attention
from drivetrain_cuda.tables.decode import decode_config
from drivetrain_plugins.contract.attention import AttentionLayer
from drivetrain_plugins.contract.executor import ExecutorLimits
from drivetrain_plugins.contract.model import DecoderSpec
from drivetrain_triton.arch import GpuArch
from drivetrain_triton.attention.config import DecodeConfig
from drivetrain_triton.attention.paged import PagedCache, TritonAttention
from drivetrain_triton.attention.plan import AttentionPlan
from drivetrain_triton.attention.variants import attention_variants
from drivetrain_triton.device.cache import KV_DTYPES
from drivetrain_triton.launch import Variant


class CudaAttention(TritonAttention):
    """Attention of the CUDA backend. `arch` is "sm_90" and so on."""

    def decode_config(self, head_dim: int, kv_bytes: int, query_bytes: int, rows: int) -> DecodeConfig:
        return decode_config(self._arch, head_dim, kv_bytes, query_bytes, rows)

    def is_soft_fp8(self, pages: torch.Tensor) -> bool:
        return is_soft_fp8(pages, self._arch)

    def prefill(
        self,
        q_THK: torch.Tensor,
        out_THK: torch.Tensor,
        layer: AttentionLayer,
        cache: PagedCache,
        plan: AttentionPlan,
    ) -> None:
        group, head_dim, dtype = key = (
            layer.spec.num_heads // layer.spec.num_kv_heads,
            layer.spec.head_dim,
            q_THK.dtype,
        )
        work = plan.prefill.get(key)
        if work is None:
            work = plan.prefill[key] = plan_prefill(
                plan.inputs,
                plan.shape,
                plan.batch,
                group=group,
                head_dim=head_dim,
                dtype=dtype,
                arch=self._arch,
                pdl=self._pdl,
            )
        k_PSGK, v_PSGK = cache.k[layer.index], cache.v[layer.index]
        prefill_attention(
            q_THK, out_THK, layer, k_PSGK, v_PSGK, plan.inputs, work, pdl=self._pdl, arch=self._arch
        )  # fmt: skip


def decode_variants(spec: DecoderSpec, limits: ExecutorLimits, arch: GpuArch) -> list[Variant]:
    """Every specialisation that the model's decoding and cache writes launch. Prefill's are listed elsewhere."""
    attention = DecodeOnly(arch=arch.name, num_processors=arch.num_processors, pdl=arch.pdl)
    return attention_variants(attention, spec, limits, KV_DTYPES[limits.kv_dtype])


class DecodeOnly(CudaAttention):
    """Launches nothing for rows with more than one token."""

    def prefill(self, *args: object, **options: object) -> None:
        """Not here."""
