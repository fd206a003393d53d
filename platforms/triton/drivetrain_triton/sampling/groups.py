"""A look at whole rows by many programs: of every few neighbouring tokens the largest logit and the mass.

Few groups hold the likeliest tokens, and which ones they are follows from the maxima alone. So whoever looks for these
tokens reads some groups and not the row.

K rows, V vocabulary, G groups of a row, N tokens of a group.
"""

# Relaxed: Triton's language is untyped; what it declares about itself holds for its compiler only.
# pyright: basic, reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from drivetrain_plugins.contract.batch import TEMPERATURE
from drivetrain_triton.arch import GpuArch
from drivetrain_triton.launch import launch

MAX_GROUPS = 4096
CANDIDATES = 4096
"""Most tokens that are gathered from a row's groups."""

FEW = 512
"""Most tokens that are compared with each other."""

BLOCK = 1024
_SMALLEST_GROUP = 64
_PROGRAMS_A_PROCESSOR = 16
_BOUND_BITS = 18
"""Of a bound's key that are decided: enough to tell values apart that differ by a five hundredth."""

LOWEST_KEY = tl.constexpr(0x007FFFFF)
"""Of minus infinity."""

_MARGIN = tl.constexpr(8)
_TEMPERATURE = tl.constexpr(TEMPERATURE)
_GROUPS = tl.constexpr(MAX_GROUPS)
_CANDIDATES = tl.constexpr(CANDIDATES)
_AT_ONCE = tl.constexpr(2048)
"""Tokens of groups that are read at once."""

_FEW_AT_ONCE = tl.constexpr(16)
"""Tokens that all others are compared with at once."""
_BLOCK = tl.constexpr(BLOCK)
_BITS = tl.constexpr(_BOUND_BITS)


@triton.jit
def order_key(x):
    """uint32 in the order of float32; both zeros are equal."""
    bits = (x + 0.0).to(tl.uint32, bitcast=True)
    return bits ^ tl.where((bits >> 31) == 1, 0xFFFFFFFF, 0x80000000)


