"""Top-k, top-p and min-p without a sort: of each row, the value and id down to which tokens stay.

In the order of the reference (largest value first, of equal ones the lowest id) every filter keeps a leading part, so
what stays is told by its last token. A survey of the row tells which tokens can be among those that stay. Mostly these
are few: then each is compared with every other, which gives its place and the mass before it. Otherwise the last token
is searched by the bits of its value, two by two, each time counting tokens or adding up their probabilities: among the
gathered tokens, or in the whole row where there is no room for them. The result is the same.

K rows, V vocabulary, S slots, C slot columns, G groups of neighbouring tokens, N gathered tokens.
"""

# Relaxed: Triton's language is untyped; what it declares about itself holds for its compiler only.
# pyright: basic, reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
import triton.language as tl

from drivetrain_plugins.contract.batch import MIN_P, SEED_HIGH, SEED_LOW, TEMPERATURE, TOP_K, TOP_P
from drivetrain_plugins.contract.slots import SlotState, StepInputs
from drivetrain_triton.arch import GpuArch
from drivetrain_triton.launch import launch
from drivetrain_triton.sampling.groups import (
    CANDIDATES,
    FEW,
    LOWEST_KEY,
    MAX_GROUPS,
    GroupScratch,
    bound_of_maxima,
    gather,
    group_size,
    list_groups,
    load_groups,
    load_id,
    load_value,
    order_key,
    places_of_few,
    survey,
    value_of_key,
)
from drivetrain_triton.sampling.noise import gumbel_noise, noise_key

_BLOCK = 4096
"""Tokens that a search looks at together, gathered ones or the row's."""

_NOT_DRAWN = tl.constexpr(-1)
_OPEN = tl.constexpr(-1)
"""In place of the last id: a row that is still to be searched."""

_TEMPERATURE = tl.constexpr(TEMPERATURE)
_TOP_P = tl.constexpr(TOP_P)
_MIN_P = tl.constexpr(MIN_P)
_TOP_K = tl.constexpr(TOP_K)
_SEED_LOW = tl.constexpr(SEED_LOW)
_SEED_HIGH = tl.constexpr(SEED_HIGH)


@triton.jit
def load_either(candidates, gathered, row, at, V, temperature):
    """The gathered logits if there are any, else the row's, over the temperature. Minus infinity past the end.

    Both are loaded under a mask, since a pointer chosen at run time breaks Triton's compiler for AMD.
    """
    x = tl.load(row + at, at < tl.where(gathered > 0, 0, V), other=float("-inf"))
    return tl.div_rn(tl.maximum(x, load_value(candidates, at, gathered)), temperature)


@triton.jit
def load_float(at):
    """A float32 that is kept as bits."""
    return tl.load(at).to(tl.float32, bitcast=True)


@triton.jit
def largest_value(candidates, gathered, row, V, temperature, BLOCK: tl.constexpr):
    """Of the gathered tokens, or of the row if there are none."""
    largest = tl.full((BLOCK,), float("-inf"), tl.float32)
    for start in range(0, tl.where(gathered > 0, gathered, V), BLOCK):
        at = start + tl.arange(0, BLOCK)
        largest = tl.maximum(largest, load_either(candidates, gathered, row, at, V, temperature))
    return tl.max(largest, axis=0)


@triton.jit
def reaching(keys, weight, tried, unit):
    """(N, 2, 2) weights of elements whose keys reach a key, and that with one, two and three units more."""
    none = tl.zeros_like(weight)
    even = tl.join(tl.where(keys >= tried, weight, none), tl.where(keys >= tried + 2 * unit, weight, none))
    odd = tl.join(tl.where(keys >= tried + unit, weight, none), tl.where(keys >= tried + 3 * unit, weight, none))
    return tl.join(even, odd)


