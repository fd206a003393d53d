"""From a schedule to the packed differences that a device reads: host work of every step, one numpy buffer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from drivetrain.batch_sampling import biases_of, features_of, fill_slots, history_of
from drivetrain.layouts import captured_layout, padded_shape
from drivetrain.logprobs import prompt_logprobs_of
from drivetrain.pooling import pooling_of
from drivetrain.request import BIASES, Request
from drivetrain.scheduler import Schedule, ScheduledRow
from drivetrain.shared_prefixes import SharedGroups, SharedPrefixes
from drivetrain_plugins.contract.batch import (
    LAST_TOKEN,
    NULL_PAGE,
    BatchLayout,
    Int32Array,
    SampleFeatures,
    StepBatch,
    unpack,
)
from drivetrain_plugins.contract.shapes import ShapePolicy, StepShape

_MAX_PADDINGS = 1024


class BatchBuilder:
    """Builds the `StepBatch` of a schedule, padded by the device's shape policy.

    Steps that decode the same requests as the step before are built from that step's numbers.

    Args:
        dummy_slot: slot of padding rows.
        page_size: tokens a page.
        shared_prefixes: whether the device is told which rows share a prefix, where the policy finds it worth it.
    """

    def __init__(self, *, policy: ShapePolicy, dummy_slot: int, page_size: int, shared_prefixes: bool = False) -> None:
        self._policy = policy
        self._dummy_slot = dummy_slot
        self._page_size = page_size
        shares = shared_prefixes and policy.max_shared_groups > 0
        self._prefixes = SharedPrefixes(policy, page_size) if shares else None
        self._paddings: dict[tuple[BatchLayout, bool], Int32Array] = {}
        # Of the step before, if it had decode rows only.
        self._before: Schedule | None = None
        self._requests: list[Request] = []
        self._slots: Int32Array = np.empty(0, np.int32)
        self._starts: Int32Array = np.empty(0, np.int32)
        self._max_kv = 0
        self._features: SampleFeatures | None = None
        self._last_form: _Form | None = None

    def build(self, schedule: Schedule) -> StepBatch:
        """The batch of one step.

        Raises:
            ValueError: a sealed policy has no bucket for a step of this size.
        """
        rows, num_decodes = schedule.rows, schedule.num_decode_rows
        num_rows, num_tokens = len(rows), schedule.num_tokens
        requests = [row.request for row in rows]
        follows = self._follow(schedule, requests)
        sampled = rows if schedule.num_samples == num_rows else [row for row in rows if row.samples]
        features = self._features if follows and self._features is not None else features_of(sampled)
        updates = _Updates(
            pages=_page_updates(rows),
            admitted=[] if follows else [row for row in rows if row.admitted],
            biases=biases_of(sampled) if features.biases else [],
            groups=self._prefixes.find(rows[:num_decodes], requests[:num_decodes]) if self._prefixes else None,
        )
        prompt_logprobs = None if follows else prompt_logprobs_of(rows)
        pooling = None if follows else pooling_of(rows)
        form = self._last_form if follows else None
        total_pages = 0
        if self._policy.total_page_buckets:
            # The first chunk of a prompt tells all of its pages: they need room too.
            total_pages = max(self._total_pages(rows, follows=follows), len(updates.pages))
        if form is None or not form.holds(updates, self._max_kv, total_pages):
            may_capture = prompt_logprobs is None and pooling is None
            form = self._last_form = self._choose_form(schedule, updates, total_pages, may_capture=may_capture)
        layout, shape = form.layout, form.shape
        penalized = [row for row in updates.admitted if row.request.params.penalized]
        batch = StepBatch(
            step_id=schedule.step_id,
            layout=layout,
            packed=form.padding.copy(),
            num_rows=num_rows,
            num_tokens=num_tokens,
            num_decode_rows=num_decodes,
            num_samples=len(sampled),
            max_query=1 if shape.decode_only else max(row.num_tokens for row in rows),
            max_kv=self._max_kv,
            max_pages=shape.pages,
            total_pages=shape.total_pages,
            features=features,
            captured=form.captured,
            page_copies=np.array(schedule.page_copies, np.int32) if schedule.page_copies else None,
            history=history_of(penalized) if penalized else None,
            cleared=tuple(row.slot for row in penalized),
            prompt_logprobs=prompt_logprobs,
            pooling=pooling,
        )
        self._fill_rows(batch, rows, follows=follows)
        if sampled is not rows or not shape.decode_only:
            batch.section("sample_row")[: len(sampled)] = [index for index, row in enumerate(rows) if row.samples]
        updates.fill(batch)
        return batch

    def _follow(self, schedule: Schedule, requests: list[Request]) -> bool:
        """Whether the step computes the next token of the same requests as the step before; renews what is kept."""
        rows = schedule.rows
        before, self._before = self._before, schedule
        again = before is not None and bool(before.dropped)  # a row may compute its last position once more
        if schedule.num_decode_rows == len(rows) and requests == self._requests and not again:
            self._starts += 1
            self._max_kv += 1
            return True
        decodes = schedule.num_decode_rows == len(rows)
        self._requests = requests if decodes else []
        self._slots = np.array([row.slot for row in rows], np.int32)
        self._starts = np.array([row.start for row in rows], np.int32)
        self._max_kv = max(row.start + row.num_tokens for row in rows)
        biased = any(request.sampler_needs & BIASES for request in requests)
        self._features = None if biased or not decodes else features_of(rows)
        return False

    def _total_pages(self, rows: Sequence[ScheduledRow], *, follows: bool) -> int:
        """Pages that all rows read together."""
        lengths = 1 if follows else np.array([row.num_tokens for row in rows], np.int32)
        return int((-(-(self._starts + lengths) // self._page_size)).sum())

    def _choose_form(self, schedule: Schedule, updates: _Updates, total_pages: int, *, may_capture: bool) -> _Form:
        num_rows, num_tokens = len(schedule.rows), schedule.num_tokens
        max_pages = -(-self._max_kv // self._page_size)
        shape = padded_shape(
            self._policy,
            num_rows=num_rows,
            num_tokens=num_tokens,
            num_samples=schedule.num_samples,
            pages=max_pages,
            decode_only=num_tokens == num_rows,
            total_pages=total_pages,
        )
        layout, captured = self._layout(schedule, shape, updates, may_capture=may_capture)
        return _Form(
            layout=layout,
            shape=shape,
            captured=captured,
            padding=self._padding(layout, captured=captured, decode_only=shape.decode_only),
            max_kv=max_pages * self._page_size,
            total_pages=shape.total_pages,
            groups=updates.groups,
            may_recur=not updates.admitted and not updates.biases,
        )

    def _layout(
        self, schedule: Schedule, shape: StepShape, updates: _Updates, *, may_capture: bool
    ) -> tuple[BatchLayout, bool]:
        """(sizes of the sections, whether the step is captured)."""
        num_groups = self._policy.max_shared_groups if updates.groups is not None else 0
        in_order = schedule.num_samples == len(schedule.rows) or not shape.decode_only
        if shape.captured and may_capture and in_order:
            layout = captured_layout(
                shape,
                self._page_size,
                page_updates=len(updates.pages),
                admits=bool(updates.admitted),
                biases=len(updates.biases),
                shared_groups=num_groups,
            )
            if layout is not None:
                return layout, True
        layout = BatchLayout(
            rows=shape.rows,
            tokens=shape.tokens,
            samples=max(1, schedule.num_samples),
            page_updates=len(updates.pages),
            slot_updates=len(updates.admitted),
            biases=len(updates.biases),
            shared_groups=num_groups,
        )
        return layout, False

    def _padding(self, layout: BatchLayout, *, captured: bool, decode_only: bool) -> Int32Array:
        """A buffer that holds padding alone; not to be written to."""
        key = (layout, decode_only)
        padding = self._paddings.get(key)
        if padding is None:
            padding = _padding(layout, self._dummy_slot, decode_only=decode_only)
            if captured or decode_only:
                if len(self._paddings) >= _MAX_PADDINGS:
                    self._paddings.clear()
                self._paddings[key] = padding
        return padding

    def _fill_rows(self, batch: StepBatch, rows: Sequence[ScheduledRow], *, follows: bool) -> None:
        packed, at = batch.packed, batch.layout.offsets
        num_rows, num_tokens = batch.num_rows, batch.num_tokens
        packed[at["row_slot"] : at["row_slot"] + num_rows] = self._slots
        packed[at["row_start"] : at["row_start"] + num_rows] = self._starts
        ids = packed[at["token_ids"] : at["token_ids"] + num_tokens]
        if follows:  # the device remembers what it sampled in each row's slot
            ids[:] = LAST_TOKEN
            return
        _fill_ids(ids, rows)
        if num_tokens > num_rows:
            lengths = [row.num_tokens for row in rows]
            query_start = batch.section("query_start")
            np.cumsum(lengths, out=query_start[1 : num_rows + 1])
            query_start[num_rows + 1 :] = batch.layout.tokens
            token_row = batch.section("token_row")
            token_row[:num_tokens] = np.repeat(np.arange(num_rows, dtype=np.int32), lengths)
            token_row[num_tokens:] = num_rows


@dataclass(slots=True, kw_only=True)
class _Updates:
    """What a step tells beside its rows and tokens."""

    pages: list[tuple[int, int, int]]
    admitted: list[ScheduledRow]
    biases: list[tuple[int, int, int, int]]
    groups: SharedGroups | None

    def fill(self, batch: StepBatch) -> None:
        """Write them over the padding of their sections."""
        if self.pages:
            batch.section("page_updates")[: len(self.pages)] = self.pages
        if self.admitted:
            fill_slots(batch.section("slot_updates"), self.admitted)
        if self.biases:
            batch.section("biases")[:] = self.biases
        if self.groups is not None:
            batch.section("shared_rows")[: len(self.groups.order)] = self.groups.order
            batch.section("shared_groups")[: len(self.groups.groups)] = self.groups.groups


@dataclass(frozen=True, slots=True, kw_only=True)
class _Form:
    """How a step is laid out, and so are those that follow it, while they tell as little.

    Attributes:
        max_kv: keys of the longest row for which it is right.
        total_pages: pages of all rows together for which it is right.
        may_recur: whether steps that follow may have it.
    """

    layout: BatchLayout
    shape: StepShape
    captured: bool
    padding: Int32Array
    max_kv: int
    total_pages: int
    groups: SharedGroups | None
    may_recur: bool

    def holds(self, updates: _Updates, max_kv: int, total_pages: int) -> bool:
        """Whether it is the form of a step that follows with these updates."""
        num_pages, room = len(updates.pages), self.layout.page_updates
        fits = num_pages <= room if self.captured else num_pages == room
        fits &= max_kv <= self.max_kv and total_pages <= self.total_pages
        return self.may_recur and fits and not updates.biases and updates.groups is self.groups


def _padding(layout: BatchLayout, dummy_slot: int, *, decode_only: bool) -> Int32Array:
    """A packed buffer of padding rows, updates and samples."""
    packed = np.zeros(layout.size, np.int32)
    part = unpack(packed, layout)
    part["row_slot"][:] = dummy_slot
    if decode_only:
        part["query_start"][:] = np.arange(layout.rows + 1)
        part["token_row"][:] = np.arange(layout.tokens)
    part["sample_row"][:] = np.arange(layout.samples) if decode_only else layout.rows - 1
    part["page_updates"][:] = (dummy_slot, 0, NULL_PAGE)
    part["slot_updates"][:, 0] = dummy_slot
    if layout.shared_groups:
        part["shared_rows"][:] = np.arange(layout.rows)
    return packed


def _fill_ids(section: Int32Array, rows: Sequence[ScheduledRow]) -> None:
    """Ids of a step's tokens as far as the host knows them."""
    ids: list[int] = []
    for row in rows:
        if row.num_tokens != 1:
            break
        tokens = row.request.tokens
        ids.append(tokens[row.start] if row.start < len(tokens) else LAST_TOKEN)
    end = len(ids)
    section[:end] = ids
    for row in rows[end:]:
        known = row.request.tokens[row.start : row.start + row.num_tokens]
        section[end : end + len(known)] = np.frombuffer(known, np.int32)
        section[end + len(known) : end + row.num_tokens] = LAST_TOKEN
        end += row.num_tokens


def _page_updates(rows: Sequence[ScheduledRow]) -> list[tuple[int, int, int]]:
    updates: list[tuple[int, int, int]] = []
    for row in rows:
        if row.num_new_pages:
            pages, slot, first = row.request.pages, row.slot, row.first_new_page
            updates += [(slot, index, pages[index]) for index in range(first, first + row.num_new_pages)]
    return updates