@triton.jit
def value_of_key(key):
    """The float32 that has this key."""
    return (key ^ tl.where((key >> 31) == 1, 0x80000000, 0xFFFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["blocks_a_part"])
def survey_kernel(
    logits_KV,
    slot_K,
    params_SC,
    survey_K2G,
    V,
    blocks_a_part,
    C: tl.constexpr,
    SCALED: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    MAX_GROUPS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Some blocks of one row a program. The mass of a group is in units of its largest probability."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    k = tl.program_id(0).to(tl.int64)
    row = logits_KV + k * V
    scale = 1.4426950408889634
    if SCALED:
        temperature = tl.load(params_SC + tl.load(slot_K + k) * C + _TEMPERATURE).to(tl.float32, bitcast=True)
        scale = tl.where(temperature > 0.0, scale / temperature, 0.0)
    first = tl.program_id(1) * blocks_a_part
    for block in range(first, tl.minimum(first + blocks_a_part, tl.cdiv(V, BLOCK))):
        group = block * (BLOCK // GROUP) + tl.arange(0, BLOCK // GROUP)
        token = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
        x = tl.load(row + token, token < V, other=float("-inf"))
        x = tl.where(x > float("-inf"), x, float("-inf"))  # NaN too
        largest = tl.max(x, axis=1)
        # A group of minus infinity has no difference to its largest.
        finite = tl.where(largest > float("-inf"), largest, 0.0)
        mass = tl.sum(tl.exp2((x - finite[:, None]) * scale), axis=1)
        tl.store(survey_K2G + k * 2 * MAX_GROUPS + group, largest, group < MAX_GROUPS)
        tl.store(survey_K2G + (k * 2 + 1) * MAX_GROUPS + group, mass, group < MAX_GROUPS)


@triton.jit
def load_groups(survey_K2G, k, V, scale, GROUP: tl.constexpr):
    """(maxima of the row's groups, masses in units of the row's largest probability, largest logit).

    Args:
        scale: what makes powers of two of differences of logits probabilities, log2(e) over the temperature.
    """
    group = tl.arange(0, _GROUPS)
    # The survey wrote whole blocks.
    mask = group < tl.cdiv(V, _BLOCK) * (_BLOCK // GROUP)
    at = survey_K2G + k.to(tl.int64) * 2 * _GROUPS + group
    maxima = tl.load(at, mask, other=float("-inf"))
    largest = tl.max(maxima, axis=0)
    return maxima, tl.load(at + _GROUPS, mask, other=0.0) * tl.exp2((maxima - largest) * scale), largest


@triton.jit
def bound_of_maxima(maxima, masses, weight, largest, scale, target, GROUP: tl.constexpr):
    """A logit such that tokens with at least that have the weight `target`; a little below the largest such logit.

    A group counts with its largest token, of this `weight`; or, if its mass is more, with that less the most that all
    other tokens below the logit may have.
    """
    key = tl.zeros((), tl.uint32)
    keys = order_key(maxima)
    most = order_key(largest)
    for step in range(_BITS):
        tried = key | (tl.full((), 0x80000000, tl.uint32) >> step)
        if tried <= most:
            below = tl.exp2((value_of_key(tried) - largest) * scale) * (GROUP - 1)
            total = tl.sum(tl.where(keys >= tried, tl.maximum(weight, masses - below), 0.0), axis=0)
            key = tl.where(total >= target, tried, key)
    # Logits that differ a little may be equal over the temperature.
    return value_of_key(tl.maximum(key, LOWEST_KEY + _MARGIN) - _MARGIN)


@triton.jit
def places(chosen, SIZE: tl.constexpr, TOGETHER: tl.constexpr):
    """Of chosen elements, how many come before: among a few neighbours, which a thread holds, and in all before these.

    In one step a sum over all takes thrice the registers on some parts.
    """
    chosen_NM = chosen.to(tl.int32).reshape(SIZE // TOGETHER, TOGETHER)
    within_NM = tl.cumsum(chosen_NM, axis=1)
    total_N = tl.sum(chosen_NM, axis=1)
    before_N = tl.cumsum(total_N, axis=0) - total_N
    return (within_NM + before_N[:, None] - 1).reshape(SIZE)


@triton.jit
def list_groups(maxima, least, listed, V, GROUP: tl.constexpr):
    """Store the groups that have logits of at least `least`, in order; their number."""
    group = tl.arange(0, _GROUPS)
    near = (maxima >= least) & (group < tl.cdiv(V, GROUP))
    tl.store(listed + places(near, _GROUPS, 8), group, near)
    return tl.sum(near.to(tl.int32), axis=0)


@triton.jit
def gather(row, V, least, listed, num_groups, candidates, GROUP: tl.constexpr):
    """Store the logits of listed groups that are at least `least`, and their ids in ascending order.

    Returns:
        Their number, which is more than `CANDIDATES` if they are not all stored.
    """
    count = 0
    if num_groups > _CANDIDATES:
        count = _CANDIDATES + 1
        num_groups = 0
    for start in range(0, num_groups, _AT_ONCE // GROUP):
        at = tl.arange(0, _AT_ONCE)
        place = start + at // GROUP
        group = tl.load(listed + place, place < num_groups, other=0)
        token = group * GROUP + at % GROUP
        mask = (place < num_groups) & (token < V)
        x = tl.load(row + token, mask, other=float("-inf"))
        found = mask & (x >= least)
        place = count + places(found, _AT_ONCE, 4)
        fits = found & (place < _CANDIDATES)
        tl.store(candidates + place, x.to(tl.int32, bitcast=True), fits)
        tl.store(candidates + _CANDIDATES + place, token, fits)
        count += tl.sum(found.to(tl.int32), axis=0)
    return count


@triton.jit
def load_value(candidates, at, count):
    """Logits of gathered tokens, minus infinity past the last."""
    bits = tl.load(candidates + at, at < count, other=-0x800000)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def load_id(candidates, at, count):
    """Ids of gathered tokens, 0 past the last."""
    return tl.load(candidates + _CANDIDATES + at, at < count, other=0)


@triton.jit
def places_of_few(candidates, count, temperature, largest, FEW: tl.constexpr):
    """(value over the temperature, tokens before it, their mass) of at most `FEW` gathered tokens, by all pairs.

    The order is that of a stable descending sort.
    """
    at = tl.arange(0, FEW)
    x = tl.div_rn(load_value(candidates, at, count), temperature)
    place, before = tl.zeros((FEW,), tl.int32), tl.zeros((FEW,), tl.float32)
    for start in range(0, count, _FEW_AT_ONCE):
        other = start + tl.arange(0, _FEW_AT_ONCE)
        y = tl.div_rn(load_value(candidates, other, count), temperature)
        # Ids ascend in the list.
        equal = (y[None, :] == x[:, None]) & (other[None, :] < at[:, None])
        ahead = ((y[None, :] > x[:, None]) | equal) & (other < count)[None, :]
        place += tl.sum(ahead.to(tl.int32), axis=1)
        before += tl.sum(tl.where(ahead, tl.exp(y - largest)[None, :], 0.0), axis=1)
    return x, place, before


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """What `survey` finds of rows, and room for a list of groups and one of tokens a row.

    Attributes:
        survey_K2G: float32; largest logit, and mass over the largest's probability.
        listed_KG: int32. candidates_K2N: int32; logits as bits, and ids.
    """

    survey_K2G: torch.Tensor
    listed_KG: torch.Tensor
    candidates_K2N: torch.Tensor

    @classmethod
    def empty(cls, rows: int, device: torch.device) -> Groups:
        """For so many rows."""

        def table(columns: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.empty((rows, columns), dtype=dtype, device=device)

        return cls(
            survey_K2G=table(2 * MAX_GROUPS, torch.float32),
            listed_KG=table(MAX_GROUPS, torch.int32),
            candidates_K2N=table(2 * CANDIDATES, torch.int32),
        )


class GroupScratch:
    """Tables for the rows of a step. Steps on one stream share them."""

    def __init__(self) -> None:
        self._tables: list[Groups] = []

    def of(self, rows: int, device: torch.device) -> Groups:
        """For so many rows or more."""
        for tables in self._tables:
            if tables.listed_KG.shape[0] >= rows:
                return tables
        # Smaller tables stay: captured steps write to their addresses.
        self._tables.append(Groups.empty(triton.next_power_of_2(rows), device))
        return self._tables[-1]


def group_size(vocab_size: int) -> int:
    """Neighbouring tokens that are one group."""
    least = -(-vocab_size // MAX_GROUPS)
    return max(_SMALLEST_GROUP, 1 << (least - 1).bit_length())


def survey(
    logits_KV: torch.Tensor,
    groups: Groups,
    arch: GpuArch,
    *,
    slot_K: torch.Tensor | None = None,
    params_SC: torch.Tensor | None = None,
) -> None:
    """Write the maxima and masses of each row's groups.

    Args:
        logits_KV: float32, contiguous.
        slot_K, params_SC: where each row's temperature is, for the masses; 1 without them.
    """
    rows, vocab_size = logits_KV.shape
    blocks = triton.cdiv(vocab_size, BLOCK)
    blocks_a_part = triton.cdiv(blocks, min(blocks, max(1, _PROGRAMS_A_PROCESSOR * arch.num_processors // rows)))
    launch(
        survey_kernel,
        (rows, triton.cdiv(blocks, blocks_a_part)),
        *(logits_KV, slot_K, params_SC, groups.survey_K2G, vocab_size, blocks_a_part),
        pdl=arch.pdl,
        C=0 if params_SC is None else params_SC.shape[1],
        SCALED=params_SC is not None,
        GROUP=group_size(vocab_size),
        BLOCK=BLOCK,
        MAX_GROUPS=MAX_GROUPS,
    )
