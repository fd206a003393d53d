"""From logits to tokens without sorting the vocabulary. Chooses exactly what `contract.reference.sample` chooses.

K rows, V vocabulary, C candidates of a row, M rows with a mask, W words of a mask.
"""

# Relaxed: torch's stubs leave methods untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from drivetrain_plugins.contract import reference
from drivetrain_plugins.contract.batch import MIN_P, SEED_HIGH, SEED_LOW, TEMPERATURE, TOP_K, TOP_P, SampleFeatures
from drivetrain_plugins.contract.reference.sampling import apply_biases, apply_penalties, filter_logits, mix32
from drivetrain_plugins.contract.slots import SampledTokens, SlotState, StepInputs

_LANE = 64
_ODD = -1640531527  # as in the reference
_NOISE_ROWS = 4
"""Rows whose noise is made at once: few enough to stay in the processor's own cache."""
_MIN_CANDIDATES = 256
_MAX_CANDIDATES = 2048


class Sampler:
    """Draws tokens; keeps what of the noise depends on the token alone."""

    def __init__(self) -> None:
        self._token_hash_V = torch.empty(0, dtype=torch.int32)

    def sample(
        self, logits_KV: torch.Tensor, inputs: StepInputs, slots: SlotState, features: SampleFeatures
    ) -> SampledTokens:
        """Choose a token a row, write it to the row's slot, and report log-probabilities where asked for."""
        if features.penalties or features.logprobs >= 0:
            return self._sample_fully(logits_KV, inputs, slots, features)
        slot_K = inputs.sample_slot_K
        if features.masks:
            apply_masks(logits_KV, inputs)
        if features.biases:
            apply_biases(logits_KV, inputs.biases_N4, slots.last_token_S[slot_K])
        ids_K = self._draw(logits_KV, inputs, slots, features) if features.random else first_argmax(logits_KV)
        ids_K = ids_K.int()
        slots.last_token_S.index_copy_(0, slot_K, ids_K)
        return SampledTokens(ids_K=ids_K)

    def _sample_fully(
        self, logits_KV: torch.Tensor, inputs: StepInputs, slots: SlotState, features: SampleFeatures
    ) -> SampledTokens:
        """With penalties or log-probabilities: the same steps around the same draw."""
        changed = features.masks or features.biases or features.penalties
        raw_KV = logits_KV.clone() if features.logprobs >= 0 and changed else logits_KV
        slot_K = inputs.sample_slot_K
        if features.masks:
            apply_masks(logits_KV, inputs)
        if features.biases:
            apply_biases(logits_KV, inputs.biases_N4, slots.last_token_S[slot_K])
        if features.penalties:
            apply_penalties(logits_KV, slot_K, slots)
        plain = replace(features, masks=False, biases=False, penalties=False, logprobs=-1)
        ids_K = self.sample(logits_KV, inputs, slots, plain).ids_K
        if features.penalties:
            counts_SV, _ = slots.ensure_counts()
            counts_SV.index_put_((slot_K, ids_K.long()), torch.ones_like(ids_K), accumulate=True)
        if features.logprobs < 0:
            return SampledTokens(ids_K=ids_K)
        logprobs_K, ranks_K, top_ids_Kk, top_logprobs_Kk = reference.token_logprobs(raw_KV, ids_K, features.logprobs)
        return SampledTokens(
            ids_K=ids_K,
            logprobs_K=logprobs_K,
            ranks_K=ranks_K,
            top_ids_Kk=top_ids_Kk,
            top_logprobs_Kk=top_logprobs_Kk,
        )

    def _draw(
        self, logits_KV: torch.Tensor, inputs: StepInputs, slots: SlotState, features: SampleFeatures
    ) -> torch.Tensor:
        """A token of each row: the likeliest at temperature 0, else drawn. `logits_KV` stays as it is."""
        params_KC = slots.params_SC[inputs.sample_slot_K]
        floats_KC = slots.floats_SC[inputs.sample_slot_K]
        temperature_K = floats_KC[:, TEMPERATURE]
        key_K = mix32(mix32(mix32(params_KC[:, SEED_LOW]) ^ params_KC[:, SEED_HIGH]) ^ inputs.sample_position_K.int())
        random_K = temperature_K > 0
        filtered_K = torch.zeros_like(random_K)
        if features.filters:
            filtered_K = (params_KC[:, TOP_K] > 0) | (floats_KC[:, TOP_P] < 1) | (floats_KC[:, MIN_P] > 0)
            filtered_K &= random_K
        ids_K = torch.empty_like(inputs.sample_slot_K)
        greedy, drawn = (~random_K).nonzero()[:, 0], (random_K & ~filtered_K).nonzero()[:, 0]
        if greedy.numel():
            ids_K[greedy] = first_argmax(logits_KV[greedy])
        for rows in drawn.split(_NOISE_ROWS) if drawn.numel() else ():
            scaled = logits_KV[rows].div_(temperature_K[rows, None])
            ids_K[rows] = first_argmax(scaled.add_(self._noise(key_K[rows], logits_KV.shape[1])))
        filtered = filtered_K.nonzero()[:, 0]
        if filtered.numel():
            scaled = logits_KV[filtered].div_(temperature_K[filtered, None])
            ids_K[filtered] = _draw_filtered(scaled, params_KC[filtered], floats_KC[filtered], key_K[filtered])
        return ids_K

    def _noise(self, key_K: torch.Tensor, vocab_size: int) -> torch.Tensor:
        """The reference's Gumbel noise of the whole vocabulary."""
        if self._token_hash_V.numel() != vocab_size:
            self._token_hash_V = _token_hash(torch.arange(vocab_size, dtype=torch.int32))
        return _gumbel_(self._token_hash_V ^ key_K[:, None])


