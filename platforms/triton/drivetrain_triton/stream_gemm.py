"""Products of some tens of tokens with a weight matrix on Hopper, bound by reading the weights.

M tokens (at most BM), N outputs, K inputs. The product is a row of rounds: each tile of BN outputs takes K / BK of
them, tile after tile. Every program gets an equal share of the rounds, wherever tiles begin and end. A program stores
the tiles that it computes alone; of others it leaves its part in a buffer, and the last to arrive adds the parts
in their order, so that the result does not depend on who was last.

One warp only starts copies, as far ahead as shared memory reaches: across tiles, while the other warps multiply or end
a tile, and, since weights do not change, before the kernel before this one has ended.

Source: "Stream-K: Work-centric Parallel Decomposition for Dense Matrix-Matrix Multiplication on the GPU", Osama et al.,
2023.
"""

# Relaxed: Triton's language is untyped.
# pyright: basic, reportCallIssue=false, reportGeneralTypeIssues=false, reportArgumentType=false
# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false, reportAssignmentType=false

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from drivetrain_triton.activations import activated

# Triton 3.9 has new names for these.
_copy = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
_barrier = getattr(gl, "barrier", None) or gl.thread_barrier

TILE_LAYOUT = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
"""Of the tiles of x and of the weights in shared memory, for their descriptors."""


