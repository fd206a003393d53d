"""Flash attention over pages for rows with several query tokens: prompts, their chunks, and drafts to verify.

`plan_prefill` lists the step's work once; `prefill_attention` serves a layer.

T tokens, R rows, H query heads, G key-value heads, K head size, S slots of a page, P pages.
"""

# Relaxed: Triton is untyped; tensor maps are arguments that the launcher does not name.
# pyright: basic, reportArgumentType=false

from __future__ import annotations

import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from drivetrain_cuda.fp8 import is_soft_fp8
from drivetrain_cuda.kernels.prefill_kernel import prefill_kernel
from drivetrain_cuda.tables.prefill import PrefillConfig, prefill_config
from drivetrain_plugins.contract.attention import AttentionLayer
from drivetrain_plugins.contract.batch import StepBatch
from drivetrain_plugins.contract.model import AttentionSpec
from drivetrain_plugins.contract.shapes import StepShape
from drivetrain_plugins.contract.slots import StepInputs
from drivetrain_triton.attention.prefill_plan import PrefillPlan, make_plan
from drivetrain_triton.launch import launch

LOG2E = 1.4426950408889634
BORDER = 64
"""Keys of a masked block, at most: masks cost registers, and narrow blocks hide fewer keys."""


def plan_prefill(
    inputs: StepInputs,
    shape: StepShape,
    batch: StepBatch | None,
    *,
    group: int,
    head_dim: int,
    dtype: torch.dtype,
    arch: str,
    pdl: bool,
    config: PrefillConfig | None = None,
) -> PrefillPlan:
    """Plan prefill attention of a step, once for all layers with this group, head size and activation type.

    Args:
        inputs: the step on the device.
        shape: padded upper bounds; all that bounds the grid while capturing.
        batch: the host's view, or None while capturing.
        group: query heads of a key-value head.
        head_dim: K.
        dtype: type of the queries.
        arch: "sm_90" and so on.
        pdl: launch with programmatic dependent launch.
        config: instead of the table's, for measuring.

    Raises:
        ValueError: no configuration for this architecture or head size.
    """
    config = config or prefill_config(arch, head_dim, dtype.itemsize)
    return make_plan(inputs, shape, batch, block_tokens=_tokens_of_block(config, group), pdl=pdl)


def prefill_attention(
    q_THK: torch.Tensor,
    out_THK: torch.Tensor,
    layer: AttentionLayer,
    k_PSGK: torch.Tensor,
    v_PSGK: torch.Tensor,
    inputs: StepInputs,
    plan: PrefillPlan,
    *,
    pdl: bool,
    arch: str,
    config: PrefillConfig | None = None,
) -> None:
    """Causal attention of rows with more than one query token; other rows of `out_THK` are left as they are.

    Args:
        q_THK: (T, H, K) float32, float16 or bfloat16, normed and rotated; the last dimension contiguous.
        out_THK: (T, H, K) contiguous, type of `q_THK`. Written; rows of padding become 0.
        layer: scale, window, soft cap, sinks and slopes.
        k_PSGK, v_PSGK: (pages, page, G, K), the type of `q_THK` or an fp8 type; this step's tokens are written already.
            Strides are free except that the last dimension is contiguous.
        inputs: the step; reads page_table_SP.
        plan: from `plan_prefill` for the same group, head size and type.
        pdl: launch with programmatic dependent launch.
        arch: "sm_90" and so on; selects the configuration.
        config: instead of the table's, for measuring.

    Raises:
        ValueError: no configuration for this architecture or head size, or the plan was made for another block.

    Source: Dao, FlashAttention-2 (2023), for the online softmax; Ainslie et al., GQA (2023), for packed groups.
    """
    if plan.num_items == 0:
        return
    spec = layer.spec
    group = spec.num_heads // spec.num_kv_heads
    config = config or prefill_config(arch, spec.head_dim, q_THK.element_size())
    if plan.block_tokens != _tokens_of_block(config, group):
        raise ValueError(
            f"a prefill plan for blocks of {plan.block_tokens} tokens met a layer that needs"
            f" {_tokens_of_block(config, group)}; plan once for each group and head size"
        )
    soft_fp8 = is_soft_fp8(k_PSGK, arch)
    if soft_fp8:
        k_PSGK, v_PSGK = k_PSGK.view(torch.uint8), v_PSGK.view(torch.uint8)
    constexprs = _constexprs(spec, config, k_PSGK, v_PSGK) | {"SOFT_FP8": soft_fp8}
    launch(
        prefill_kernel,
        (spec.num_kv_heads * _chunks(config, group), plan.num_items),
        q_THK,
        out_THK,
        k_PSGK,
        v_PSGK,
        _map(k_PSGK, config) if constexprs["MAPPED"] else None,
        _map(v_PSGK, config) if constexprs["MAPPED"] else None,
        layer.sinks_H,
        layer.alibi_H,
        plan.work_W8,
        inputs.page_table_SP,
        *q_THK.stride()[:2],
        *k_PSGK.stride()[:3],
        *v_PSGK.stride()[:3],
        inputs.page_table_SP.stride(0),
        _scale(spec),
        (spec.soft_cap or 0.0) * LOG2E,
        spec.window or 0,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        pdl=pdl,
        **constexprs,
    )


def _chunks(config: PrefillConfig, group: int) -> int:
    """Programs that share the query heads of one key-value head."""
    return -(-group // config.block_m)


def _pack(config: PrefillConfig, group: int) -> int:
    """Query heads packed into one program."""
    return -(-group // _chunks(config, group))


def _tokens_of_block(config: PrefillConfig, group: int) -> int:
    return config.block_m // _pack(config, group)


def _scale(spec: AttentionSpec) -> float:
    """Factor of the raw scores: to units of log2, or to the argument of the cap's exp2."""
    return spec.scale * LOG2E * (2.0 / spec.soft_cap if spec.soft_cap else 1.0)


def _constexprs(
    spec: AttentionSpec, config: PrefillConfig, k_PSGK: torch.Tensor, v_PSGK: torch.Tensor
) -> dict[str, bool | int | str]:
    group, page = spec.num_heads // spec.num_kv_heads, k_PSGK.shape[1]
    return {
        "GROUP": group,
        "PACK": _pack(config, group),
        "HEAD": spec.head_dim,
        "D": _padded(spec.head_dim),
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "AHEAD": config.ahead,
        "BORDER_N": min(config.block_n, BORDER),
        "PAGE": page,
        "PRECISION": "ieee",
        "SOFT_CAP": spec.soft_cap is not None,
        "WINDOW": spec.window is not None,
        "MAPPED": config.mapped and config.block_n <= page and _is_mappable(k_PSGK) and _is_mappable(v_PSGK),
    }


def _padded(size: int) -> int:
    """The next power of two."""
    return 1 << (size - 1).bit_length()


def _is_mappable(x_PSGK: torch.Tensor) -> bool:
    """Whether pages are a matrix, one line a slot, of which the tensor copy engine can fetch tiles of one head."""
    _, page, _, size = x_PSGK.shape
    is_matrix = x_PSGK.stride(0) == page * x_PSGK.stride(1) and x_PSGK.stride(2) == size
    return is_matrix and _padded(size) == size and x_PSGK.stride(1) * x_PSGK.itemsize % 16 == 0


def _map(x_PSGK: torch.Tensor, config: PrefillConfig) -> TensorDescriptor:
    """Pages as a (P S, G K) matrix with tiles of one head."""
    pages, page, heads, size = x_PSGK.shape
    return TensorDescriptor(x_PSGK, [pages * page, heads * size], [x_PSGK.stride(1), 1], [config.block_n, size])
