"""Paged attention in Triton: one kernel a layer for steps of single tokens, three for others.

T tokens, X packed projections, R rows, H query heads, G key-value heads, K head size.
"""

# Relaxed: Triton is untyped; caches and plans are always this backend's own.
# pyright: basic, reportIncompatibleMethodOverride=false

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import torch

from drivetrain_cuda.attention_plan import AttentionPlan, DecodeWork, Geometry, kinds_of_rows, make_decode_work
from drivetrain_cuda.kernels.cascade import cascade_kernel
from drivetrain_cuda.kernels.decode import decode_kernel
from drivetrain_cuda.kernels.prefill import plan_prefill, prefill_attention
from drivetrain_cuda.kernels.write import write_kernel
from drivetrain_cuda.tables.decode import DecodeConfig, decode_config, padded_head_dim
from drivetrain_plugins.contract.attention import AttentionLayer, PagedAttention
from drivetrain_plugins.contract.batch import StepBatch
from drivetrain_plugins.contract.memory import KVSpec
from drivetrain_plugins.contract.model import AttentionSpec
from drivetrain_plugins.contract.shapes import StepShape
from drivetrain_plugins.contract.slots import StepInputs
from drivetrain_triton.launch import launch

LOG2_E = 1.4426950408889634
MERGED_NUMBERS = 8192
"""Numbers of partial results that a program holds at once while it merges."""
WRITE_VECTORS = 32
"""Head vectors of a program that writes keys and values."""


