"""Launches of the attention kernels: from a layer, its pages and a step's plan to their arguments.

T tokens, H query heads, G key-value heads, K head size, P pages, S tokens of a page.
"""

# Relaxed: Triton is untyped.
# pyright: basic

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from drivetrain_plugins.contract.attention import AttentionLayer
from drivetrain_plugins.contract.model import AttentionSpec
from drivetrain_plugins.contract.slots import StepInputs
from drivetrain_triton.attention.cascade import cascade_kernel
from drivetrain_triton.attention.config import DecodeConfig, padded_head_dim
from drivetrain_triton.attention.decode import decode_kernel
from drivetrain_triton.attention.plan import DecodeWork, Geometry, power_of_two
from drivetrain_triton.attention.write import write_kernel
from drivetrain_triton.launch import launch

LOG2_E = 1.4426950408889634
MERGED_NUMBERS = 4096
"""Numbers of partial results that a program holds at once while it merges."""
WRITE_VECTORS = 32
"""Head vectors of a program that writes keys and values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transform:
    """Norm and rotation of queries and keys, as kernels take them; nothing if not `norm` and `rotary_dim` is 0."""

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
    def of(layer: AttentionLayer) -> Transform:
        """What a fusible layer asks for."""
        q_norm, k_norm, rotary = layer.q_norm, layer.k_norm, layer.rotary
        return Transform(
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
    def changes(self) -> bool:
        """Whether there is anything to do."""
        return self.norm or self.rotary_dim > 0

    @property
    def constexprs(self) -> dict[str, Any]:
        """Parameters that every kernel with queries or keys compiles in."""
        return {
            "NORM": self.norm,
            "LATE_WEIGHT": self.late_weight,
            "ROTARY_DIM": self.rotary_dim,
            "INTERLEAVED": self.interleaved,
        }


UNCHANGED = Transform()


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Pages:
    """One layer's pages as kernels take them.

    Attributes:
        k_PSGK, v_PSGK: laid out alike, the last dimension contiguous.
        soft_fp8: e4m3 as bytes, for parts that do not know it.
    """

    k_PSGK: torch.Tensor
    v_PSGK: torch.Tensor
    soft_fp8: bool

    @staticmethod
    def of(k_PSGK: torch.Tensor, v_PSGK: torch.Tensor, *, soft_fp8: bool) -> Pages:
        """The pages of a layer."""
        assert k_PSGK.stride() == v_PSGK.stride() and k_PSGK.stride(3) == 1, "keys and values must lie alike"
        if soft_fp8:
            return Pages(k_PSGK=k_PSGK.view(torch.uint8), v_PSGK=v_PSGK.view(torch.uint8), soft_fp8=True)
        return Pages(k_PSGK=k_PSGK, v_PSGK=v_PSGK, soft_fp8=False)

    @property
    def strides(self) -> tuple[int, int, int]:
        """Elements from page to page, token to token, head to head."""
        return self.k_PSGK.stride(0), self.k_PSGK.stride(1), self.k_PSGK.stride(2)


def launch_write(
    q_THK: torch.Tensor | None,
    k_TGK: torch.Tensor,
    v_TGK: torch.Tensor,
    pages: Pages,
    inputs: StepInputs,
    transform: Transform,
    *,
    num_warps: int,
    pdl: bool,
) -> None:
    """Store keys and values of all tokens, transformed; and transform queries in place, if given.

    Args:
        k_TGK, v_TGK: at the same strides.
    """
    _, num_kv_heads, head_dim = k_TGK.shape
    num_heads = q_THK.shape[1] if q_THK is not None else num_kv_heads
    block_heads = min(8, power_of_two(num_kv_heads))
    block_tokens = WRITE_VECTORS // block_heads
    blocks = -(-num_kv_heads // block_heads)
    if q_THK is not None:
        blocks += -(-num_heads // block_heads)
    tokens = k_TGK.shape[0]
    launch(
        write_kernel,
        (-(-tokens // block_tokens), blocks),
        q_THK,
        k_TGK,
        v_TGK,
        pages.k_PSGK,
        pages.v_PSGK,
        inputs.positions_T,
        inputs.kv_slots_T,
        transform.q_weight,
        transform.k_weight,
        transform.cos_PF,
        transform.sin_PF,
        tokens,
        q_THK.stride(0) if q_THK is not None else 0,
        k_TGK.stride(0),
        *pages.strides,
        transform.eps,
        transform.weight_offset,
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        PAGE=pages.k_PSGK.shape[1],
        BLOCK_T=block_tokens,
        BLOCK_H=block_heads,
        BLOCK_K=padded_head_dim(head_dim),
        SOFT_FP8=pages.soft_fp8,
        num_warps=num_warps,
        pdl=pdl,
        **transform.constexprs,
    )


def launch_decode(
    q_THK: torch.Tensor,
    new: tuple[torch.Tensor, torch.Tensor] | None,
    out_THK: torch.Tensor,
    layer: AttentionLayer,
    pages: Pages,
    inputs: StepInputs,
    work: DecodeWork,
    transform: Transform,
    config: DecodeConfig,
    *,
    pdl: bool,
) -> None:
    """Attend rows with one token; other rows of `out_THK` are left as they are.

    Args:
        new: keys and values of this step (T, G, K), where they are not in pages yet; they and the queries are then
            transformed on the way, and stored.
    """
    spec = layer.spec
    geometry = Geometry.of(spec, q_THK.dtype)
    heads = power_of_two(geometry.pack)
    launch(
        decode_kernel,
        (spec.num_kv_heads * geometry.chunks, work.work_WC.shape[0]),
        q_THK,
        *(new or (None, None)),
        out_THK,
        pages.k_PSGK,
        pages.v_PSGK,
        inputs.page_table_SP,
        work.work_WC,
        work.arrivals_WN,
        work.part_o_AHK,
        work.part_ml_A2H,
        transform.q_weight,
        transform.k_weight,
        transform.cos_PF,
        transform.sin_PF,
        layer.sinks_H,
        layer.alibi_H,
        q_THK.stride(0),
        inputs.page_table_SP.stride(0),
        *pages.strides,
        scale_of(spec),
        spec.soft_cap or 0.0,
        transform.eps,
        transform.weight_offset,
        BLOCK_M=geometry.rows,
        BLOCK_P=heads,
        BLOCK_J=max(1, min(16, MERGED_NUMBERS // (heads * padded_head_dim(spec.head_dim)))),
        FUSED=new is not None,
        WINDOW=spec.window or 0,
        SINKS=layer.sinks_H is not None,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        pdl=pdl,
        options=config.decode_options,
        **transform.constexprs,
        **_constexprs(layer, pages, geometry, config),
    )


def launch_cascade(
    q_THK: torch.Tensor,
    layer: AttentionLayer,
    pages: Pages,
    inputs: StepInputs,
    work: DecodeWork,
    transform: Transform,
    config: DecodeConfig,
    *,
    pdl: bool,
) -> None:
    """Partial results of shared prefixes, for the decode kernel to merge."""
    spec = layer.spec
    assert work.shared_work_VC is not None, "no rows share a prefix in this plan"
    geometry = Geometry.of(spec, q_THK.dtype)
    launch(
        cascade_kernel,
        (spec.num_kv_heads * geometry.chunks, work.shared_work_VC.shape[0]),
        q_THK,
        pages.k_PSGK,
        pages.v_PSGK,
        inputs.page_table_SP,
        inputs.shared_rows_R,
        work.shared_work_VC,
        work.shared_part_R,
        inputs.kv_len_R,
        inputs.query_start_R1,
        inputs.row_slot_R,
        work.part_o_AHK,
        work.part_ml_A2H,
        transform.q_weight,
        transform.cos_PF,
        transform.sin_PF,
        layer.alibi_H,
        q_THK.stride(0),
        inputs.page_table_SP.stride(0),
        *pages.strides,
        scale_of(spec),
        spec.soft_cap or 0.0,
        transform.eps,
        transform.weight_offset,
        BLOCK_M=geometry.shared_rows,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        pdl=pdl,
        **transform.constexprs,
        **_constexprs(layer, pages, geometry, config),
    )


def scale_of(spec: AttentionSpec) -> float:
    """Factor of the scores; into base 2, unless they are capped first."""
    return spec.scale if spec.soft_cap is not None else spec.scale * LOG2_E


def _constexprs(layer: AttentionLayer, pages: Pages, geometry: Geometry, config: DecodeConfig) -> dict[str, Any]:
    """Parameters that the decode and the cascade kernel share."""
    spec = layer.spec
    return {
        "NUM_HEADS": spec.num_heads,
        "NUM_KV_HEADS": spec.num_kv_heads,
        "HEAD_DIM": spec.head_dim,
        "PAGE": pages.k_PSGK.shape[1],
        "PACK": geometry.pack,
        "BLOCK_N": config.block_n,
        "BLOCK_K": padded_head_dim(spec.head_dim),
        "STAGES": config.num_stages,
        "SOFT_CAP": spec.soft_cap is not None,
        "ALIBI": layer.alibi_H is not None,
        "SOFT_FP8": pages.soft_fp8,
        "EXACT": geometry.exact,
    }
