"""From a schedule to the packed differences that a device reads: host work of every step, one numpy buffer."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

from drivetrain.sampling import SamplingParams
from drivetrain.scheduler import Schedule, ScheduledRow
from drivetrain_plugins.contract.batch import (
    LAST_TOKEN,
    NULL_PAGE,
    NUM_SLOT_COLUMNS,
    BatchLayout,
    Int32Array,
    PromptLogprobs,
    SampleFeatures,
    StepBatch,
)
from drivetrain_plugins.contract.shapes import ShapePolicy, StepShape

_SLOT_ROW = struct.Struct("=i6fi2I")
_UNCONDITIONAL = -1
_FORBIDDEN = float("-inf")


class BatchBuilder:
    """Builds the `StepBatch` of a schedule, padded by the device's shape policy.

    Args:
        dummy_slot: slot of padding rows.
        page_size: tokens a page.
    """

    def __init__(self, *, policy: ShapePolicy, dummy_slot: int, page_size: int) -> None:
        self._policy = policy
        self._dummy_slot = dummy_slot
        self._page_size = page_size

    def build(self, schedule: Schedule) -> StepBatch:
        """The batch of one step.

        Raises:
            ValueError: a sealed policy has no bucket for a step of this size.
        """
        rows = schedule.rows
        num_rows, num_tokens = len(rows), schedule.num_tokens
        decode_only = num_tokens == num_rows
        max_kv = max(row.start + row.num_tokens for row in rows)
        max_pages = -(-max_kv // self._page_size)
        samples = [index for index, row in enumerate(rows) if row.samples]
        sampled = [rows[index] for index in samples]
        features = _features(sampled)
        biases = _biases(sampled) if features.biases else []
        pages = _page_updates(rows)
        admitted = [row for row in rows if row.admitted]
        shape = self._policy.pad(rows=num_rows, tokens=num_tokens, pages=max_pages, decode_only=decode_only)
        shape = _with_padding_row(shape, num_rows, num_tokens, self._policy)
        captured = shape.captured and not admitted and len(pages) <= shape.rows and decode_only
        layout = BatchLayout(
            rows=shape.rows,
            tokens=shape.tokens,
            samples=shape.rows if captured else max(1, len(samples)),
            page_updates=shape.rows if captured else len(pages),
            slot_updates=len(admitted),
            biases=len(biases),
        )
        penalized = [row for row in admitted if row.request.params.penalized]
        batch = StepBatch(
            step_id=schedule.step_id,
            layout=layout,
            packed=np.empty(layout.size, np.int32),
            num_rows=num_rows,
            num_tokens=num_tokens,
            num_decode_rows=schedule.num_decode_rows,
            num_samples=len(samples),
            max_query=1 if decode_only else max(row.num_tokens for row in rows),
            max_kv=max_kv,
            max_pages=max(shape.pages, max_pages),
            features=features,
            captured=captured,
            page_copies=np.array(schedule.page_copies, np.int32) if schedule.page_copies else None,
            history=_history(penalized) if penalized else None,
            cleared=tuple(row.slot for row in penalized),
            prompt_logprobs=_prompt_logprobs(rows),
        )
        self._fill_rows(batch, rows, decode_only=decode_only)
        _fill(batch.section("sample_row"), samples, num_rows - 1 if not captured else layout.rows - 1)
        _fill_table(batch.section("page_updates"), pages, (self._dummy_slot, 0, NULL_PAGE))
        if admitted:
            _fill_slots(batch.section("slot_updates"), admitted)
        if biases:
            batch.section("biases")[:] = np.array(biases, np.int32)
        return batch

    def _fill_rows(self, batch: StepBatch, rows: Sequence[ScheduledRow], *, decode_only: bool) -> None:
        num_rows, num_tokens, layout = batch.num_rows, batch.num_tokens, batch.layout
        _fill(batch.section("row_slot"), [row.slot for row in rows], self._dummy_slot)
        _fill(batch.section("row_start"), [row.start for row in rows], 0)
        query_start, token_row = batch.section("query_start"), batch.section("token_row")
        token_ids = batch.section("token_ids")
        if decode_only:
            query_start[:] = np.arange(layout.rows + 1)
            token_row[:] = np.arange(layout.tokens)
        else:
            lengths = [row.num_tokens for row in rows]
            query_start[0] = 0
            np.cumsum(lengths, out=query_start[1 : num_rows + 1])
            query_start[num_rows + 1 :] = layout.tokens
            token_row[:num_tokens] = np.repeat(np.arange(num_rows, dtype=np.int32), lengths)
            token_row[num_tokens:] = num_rows
        end = 0
        ids: list[int] = []
        for row in rows:
            if row.num_tokens != 1:
                break
            tokens = row.request.tokens
            ids.append(tokens[row.start] if row.start < len(tokens) else LAST_TOKEN)
        end = len(ids)
        token_ids[:end] = ids
        for row in rows[end:]:
            known = row.request.tokens[row.start : row.start + row.num_tokens]
            token_ids[end : end + len(known)] = np.frombuffer(known, np.int32)
            token_ids[end + len(known) : end + row.num_tokens] = LAST_TOKEN
            end += row.num_tokens
        token_ids[end:] = 0


def _with_padding_row(shape: StepShape, num_rows: int, num_tokens: int, policy: ShapePolicy) -> StepShape:
    """Padding tokens need a padding row to belong to."""
    if shape.tokens == num_tokens or shape.rows > num_rows:
        return shape
    return policy.pad(rows=num_rows + 1, tokens=shape.tokens, pages=shape.pages, decode_only=False)


def _fill(section: Int32Array, values: list[int], padding: int) -> None:
    section[: len(values)] = values
    section[len(values) :] = padding


def _fill_table(section: Int32Array, entries: list[tuple[int, int, int]], padding: tuple[int, int, int]) -> None:
    if entries:
        section[: len(entries)] = entries
    if len(entries) < len(section):
        section[len(entries) :] = padding


def _page_updates(rows: Sequence[ScheduledRow]) -> list[tuple[int, int, int]]:
    updates: list[tuple[int, int, int]] = []
    for row in rows:
        if row.num_new_pages:
            pages, slot = row.request.pages, row.slot
            first = row.first_new_page
            updates += [(slot, index, pages[index]) for index in range(first, first + row.num_new_pages)]
    return updates


def _fill_slots(section: Int32Array, admitted: Sequence[ScheduledRow]) -> None:
    raw = section.view(np.uint8).reshape(len(admitted), 4 * (1 + NUM_SLOT_COLUMNS))
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


def _features(sampled: Sequence[ScheduledRow]) -> SampleFeatures:
    random = filters = penalties = biases = False
    logprobs = -1
    for row in sampled:
        request = row.request
        if request.plain_greedy:
            continue
        params = request.params
        if params.temperature > 0.0:
            random = True
            filters = filters or params.top_p < 1.0 or params.top_k > 0 or params.min_p > 0.0
        penalties = penalties or params.penalized
        biases = biases or bool(params.logit_bias) or bool(request.bad_word_ids) or _below_minimum(row)
        if params.logprobs is not None and params.logprobs > logprobs:
            logprobs = params.logprobs
    return SampleFeatures(random=random, filters=filters, penalties=penalties, biases=biases, logprobs=logprobs)


def _below_minimum(row: ScheduledRow) -> bool:
    num_outputs = row.start + row.num_tokens - row.request.num_prompt
    return num_outputs < row.request.params.min_tokens


def _biases(sampled: Sequence[ScheduledRow]) -> list[tuple[int, int, int, int]]:
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


def _history(penalized: Sequence[ScheduledRow]) -> Int32Array:
    parts: list[Int32Array] = []
    for row in penalized:
        tokens = np.frombuffer(row.request.tokens, np.int32)
        part = np.empty((len(tokens), 3), np.int32)
        part[:, 0] = row.slot
        part[:, 1] = tokens
        part[:, 2] = np.arange(len(tokens)) >= len(row.request.prompt_ids)
        parts.append(part)
    return np.concatenate(parts)


def _prompt_logprobs(rows: Sequence[ScheduledRow]) -> PromptLogprobs | None:
    tokens: list[Int32Array] = []
    targets: list[Int32Array] = []
    top = -1
    offset = 0
    for row in rows:
        request = row.request
        span = prompt_logprob_span(row)
        if span is not None:
            first, last = span
            tokens.append(np.arange(offset + first - row.start, offset + last - row.start, dtype=np.int32))
            targets.append(np.frombuffer(request.prompt_ids[first + 1 : last + 1], np.int32))
            top = max(top, request.params.prompt_logprobs or 0)
        offset += row.num_tokens
    if not tokens:
        return None
    return PromptLogprobs(tokens=np.concatenate(tokens), targets=np.concatenate(targets), top=top)


def prompt_logprob_span(row: ScheduledRow) -> tuple[int, int] | None:
    """Positions [first, last) of this row whose successor in the prompt has its log-probability reported."""
    request = row.request
    if request.params.prompt_logprobs is None:
        return None
    last = min(row.start + row.num_tokens, len(request.prompt_ids) - 1)
    return (row.start, last) if row.start < last else None
