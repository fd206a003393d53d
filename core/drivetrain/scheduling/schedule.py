"""What one step computes, and what came of it. What exists once a row and step is a struct: those are made fastest."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from drivetrain.kv.prefix_index import Block
from drivetrain.request import FinishReason, Request


class ScheduledRow(msgspec.Struct, eq=False):
    """One request's share of a step: positions `start` to `start + num_tokens - 1`.

    The token at `start` may be known to the device only: exactly when `start >= len(request.tokens)` at this time.
    """

    request: Request
    slot: int
    start: int
    num_tokens: int = 1
    samples: bool = True
    """Whether it reaches the request's last token and so samples the next one."""
    first_new_page: int = 0
    """Index in `request.pages` of the first page that the device does not know yet."""
    num_new_pages: int = 0
    admitted: bool = False
    """Whether the slot is newly its own: the device's state of the slot must be set up."""


@dataclass(slots=True, eq=False)
class Schedule:
    """One step: decode rows first, then prefill chunks."""

    step_id: int
    rows: list[ScheduledRow] = field(default_factory=list[ScheduledRow])
    page_copies: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    """(source, destination) pages to copy before the step's rows."""
    preempted: list[Request] = field(default_factory=list[Request])
    """Requests that lost slot and pages to make room; they resume later by themselves."""
    num_tokens: int = 0
    num_pages: int = 0
    """Pages that its rows read together, each counted once a row; right only under `max_total_pages`."""
    num_decode_rows: int = 0
    num_samples: int = 0
    """Rows that sample."""

    pooled: list[Request] = field(default_factory=list[Request])
    """Requests whose embedding this step completes."""

    published: list[Block] = field(default_factory=list[Block])
    """Prefix blocks whose KV this step writes."""
    dropped: set[Request] = field(default_factory=set[Request])
    """Requests whose samples of this step are void."""
    ended: list[Request] = field(default_factory=list[Request])
    """Requests that ended; slot and pages come back when this step has landed."""
    parked: list[Request] = field(default_factory=list[Request])
    """Preempted requests; they queue again when this step has landed."""
    held_slots: list[int] = field(default_factory=list[int])
    """Slots of preempted requests; free when this step has landed."""


class Landed(msgspec.Struct, eq=False):
    """What a step brought one request. One that ended with ERROR has left its grammar and brings no token."""

    request: Request
    new_token_ids: list[int]
    finish_reason: FinishReason | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerStats:
    """Counters of a scheduler; pages do not count the null page, so free + cached + used == total.

    Attributes:
        held: requests that sit steps out now.
        awaiting_pages: requests that wait while the first of them finds too few pages.
        held_for_masks: times that a row sat steps out because its mask was not made.
        held_for_pages: times that a row sat a step out because the pages of others were still to come back.
    """

    running: int
    waiting: int
    steps_in_flight: int
    preemptions: int
    held: int
    awaiting_pages: int
    held_for_masks: int
    held_for_pages: int
    pages_free: int
    pages_cached: int
    pages_used: int
    pages_total: int
    prefix_queried_tokens: int
    prefix_hit_tokens: int
