"""Packing of a step's rows into a `StepBatch`, from the words of the contract alone, independent of core's code."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from drivetrain_plugins.contract.batch import (
    NULL_PAGE,
    BatchLayout,
    Int32Array,
    Pooling,
    PromptLogprobs,
    SampleFeatures,
    StepBatch,
    TokenMasks,
)
from drivetrain_plugins.contract.shapes import ShapePolicy, StepShape


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotParameters:
    """Sampling parameters of a slot, in the order of its columns."""

    temperature: float = 0.0
    top_p: float = 1.0
    min_p: float = 0.0
    presence: float = 0.0
    frequency: float = 0.0
    repetition: float = 1.0
    top_k: int = 0
    seed: int = 0

    @property
    def penalized(self) -> bool:
        """Whether counts of earlier tokens change the logits."""
        return self.presence != 0.0 or self.frequency != 0.0 or self.repetition != 1.0

    @property
    def filtered(self) -> bool:
        """Whether some tokens are excluded."""
        return self.temperature > 0 and (self.top_p < 1.0 or self.min_p > 0.0 or self.top_k > 0)

    def columns(self) -> Int32Array:
        """The slot's parameters as the device keeps them."""
        floats = (self.temperature, self.top_p, self.min_p, self.presence, self.frequency, self.repetition)
        low, high = self.seed & 0xFFFFFFFF, self.seed >> 32 & 0xFFFFFFFF
        return np.frombuffer(struct.pack("=6fi2I", *floats, self.top_k, low, high), np.int32)


@dataclass(slots=True, kw_only=True)
class Row:
    """One sequence's share of a step.

    Attributes:
        start: tokens already in pages.
        ids: this step's tokens, or LAST_TOKEN.
        new_pages: (index in the sequence's page list, page) that the device does not know yet.
        admitted: parameters of a newly assigned slot.
        prompt: all tokens of a newly assigned slot, for its penalties.
    """

    slot: int
    start: int
    ids: Sequence[int]
    samples: bool = True
    new_pages: Sequence[tuple[int, int]] = ()
    admitted: SlotParameters | None = None
    prompt: Sequence[int] = ()


@dataclass(slots=True, kw_only=True)
class Packing:
    """What a step needs beside its rows.

    Attributes:
        groups: (row indices, tokens of the common prefix) of decode rows.
        padded_groups: as how many groups the step tells them.
    """

    page_size: int
    dummy_slot: int
    features: SampleFeatures = field(default_factory=SampleFeatures)
    biases: Sequence[tuple[int, int, float, int]] = ()
    page_copies: Sequence[tuple[int, int]] = ()
    prompt_logprobs: PromptLogprobs | None = None
    pooling: Pooling | None = None
    masks: TokenMasks | None = None
    groups: Sequence[tuple[Sequence[int], int]] = ()
    padded_groups: int = 0