@triton.jit
def largest_key(
    candidates, gathered, row, V, temperature, largest, target, least, most, MASS: tl.constexpr, BLOCK: tl.constexpr
):
    """The largest key such that the values with at least that key are `target` in number or in mass.

    It is known to be from `least` to `most`, which spares the leading bits that these share.
    """
    key = tl.zeros((), tl.uint32)
    count = tl.where(gathered > 0, gathered, V)
    for step in range(16):
        shift = 30 - 2 * step
        if (least >> shift) == (most >> shift):
            key = (least >> shift) << shift
        else:
            unit = tl.full((), 1, tl.uint32) << shift
            total = tl.zeros((BLOCK, 2, 2), tl.float32)
            for start in range(0, count, BLOCK):
                at = start + tl.arange(0, BLOCK)
                x = load_either(candidates, gathered, row, at, V, temperature)
                weight = tl.exp(x - largest) if MASS else tl.full((BLOCK,), 1.0, tl.float32)
                total += reaching(order_key(x), tl.where(at < count, weight, 0.0), key, unit)
            # The first of the four holds as it did a step before, whatever is rounded.
            reached = tl.sum((tl.sum(total, axis=0) >= target).to(tl.int32).reshape(4), axis=0)
            key += (tl.maximum(reached, 1) - 1).to(tl.uint32) << shift
    return key


@triton.jit
def tally(candidates, gathered, row, V, temperature, largest, key, BLOCK: tl.constexpr):
    """(number above a key, their mass, number that equal it)."""
    count = tl.where(gathered > 0, gathered, V)
    above, mass = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    equal = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, count, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = load_either(candidates, gathered, row, at, V, temperature)
        x_key = order_key(x)
        is_above = (x_key > key) & (at < count)
        above += tl.where(is_above, 1.0, 0.0)
        mass += tl.where(is_above, tl.exp(x - largest), 0.0)
        equal += tl.where((x_key == key) & (at < count), 1.0, 0.0)
    return tl.sum(above, axis=0), tl.sum(mass, axis=0), tl.sum(equal, axis=0)


