"""From logits to tokens.

Order: masks, biases, penalties, temperature, top-k, top-p, min-p, then the largest of logit plus Gumbel noise, which
draws from the softmax. The noise is a hash of (seed, position, token): the same in any batch, on any device.

K rows, V vocabulary, N biases, M rows with a mask, W words of a mask, k reported tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from drivetrain_plugins.contract.batch import (
    FREQUENCY,
    LAST_TOKEN,
    MIN_P,
    PRESENCE,
    REPETITION,
    SEED_HIGH,
    SEED_LOW,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    SampleFeatures,
)

if TYPE_CHECKING:
    from drivetrain_plugins.contract.slots import SampledTokens, SlotState, StepInputs

_NEGATIVE_INFINITY = float("-inf")


def sample(logits_KV: torch.Tensor, inputs: StepInputs, slots: SlotState, features: SampleFeatures) -> SampledTokens:
    """Choose a token a row, write it to the row's slot, and report log-probabilities where asked for.

    Args:
        logits_KV: float32; overwritten.
    """
    from drivetrain_plugins.contract.slots import SampledTokens

    raw_KV = logits_KV.clone() if features.logprobs >= 0 and _changes_logits(features) else logits_KV
    if features.masks:
        apply_masks(logits_KV, inputs)
    if features.biases:
        apply_biases(logits_KV, inputs.biases_N4, slots.last_token_S[inputs.sample_slot_K])
    if features.penalties:
        apply_penalties(logits_KV, inputs.sample_slot_K, slots)
    if features.random:
        ids_K = _draw(logits_KV, inputs, slots, filters=features.filters)
    else:
        ids_K = logits_KV.argmax(dim=-1)
    slots.last_token_S.index_copy_(0, inputs.sample_slot_K, ids_K.int())
    if features.penalties:
        counts_SV, _ = slots.ensure_counts()
        ones = torch.ones_like(ids_K, dtype=torch.int32)
        counts_SV.index_put_((inputs.sample_slot_K, ids_K), ones, accumulate=True)
    if features.logprobs < 0:
        return SampledTokens(ids_K=ids_K.int())
    logprobs_K, ranks_K, top_ids_Kk, top_logprobs_Kk = token_logprobs(raw_KV, ids_K, features.logprobs)
    return SampledTokens(
        ids_K=ids_K.int(),
        logprobs_K=logprobs_K,
        ranks_K=ranks_K,
        top_ids_Kk=top_ids_Kk,
        top_logprobs_Kk=top_logprobs_Kk,
    )


def _changes_logits(features: SampleFeatures) -> bool:
    return features.masks or features.biases or features.penalties or features.random


def apply_masks(logits_KV: torch.Tensor, inputs: StepInputs) -> None:
    """Set the logits of tokens that a row's mask does not allow to minus infinity, in place."""
    mask_rows_M, masks_MW = inputs.mask_rows_M, inputs.masks_MW
    assert mask_rows_M is not None and masks_MW is not None, "a step with masks brings them"
    bit_B = torch.arange(32, dtype=torch.int32, device=masks_MW.device)
    allowed_MV = ((masks_MW[:, :, None] >> bit_B) & 1).flatten(1)[:, : logits_KV.shape[1]]
    row_M = mask_rows_M.long()
    logits_KV[row_M] = logits_KV[row_M].masked_fill(allowed_MV == 0, _NEGATIVE_INFINITY)


def apply_biases(logits_KV: torch.Tensor, biases_N4: torch.Tensor, last_K: torch.Tensor) -> None:
    """Add (row, token, float bits, last) entries in place where `last` is -1 or the row's last token."""
    row_N, token_N = biases_N4[:, 0].long(), biases_N4[:, 1].long()
    value_N = biases_N4[:, 2].contiguous().view(torch.float32)
    wanted_N = biases_N4[:, 3]
    applies_N = (wanted_N == LAST_TOKEN) | (wanted_N == last_K[row_N])
    logits_KV.index_put_((row_N, token_N), torch.where(applies_N, value_N, 0.0), accumulate=True)


def apply_penalties(logits_KV: torch.Tensor, slot_K: torch.Tensor, slots: SlotState) -> None:
    """Repetition, frequency and presence penalties in place."""
    counts_SV, in_prompt_SV = slots.ensure_counts()
    counts_KV = counts_SV[slot_K]
    generated_KV = counts_KV > 0
    floats_KC = slots.floats_SC[slot_K]
    repetition_K1 = floats_KC[:, REPETITION, None]
    scaled_KV = torch.where(logits_KV > 0, logits_KV / repetition_K1, logits_KV * repetition_K1)
    logits_KV.copy_(torch.where(generated_KV | in_prompt_SV[slot_K], scaled_KV, logits_KV))
    logits_KV.sub_(counts_KV * floats_KC[:, FREQUENCY, None])
    logits_KV.sub_(generated_KV * floats_KC[:, PRESENCE, None])


