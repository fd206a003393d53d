"""The likeliest token of each row, or one drawn from the softmax, over the vocabulary in parts.

K rows, V vocabulary, S slots, C slot columns, P parts of the vocabulary.
"""

# Relaxed: Triton's language is untyped; what it declares about itself holds for its compiler only.
# pyright: basic, reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false, reportUnboundVariable=false

from __future__ import annotations

import torch
import triton
import triton.language as tl

from drivetrain_plugins.contract.batch import SEED_HIGH, SEED_LOW, TEMPERATURE
from drivetrain_plugins.contract.slots import SlotState, StepInputs
from drivetrain_triton.arch import GpuArch
from drivetrain_triton.launch import launch
from drivetrain_triton.sampling.filters import is_kept, least_kept
from drivetrain_triton.sampling.noise import gumbel_noise, noise_ceiling, noise_key

_BLOCK = 256
_MAX_PARTS = 512
_PROGRAMS_A_PROCESSOR = 32
_WARPS = 1  # so that asking a block takes no barrier

_TEMPERATURE = tl.constexpr(TEMPERATURE)
_SEED_LOW = tl.constexpr(SEED_LOW)
_SEED_HIGH = tl.constexpr(SEED_HIGH)


@triton.jit
def better(value, token, best, best_token):
    """The larger value with its token; of equal ones what was best before, whose id is lower."""
    wins = value > best
    return tl.where(wins, value, best), tl.where(wins, token, best_token)


@triton.jit
def best_of_block(value, token):
    """The largest value and the lowest id that has it."""
    largest = tl.max(value, axis=0)
    return largest, tl.min(tl.where(value == largest, token, 0x7FFFFFFF), axis=0)


@triton.jit
def any_but(hopeless):
    """Whether any element of a block is not hopeless."""
    return tl.min(hopeless.to(tl.int32), axis=0) == 0


@triton.jit
def slack(value):
    """More than rounding moves a value over the temperature that is within the noise of this one."""
    return 1e-3 + tl.abs(value) * 1e-6


@triton.jit
def draw_part(row, V, first, last, temperature, key, bounds, FILTERED: tl.constexpr, BLOCK: tl.constexpr):
    """(largest noisy value, its token) of some blocks of a row.

    The noise proper costs a division and two logarithms, so a block is first asked for less: whether one of its tokens
    could win, by a ceiling of its noise. A block at a time and lower ids first, few blocks hold a new best.
    """
    best, best_token = tl.full((), float("-inf"), tl.float32), tl.full((), 0x7FFFFFFF, tl.int32)
    inverse = 1.0 / temperature
    threshold = tl.full((), float("-inf"), tl.float32)
    if FILTERED:
        floor = least_kept(bounds)
        floor -= slack(floor)
    for block in range(first, last):
        token = block * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(row + token, token < V, other=float("-inf"))
        # Comparisons are such that NaN, of zero times infinity too, is never hopeless.
        possible = True
        if FILTERED:
            possible = any_but(x * inverse < floor)
        if possible:  # noqa: SIM102, since Triton computes both sides of `and`
            if any_but(x * inverse + noise_ceiling(token, key) < threshold):
                value = tl.div_rn(x, temperature)
                noisy = value + gumbel_noise(token, key)
                kept = noisy > float("-inf")  # which NaN is not
                if FILTERED:
                    kept &= is_kept(value, token, bounds)
                noisy = tl.where(kept, noisy, float("-inf"))
                largest, largest_token = best_of_block(noisy, token)
                best, best_token = better(largest, largest_token, best, best_token)
                threshold = best - slack(best)
    return best, best_token


@triton.jit
def best_of_part(
    row, position, params, bounds, V, blocks_a_part, RANDOM: tl.constexpr, FILTERED: tl.constexpr, BLOCK: tl.constexpr
):
    """(largest value, its token) of this program's part of a row; values have noise if the row has a temperature."""
    temperature = 0.0
    if RANDOM:
        temperature = tl.load(params + _TEMPERATURE).to(tl.float32, bitcast=True)
    first = tl.program_id(1) * blocks_a_part
    last = tl.minimum(first + blocks_a_part, tl.cdiv(V, BLOCK))
    if temperature > 0.0:
        key = noise_key(tl.load(params + _SEED_LOW), tl.load(params + _SEED_HIGH), tl.load(position))
        largest, token = draw_part(row, V, first, last, temperature, key, bounds, FILTERED, BLOCK)
    else:
        best = tl.full((BLOCK,), float("-inf"), tl.float32)
        best_token = tl.full((BLOCK,), 0x7FFFFFFF, tl.int32)
        for block in range(first, last):
            at = block * BLOCK + tl.arange(0, BLOCK)
            best, best_token = better(tl.load(row + at, at < V, other=float("-inf")), at, best, best_token)
        largest, token = best_of_block(best, best_token)
    return largest, token