@triton.jit
def id_of_equal(candidates, gathered, row, V, temperature, key, which, BLOCK: tl.constexpr):
    """Id of the `which`-th value, counted from 1, that has this key."""
    seen, found = 0, 0x7FFFFFFF
    count = tl.where(gathered > 0, gathered, V)
    for start in range(0, count, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = load_either(candidates, gathered, row, at, V, temperature)
        token = tl.where(gathered > 0, load_id(candidates, at, gathered), at)
        equal = (order_key(x) == key) & (at < count)
        place = seen + tl.cumsum(equal.to(tl.int32), axis=0)
        found = tl.minimum(found, tl.min(tl.where(equal & (place == which), token, 0x7FFFFFFF), axis=0))
        seen += tl.sum(equal.to(tl.int32), axis=0)
    return found


@triton.jit
def search(candidates, gathered, row, V, temperature, largest, total_mass, floor, top_k, top_p, BLOCK: tl.constexpr):
    """(key of the last token that stays, how many of the tokens with this key stay, how many there are).

    Args:
        floor: a key that is not above the one searched.
    """
    key, stay, equal = tl.full((), LOWEST_KEY, tl.uint32), float("inf"), 0.0
    mass, most = total_mass, order_key(largest)
    if top_k > 0:
        target = top_k.to(tl.float32)
        found = largest_key(candidates, gathered, row, V, temperature, largest, target, floor, most, False, BLOCK)
        key = tl.maximum(found, key)
        above, above_mass, equal = tally(candidates, gathered, row, V, temperature, largest, key, BLOCK)
        stay = target - above
        mass = above_mass + tl.minimum(stay, equal) * tl.exp(value_of_key(key) - largest)
        floor = key
    if top_p < 1.0:
        target = top_p * mass
        found = largest_key(candidates, gathered, row, V, temperature, largest, target, floor, most, True, BLOCK)
        found = tl.minimum(tl.maximum(found, tl.full((), LOWEST_KEY, tl.uint32)), most)
        if found >= key:
            _, above_mass, equal = tally(candidates, gathered, row, V, temperature, largest, found, BLOCK)
            each = tl.exp(value_of_key(found) - largest)
            within = tl.maximum(tl.ceil((target - above_mass) / tl.maximum(each, 1e-37)), 1.0)
            stay = tl.where(found == key, tl.minimum(stay, within), within)
            key = found
    return key, stay, equal


@triton.jit
def choose_of_few(candidates, count, temperature, largest, total_mass, top_k, top_p, min_p, key, FEW: tl.constexpr):
    """(value of the last token that stays, its id, the token drawn) of at most `FEW` gathered tokens."""
    at = tl.arange(0, FEW)
    x, place, before = places_of_few(candidates, count, temperature, largest, FEW)
    stays = at < count
    mass = total_mass
    if top_k > 0:
        stays &= place < top_k
        mass = tl.sum(tl.where(stays, tl.exp(x - largest), 0.0), axis=0)
    if top_p < 1.0:
        stays &= (before < top_p * mass) | (place == 0)
    last = stays & (place == tl.sum(stays.to(tl.int32), axis=0) - 1)
    token = load_id(candidates, at, count)
    stays &= (min_p <= 0.0) | (tl.exp(x - largest) >= min_p)
    noisy = tl.where(stays, x + gumbel_noise(token, key), float("-inf"))
    drawn = tl.min(tl.where(stays & (noisy == tl.max(noisy, axis=0)), token, 0x7FFFFFFF), axis=0)
    value, last_token = tl.where(last, x, float("-inf")), tl.where(last, token, 0)
    return tl.max(value, axis=0), tl.max(last_token, axis=0), tl.where(drawn == 0x7FFFFFFF, _NOT_DRAWN, drawn)


@triton.jit
def bounds_kernel(
    logits_KV,
    slot_K,
    position_K,
    params_SC,
    survey_K2G,
    listed_KG,
    candidates_K2N,
    bounds_K5,
    V,
    C: tl.constexpr,
    GROUP: tl.constexpr,
    MAX_GROUPS: tl.constexpr,
    CANDIDATES: tl.constexpr,
    FEW: tl.constexpr,
    PDL: tl.constexpr,
):
    """One row a program: gather the tokens that top-k and top-p may keep, and decide if they are few.

    Else the entry stays open: (the least logit gathered, open, number gathered or 0 if there is no room, min-p, mass of
    the row over its largest probability).
    """
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    k = tl.program_id(0)
    params = params_SC + tl.load(slot_K + k) * C
    temperature = load_float(params + _TEMPERATURE)
    top_k = tl.load(params + _TOP_K)
    top_p = load_float(params + _TOP_P)
    min_p = load_float(params + _MIN_P)
    first, last = tl.full((), float("-inf"), tl.float32), tl.full((), 0x7FFFFFFF, tl.int32)
    third, fifth = first.to(tl.int32, bitcast=True), tl.full((), _NOT_DRAWN, tl.int32)
    filtered = (temperature > 0.0) & ((top_k > 0) | (top_p < 1.0) | (min_p > 0.0))
    if filtered:
        scale = 1.4426950408889634 / temperature
        maxima, masses, largest = load_groups(survey_K2G, k, V, scale, GROUP)
        third = tl.div_rn(largest, temperature).to(tl.int32, bitcast=True)
        if (top_k > 0) | (top_p < 1.0):
            total_mass = tl.sum(masses, axis=0)
            # With top-k the k likeliest are enough; without it those that top-p keeps, rounding left aside.
            target, weight = top_k.to(tl.float32), tl.full((MAX_GROUPS,), 1.0, tl.float32)
            if top_k <= 0:
                target, weight = top_p * total_mass * 1.00001, tl.exp2((maxima - largest) * scale)
            else:
                masses = tl.zeros((MAX_GROUPS,), tl.float32)
            first = bound_of_maxima(maxima, masses, weight, largest, scale, target, GROUP)
            listed = listed_KG + k * MAX_GROUPS
            num_groups = list_groups(maxima, first, listed, V, GROUP)
            tl.debug_barrier()
            row, candidates = logits_KV + k.to(tl.int64) * V, candidates_K2N + k * 2 * CANDIDATES
            count = gather(row, V, first, listed, num_groups, candidates, GROUP)
            if count <= FEW:
                tl.debug_barrier()
                key = noise_key(tl.load(params + _SEED_LOW), tl.load(params + _SEED_HIGH), tl.load(position_K + k))
                largest = tl.div_rn(largest, temperature)
                first, last, fifth = choose_of_few(
                    candidates, count, temperature, largest, total_mass, top_k, top_p, min_p, key, FEW
                )
            else:
                last = tl.full((), _OPEN, tl.int32)
                third, fifth = tl.where(count <= CANDIDATES, count, 0), total_mass.to(tl.int32, bitcast=True)
    bounds = bounds_K5 + k * 5
    tl.store(bounds, first.to(tl.int32, bitcast=True))
    tl.store(bounds + 1, last)
    tl.store(bounds + 2, third)
    tl.store(bounds + 3, tl.where(filtered, min_p, 0.0).to(tl.int32, bitcast=True))
    tl.store(bounds + 4, fifth)


@triton.jit
def search_kernel(
    logits_KV,
    slot_K,
    params_SC,
    candidates_K2N,
    bounds_K5,
    V,
    C: tl.constexpr,
    CANDIDATES: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """One row a program; nothing to do unless its entry is open."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    k = tl.program_id(0)
    bounds = bounds_K5 + k * 5
    if tl.load(bounds + 1) == _OPEN:
        params = params_SC + tl.load(slot_K + k) * C
        temperature = load_float(params + _TEMPERATURE)
        top_k = tl.load(params + _TOP_K)
        top_p = load_float(params + _TOP_P)
        least, gathered, mass = load_float(bounds), tl.load(bounds + 2), load_float(bounds + 4)
        tl.debug_barrier()  # the entry has been read by all
        candidates = candidates_K2N + k * 2 * CANDIDATES
        row = logits_KV + k.to(tl.int64) * V
        largest = largest_value(candidates, gathered, row, V, temperature, BLOCK)
        last = tl.full((), 0x7FFFFFFF, tl.int32)
        floor = order_key(tl.div_rn(least, temperature))
        key, stay, equal = search(candidates, gathered, row, V, temperature, largest, mass, floor, top_k, top_p, BLOCK)
        value = value_of_key(key)
        if stay < equal:
            last = id_of_equal(candidates, gathered, row, V, temperature, key, stay.to(tl.int32), BLOCK)
        tl.store(bounds, value.to(tl.int32, bitcast=True))
        tl.store(bounds + 1, last)
        tl.store(bounds + 2, largest.to(tl.int32, bitcast=True))
        tl.store(bounds + 4, _NOT_DRAWN)


@triton.jit
def is_kept(value, token, bounds):
    """Whether a row's filters keep tokens, by their value over the temperature."""
    least, last = load_float(bounds), tl.load(bounds + 1)
    largest, min_p = load_float(bounds + 2), load_float(bounds + 3)
    leading = (value > least) | ((value == least) & (token <= last))
    return leading & ((min_p <= 0.0) | (tl.exp(value - largest) >= min_p))


@triton.jit
def least_kept(bounds):
    """No value over the temperature that is kept is less, rounding aside."""
    least, largest = load_float(bounds), tl.load(bounds + 2).to(tl.float32, bitcast=True)
    min_p = tl.load(bounds + 3).to(tl.float32, bitcast=True)
    return tl.where(min_p > 0.0, tl.maximum(least, largest + tl.log(min_p)), least)


def bounds(
    logits_KV: torch.Tensor, inputs: StepInputs, slots: SlotState, scratch: GroupScratch, arch: GpuArch
) -> torch.Tensor:
    """What the filters of each row's slot leave.

    Args:
        logits_KV: float32, contiguous, before the temperature.

    Returns:
        (K, 5) int32: the least value over the temperature that stays, the last id that stays of those equal to it, the
        largest value, and min-p, all but the id as float32 bits; and the token that is drawn, or -1 if that is still to
        be done.
    """
    rows, vocab_size = logits_KV.shape
    bounds_K5 = torch.empty((rows, 5), dtype=torch.int32, device=logits_KV.device)
    groups = scratch.of(rows, logits_KV.device)
    survey(logits_KV, groups, arch, slot_K=inputs.sample_slot_K, params_SC=slots.params_SC)
    rows_of, candidates = (logits_KV, inputs.sample_slot_K), groups.candidates_K2N
    parameters = {"pdl": arch.pdl, "num_warps": 16, "C": slots.params_SC.shape[1], "CANDIDATES": CANDIDATES}
    launch(
        bounds_kernel,
        (rows,),
        *(*rows_of, inputs.sample_position_K, slots.params_SC, groups.survey_K2G, groups.listed_KG, candidates),
        *(bounds_K5, vocab_size),
        **parameters,
        GROUP=group_size(vocab_size),
        MAX_GROUPS=MAX_GROUPS,
        FEW=FEW,
    )
    launch(
        search_kernel,
        (rows,),
        *(*rows_of, slots.params_SC, candidates, bounds_K5, vocab_size),
        **parameters,
        BLOCK=_BLOCK,
    )
    return bounds_K5