def padded_shape(rows: Sequence[Row], policy: ShapePolicy, page_size: int) -> StepShape:
    """The shape that a device's policy gives a step; padding tokens get a padding row to belong to."""
    tokens = sum(len(row.ids) for row in rows)
    pages = max(-(-(row.start + len(row.ids)) // page_size) for row in rows)
    decode_only = tokens == len(rows)
    total = sum(-(-(row.start + len(row.ids)) // page_size) for row in rows)
    shape = policy.pad(rows=len(rows), tokens=tokens, pages=pages, decode_only=decode_only, total_pages=total)
    if shape.tokens > tokens and shape.rows == len(rows):
        shape = policy.pad(rows=len(rows) + 1, tokens=shape.tokens, pages=pages, decode_only=False, total_pages=total)
    return shape


def pack(rows: Sequence[Row], shape: StepShape, packing: Packing, *, step_id: int = 0) -> StepBatch:
    """The batch of these rows, decode rows first, padded to `shape`."""
    num_rows, num_tokens = len(rows), sum(len(row.ids) for row in rows)
    decode_only = num_rows == num_tokens
    pages = [(row.slot, index, page) for row in rows for index, page in row.new_pages]
    admitted = [(row.slot, row.admitted) for row in rows if row.admitted is not None]
    counted = [row for row in rows if row.admitted is not None and row.admitted.penalized]
    history = [(row.slot, token, 0) for row in counted for token in row.prompt]
    sampled = [index for index, row in enumerate(rows) if row.samples]
    captured = shape.captured and decode_only and len(sampled) == num_rows
    captured = captured and not admitted and len(pages) <= shape.rows
    layout = BatchLayout(
        rows=shape.rows,
        tokens=shape.tokens,
        samples=shape.rows if captured else max(1, len(sampled)),
        page_updates=shape.rows if captured else len(pages),
        slot_updates=len(admitted),
        biases=len(packing.biases),
        shared_groups=packing.padded_groups,
    )
    max_kv = max(row.start + len(row.ids) for row in rows)
    batch = StepBatch(
        step_id=step_id,
        layout=layout,
        packed=np.zeros(layout.size, np.int32),
        num_rows=num_rows,
        num_tokens=num_tokens,
        num_decode_rows=sum(len(row.ids) == 1 and row.start > 0 for row in rows),
        num_samples=len(sampled),
        max_query=max(len(row.ids) for row in rows),
        max_kv=max_kv,
        max_pages=max(shape.pages, -(-max_kv // packing.page_size)),
        total_pages=shape.total_pages,
        features=packing.features,
        captured=captured,
        page_copies=np.array(packing.page_copies, np.int32) if packing.page_copies else None,
        history=np.array(history, np.int32) if history else None,
        cleared=tuple(row.slot for row in counted),
        prompt_logprobs=packing.prompt_logprobs,
        pooling=packing.pooling,
        masks=packing.masks,
    )
    _fill_tokens(batch, rows, packing.dummy_slot, decode_only=decode_only)
    sample_row = batch.section("sample_row")
    sample_row[: len(sampled)] = sampled
    sample_row[len(sampled) :] = np.arange(len(sampled), layout.rows) if captured else layout.rows - 1
    if packing.padded_groups:
        _fill_groups(batch, packing.groups)
    _fill_updates(batch, pages, admitted, packing)
    return batch


def _fill_updates(
    batch: StepBatch,
    pages: Sequence[tuple[int, int, int]],
    admitted: Sequence[tuple[int, SlotParameters]],
    packing: Packing,
) -> None:
    batch.section("page_updates")[:] = (packing.dummy_slot, 0, NULL_PAGE)
    if pages:
        batch.section("page_updates")[: len(pages)] = pages
    for line, (slot, parameters) in zip(batch.section("slot_updates"), admitted, strict=True):
        line[0], line[1:] = slot, parameters.columns()
    for line, (index, token, value, last) in zip(batch.section("biases"), packing.biases, strict=True):
        line[:] = (index, token, struct.unpack("=i", struct.pack("=f", value))[0], last)


def _fill_groups(batch: StepBatch, groups: Sequence[tuple[Sequence[int], int]]) -> None:
    grouped = [row for rows, _ in groups for row in rows]
    batch.section("shared_rows")[:] = grouped + [row for row in range(batch.layout.rows) if row not in grouped]
    end = 0
    for line, (rows, tokens) in zip(batch.section("shared_groups"), groups, strict=False):
        line[:] = (end, end + len(rows), tokens)
        end += len(rows)


def _fill_tokens(batch: StepBatch, rows: Sequence[Row], dummy_slot: int, *, decode_only: bool) -> None:
    num_rows, num_tokens = batch.num_rows, batch.num_tokens
    row_slot = batch.section("row_slot")
    row_slot[:] = dummy_slot
    row_slot[:num_rows] = [row.slot for row in rows]
    batch.section("row_start")[:num_rows] = [row.start for row in rows]
    query_start, token_row = batch.section("query_start"), batch.section("token_row")
    if decode_only:
        query_start[:] = np.arange(len(query_start))
        token_row[:] = np.arange(len(token_row))
    else:
        lengths = [len(row.ids) for row in rows]
        query_start[1 : num_rows + 1] = np.cumsum(lengths)
        query_start[num_rows + 1 :] = len(token_row)
        token_row[:num_tokens] = np.repeat(np.arange(num_rows), lengths)
        token_row[num_tokens:] = num_rows
    batch.section("token_ids")[:num_tokens] = np.concatenate([np.asarray(row.ids, np.int32) for row in rows])
