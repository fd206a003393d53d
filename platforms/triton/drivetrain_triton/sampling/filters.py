"""Top-k, top-p and min-p without a sort: of each row, the value and id down to which tokens stay.

In the order of the reference (largest value first, of equal ones the lowest id) every filter keeps a leading part, so
what stays is told by its last token. That one is found by deciding the bits of its value one after the other, each by
counting tokens or adding up their probabilities. A first look at the row gathers its likeliest tokens, so that the
search mostly reads these; where they are not enough it reads the whole row. The result is the same.

K rows, V vocabulary, S slots, C slot columns.
"""

# Relaxed: Triton's language is untyped; what it declares about itself holds for its compiler only.
# pyright: basic, reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl

from drivetrain_plugins.contract.batch import MIN_P, TEMPERATURE, TOP_K, TOP_P
from drivetrain_plugins.contract.slots import SlotState, StepInputs
from drivetrain_triton.arch import GpuArch
from drivetrain_triton.launch import launch

_CANDIDATES = 2048
_WARPS = 8

_BINS = tl.constexpr(256)
_BINS_A_UNIT = tl.constexpr(8.0)
_LOWEST_KEY = tl.constexpr(0x007FFFFF)  # of minus infinity
_TEMPERATURE = tl.constexpr(TEMPERATURE)
_TOP_P = tl.constexpr(TOP_P)
_MIN_P = tl.constexpr(MIN_P)
_TOP_K = tl.constexpr(TOP_K)


@triton.jit
def order_key(x):
    """uint32 in the order of float32; both zeros are equal."""
    bits = (x + 0.0).to(tl.uint32, bitcast=True)
    return bits ^ tl.where((bits >> 31) == 1, 0xFFFFFFFF, 0x80000000)