def apply_masks(logits_KV: torch.Tensor, inputs: StepInputs) -> None:
    """As `reference.apply_masks`, with numpy's unpacking of bits, which is many times faster than torch's shifts."""
    mask_rows_M, masks_MW = inputs.mask_rows_M, inputs.masks_MW
    assert mask_rows_M is not None and masks_MW is not None, "a step with masks brings them"
    vocab_size = logits_KV.shape[1]
    forbidden_MW = ~masks_MW.numpy()
    for row, forbidden_W in zip(mask_rows_M.tolist(), forbidden_MW, strict=True):
        bits_V = np.unpackbits(forbidden_W.view(np.uint8), count=vocab_size, bitorder="little")
        logits_KV[row].masked_fill_(torch.from_numpy(bits_V.view(np.bool_)), float("-inf"))


def first_argmax(x_KV: torch.Tensor) -> torch.Tensor:
    """Index of each row's largest element, the first of equal ones.

    The maximum over short lanes is vectorized, which torch's argmax over a long row is not.
    """
    rows, size = x_KV.shape
    if size % _LANE or size < 4 * _LANE:
        return x_KV.argmax(dim=-1)
    lanes = x_KV.view(rows, -1, _LANE)
    lane_K1 = lanes.amax(dim=-1).argmax(dim=-1, keepdim=True)
    best = lanes.gather(1, lane_K1[:, :, None].expand(-1, -1, _LANE))[:, 0]
    return best.argmax(dim=-1) + lane_K1[:, 0] * _LANE


def _draw_filtered(
    scaled_KV: torch.Tensor, params_KC: torch.Tensor, floats_KC: torch.Tensor, key_K: torch.Tensor
) -> torch.Tensor:
    """Draw from what top-k, top-p and min-p leave, looking only at each row's likeliest tokens where that is enough."""
    top_k_K, top_p_K, min_p_K = params_KC[:, TOP_K], floats_KC[:, TOP_P], floats_KC[:, MIN_P]
    vocab_size = scaled_KV.shape[1]
    largest_k = int(top_k_K.max())
    count = min(vocab_size, max(_MIN_CANDIDATES, 2 * largest_k if bool((top_k_K > 0).all()) else _MAX_CANDIDATES))
    values_KC, ids_KC, enough_K = _candidates(scaled_KV, count, top_k_K, top_p_K, min_p_K)
    drawn_K = _draw_among(values_KC, ids_KC, key_K)
    if bool(enough_K.all()):
        return drawn_K
    rest = (~enough_K).nonzero()[:, 0]
    whole = filter_logits(scaled_KV[rest], top_k_K[rest], top_p_K[rest], min_p_K[rest])
    ids_V = torch.arange(vocab_size, dtype=torch.int32).expand(len(rest), -1)
    drawn_K[rest] = _draw_among(whole, ids_V, key_K[rest])
    return drawn_K