class PagedCache(Protocol):
    """What attention reads of the backend's cache: per layer (pages, page, G, K) keys and values."""

    spec: KVSpec
    k: Sequence[torch.Tensor]
    v: Sequence[torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Transform:
    """Norm and rotation of queries and keys, as kernels take them; nothing if `norm` is False and `rotary_dim` 0."""

    q_weight: torch.Tensor | None = None
    k_weight: torch.Tensor | None = None
    cos_PF: torch.Tensor | None = None
    sin_PF: torch.Tensor | None = None
    eps: float = 0.0
    weight_offset: float = 0.0
    norm: bool = False
    late_weight: bool = False
    rotary_dim: int = 0
    interleaved: bool = False

    @staticmethod
    def of(layer: AttentionLayer) -> _Transform:
        """What a layer asks for."""
        q_norm, k_norm, rotary = layer.q_norm, layer.k_norm, layer.rotary
        return _Transform(
            q_weight=q_norm.weight if q_norm else None,
            k_weight=k_norm.weight if k_norm else None,
            cos_PF=rotary.cos_PF if rotary else None,
            sin_PF=rotary.sin_PF if rotary else None,
            eps=q_norm.spec.eps if q_norm else 0.0,
            weight_offset=q_norm.spec.weight_offset if q_norm else 0.0,
            norm=q_norm is not None,
            late_weight=q_norm is not None and q_norm.spec.late_weight,
            rotary_dim=rotary.dim if rotary else 0,
            interleaved=rotary is not None and rotary.interleaved,
        )

    @property
    def constexprs(self) -> dict[str, Any]:
        """Parameters that every kernel with queries or keys compiles in."""
        return {
            "NORM": self.norm,
            "LATE_WEIGHT": self.late_weight,
            "ROTARY_DIM": self.rotary_dim,
            "INTERLEAVED": self.interleaved,
        }


_UNCHANGED = _Transform()


class CudaAttention(PagedAttention):
    """Attention of the CUDA backend.

    Args:
        arch: "sm_90" and so on.
        num_processors: streaming multiprocessors.
        pdl: launch with programmatic dependent launch.
        batch_invariant: a row's result does not depend on the rows beside it, at some cost in speed.
    """

    def __init__(self, *, arch: str, num_processors: int, pdl: bool, batch_invariant: bool = False) -> None:
        self._arch = arch
        self._num_processors = num_processors
        self._pdl = pdl
        self._batch_invariant = batch_invariant

    def plan(self, inputs: StepInputs, shape: StepShape, batch: StepBatch | None, cache: PagedCache) -> AttentionPlan:
        decodes, prefills = kinds_of_rows(shape, batch)
        return AttentionPlan(
            inputs=inputs,
            shape=shape,
            batch=batch,
            max_tokens=inputs.page_table_SP.shape[1] * cache.spec.page_size,
            decodes=decodes,
            prefills=prefills,
        )

    def attention(
        self, qkv_TX: torch.Tensor, layer: AttentionLayer, cache: PagedCache, plan: AttentionPlan
    ) -> torch.Tensor:
        if not is_fusible(layer):
            return super().attention(qkv_TX, layer, cache, plan)  # pyright: ignore[reportArgumentType]
        spec = layer.spec
        q_THK, k_TGK, v_TGK = _heads_of(qkv_TX, spec)
        transform = _Transform.of(layer)
        if not plan.prefills:
            out_THK = _empty_like(q_THK)
            self._decode(q_THK, out_THK, layer, cache, plan, transform, new=(k_TGK, v_TGK))
            return out_THK.flatten(1)
        changed_THK = q_THK if transform.norm or transform.rotary_dim else None
        self._write(changed_THK, k_TGK, v_TGK, layer, cache, plan, transform)
        return self.attend(q_THK, layer, cache, plan).flatten(1)

    def write(
        self,
        k_TGK: torch.Tensor,
        v_TGK: torch.Tensor,
        layer: AttentionLayer,
        cache: PagedCache,
        plan: AttentionPlan,
    ) -> None:
        if k_TGK.stride() != v_TGK.stride():
            k_TGK, v_TGK = k_TGK.contiguous(), v_TGK.contiguous()
        self._write(None, k_TGK, v_TGK, layer, cache, plan, _UNCHANGED)

    def attend(
        self, q_THK: torch.Tensor, layer: AttentionLayer, cache: PagedCache, plan: AttentionPlan
    ) -> torch.Tensor:
        out_THK = _empty_like(q_THK)
        if plan.prefills:
            key = (Geometry.of(layer.spec).group, layer.spec.head_dim, q_THK.dtype)
            if key not in plan.prefill:
                plan.prefill[key] = plan_prefill(
                    plan.inputs,
                    plan.shape,
                    plan.batch,
                    group=key[0],
                    head_dim=key[1],
                    dtype=key[2],
                    arch=self._arch,
                    pdl=self._pdl,
                )
            prefill_attention(
                q_THK,
                out_THK,
                layer,
                cache.k[layer.index],
                cache.v[layer.index],
                plan.inputs,
                plan.prefill[key],
                pdl=self._pdl,
                arch=self._arch,
            )
        if plan.decodes:
            self._decode(q_THK, out_THK, layer, cache, plan, _UNCHANGED, new=None)
        return out_THK

    def _write(
        self,
        q_THK: torch.Tensor | None,
        k_TGK: torch.Tensor,
        v_TGK: torch.Tensor,
        layer: AttentionLayer,
        cache: PagedCache,
        plan: AttentionPlan,
        transform: _Transform,
    ) -> None:
        """Store keys and values, transformed; and transform queries in place, if given."""
        spec = layer.spec
        block_heads = min(8, 1 << (spec.num_kv_heads - 1).bit_length())
        block_tokens = WRITE_VECTORS // block_heads
        blocks = -(-spec.num_kv_heads // block_heads)
        if q_THK is not None:
            blocks += -(-spec.num_heads // block_heads)
        tokens = k_TGK.shape[0]
        k_PSGK, soft_fp8 = self._pages(cache.k[layer.index])
        v_PSGK, _ = self._pages(cache.v[layer.index])
        launch(
            write_kernel,
            (-(-tokens // block_tokens), blocks),
            q_THK,
            k_TGK,
            v_TGK,
            k_PSGK,
            v_PSGK,
            plan.inputs.positions_T,
            plan.inputs.kv_slots_T,
            transform.q_weight,
            transform.k_weight,
            transform.cos_PF,
            transform.sin_PF,
            tokens,
            q_THK.stride(0) if q_THK is not None else 0,
            k_TGK.stride(0),
            *_strides(k_PSGK, v_PSGK),
            transform.eps,
            transform.weight_offset,
            NUM_HEADS=spec.num_heads,
            NUM_KV_HEADS=spec.num_kv_heads,
            HEAD_DIM=spec.head_dim,
            PAGE=k_PSGK.shape[1],
            BLOCK_T=block_tokens,
            BLOCK_H=block_heads,
            BLOCK_K=padded_head_dim(spec.head_dim),
            SOFT_FP8=soft_fp8,
            num_warps=4,
            pdl=self._pdl,
            **transform.constexprs,
        )

    def _decode(
        self,
        q_THK: torch.Tensor,
        out_THK: torch.Tensor,
        layer: AttentionLayer,
        cache: PagedCache,
        plan: AttentionPlan,
        transform: _Transform,
        *,
        new: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> None:
        """Attend rows with one token.

        Args:
            new: keys and values of this step where they are not in pages yet; they and the queries are then transformed
                on the way.
        """
        spec = layer.spec
        geometry = Geometry.of(spec)
        k_PSGK, soft_fp8 = self._pages(cache.k[layer.index])
        v_PSGK, _ = self._pages(cache.v[layer.index])
        block_rows = max(16, 1 << (geometry.group - 1).bit_length())
        config = self._config(spec, k_PSGK, q_THK, block_rows)
        work = plan.decode_work(
            geometry,
            lambda: make_decode_work(
                plan.inputs,
                geometry=geometry,
                config=config,
                max_tokens=plan.max_tokens,
                num_processors=self._num_processors,
                batch_invariant=self._batch_invariant,
                pdl=self._pdl,
            ),
        )
        if work.shared_work_VC is not None:
            self._cascade(q_THK, layer, (k_PSGK, v_PSGK), plan, geometry, work, transform)
        group_block = 1 << (geometry.group - 1).bit_length()
        launch(
            decode_kernel,
            (spec.num_kv_heads, work.work_WC.shape[0]),
            q_THK,
            *(new or (None, None)),
            out_THK,
            k_PSGK,
            v_PSGK,
            plan.inputs.page_table_SP,
            work.work_WC,
            work.arrivals_WG,
            work.part_o_AHK,
            work.part_ml_A2H,
            transform.q_weight,
            transform.k_weight,
            transform.cos_PF,
            transform.sin_PF,
            layer.sinks_H,
            layer.alibi_H,
            q_THK.stride(0),
            plan.inputs.page_table_SP.stride(0),
            *_strides(k_PSGK, v_PSGK),
            _scale(spec),
            spec.soft_cap or 0.0,
            transform.eps,
            transform.weight_offset,
            BLOCK_M=block_rows,
            BLOCK_P=group_block,
            BLOCK_J=max(1, min(16, MERGED_NUMBERS // (group_block * padded_head_dim(spec.head_dim)))),
            FUSED=new is not None,
            WINDOW=spec.window or 0,
            SINKS=layer.sinks_H is not None,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
            pdl=self._pdl,
            **transform.constexprs,
            **_constexprs(layer, k_PSGK, q_THK, config, soft_fp8=soft_fp8),
        )

    def _cascade(
        self,
        q_THK: torch.Tensor,
        layer: AttentionLayer,
        pages: tuple[torch.Tensor, torch.Tensor],
        plan: AttentionPlan,
        geometry: Geometry,
        work: DecodeWork,
        transform: _Transform,
    ) -> None:
        """Partial results of shared prefixes, for the decode kernel to merge."""
        spec = layer.spec
        k_PSGK, v_PSGK = pages
        assert work.shared_work_VC is not None
        config = self._config(spec, k_PSGK, q_THK, geometry.shared_rows)
        launch(
            cascade_kernel,
            (spec.num_kv_heads, work.shared_work_VC.shape[0]),
            q_THK,
            k_PSGK,
            v_PSGK,
            plan.inputs.page_table_SP,
            plan.inputs.shared_rows_R,
            work.shared_work_VC,
            work.shared_part_R,
            plan.inputs.kv_len_R,
            plan.inputs.query_start_R1,
            plan.inputs.row_slot_R,
            work.part_o_AHK,
            work.part_ml_A2H,
            transform.q_weight,
            transform.cos_PF,
            transform.sin_PF,
            layer.alibi_H,
            q_THK.stride(0),
            plan.inputs.page_table_SP.stride(0),
            *_strides(k_PSGK, v_PSGK),
            _scale(spec),
            spec.soft_cap or 0.0,
            transform.eps,
            transform.weight_offset,
            BLOCK_M=geometry.shared_rows,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
            pdl=self._pdl,
            **transform.constexprs,
            **_constexprs(layer, k_PSGK, q_THK, config, soft_fp8=k_PSGK.dtype is torch.uint8),
        )

    def _config(self, spec: AttentionSpec, k_PSGK: torch.Tensor, q_THK: torch.Tensor, rows: int) -> DecodeConfig:
        return decode_config(self._arch, spec.head_dim, k_PSGK.itemsize, q_THK.itemsize, rows)

    def _pages(self, pages_PSGK: torch.Tensor) -> tuple[torch.Tensor, bool]:
        """The cache as kernels take it, and whether they must code e4m3 by hand: parts before sm_89 do not know it."""
        if pages_PSGK.dtype is torch.float8_e4m3fn and not _has_e4m3(self._arch):
            return pages_PSGK.view(torch.uint8), True
        return pages_PSGK, False


@lru_cache
def _has_e4m3(arch: str) -> bool:
    return int(arch.removeprefix("sm_")) >= 89


def is_fusible(layer: AttentionLayer) -> bool:
    """Whether kernels norm and rotate by themselves: root-mean-square norms of single heads, no clipped projections."""
    spec, q_norm, k_norm = layer.spec, layer.q_norm, layer.k_norm
    if spec.clip_qkv is not None or (q_norm is None) != (k_norm is None):
        return False
    if q_norm is None or k_norm is None:
        return True
    one_weight = all(
        norm.bias is None and (norm.weight is None or norm.weight.shape == (spec.head_dim,))
        for norm in (q_norm, k_norm)
    )
    per_head = spec.qk_norm is None or spec.qk_norm.span == "head"
    return one_weight and per_head and q_norm.spec == k_norm.spec and q_norm.spec.kind == "rms"


def _heads_of(qkv_TX: torch.Tensor, spec: AttentionSpec) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Views of queries, keys and values."""
    if qkv_TX.stride(1) != 1:
        qkv_TX = qkv_TX.contiguous()
    heads_THK = qkv_TX.view(-1, spec.num_heads + 2 * spec.num_kv_heads, spec.head_dim)
    q_THK, k_TGK, v_TGK = heads_THK.split((spec.num_heads, spec.num_kv_heads, spec.num_kv_heads), dim=1)
    return q_THK, k_TGK, v_TGK


def _empty_like(q_THK: torch.Tensor) -> torch.Tensor:
    return torch.empty(q_THK.shape, dtype=q_THK.dtype, device=q_THK.device)


def _strides(k_PSGK: torch.Tensor, v_PSGK: torch.Tensor) -> tuple[int, int, int]:
    assert k_PSGK.stride() == v_PSGK.stride() and k_PSGK.stride(3) == 1, "keys and values must lie alike"
    return k_PSGK.stride(0), k_PSGK.stride(1), k_PSGK.stride(2)


def _scale(spec: AttentionSpec) -> float:
    """Factor of the scores; into base 2, unless they are capped first."""
    return spec.scale if spec.soft_cap is not None else spec.scale * LOG2_E


def _constexprs(
    layer: AttentionLayer, k_PSGK: torch.Tensor, q_THK: torch.Tensor, config: DecodeConfig, *, soft_fp8: bool
) -> dict[str, Any]:
    """Parameters that the decode and the cascade kernel share."""
    spec = layer.spec
    return {
        "NUM_HEADS": spec.num_heads,
        "NUM_KV_HEADS": spec.num_kv_heads,
        "HEAD_DIM": spec.head_dim,
        "PAGE": k_PSGK.shape[1],
        "BLOCK_N": config.block_n,
        "BLOCK_K": padded_head_dim(spec.head_dim),
        "STAGES": config.num_stages,
        "SOFT_CAP": spec.soft_cap is not None,
        "ALIBI": layer.alibi_H is not None,
        "SOFT_FP8": soft_fp8,
        "EXACT": q_THK.dtype is torch.float32,
    }
