"""Log-probability and rank of given tokens, and the likeliest ones.

Q rows, V vocabulary, G groups of neighbouring tokens, N gathered tokens, k reported tokens.
"""

# Relaxed: Triton's language is untyped; what it declares about itself holds for its compiler only.
# pyright: basic, reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
import triton.language as tl

from drivetrain_plugins.contract import reference
from drivetrain_triton.arch import GpuArch
from drivetrain_triton.launch import launch
from drivetrain_triton.sampling.groups import (
    CANDIDATES,
    FEW,
    MAX_GROUPS,
    Groups,
    GroupScratch,
    bound_of_maxima,
    gather,
    group_size,
    list_groups,
    load_groups,
    load_id,
    places_of_few,
    survey,
)

_BLOCK = 4096
_ROWS_AT_ONCE = 256
"""So that the tables of a long prompt's tokens stay small. A multiple of what keeps addresses aligned."""

_MAX_TOP = 128
"""Most reported tokens that the kernel finds."""

_OPTIONS: dict[str, dict[str, int]] = {"sm_80": {"maxnreg": 80}}
"""Without it ptxas spills two registers to make room for a second program."""

_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def count_likelier(row, V, listed, num_groups, largest, log_sum, chosen, GROUP: tl.constexpr, BLOCK: tl.constexpr):
    """Tokens of listed groups whose log-probability is above `chosen`, as rounded."""
    likelier = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, num_groups, BLOCK // GROUP):
        at = tl.arange(0, BLOCK)
        place = start + at // GROUP
        token = tl.load(listed + place, place < num_groups, other=0) * GROUP + at % GROUP
        x = tl.load(row + token, (place < num_groups) & (token < V), other=float("-inf"))
        likelier += ((x - largest) - log_sum > chosen).to(tl.int32)
    return tl.sum(likelier, axis=0)


@triton.jit
def top_of_row(row, V, top, largest, log_sum, top_ids, top_logprobs, BLOCK: tl.constexpr):
    """Store the likeliest tokens, each found by a look at the whole row: for rows where too many could be it."""
    value, token = float("inf"), -1
    for place in range(top):
        best = tl.full((BLOCK,), float("-inf"), tl.float32)
        best_token = tl.full((BLOCK,), 0x7FFFFFFF, tl.int32)
        for start in range(0, V, BLOCK):
            at = start + tl.arange(0, BLOCK)
            x = tl.load(row + at, at < V, other=float("-inf"))
            left = (at < V) & ((x < value) | ((x == value) & (at > token)))
            wins = left & ((x > best) | (best_token == 0x7FFFFFFF))
            best, best_token = tl.where(wins, x, best), tl.where(wins, at, best_token)
        value = tl.max(best, axis=0)
        token = tl.min(tl.where(best == value, best_token, 0x7FFFFFFF), axis=0)
        tl.store(top_ids + place, tl.minimum(token, V - 1))
        tl.store(top_logprobs + place, (value - largest) - log_sum)