def _candidates(
    scaled_KV: torch.Tensor, count: int, top_k_K: torch.Tensor, top_p_K: torch.Tensor, min_p_K: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(values, ids, enough): the likeliest tokens with what the filters exclude at minus infinity.

    `enough` says of which rows nothing beyond the candidates could have stayed.
    """
    values_KC, ids_KC = scaled_KV.topk(count, dim=-1)
    last_K = values_KC[:, -1].clone()
    # Equal values in the order of their ids, as a stable sort of the whole row would leave them.
    ids_KC, order_KC = ids_KC.sort(dim=-1)
    values_KC, order_KC = values_KC.gather(1, order_KC).sort(dim=-1, descending=True, stable=True)
    ids_KC = ids_KC.gather(1, order_KC)
    place_C = torch.arange(count)
    limited_K = top_k_K > 0
    kept_KC = (place_C < top_k_K[:, None]) | ~limited_K[:, None]
    total_K1 = values_KC.masked_fill(~kept_KC, float("-inf")).logsumexp(dim=-1, keepdim=True)
    whole = (~limited_K).nonzero()[:, 0]
    if whole.numel():
        total_K1[whole] = scaled_KV[whole].logsumexp(dim=-1, keepdim=True)
    p_KC = (values_KC - total_K1).exp() * kept_KC
    before_KC = p_KC.cumsum(dim=-1) - p_KC
    excluded_KC = (before_KC >= top_p_K[:, None]) & (top_p_K[:, None] < 1.0)
    excluded_KC |= p_KC < min_p_K[:, None] * p_KC[:, :1]
    excluded_KC |= ~kept_KC
    excluded_KC[:, 0] = False
    # Tokens beyond the candidates are at most as likely as the last one, which equals some of them in the worst case.
    kth_K = values_KC.gather(1, (top_k_K.long().clamp(1, count) - 1)[:, None])[:, 0]
    enough_K = excluded_KC[:, -1] & ((last_K < kth_K) | ~limited_K)
    if count == scaled_KV.shape[1]:
        enough_K = torch.ones_like(enough_K)
    return values_KC.masked_fill_(excluded_KC, float("-inf")), ids_KC, enough_K


def _draw_among(values_KC: torch.Tensor, ids_KC: torch.Tensor, key_K: torch.Tensor) -> torch.Tensor:
    noise_KC = _gumbel_(_token_hash(ids_KC.int()) ^ key_K[:, None])
    return ids_KC.gather(1, (values_KC + noise_KC).argmax(dim=-1, keepdim=True))[:, 0].long()


def _token_hash(ids: torch.Tensor) -> torch.Tensor:
    return mix32(ids * _ODD + 1)


def _gumbel_(x: torch.Tensor) -> torch.Tensor:
    """Gumbel noise of hashed int32 keys, the reference's arithmetic in place."""
    shifted = x >> 16
    x ^= shifted.bitwise_and_(0xFFFF)
    x *= -2048144789
    torch.bitwise_right_shift(x, 13, out=shifted)
    x ^= shifted.bitwise_and_(0x7FFFF)
    x *= -1028477387
    torch.bitwise_right_shift(x, 16, out=shifted)
    x ^= shifted.bitwise_and_(0xFFFF)
    u = x.bitwise_and_(0x7FFFFFFF).float()
    return u.add_(0.5).mul_(2.0**-31).neg_().log1p_().neg_().log_().neg_()