@triton.jit
def value_of_key(key):
    """The float32 that has this key."""
    return (key ^ tl.where((key >> 31) == 1, 0x80000000, 0xFFFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def load_scaled(values, at, count, temperature):
    """Values over the temperature, minus infinity past the end."""
    return tl.div_rn(tl.load(values + at, at < count, other=float("-inf")), temperature)


@triton.jit
def load_either(candidates, gathered, row, at, V, temperature):
    """The gathered candidates if there are any, else the row. Minus infinity past the end of either.

    Both are loaded under a mask, since a pointer chosen at run time breaks Triton's compiler for AMD.
    """
    x = load_scaled(row, at, tl.where(gathered > 0, 0, V), temperature)
    return tl.maximum(x, tl.load(candidates + at, at < gathered, other=float("-inf")))


@triton.jit
def distance_bin(x, largest):
    """How far below the largest value, in bins; the last one holds everything farther."""
    return tl.minimum((largest - x) * _BINS_A_UNIT, _BINS - 1.0).to(tl.int32)


@triton.jit
def largest_key(candidates, gathered, row, V, temperature, largest, target, MASS: tl.constexpr, BLOCK: tl.constexpr):
    """The largest key such that the values with at least that key are `target` in number or in mass; 0 if none."""
    key = tl.zeros((), tl.uint32)
    count = tl.where(gathered > 0, gathered, V)
    for step in range(32):
        tried = key | (tl.full((), 0x80000000, tl.uint32) >> step)
        total = 0.0
        for start in range(0, count, BLOCK):
            at = start + tl.arange(0, BLOCK)
            x = load_either(candidates, gathered, row, at, V, temperature)
            weight = tl.exp(x - largest) if MASS else 1.0
            total += tl.sum(tl.where((order_key(x) >= tried) & (at < count), weight, 0.0), axis=0)
        key = tl.where(total >= target, tried, key)
    return key


@triton.jit
def tally(candidates, gathered, row, V, temperature, largest, key, BLOCK: tl.constexpr):
    """(number above a key, their mass, number that equal it)."""
    count = tl.where(gathered > 0, gathered, V)
    above, mass, equal = 0.0, 0.0, 0.0
    for start in range(0, count, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = load_either(candidates, gathered, row, at, V, temperature)
        x_key = order_key(x)
        is_above = (x_key > key) & (at < count)
        above += tl.sum(tl.where(is_above, 1.0, 0.0), axis=0)
        mass += tl.sum(tl.where(is_above, tl.exp(x - largest), 0.0), axis=0)
        equal += tl.sum(tl.where((x_key == key) & (at < count), 1.0, 0.0), axis=0)
    return above, mass, equal


@triton.jit
def survey_row(row, V, temperature, BLOCK: tl.constexpr):
    """(largest value, total mass, number of bins that hold at most BLOCK values together)."""
    running = tl.full((BLOCK,), float("-inf"), tl.float32)
    for start in range(0, V, BLOCK):
        running = tl.maximum(running, load_scaled(row, start + tl.arange(0, BLOCK), V, temperature))
    largest = tl.max(running, axis=0)
    mass = tl.zeros((BLOCK,), tl.float32)
    counts = tl.zeros((_BINS,), tl.int32)
    for start in range(0, V, BLOCK):
        x = load_scaled(row, start + tl.arange(0, BLOCK), V, temperature)
        mass += tl.exp(x - largest)
        counts += tl.histogram(distance_bin(x, largest), _BINS)
    few = (tl.cumsum(counts, axis=0) <= BLOCK) & (tl.arange(0, _BINS) < _BINS - 1)
    return largest, tl.sum(mass, axis=0), tl.sum(few.to(tl.int32), axis=0)


@triton.jit
def gather_candidates(row, V, temperature, largest, bins, candidates, BLOCK: tl.constexpr):
    """Store the values of the first bins in the order of their ids; (number, mass)."""
    count, mass = 0, 0.0
    if bins > 0:
        for start in range(0, V, BLOCK):
            x = load_scaled(row, start + tl.arange(0, BLOCK), V, temperature)
            near = distance_bin(x, largest) < bins
            place = count + tl.cumsum(near.to(tl.int32), axis=0) - 1
            tl.store(candidates + place, x, near)
            count += tl.sum(near.to(tl.int32), axis=0)
            mass += tl.sum(tl.where(near, tl.exp(x - largest), 0.0), axis=0)
    return count, mass


@triton.jit
def id_of_equal(row, V, temperature, key, which, BLOCK: tl.constexpr):
    """Id of the `which`-th value, counted from 1, that has this key."""
    seen, found = 0, 0x7FFFFFFF
    for start in range(0, V, BLOCK):
        token = start + tl.arange(0, BLOCK)
        equal = (order_key(load_scaled(row, token, V, temperature)) == key) & (token < V)
        place = seen + tl.cumsum(equal.to(tl.int32), axis=0)
        found = tl.minimum(found, tl.min(tl.where(equal & (place == which), token, 0x7FFFFFFF), axis=0))
        seen += tl.sum(equal.to(tl.int32), axis=0)
    return found


@triton.jit
def search(candidates, gathered, row, V, temperature, largest, total_mass, top_k, top_p, BLOCK: tl.constexpr):
    """(key of the last token that stays, how many of the tokens with this key stay, how many there are)."""
    key, stay, equal = tl.full((), _LOWEST_KEY, tl.uint32), float("inf"), 0.0
    mass = total_mass
    if top_k > 0:
        found = largest_key(candidates, gathered, row, V, temperature, largest, top_k.to(tl.float32), False, BLOCK)
        key = tl.maximum(found, key)
        above, above_mass, equal = tally(candidates, gathered, row, V, temperature, largest, key, BLOCK)
        stay = top_k.to(tl.float32) - above
        mass = above_mass + tl.minimum(stay, equal) * tl.exp(value_of_key(key) - largest)
    if top_p < 1.0:
        target = top_p * mass
        found = largest_key(candidates, gathered, row, V, temperature, largest, target, True, BLOCK)
        found = tl.minimum(tl.maximum(found, tl.full((), _LOWEST_KEY, tl.uint32)), order_key(largest))
        if found >= key:
            _, above_mass, equal = tally(candidates, gathered, row, V, temperature, largest, found, BLOCK)
            each = tl.exp(value_of_key(found) - largest)
            within = tl.maximum(tl.ceil((target - above_mass) / tl.maximum(each, 1e-37)), 1.0)
            stay = tl.where(found == key, tl.minimum(stay, within), within)
            key = found
    return key, stay, equal


@triton.jit
def bounds_kernel(
    logits_KV,
    slot_K,
    params_SC,
    candidates_KB,
    bounds_K4,
    V,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """One row a program."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    k = tl.program_id(0)
    params = params_SC + tl.load(slot_K + k) * C
    temperature = tl.load(params + _TEMPERATURE).to(tl.float32, bitcast=True)
    top_k = tl.load(params + _TOP_K)
    top_p = tl.load(params + _TOP_P).to(tl.float32, bitcast=True)
    min_p = tl.load(params + _MIN_P).to(tl.float32, bitcast=True)
    value = tl.full((), float("-inf"), tl.float32)
    last = tl.full((), 0x7FFFFFFF, tl.int32)
    largest = tl.full((), float("-inf"), tl.float32)
    if (temperature > 0.0) & ((top_k > 0) | (top_p < 1.0) | (min_p > 0.0)):
        row = logits_KV + k.to(tl.int64) * V
        largest, total_mass, bins = survey_row(row, V, temperature, BLOCK)
        if (top_k > 0) | (top_p < 1.0):
            candidates = candidates_KB + k * BLOCK
            count, mass = gather_candidates(row, V, temperature, largest, bins, candidates, BLOCK)
            tl.debug_barrier()
            # With top-k the k likeliest are enough; without it those that top-p keeps, rounding left aside.
            enough = (top_k > 0) | (mass >= top_p * total_mass * 1.00001)
            enough = enough & (count > 0) & (count >= top_k)
            gathered = tl.where(enough, count, 0)
            key, stay, equal = search(
                candidates, gathered, row, V, temperature, largest, total_mass, top_k, top_p, BLOCK
            )
            value = value_of_key(key)
            if stay < equal:
                last = id_of_equal(row, V, temperature, key, stay.to(tl.int32), BLOCK)
    else:
        min_p = tl.zeros((), tl.float32)
    bounds = bounds_K4 + k * 4
    tl.store(bounds, value.to(tl.int32, bitcast=True))
    tl.store(bounds + 1, last)
    tl.store(bounds + 2, largest.to(tl.int32, bitcast=True))
    tl.store(bounds + 3, min_p.to(tl.int32, bitcast=True))


@triton.jit
def is_kept(value, token, bounds):
    """Whether a row's filters keep tokens, by their value over the temperature."""
    least, last = tl.load(bounds).to(tl.float32, bitcast=True), tl.load(bounds + 1)
    largest = tl.load(bounds + 2).to(tl.float32, bitcast=True)
    min_p = tl.load(bounds + 3).to(tl.float32, bitcast=True)
    leading = (value > least) | ((value == least) & (token <= last))
    return leading & ((min_p <= 0.0) | (tl.exp(value - largest) >= min_p))


class FilterScratch:
    """The likeliest values of each row. Steps on one stream share it."""

    def __init__(self) -> None:
        self._buffers: list[torch.Tensor] = []

    def of(self, rows: int, device: torch.device) -> torch.Tensor:
        """(rows or more, candidates) float32."""
        for buffer in self._buffers:
            if buffer.shape[0] >= rows:
                return buffer
        # Smaller buffers stay: captured steps write to their addresses.
        shape = (triton.next_power_of_2(rows), _CANDIDATES)
        self._buffers.append(torch.empty(shape, dtype=torch.float32, device=device))
        return self._buffers[-1]


def bounds(
    logits_KV: torch.Tensor, inputs: StepInputs, slots: SlotState, scratch: FilterScratch, arch: GpuArch
) -> torch.Tensor:
    """What the filters of each row's slot leave.

    Args:
        logits_KV: float32, contiguous, before the temperature.

    Returns:
        (K, 4) int32: the least value over the temperature that stays, the last id that stays of those equal to it, the
        largest value, and min-p; all but the id as float32 bits.
    """
    rows, vocab_size = logits_KV.shape
    bounds_K4 = torch.empty((rows, 4), dtype=torch.int32, device=logits_KV.device)
    launch(
        bounds_kernel,
        (rows,),
        *(logits_KV, inputs.sample_slot_K, slots.params_SC, scratch.of(rows, logits_KV.device), bounds_K4, vocab_size),
        num_warps=_WARPS,
        pdl=arch.pdl,
        C=slots.params_SC.shape[1],
        BLOCK=_CANDIDATES,
    )
    return bounds_K4