@triton.jit(do_not_specialize=["top"])
def logprobs_kernel(
    logits_QV,
    targets_Q,
    survey_Q2G,
    listed_QG,
    candidates_Q2N,
    logprobs_Q,
    ranks_Q,
    top_logprobs_Qk,
    top_ids_Qk,
    V,
    top,
    GROUP: tl.constexpr,
    MAX_GROUPS: tl.constexpr,
    CANDIDATES: tl.constexpr,
    FEW: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """One row a program. A log-probability is (x - largest) - log(sum), as torch rounds it."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    q = tl.program_id(0).to(tl.int64)
    row, listed = logits_QV + q * V, listed_QG + q * MAX_GROUPS
    maxima, masses, largest = load_groups(survey_Q2G, q, V, _LOG2_E, GROUP)
    log_sum = tl.log(tl.sum(masses, axis=0))
    x = tl.load(row + tl.load(targets_Q + q))
    chosen = (x - largest) - log_sum
    num_groups = list_groups(maxima, x, listed, V, GROUP)
    tl.debug_barrier()
    likelier = count_likelier(row, V, listed, num_groups, largest, log_sum, chosen, GROUP, BLOCK)
    tl.store(logprobs_Q + q, chosen)
    tl.store(ranks_Q + q, likelier + 1)
    if top > 0:
        tl.debug_barrier()  # before the list is written again
        none, one = tl.zeros((MAX_GROUPS,), tl.float32), tl.full((MAX_GROUPS,), 1.0, tl.float32)
        least = bound_of_maxima(maxima, none, one, largest, _LOG2_E, top.to(tl.float32), GROUP)
        num_groups = list_groups(maxima, least, listed, V, GROUP)
        tl.debug_barrier()
        candidates = candidates_Q2N + q * 2 * CANDIDATES
        count = gather(row, V, least, listed, num_groups, candidates, GROUP)
        tl.debug_barrier()
        top_ids, top_logprobs = top_ids_Qk + q * top, top_logprobs_Qk + q * top
        if count <= FEW:
            y, place, _ = places_of_few(candidates, count, 1.0, largest, FEW)
            at = tl.arange(0, FEW)
            reported = (at < count) & (place < top)
            tl.store(top_ids + place, load_id(candidates, at, count), reported)
            tl.store(top_logprobs + place, (y - largest) - log_sum, reported)
            # Of a row with NaN there may be too few.
            missing = (at >= count) & (at < top)
            tl.store(top_ids + at, 0, missing)
            tl.store(top_logprobs + at, float("nan"), missing)
        else:
            top_of_row(row, V, top, largest, log_sum, top_ids, top_logprobs, BLOCK)


def token_logprobs(
    logits_QV: torch.Tensor, targets_Q: torch.Tensor, top: int, scratch: GroupScratch, arch: GpuArch
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `contract.reference.token_logprobs`, with no table of log-probabilities.

    More than 128 likeliest tokens are left to the reference.

    Args:
        logits_QV: float32, contiguous.

    Returns:
        (logprobs_Q float32, ranks_Q int32, top_ids_Qk int32, top_logprobs_Qk float32).
    """
    rows, vocab_size = logits_QV.shape
    if top > min(_MAX_TOP, vocab_size):
        return reference.token_logprobs(logits_QV, targets_Q, top)
    outputs = tuple(
        torch.empty(shape, dtype=dtype, device=logits_QV.device)
        for shape in ((rows,), (rows, top))
        for dtype in (torch.float32, torch.int32)
    )
    for start in range(0, rows, _ROWS_AT_ONCE):
        some = slice(start, start + _ROWS_AT_ONCE)
        groups = scratch.of(min(rows - start, _ROWS_AT_ONCE), logits_QV.device)
        _launch(logits_QV[some], targets_Q[some], groups, tuple(output[some] for output in outputs), top, arch)
    logprobs_Q, ranks_Q, top_logprobs_Qk, top_ids_Qk = outputs
    return logprobs_Q, ranks_Q, top_ids_Qk, top_logprobs_Qk


def _launch(
    logits_QV: torch.Tensor,
    targets_Q: torch.Tensor,
    groups: Groups,
    outputs: tuple[torch.Tensor, ...],
    top: int,
    arch: GpuArch,
) -> None:
    rows, vocab_size = logits_QV.shape
    survey(logits_QV, groups, arch)
    tables = (groups.survey_K2G, groups.listed_KG, groups.candidates_K2N)
    launch(
        logprobs_kernel,
        (rows,),
        *(logits_QV, targets_Q, *tables, *outputs, vocab_size, top),
        num_warps=16,
        pdl=arch.pdl,
        options=_OPTIONS.get(arch.name),
        GROUP=group_size(vocab_size),
        MAX_GROUPS=MAX_GROUPS,
        CANDIDATES=CANDIDATES,
        FEW=FEW,
        BLOCK=_BLOCK,
    )
