"""The kernel of prefill attention.

One program attends a block of consecutive tokens of one row for one key-value head. The group's query heads are packed
beside the tokens into the M dimension, so keys and values are read once for the whole group and the causal border
touches few key blocks. Keys that every query of the block sees need no mask and have a loop of their own.

H query heads, G key-value heads, K head size, M packed (token, head) pairs, N keys of a block, D head size padded to a
power of two.
"""

# Relaxed: Triton's language is untyped.
# pyright: basic, reportAttributeAccessIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from drivetrain_triton.attention.heads import from_cache

LOG2E = tl.constexpr(1.4426950408889634)
HIDDEN = tl.constexpr(-1.0e30)
"""Score of a masked key. Finite, so that a block without one visible key makes no NaN; what such a block adds is
multiplied by exactly 0 when the row's first visible key arrives, and every row sees at least itself."""


@triton.jit
def _page_of(table, first, end, slot_N, BLOCK_N: tl.constexpr, PAGE: tl.constexpr):
    """The page of a block of keys, or of each of its keys where a block spans pages; 0 past the end."""
    if BLOCK_N <= PAGE:
        page = tl.load(table + first // PAGE, mask=first < end, other=0)
    else:
        page = tl.load(table + (first + slot_N) // PAGE, mask=first + slot_N < end, other=0)
    return page


@triton.jit
def _load_block(
    x, x_map, page, first, slot_N, column, end, page_stride, slot_stride,
    HEAD: tl.constexpr, D: tl.constexpr, PAGE: tl.constexpr, CHECKED: tl.constexpr, MAPPED: tl.constexpr,
):  # fmt: skip
    """(N, D) of one head; keys at `end` and later are 0 if CHECKED."""
    d_D = tl.arange(0, D)
    if MAPPED:
        x_ND = x_map.load([page * PAGE + first % PAGE, column])
    else:
        if slot_N.shape[0] <= PAGE:
            block = x + page.to(tl.int64) * page_stride + (first % PAGE) * slot_stride
            pointers_ND = block + (slot_N * slot_stride)[:, None] + d_D[None, :]
        else:
            line_N = page.to(tl.int64) * page_stride + ((first + slot_N) % PAGE) * slot_stride
            pointers_ND = x + line_N[:, None] + d_D[None, :]
        if CHECKED and HEAD != D:
            x_ND = tl.load(pointers_ND, mask=(first + slot_N < end)[:, None] & (d_D < HEAD)[None, :], other=0.0)
        elif CHECKED:
            x_ND = tl.load(pointers_ND, mask=(first + slot_N < end)[:, None], other=0.0)
        elif HEAD != D:
            x_ND = tl.load(pointers_ND, mask=(d_D < HEAD)[None, :], other=0.0)
        else:
            x_ND = tl.load(pointers_ND)
    return x_ND


@triton.jit
def _products(q_MD, k_ND, PRECISION: tl.constexpr, SOFT_FP8: tl.constexpr):
    """(M, N) raw scores."""
    return tl.dot(q_MD, tl.trans(from_cache(k_ND, q_MD.dtype, SOFT_FP8)), input_precision=PRECISION)


@triton.jit
def _weights(
    s_MN, total_M, peak_M, position_M, slope_M, first, scale, soft_cap, window,
    SOFT_CAP: tl.constexpr, WINDOW: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Unnormalised softmax of raw scores: (weights, new total, new peak, decay of what came before)."""
    key_N = first + tl.arange(0, s_MN.shape[1])
    if SOFT_CAP:
        # cap * tanh(s / cap), with 2 log2(e) / cap already in `scale`: right in the limit where exp2 overflows.
        s_MN = soft_cap * (1.0 - 2.0 / (tl.exp2(s_MN * scale) + 1.0))
    elif MASKED or slope_M is not None:
        s_MN = s_MN * scale
    if slope_M is not None:
        s_MN += slope_M[:, None] * (key_N[None, :] - position_M[:, None]).to(tl.float32)
    if MASKED:
        visible_MN = key_N[None, :] <= position_M[:, None]
        if WINDOW:
            visible_MN &= key_N[None, :] > position_M[:, None] - window
        s_MN = tl.where(visible_MN, s_MN, HIDDEN)
    if SOFT_CAP or MASKED or slope_M is not None:
        new_peak_M = tl.maximum(peak_M, tl.max(s_MN, 1))
        p_MN = tl.exp2(s_MN - new_peak_M[:, None])
    else:
        # Scores are raw still: scaling folds into the subtraction.
        new_peak_M = tl.maximum(peak_M, tl.max(s_MN, 1) * scale)
        p_MN = tl.exp2(s_MN * scale - new_peak_M[:, None])
    decay_M = tl.exp2(peak_M - new_peak_M)
    return p_MN, total_M * decay_M + tl.sum(p_MN, 1), new_peak_M, decay_M


@triton.jit
def _attend(
    acc_MD, total_M, peak_M, q_MD, position_M, slope_M, k, v, k_map, v_map, table,
    begin, end, kv_end, column, k_page, k_slot, v_page, v_slot, scale, soft_cap, window,
    HEAD: tl.constexpr, BLOCK_N: tl.constexpr, PAGE: tl.constexpr, PRECISION: tl.constexpr,
    SOFT_CAP: tl.constexpr, WINDOW: tl.constexpr, MASKED: tl.constexpr, MAPPED: tl.constexpr, SOFT_FP8: tl.constexpr,
):  # fmt: skip
    """Attend keys [begin, end), `begin` a multiple of the block."""
    D: tl.constexpr = q_MD.shape[1]
    slot_N = tl.arange(0, BLOCK_N)
    # Pages are read one step early: waiting for them would stall the issue of products.
    page = _page_of(table, begin, kv_end, slot_N, BLOCK_N, PAGE)
    for first in tl.range(begin, end, BLOCK_N):
        k_ND = _load_block(
            k, k_map, page, first, slot_N, column, kv_end, k_page, k_slot, HEAD, D, PAGE, False, MAPPED
        )  # fmt: skip
        s_MN = _products(q_MD, k_ND, PRECISION, SOFT_FP8)
        p_MN, total_M, peak_M, decay_M = _weights(
            s_MN, total_M, peak_M, position_M, slope_M, first, scale, soft_cap, window, SOFT_CAP, WINDOW, MASKED
        )  # fmt: skip
        acc_MD = acc_MD * decay_M[:, None]
        # Slots that nothing was written to may hold NaN, and 0 * NaN is NaN: such values are checked out.
        v_ND = _load_block(
            v, v_map, page, first, slot_N, column, kv_end, v_page, v_slot, HEAD, D, PAGE, MASKED, MAPPED
        )  # fmt: skip
        page = _page_of(table, first + BLOCK_N, kv_end, slot_N, BLOCK_N, PAGE)
        acc_MD = tl.dot(p_MN.to(q_MD.dtype), from_cache(v_ND, q_MD.dtype, SOFT_FP8), acc_MD, input_precision=PRECISION)
    return acc_MD, total_M, peak_M


@triton.jit
def _attend_ahead(
    acc_MD, total_M, peak_M, q_MD, position_M, slope_M, k, v, k_map, v_map, table,
    begin, end, kv_end, column, k_page, k_slot, v_page, v_slot, scale, soft_cap, window,
    HEAD: tl.constexpr, BLOCK_N: tl.constexpr, PAGE: tl.constexpr, PRECISION: tl.constexpr,
    SOFT_CAP: tl.constexpr, WINDOW: tl.constexpr, MAPPED: tl.constexpr, SOFT_FP8: tl.constexpr,
):  # fmt: skip
    """Attend keys [begin, end) without masks and the block at `end` with them; scores are one block ahead.

    The order is what matters: weights of a block are computed while the product of the previous weights and values
    still runs, because the next wait for a product comes only after them.
    """
    D: tl.constexpr = q_MD.shape[1]
    slot_N = tl.arange(0, BLOCK_N)
    page = _page_of(table, begin, kv_end, slot_N, BLOCK_N, PAGE)
    next_page = _page_of(table, begin + BLOCK_N, kv_end, slot_N, BLOCK_N, PAGE)
    k_ND = _load_block(k, k_map, page, begin, slot_N, column, kv_end, k_page, k_slot, HEAD, D, PAGE, False, MAPPED)
    s_MN = _products(q_MD, k_ND, PRECISION, SOFT_FP8)
    for first in tl.range(begin, end, BLOCK_N):
        p_MN, total_M, peak_M, decay_M = _weights(
            s_MN, total_M, peak_M, position_M, slope_M, first, scale, soft_cap, window, SOFT_CAP, WINDOW, False
        )  # fmt: skip
        p_MN = p_MN.to(q_MD.dtype)
        k_ND = _load_block(
            k, k_map, next_page, first + BLOCK_N, slot_N, column, kv_end, k_page, k_slot, HEAD, D, PAGE, False, MAPPED
        )  # fmt: skip
        s_MN = _products(q_MD, k_ND, PRECISION, SOFT_FP8)
        v_ND = _load_block(
            v, v_map, page, first, slot_N, column, kv_end, v_page, v_slot, HEAD, D, PAGE, False, MAPPED
        )  # fmt: skip
        # Read again, not handed on: Triton pipelines no loop that carries a value over two steps.
        page = _page_of(table, first + BLOCK_N, kv_end, slot_N, BLOCK_N, PAGE)
        next_page = _page_of(table, first + 2 * BLOCK_N, kv_end, slot_N, BLOCK_N, PAGE)
        acc_MD = acc_MD * decay_M[:, None]
        acc_MD = tl.dot(p_MN, from_cache(v_ND, q_MD.dtype, SOFT_FP8), acc_MD, input_precision=PRECISION)
    v_ND = _load_block(v, v_map, page, end, slot_N, column, kv_end, v_page, v_slot, HEAD, D, PAGE, True, False)
    p_MN, total_M, peak_M, decay_M = _weights(
        s_MN, total_M, peak_M, position_M, slope_M, end, scale, soft_cap, window, SOFT_CAP, WINDOW, True
    )  # fmt: skip
    acc_MD = acc_MD * decay_M[:, None]
    acc_MD = tl.dot(p_MN.to(q_MD.dtype), from_cache(v_ND, q_MD.dtype, SOFT_FP8), acc_MD, input_precision=PRECISION)
    return acc_MD, total_M, peak_M


@triton.jit(
    do_not_specialize=["table_row", "window"],
    do_not_specialize_on_alignment=["page_table", "sinks", "alibi"],
)
def prefill_kernel(
    q, out, k, v, k_map, v_map, sinks, alibi,
    work, page_table,
    q_token, q_head, k_page, k_slot, k_head, v_page, v_slot, v_head, table_row,
    scale, soft_cap, window,
    GROUP: tl.constexpr, PACK: tl.constexpr, HEAD: tl.constexpr, D: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, AHEAD: tl.constexpr, BORDER_N: tl.constexpr, PAGE: tl.constexpr, PRECISION: tl.constexpr,
    SOFT_CAP: tl.constexpr, WINDOW: tl.constexpr, MAPPED: tl.constexpr, SOFT_FP8: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid (G * head chunks, work items). See `prefill_attention`."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    CHUNKS: tl.constexpr = (GROUP + PACK - 1) // PACK
    BLOCK_Q: tl.constexpr = BLOCK_M // PACK
    kv_head = tl.program_id(0) // CHUNKS
    first_head = tl.program_id(0) % CHUNKS * PACK
    line = work + 8 * tl.program_id(1)
    num_queries = tl.load(line + 1)
    if num_queries == 0:
        return
    first_token = tl.load(line)
    start = tl.load(line + 2)
    # Rows of padding see nothing: what the null page holds is nobody's, and may be NaN.
    kv_end = tl.load(line + 3)
    slot = tl.load(line + 4)

    num_heads = tl.num_programs(0) // CHUNKS * GROUP
    m_M = tl.arange(0, BLOCK_M)
    d_D = tl.arange(0, D)
    query_M = m_M // PACK
    member_M = first_head + m_M % PACK
    head_M = kv_head * GROUP + member_M
    token_M = first_token.to(tl.int64) + query_M
    real_M = (query_M < num_queries) & (member_M < GROUP)
    mask_MD = real_M[:, None] & (d_D < HEAD)[None, :]
    q_MD = tl.load(q + (token_M * q_token + head_M * q_head)[:, None] + d_D[None, :], mask=mask_MD, other=0.0)
    position_M = tl.where(kv_end > 0, start + query_M, -1)

    if sinks is not None:
        # A sink is a key with this score and the value 0.
        peak_M = tl.load(sinks + head_M, mask=real_M, other=0.0) * LOG2E
        total_M = tl.full([BLOCK_M], 1.0, tl.float32)
    else:
        peak_M = tl.full([BLOCK_M], HIDDEN, tl.float32)
        total_M = tl.zeros([BLOCK_M], tl.float32)
    if alibi is not None:
        slope_M = tl.load(alibi + head_M, mask=real_M, other=0.0) * LOG2E
    else:
        slope_M = None
    acc_MD = tl.zeros([BLOCK_M, D], tl.float32)

    table = page_table + slot.to(tl.int64) * table_row
    k += kv_head.to(tl.int64) * k_head
    v += kv_head.to(tl.int64) * v_head
    column = kv_head * HEAD
    begin = 0
    if WINDOW:
        begin = tl.minimum(tl.maximum(start - window + 1, 0) // BORDER_N * BORDER_N, kv_end)
        # From the beginning of the last query's window on, nothing hides keys but causality.
        edge = tl.cdiv(tl.maximum(start + BLOCK_Q - window, 0), BLOCK_N) * BLOCK_N
        edge = tl.minimum(tl.maximum(edge, begin), kv_end)
        acc_MD, total_M, peak_M = _attend(
            acc_MD, total_M, peak_M, q_MD, position_M, slope_M, k, v, k_map, v_map, table,
            begin, edge, kv_end, column, k_page, k_slot, v_page, v_slot, scale, soft_cap, window,
            HEAD, BORDER_N, PAGE, PRECISION, SOFT_CAP, WINDOW, True, False, SOFT_FP8,
        )  # fmt: skip
        begin = tl.cdiv(edge, BLOCK_N) * BLOCK_N
    # Keys up to the first query's own are seen by every query.
    clear = begin + tl.maximum(tl.minimum(start + 1, kv_end) - begin, 0) // BLOCK_N * BLOCK_N
    if AHEAD:
        acc_MD, total_M, peak_M = _attend_ahead(
            acc_MD, total_M, peak_M, q_MD, position_M, slope_M, k, v, k_map, v_map, table,
            begin, clear, kv_end, column, k_page, k_slot, v_page, v_slot, scale, soft_cap, window,
            HEAD, BLOCK_N, PAGE, PRECISION, SOFT_CAP, WINDOW, MAPPED, SOFT_FP8,
        )  # fmt: skip
        clear += BLOCK_N
    else:
        acc_MD, total_M, peak_M = _attend(
            acc_MD, total_M, peak_M, q_MD, position_M, slope_M, k, v, k_map, v_map, table,
            begin, clear, kv_end, column, k_page, k_slot, v_page, v_slot, scale, soft_cap, window,
            HEAD, BLOCK_N, PAGE, PRECISION, SOFT_CAP, WINDOW, False, MAPPED, SOFT_FP8,
        )  # fmt: skip
    acc_MD, total_M, peak_M = _attend(
        acc_MD, total_M, peak_M, q_MD, position_M, slope_M, k, v, k_map, v_map, table,
        clear, kv_end, kv_end, column, k_page, k_slot, v_page, v_slot, scale, soft_cap, window,
        HEAD, BORDER_N, PAGE, PRECISION, SOFT_CAP, WINDOW, True, False, SOFT_FP8,
    )  # fmt: skip

    total_M = tl.where(total_M > 0.0, total_M, 1.0)
    o_MD = (acc_MD / total_M[:, None]).to(out.dtype.element_ty)
    tl.store(out + ((token_M * num_heads + head_M) * HEAD)[:, None] + d_D[None, :], o_MD, mask=mask_MD)