@triton.jit
def winner_if_last(largest, token, values, tokens, arrived, V, MAX_PARTS: tl.constexpr):
    """Leave a part's result; in the row's last program the token that wins, in the others -1."""
    part, parts = tl.program_id(1), tl.num_programs(1)
    tl.store(values + part, largest)
    tl.store(tokens + part, token)
    tl.debug_barrier()
    winner = tl.full((), -1, tl.int32)
    if tl.atomic_add(arrived, 1, sem="acq_rel") == parts - 1:
        others = tl.arange(0, MAX_PARTS)
        theirs = tl.load(values + others, others < parts, other=float("-inf"), cache_modifier=".cg")
        their_tokens = tl.load(tokens + others, others < parts, other=0x7FFFFFFF, cache_modifier=".cg")
        _, winner = best_of_block(theirs, their_tokens)
        # Nothing is larger than minus infinity in a row of that, or of NaN.
        winner = tl.where(winner < V, winner, 0)
        tl.store(arrived, 0)
    return winner


@triton.jit(do_not_specialize=["blocks_a_part"])
def draw_kernel(
    logits_KV,
    slot_K,
    position_K,
    params_SC,
    bounds_K5,
    partial_value_KP,
    partial_token_KP,
    arrived_K,
    counts_SV,
    last_token_S,
    ids_K,
    V,
    blocks_a_part,
    C: tl.constexpr,
    RANDOM: tl.constexpr,
    FILTERED: tl.constexpr,
    COUNTED: tl.constexpr,
    BLOCK: tl.constexpr,
    MAX_PARTS: tl.constexpr,
    PDL: tl.constexpr,
):
    """A part of one row's vocabulary a program; the last program of a row compares the parts.

    Source: Gumbel-max sampling: the largest logit plus Gumbel noise is a draw from the softmax.
    """
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    k = tl.program_id(0)
    slot = tl.load(slot_K + k)
    drawn = tl.full((), -1, tl.int32)
    if FILTERED:
        drawn = tl.load(bounds_K5 + k * 5 + 4)
    if drawn < 0:
        params, bounds = params_SC + slot * C, bounds_K5 + k * 5 if FILTERED else None
        row, position = logits_KV + k.to(tl.int64) * V, position_K + k
        largest, token = best_of_part(row, position, params, bounds, V, blocks_a_part, RANDOM, FILTERED, BLOCK)
        values, tokens = partial_value_KP + k * MAX_PARTS, partial_token_KP + k * MAX_PARTS
        drawn = winner_if_last(largest, token, values, tokens, arrived_K + k, V, MAX_PARTS)
    elif tl.program_id(1) > 0:
        drawn = tl.full((), -1, tl.int32)
    if drawn >= 0:
        tl.store(ids_K + k, drawn)
        tl.store(last_token_S + slot, drawn)
        if COUNTED:
            tl.atomic_add(counts_SV + slot * V + drawn, 1, sem="relaxed")


class DrawScratch:
    """What the parts of a row leave for its last program. Steps on one stream share it."""

    def __init__(self) -> None:
        self._buffers: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def of(self, rows: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(values, tokens, arrivals) for so many rows; arrivals are zero between steps."""
        for buffers in self._buffers:
            if buffers[2].shape[0] >= rows:
                return buffers
        # Smaller buffers stay: captured steps write to their addresses.
        rows = 1 << (rows - 1).bit_length()
        values = torch.empty((rows, _MAX_PARTS), dtype=torch.float32, device=device)
        tokens = torch.empty((rows, _MAX_PARTS), dtype=torch.int32, device=device)
        self._buffers.append((values, tokens, torch.zeros(rows, dtype=torch.int32, device=device)))
        return self._buffers[-1]


def draw(
    logits_KV: torch.Tensor,
    inputs: StepInputs,
    slots: SlotState,
    scratch: DrawScratch,
    arch: GpuArch,
    *,
    random: bool,
    bounds_K5: torch.Tensor | None,
    counted: bool,
) -> torch.Tensor:
    """Choose a token of each row and write it to the row's slot.

    Args:
        logits_KV: float32, contiguous; not changed.
        random: rows with a temperature draw; otherwise all take the likeliest token.
        bounds_K5: what filters leave of each row, from `filters.bounds`, or None for everything.
        counted: add the token to the slot's counts.

    Returns:
        (K,) int32.
    """
    rows, vocab_size = logits_KV.shape
    blocks = triton.cdiv(vocab_size, _BLOCK)
    wanted = max(1, _PROGRAMS_A_PROCESSOR * arch.num_processors // rows)
    blocks_a_part = triton.cdiv(blocks, min(blocks, wanted, _MAX_PARTS))
    values, tokens, arrived = scratch.of(rows, logits_KV.device)
    ids_K = torch.empty(rows, dtype=torch.int32, device=logits_KV.device)
    counts_SV = slots.ensure_counts()[0] if counted else None
    per_row = (logits_KV, inputs.sample_slot_K, inputs.sample_position_K, slots.params_SC, bounds_K5)
    launch(
        draw_kernel,
        (rows, triton.cdiv(blocks, blocks_a_part)),
        *(*per_row, values, tokens, arrived, counts_SV, slots.last_token_S, ids_K, vocab_size, blocks_a_part),
        num_warps=_WARPS,
        pdl=arch.pdl,
        C=slots.params_SC.shape[1],
        RANDOM=random,
        FILTERED=bounds_K5 is not None,
        COUNTED=counted,
        BLOCK=_BLOCK,
        MAX_PARTS=_MAX_PARTS,
    )
    return ids_K
