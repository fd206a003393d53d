"""From a step and a layer to launches of the prefill kernel.

T tokens, H query heads, G key-value heads, K head size, P pages, S tokens of a page.
"""

# Relaxed: Triton is untyped.
# pyright: basic

from __future__ import annotations

import torch

from drivetrain_plugins.contract.attention import AttentionLayer
from drivetrain_plugins.contract.slots import StepInputs
from drivetrain_rocm.kernels.prefill import prefill_kernel
from drivetrain_rocm.tables.prefill import PrefillConfig
from drivetrain_triton.attention.config import padded_head_dim
from drivetrain_triton.attention.launches import Pages, scale_of
from drivetrain_triton.attention.prefill_plan import PrefillPlan
from drivetrain_triton.launch import launch


def head_chunks(config: PrefillConfig, group: int) -> int:
    """Programs that share the query heads of one key-value head."""
    return -(-group // config.block_m)


def heads_of_program(config: PrefillConfig, group: int) -> int:
    """Query heads packed into one program."""
    return -(-group // head_chunks(config, group))


def tokens_of_block(config: PrefillConfig, group: int) -> int:
    """Query tokens of one program, what `make_plan` cuts rows into."""
    return config.block_m // heads_of_program(config, group)


def launch_prefill(
    q_THK: torch.Tensor,
    out_THK: torch.Tensor,
    layer: AttentionLayer,
    pages: Pages,
    inputs: StepInputs,
    plan: PrefillPlan,
    config: PrefillConfig,
) -> None:
    """Attend rows with more than one token; other rows of `out_THK` are left as they are.

    Args:
        q_THK: normed and rotated; the last two dimensions contiguous.
        pages: with this step's tokens in them.
        plan: for `tokens_of_block` of the same configuration and group.
    """
    if plan.num_items == 0:
        return
    spec = layer.spec
    group = spec.num_heads // spec.num_kv_heads
    block_tokens = tokens_of_block(config, group)
    assert plan.block_tokens == block_tokens, f"a plan for {plan.block_tokens} tokens met blocks of {block_tokens}"
    launch(
        prefill_kernel,
        (spec.num_kv_heads * head_chunks(config, group), plan.num_items),
        q_THK,
        out_THK,
        pages.k_PSGK,
        pages.v_PSGK,
        plan.work_W8,
        inputs.page_table_SP,
        layer.sinks_H,
        layer.alibi_H,
        q_THK.stride(0),
        inputs.page_table_SP.stride(0),
        *pages.strides,
        scale_of(spec),
        spec.soft_cap or 0.0,
        spec.window or 0,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        NUM_HEADS=spec.num_heads,
        NUM_KV_HEADS=spec.num_kv_heads,
        HEAD_DIM=spec.head_dim,
        PAGE=pages.k_PSGK.shape[1],
        PACK=heads_of_program(config, group),
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BORDER_N=config.border_n,
        BLOCK_K=padded_head_dim(spec.head_dim),
        STAGES=config.num_stages,
        WINDOW=spec.window is not None,
        SOFT_CAP=spec.soft_cap is not None,
        SINKS=layer.sinks_H is not None,
        ALIBI=layer.alibi_H is not None,
        SOFT_FP8=pages.soft_fp8,
    )