@gluon.jit
def _wait_for_previous_kernel():
    gl.inline_asm_elementwise("griddepcontrol.wait; // $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def _let_next_kernel_start():
    gl.inline_asm_elementwise(
        "griddepcontrol.launch_dependents; // $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def _share(N, K, per_program, BN: gl.constexpr, BK: gl.constexpr):
    """This program's rounds: first, one past the last, and how many a tile takes."""
    rounds = gl.cdiv(K, BK)
    begin = gl.program_id(0) * per_program
    return begin, gl.minimum(begin + per_program, gl.cdiv(N, BN) * rounds), rounds


@gluon.jit
def _inputs(i, rounds, rotation, BK: gl.constexpr):
    """The first input of a round. Tiles begin at different ones, or all programs would read the same columns."""
    return ((i % rounds + (i // rounds) * rotation) % rounds) * BK


@gluon.jit
def _part_of(program, tile, rounds, per_program, SIZE: gl.constexpr):
    """Where a program leaves its part of a tile: it shares its first tile, its last one, or both."""
    begins_in = (program * per_program) // rounds
    return (2 * program + gl.where(tile > begins_in, 1, 0)).to(gl.int64) * SIZE


@gluon.jit
def _copy_weights(weight_desc, w_smem, u_smem, ready, stage, tile, k, N, BN: gl.constexpr, GATE: gl.constexpr):
    _copy(weight_desc, [tile * BN, k], ready.index(stage), w_smem.index(stage))
    if GATE:
        _copy(weight_desc, [tile * BN + N, k], ready.index(stage), u_smem.index(stage))


@gluon.jit
def _read(
    x_desc,
    weight_desc,
    x_smem,
    w_smem,
    u_smem,
    ready,
    free,
    N,
    K,
    per_program,
    rotation,
    BM: gl.constexpr,
    BN: gl.constexpr,
    BK: gl.constexpr,
    STAGES: gl.constexpr,
    GATE: gl.constexpr,
    PDL: gl.constexpr,
):
    """The warp that starts copies."""
    NUM_BYTES: gl.constexpr = (BN * (2 if GATE else 1) + BM) * BK * 2
    begin, end, rounds = _share(N, K, per_program, BN, BK)
    filled = gl.minimum(begin + STAGES, end)
    if PDL:
        _let_next_kernel_start()
    for i in range(begin, filled):
        mbarrier.expect(ready.index(i - begin), NUM_BYTES)
        k = _inputs(i, rounds, rotation, BK)
        _copy_weights(weight_desc, w_smem, u_smem, ready, i - begin, i // rounds, k, N, BN, GATE)
    if PDL:
        _wait_for_previous_kernel()
    for i in range(begin, filled):
        _copy(x_desc, [0, _inputs(i, rounds, rotation, BK)], ready.index(i - begin), x_smem.index(i - begin))
    stage = 0
    phase = 0
    for i in range(filled, end):
        mbarrier.wait(free.index(stage), phase)
        mbarrier.expect(ready.index(stage), NUM_BYTES)
        k = _inputs(i, rounds, rotation, BK)
        _copy_weights(weight_desc, w_smem, u_smem, ready, stage, i // rounds, k, N, BN, GATE)
        _copy(x_desc, [0, k], ready.index(stage), x_smem.index(stage))
        stage += 1
        if stage == STAGES:
            stage = 0
            phase ^= 1


@gluon.jit
def _store(
    y,
    z,
    tile,
    bias_ptr,
    out_ptr,
    M,
    N,
    stride_out,
    BM: gl.constexpr,
    BN: gl.constexpr,
    GATE: gl.constexpr,
    ACTIVATION: gl.constexpr,
    ADD: gl.constexpr,
    BIAS: gl.constexpr,
    SUMS: gl.constexpr,
    NUM_WARPS: gl.constexpr,
):
    """End a tile: `y` and with GATE `z`, fp32 (BN, BM) in layout SUMS."""
    if BIAS:
        lines = tile * BN + gl.arange(0, BN, gl.SliceLayout(1, SUMS))
        y += gl.load(bias_ptr + lines, mask=lines < N, other=0.0).to(gl.float32)[:, None]
        if GATE:
            z += gl.load(bias_ptr + N + lines, mask=lines < N, other=0.0).to(gl.float32)[:, None]
    if GATE:
        y = activated(y, ACTIVATION) * z
    # Neighbouring rows are neighbours in memory: eight a thread.
    STORED: gl.constexpr = gl.BlockedLayout([8, 1], [8, 4], [1, NUM_WARPS], [0, 1])
    rows = tile * BN + gl.arange(0, BN, gl.SliceLayout(1, STORED))
    tokens = gl.arange(0, BM, gl.SliceLayout(0, STORED))
    out = out_ptr + tokens[None, :].to(gl.int64) * stride_out + rows[:, None]
    present = (tokens < M)[None, :] & (rows < N)[:, None]
    if ADD:
        y += gl.convert_layout(gl.load(out, mask=present, other=0.0), SUMS).to(gl.float32)
    gl.store(out, gl.convert_layout(y.to(out_ptr.dtype.element_ty), STORED), mask=present)


@gluon.jit
def _multiply(
    x_smem,
    w_smem,
    u_smem,
    ready,
    free,
    bias_ptr,
    out_ptr,
    parts_ptr,
    arrived_ptr,
    M,
    N,
    K,
    stride_out,
    per_program,
    BM: gl.constexpr,
    BN: gl.constexpr,
    BK: gl.constexpr,
    STAGES: gl.constexpr,
    GATE: gl.constexpr,
    ACTIVATION: gl.constexpr,
    ADD: gl.constexpr,
    BIAS: gl.constexpr,
    PDL: gl.constexpr,
    NUM_WARPS: gl.constexpr,
):
    """The warps that multiply and end tiles."""
    # A warp has 16 rows; warps beyond the rows share the tokens.
    ABREAST: gl.constexpr = NUM_WARPS * 16 // BN if NUM_WARPS * 16 > BN else 1
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [NUM_WARPS // ABREAST, ABREAST], [16, BM // ABREAST, 16])
    SIZE: gl.constexpr = BN * BM * (2 if GATE else 1)
    place = gl.arange(0, BN, gl.SliceLayout(1, SUMS))[:, None] * BM + gl.arange(0, BM, gl.SliceLayout(0, SUMS))[None, :]
    begin, end, rounds = _share(N, K, per_program, BN, BK)
    program = gl.program_id(0)
    y = gl.zeros([BN, BM], gl.float32, SUMS)
    z = gl.zeros([BN, BM], gl.float32, SUMS)
    if PDL:
        _wait_for_previous_kernel()
    stage = 0
    phase = 0
    for i in range(begin, end):
        mbarrier.wait(ready.index(stage), phase)
        x = x_smem.index(stage).permute((1, 0))
        y_later = warpgroup_mma(w_smem.index(stage), x, y, is_async=True)
        if GATE:
            z_later = warpgroup_mma(u_smem.index(stage), x, z, is_async=True)
            y, z = warpgroup_mma_wait(num_outstanding=0, deps=(y_later, z_later))
        else:
            y = warpgroup_mma_wait(num_outstanding=0, deps=(y_later,))
        mbarrier.arrive(free.index(stage), count=1)
        stage += 1
        if stage == STAGES:
            stage = 0
            phase ^= 1
        if ((i + 1) % rounds == 0) | (i == end - 1):
            tile = i // rounds
            first = (tile * rounds) // per_program
            last = (tile * rounds + rounds - 1) // per_program
            finishes = first == last
            if first != last:
                parts = parts_ptr + place
                mine = parts + _part_of(program, tile, rounds, per_program, SIZE)
                gl.store(mine, y)
                if GATE:
                    gl.store(mine + BN * BM, z)
                # All threads have stored before one of them says so.
                _barrier()
                finishes = gl.atomic_add(arrived_ptr + tile, 1, sem="acq_rel") == last - first
                if finishes:
                    gl.store(arrived_ptr + tile, 0)
                    y, z = _merged(y, z, parts, tile, first, last, program, rounds, per_program, SIZE, GATE)
            if finishes:
                _store(
                    y, z, tile, bias_ptr, out_ptr, M, N, stride_out,
                    BM, BN, GATE, ACTIVATION, ADD, BIAS, SUMS, NUM_WARPS,
                )  # fmt: skip
            y = gl.zeros([BN, BM], gl.float32, SUMS)
            z = gl.zeros([BN, BM], gl.float32, SUMS)


@gluon.jit
def _merged(y, z, parts, tile, first, last, program, rounds, per_program, SIZE: gl.constexpr, GATE: gl.constexpr):
    """The sum of the parts of programs `first` to `last` of a tile; `y` and `z` are those of `program`."""
    if last == first + 1:
        # The order of two does not matter.
        other = parts + _part_of(first + last - program, tile, rounds, per_program, SIZE)
        y += gl.load(other, cache_modifier=".cg")
        if GATE:
            z += gl.load(other + SIZE // 2, cache_modifier=".cg")
    else:
        part = parts + _part_of(first, tile, rounds, per_program, SIZE)
        y = gl.load(part, cache_modifier=".cg")
        if GATE:
            z = gl.load(part + SIZE // 2, cache_modifier=".cg")
        for p in range(first + 1, last + 1):
            part = parts + _part_of(p, tile, rounds, per_program, SIZE)
            y += gl.load(part, cache_modifier=".cg")
            if GATE:
                z += gl.load(part + SIZE // 2, cache_modifier=".cg")
    return y, z


@gluon.jit(do_not_specialize=["M", "per_program", "rotation"])
def stream_gemm_kernel(
    x_desc,
    weight_desc,
    bias_ptr,
    out_ptr,
    parts_ptr,
    arrived_ptr,
    M,
    N,
    K,
    stride_out,
    per_program,
    rotation,
    BM: gl.constexpr,
    BN: gl.constexpr,
    BK: gl.constexpr,
    STAGES: gl.constexpr,
    GATE: gl.constexpr,
    ACTIVATION: gl.constexpr,
    ADD: gl.constexpr,
    BIAS: gl.constexpr,
    PDL: gl.constexpr,
    NUM_WARPS: gl.constexpr,
):
    """Grid: programs of `per_program` rounds each that cover all, none without a round.

    Args:
        x_desc: (M, K), 16-bit, in blocks (BM, BK) of `TILE_LAYOUT`.
        weight_desc: (N, K), with GATE (2 N, K): gate rows, then up rows; in blocks (BN, BK).
        bias_ptr: one element a weight row, read with BIAS.
        out_ptr: (M, N), rows `stride_out` apart. With ADD the product is added to it, else it is overwritten. With GATE
            it is `ACTIVATION(gate) * up`.
        parts_ptr: fp32, two parts of each program: (BN, BM), with GATE twice.
        arrived_ptr: int32, one counter a tile, zero before and after.
        NUM_WARPS: 4 or 8, those that multiply.
    """
    x_smem = gl.allocate_shared_memory(x_desc.dtype, [STAGES, BM, BK], x_desc.layout)
    w_smem = gl.allocate_shared_memory(weight_desc.dtype, [STAGES, BN, BK], weight_desc.layout)
    if GATE:
        u_smem = gl.allocate_shared_memory(weight_desc.dtype, [STAGES, BN, BK], weight_desc.layout)
    else:
        u_smem = w_smem
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(ready.index(stage), count=1)
        mbarrier.init(free.index(stage), count=1)
    fence_async_shared()
    gl.warp_specialize(
        [
            (
                _multiply,
                (
                    x_smem, w_smem, u_smem, ready, free, bias_ptr, out_ptr, parts_ptr, arrived_ptr,
                    M, N, K, stride_out, per_program,
                    BM, BN, BK, STAGES, GATE, ACTIVATION, ADD, BIAS, PDL, NUM_WARPS,
                ),
            ),
            (
                _read,
                (
                    x_desc, weight_desc, x_smem, w_smem, u_smem, ready, free,
                    N, K, per_program, rotation, BM, BN, BK, STAGES, GATE, PDL,
                ),
            ),
        ],
        [1],
        [24],
    )  # fmt: skip
