"""What a step's rows ask of the sampler, in the words of the contract."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from drivetrain.request import BIASES, FILTERS, MASKS, PENALTIES, RANDOM
from drivetrain.sampling import SamplingParams
from drivetrain.scheduling.schedule import ScheduledRow
from drivetrain_plugins.contract.batch import NUM_SLOT_COLUMNS, Int32Array, SampleFeatures

_SLOT_ROW = struct.Struct("=i6fi2I")
_UNCONDITIONAL = -1
_FORBIDDEN = float("-inf")


def features_of(sampled: Sequence[ScheduledRow]) -> SampleFeatures:
    """What the sampler must do for these rows."""
    needs, logprobs = 0, -1
    for row in sampled:
        request = row.request
        needs |= request.sampler_needs
        logprobs = max(logprobs, request.num_logprobs)
    return _features(needs, bool(needs & BIASES) and any(_is_biased(row) for row in sampled), logprobs)


@lru_cache(maxsize=1024)
def _features(needs: int, biases: bool, logprobs: int) -> SampleFeatures:
    return SampleFeatures(
        random=bool(needs & RANDOM),
        filters=bool(needs & FILTERS),
        penalties=bool(needs & PENALTIES),
        biases=biases,
        masks=bool(needs & MASKS),
        logprobs=logprobs,
    )


def _is_biased(row: ScheduledRow) -> bool:
    request = row.request
    return bool(request.params.logit_bias) or bool(request.bad_word_ids) or _below_minimum(row)


def fill_slots(section: Int32Array, admitted: Sequence[ScheduledRow]) -> None:
    """Write the parameters of newly assigned slots over the section's first lines."""
    raw = section[: len(admitted)].view(np.uint8).reshape(len(admitted), 4 * (1 + NUM_SLOT_COLUMNS))
    for line, row in zip(raw, admitted, strict=True):
        line[:] = np.frombuffer(slot_row(row.slot, row.request.params, row.request.seed), np.uint8)


def slot_row(slot: int, params: SamplingParams, seed: int) -> bytes:
    """A slot's parameters in the column order of the contract, as one packed row."""
    return _SLOT_ROW.pack(
        slot,
        params.temperature,
        params.top_p,
        params.min_p,
        params.presence_penalty,
        params.frequency_penalty,
        params.repetition_penalty,
        max(params.top_k, 0),
        seed & 0xFFFFFFFF,
        (seed >> 32) & 0xFFFFFFFF,
    )


def _below_minimum(row: ScheduledRow) -> bool:
    num_outputs = row.start + row.num_tokens - row.request.num_prompt
    return num_outputs < row.request.params.min_tokens


def biases_of(sampled: Sequence[ScheduledRow]) -> list[tuple[int, int, int, int]]:
    """(index among the sampled rows, token, float bits, last token it depends on)."""
    forbidden = _float_bits(_FORBIDDEN)
    entries: list[tuple[int, int, int, int]] = []
    for index, row in enumerate(sampled):
        request = row.request
        banned: set[int] = set()
        if _below_minimum(row):
            banned |= request.eos_ids
        for word in request.bad_word_ids:
            last = _bad_word_condition(row, word)
            if last == _UNCONDITIONAL:
                banned.add(word[-1])
            elif last is not None:
                entries.append((index, word[-1], forbidden, last))
        entries += [(index, token, forbidden, _UNCONDITIONAL) for token in banned]
        entries += [
            (index, token, _float_bits(bias), _UNCONDITIONAL)
            for token, bias in request.params.logit_bias.items()
            if token not in banned
        ]
    return entries


def _bad_word_condition(row: ScheduledRow, word: tuple[int, ...]) -> int | None:
    """What must stand before the last token of a bad word for it to be forbidden now.

    Returns:
        `_UNCONDITIONAL` if the rest of the word already stands there, None if it cannot, or the id that the token still
        on the device must have.
    """
    before = word[:-1]
    if not before:
        return _UNCONDITIONAL
    tokens = row.request.tokens
    unknown = row.start + row.num_tokens - len(tokens)
    if unknown > 1:
        raise AssertionError(f"{unknown} sampled tokens are unknown to the host; a step is built at most one ahead")
    known = before[:-1] if unknown else before
    num_outputs = len(tokens) - row.request.num_prompt
    if num_outputs < len(known) or (known and tuple(tokens[len(tokens) - len(known) :]) != known):
        return None
    return before[-1] if unknown else _UNCONDITIONAL


def _float_bits(value: float) -> int:
    return struct.unpack("=i", struct.pack("=f", value))[0]


def history_of(penalized: Sequence[ScheduledRow]) -> Int32Array:
    parts: list[Int32Array] = []
    for row in penalized:
        tokens = np.frombuffer(row.request.tokens, np.int32)
        part = np.empty((len(tokens), 3), np.int32)
        part[:, 0] = row.slot
        part[:, 1] = tokens
        part[:, 2] = np.arange(len(tokens)) >= len(row.request.prompt_ids)
        parts.append(part)
    return np.concatenate(parts)