def _draw(logits_KV: torch.Tensor, inputs: StepInputs, slots: SlotState, *, filters: bool) -> torch.Tensor:
    params_KC = slots.params_SC[inputs.sample_slot_K]
    floats_KC = slots.floats_SC[inputs.sample_slot_K]
    temperature_K1 = floats_KC[:, TEMPERATURE, None]
    greedy_K = logits_KV.argmax(dim=-1)
    scaled_KV = logits_KV / torch.where(temperature_K1 > 0, temperature_K1, 1.0)
    if filters:
        scaled_KV = filter_logits(scaled_KV, params_KC[:, TOP_K], floats_KC[:, TOP_P], floats_KC[:, MIN_P])
    noise_KV = gumbel_noise(
        params_KC[:, SEED_LOW], params_KC[:, SEED_HIGH], inputs.sample_position_K.int(), logits_KV.shape[1]
    )
    drawn_K = (scaled_KV + noise_KV).argmax(dim=-1)
    return torch.where(temperature_K1[:, 0] > 0, drawn_K, greedy_K)


def filter_logits(
    logits_KV: torch.Tensor, top_k_K: torch.Tensor, top_p_K: torch.Tensor, min_p_K: torch.Tensor
) -> torch.Tensor:
    """Set what top-k, then top-p, then min-p exclude to minus infinity. The likeliest token always stays.

    Of equal logits the lowest ids stay, on any device.
    """
    sorted_KV, order_KV = logits_KV.sort(dim=-1, descending=True, stable=True)
    place_V = torch.arange(logits_KV.shape[1], device=logits_KV.device)
    top_k_K1 = torch.where(top_k_K > 0, top_k_K, logits_KV.shape[1])[:, None]
    sorted_KV = sorted_KV.masked_fill(place_V >= top_k_K1, _NEGATIVE_INFINITY)
    p_KV = sorted_KV.softmax(dim=-1)
    before_KV = p_KV.cumsum(dim=-1) - p_KV
    excluded_KV = (before_KV >= top_p_K[:, None]) & (top_p_K[:, None] < 1.0)
    excluded_KV |= p_KV < min_p_K[:, None] * p_KV[:, :1]
    excluded_KV[:, 0] = False
    sorted_KV = sorted_KV.masked_fill(excluded_KV, _NEGATIVE_INFINITY)
    return torch.empty_like(logits_KV).scatter_(1, order_KV, sorted_KV)


def gumbel_noise(
    seed_low_K: torch.Tensor, seed_high_K: torch.Tensor, position_K: torch.Tensor, vocab_size: int
) -> torch.Tensor:
    """Standard Gumbel noise (K, V), a pure function of seed, position and token id.

    Args:
        seed_low_K, seed_high_K, position_K: int32.
    """
    key_K = mix32(mix32(mix32(seed_low_K) ^ seed_high_K) ^ position_K)
    token_V = torch.arange(vocab_size, dtype=torch.int32, device=key_K.device)
    hashed_KV = mix32(mix32(token_V * _ODD + 1)[None, :] ^ key_K[:, None])
    # 31 bits, exact near zero: small values make the largest noise, where resolution matters.
    uniform_KV = ((hashed_KV & 0x7FFFFFFF).float() + 0.5) * 2.0**-31
    return -torch.log(-torch.log1p(-uniform_KV))


_ODD = -1640531527  # 0x9E3779B9 as int32


def mix32(x: torch.Tensor) -> torch.Tensor:
    """A bijective integer hash of int32 (the finalizer of MurmurHash3); arithmetic wraps."""
    x = x ^ ((x >> 16) & 0xFFFF)
    x = x * -2048144789  # 0x85EBCA6B
    x = x ^ ((x >> 13) & 0x7FFFF)
    x = x * -1028477387  # 0xC2B2AE35
    return x ^ ((x >> 16) & 0xFFFF)


def token_logprobs(
    logits_QV: torch.Tensor, targets_Q: torch.Tensor, top: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probability and rank of given tokens, and the `top` likeliest ones.

    Returns:
        (logprobs_Q float32, ranks_Q int32, top_ids_Qk int32, top_logprobs_Qk float32).
    """
    logprobs_QV = logits_QV.log_softmax(dim=-1)
    chosen_Q1 = logprobs_QV.gather(1, targets_Q[:, None].long())
    ranks_Q = (logprobs_QV > chosen_Q1).sum(dim=-1) + 1
    top_logprobs_Qk, top_ids_Qk = logprobs_QV.topk(top, dim=-1)
    return chosen_Q1[:, 0], ranks_Q.int(), top_ids_Qk.int(), top_logprobs_Qk
