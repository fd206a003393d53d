"""Masks, biases and penalties, in place on the logits.

K rows, V vocabulary, N biases, S slots, C slot columns, M rows with a mask, W words of a mask.
"""

# Relaxed: Triton's language is untyped; what it declares about itself holds for its compiler only.
# pyright: basic, reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
import triton.language as tl

from drivetrain_plugins.contract.batch import FREQUENCY, PRESENCE, REPETITION
from drivetrain_plugins.contract.slots import SlotState, StepInputs
from drivetrain_triton.arch import GpuArch
from drivetrain_triton.launch import launch

_BLOCK = 1024
_BIASES = 128

_PRESENCE = tl.constexpr(PRESENCE)
_FREQUENCY = tl.constexpr(FREQUENCY)
_REPETITION = tl.constexpr(REPETITION)


@triton.jit(do_not_specialize_on_alignment=["mask_rows_M"])
def masks_kernel(logits_KV, mask_rows_M, masks_MW, W, V, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """A block of one row's logits a program; what is allowed is not touched."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    m = tl.program_id(0)
    k = tl.load(mask_rows_M + m).to(tl.int64)
    token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = token < V
    word = tl.load(masks_MW + m.to(tl.int64) * W + token // 32, inside, other=0)
    forbidden = ((word >> (token % 32)) & 1) == 0
    tl.store(logits_KV + k * V + token, float("-inf"), inside & forbidden)


@triton.jit(do_not_specialize=["N"], do_not_specialize_on_alignment=["biases_N4"])
def biases_kernel(logits_KV, biases_N4, slot_K, last_token_S, N, V, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """A block of biases a program. Several of one logit add up."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = n < N
    k, token = tl.load(biases_N4 + n * 4, mask, other=0), tl.load(biases_N4 + n * 4 + 1, mask, other=0)
    value = tl.load(biases_N4 + n * 4 + 2, mask, other=0).to(tl.float32, bitcast=True)
    wanted = tl.load(biases_N4 + n * 4 + 3, mask, other=0)
    last = tl.load(last_token_S + tl.load(slot_K + k, mask, other=0), mask, other=0)
    applies = mask & ((wanted == -1) | (wanted == last))
    tl.atomic_add(logits_KV + k.to(tl.int64) * V + token, value, applies, sem="relaxed")


@triton.jit
def penalties_kernel(
    logits_KV, slot_K, params_SC, counts_SV, in_prompt_SV, V, C: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    """A block of one row's logits a program."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    k = tl.program_id(0).to(tl.int64)
    token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = token < V
    slot = tl.load(slot_K + k)
    params = params_SC + slot * C
    presence = tl.load(params + _PRESENCE).to(tl.float32, bitcast=True)
    frequency = tl.load(params + _FREQUENCY).to(tl.float32, bitcast=True)
    repetition = tl.load(params + _REPETITION).to(tl.float32, bitcast=True)
    if (presence != 0.0) | (frequency != 0.0) | (repetition != 1.0):
        x = tl.load(logits_KV + k * V + token, mask, other=0.0)
        count = tl.load(counts_SV + slot * V + token, mask, other=0)
        in_prompt = tl.load(in_prompt_SV + slot * V + token, mask, other=0) != 0
        scaled = tl.where(x > 0.0, tl.div_rn(x, repetition), x * repetition)
        x = tl.where((count > 0) | in_prompt, scaled, x)
        x = x - count.to(tl.float32) * frequency
        x = x - tl.where(count > 0, presence, 0.0)
        tl.store(logits_KV + k * V + token, x, mask)


def apply_masks(logits_KV: torch.Tensor, inputs: StepInputs, arch: GpuArch) -> None:
    """Set the logits of tokens that a row's mask does not allow to minus infinity, in place."""
    mask_rows_M, masks_MW = inputs.mask_rows_M, inputs.masks_MW
    assert mask_rows_M is not None and masks_MW is not None, "a step with masks brings them"
    (rows, words), vocab_size = masks_MW.shape, logits_KV.shape[1]
    args = (logits_KV, mask_rows_M, masks_MW, words, vocab_size)
    launch(masks_kernel, (rows, triton.cdiv(vocab_size, _BLOCK)), *args, pdl=arch.pdl, BLOCK=_BLOCK)


def apply_biases(logits_KV: torch.Tensor, inputs: StepInputs, slots: SlotState, arch: GpuArch) -> None:
    """Add (row, token, float bits, last) entries in place where `last` is -1 or the row's last token."""
    biases_N4 = inputs.biases_N4
    count = biases_N4.shape[0]
    args = (logits_KV, biases_N4, inputs.sample_slot_K, slots.last_token_S, count, logits_KV.shape[1])
    launch(biases_kernel, (triton.cdiv(count, _BIASES),), *args, pdl=arch.pdl, BLOCK=_BIASES)


def apply_penalties(logits_KV: torch.Tensor, inputs: StepInputs, slots: SlotState, arch: GpuArch) -> None:
    """Repetition, frequency and presence penalties in place, from the counts of each row's slot."""
    rows, vocab_size = logits_KV.shape
    counts_SV, in_prompt_SV = slots.ensure_counts()
    launch(
        penalties_kernel,
        (rows, triton.cdiv(vocab_size, _BLOCK)),
        *(logits_KV, inputs.sample_slot_K, slots.params_SC, counts_SV, in_prompt_SV.view(torch.uint8), vocab_size),
        pdl=arch.pdl,
        C=slots.params_SC.shape[1],
        BLOCK=_BLOCK,
    )
