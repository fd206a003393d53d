"""Paged attention of the ROCm backend: the shared decode kernels, and prefill of its own.

T tokens, H query heads, G key-value heads, K head size.
"""

# Relaxed: Triton is untyped; caches and plans are always this backend's own.
# pyright: basic, reportIncompatibleMethodOverride=false

from __future__ import annotations

import torch

from drivetrain_plugins.contract.attention import AttentionLayer
from drivetrain_rocm.kernels.prefill_launch import launch_prefill, tokens_of_block
from drivetrain_rocm.parts import part_of
from drivetrain_rocm.tables.decode import decode_config
from drivetrain_rocm.tables.prefill import prefill_config
from drivetrain_triton.attention.config import DecodeConfig
from drivetrain_triton.attention.paged import PagedCache, TritonAttention
from drivetrain_triton.attention.plan import AttentionPlan
from drivetrain_triton.attention.prefill_plan import make_plan

PLAN_WARPS = 8
"""With 4, planning prompts spills on gfx1201."""


class RocmAttention(TritonAttention):
    """Attention of the ROCm backend.

    Args:
        arch: "gfx942" and so on, one that is served. num_processors: compute units.
        batch_invariant: as in `TritonAttention`.
    """

    def __init__(self, *, arch: str, num_processors: int, batch_invariant: bool = False) -> None:
        super().__init__(arch=arch, num_processors=num_processors, pdl=False, batch_invariant=batch_invariant)
        part = part_of(arch)
        self._knows_e4m3 = part is not None and part.fp8 != "none"
        # As many threads for a head's registers whatever the wave.
        self.write_warps = 4 if part is None else 256 // part.wave_size

    def decode_config(self, head_dim: int, kv_bytes: int, query_bytes: int, rows: int) -> DecodeConfig:
        return decode_config(self._arch, head_dim, kv_bytes, query_bytes, rows)

    def is_soft_fp8(self, pages: torch.Tensor) -> bool:
        return pages.dtype is torch.float8_e4m3fn and not self._knows_e4m3

    def prefill(
        self,
        q_THK: torch.Tensor,
        out_THK: torch.Tensor,
        layer: AttentionLayer,
        cache: PagedCache,
        plan: AttentionPlan,
    ) -> None:
        spec = layer.spec
        group = spec.num_heads // spec.num_kv_heads
        config = prefill_config(self._arch, spec.head_dim, q_THK.itemsize)
        key = (group, spec.head_dim, q_THK.dtype)
        work = plan.prefill.get(key)
        if work is None:
            block_tokens = tokens_of_block(config, group)
            work = plan.prefill[key] = make_plan(
                plan.inputs, plan.shape, plan.batch, block_tokens=block_tokens, pdl=False, num_warps=PLAN_WARPS
            )
        launch_prefill(q_THK, out_THK, layer, self._pages(layer, cache), plan.inputs, work, config)
