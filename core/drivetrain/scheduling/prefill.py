"""Prefill: who is admitted, and which chunk of which prompt a step computes."""

from __future__ import annotations

import enum
from collections import deque

from drivetrain.kv.request_pages import RequestPages
from drivetrain.request import Request, Status
from drivetrain.scheduling.limits import SchedulerLimits
from drivetrain.scheduling.running import RunningSet
from drivetrain.scheduling.schedule import Schedule, ScheduledRow
from drivetrain.scheduling.waiting import WaitingQueue

MAX_DEFERRED = 8
"""Requests set aside in a step because it computes their prefix; more are not looked at."""


class _Verdict(enum.Enum):
    ADMITTED = enum.auto()
    SET_ASIDE = enum.auto()
    """Its prefix is computed in this very step; others may pass."""
    HELD = enum.auto()
    """It is to sit this step out; others may pass."""
    PARKED = enum.auto()
    """Waits for its parent's prompt; others may pass."""
    BLOCKED = enum.auto()
    """Nobody may pass, so that a large request does not starve behind small ones."""


class PrefillPlanner:
    """Adds prefill chunks to a step, in the order of aged priority, from requests that run and that wait."""

    def __init__(self, limits: SchedulerLimits, kv: RequestPages, queue: WaitingQueue, running: RunningSet) -> None:
        self._limits = limits
        self._kv = kv
        self._queue = queue
        self._running = running
        self.needs_own_step = False
        """A prompt that may not be cut, or one with many pages, found no room beside decode rows."""
        self._blocked: Request | None = None
        """Who found too few pages last, when there was room for `_blocked_room`."""
        self._blocked_room = 0
        self.queried_tokens = 0
        """Tokens of newly admitted requests that were looked up in the prefix index."""
        self.hit_tokens = 0

    @property
    def lacks_pages(self) -> bool:
        """Whether the request that is to be admitted next found too few pages, when it was last its turn."""
        return self._blocked is not None and self._blocked.status is not Status.FINISHED

    def plan(self, step: Schedule, budget: int) -> None:
        """Adds chunks of up to `budget` tokens in all to `step`, admitting requests as slots and pages allow."""
        self._running.compact()
        partial = deque(self._running.prefilling)
        aside: list[Request] = []
        num_deferred = 0
        forkable: list[Request] = []
        num_rows = 0
        max_rows = self._limits.max_prefills_per_step or budget
        admitting = not step.preempted  # a page was short in this very step
        while budget > 0 and num_rows < max_rows:
            head = self._queue.peek() if admitting else None
            if partial and (head is None or partial[0].queue_key <= head.queue_key):
                if not self._has_room(step, len(partial[0].pages)):
                    break
                request, admitted = partial.popleft(), False
            elif head is not None:
                verdict = self._admit(head, step, budget)
                if verdict is not _Verdict.ADMITTED:
                    if verdict in (_Verdict.SET_ASIDE, _Verdict.HELD):
                        aside.append(head)
                    num_deferred += verdict is _Verdict.SET_ASIDE
                    admitting = verdict is not _Verdict.BLOCKED and num_deferred < MAX_DEFERRED
                    continue
                request, admitted = head, True
            else:
                break
            budget -= self._add_chunk(request, step, budget, admitted)
            num_rows += 1
            if request.prompt_step == step.step_id:
                forkable.append(request)
        for request in aside:
            self._queue.push(request)
        for request in forkable:
            self._running.release_forks(request)

    def _admit(self, request: Request, step: Schedule, budget: int) -> _Verdict:
        """Tries to give the head of the queue a slot and pages for all its tokens."""
        if not self._running.has_slot or not self._has_room(step, self._kv.pages_for(len(request.tokens))):
            return _Verdict.BLOCKED
        parent = request.awaited
        if parent is not None and parent.status is Status.FINISHED:
            request.awaited = parent = None
        if request in self._running.held:
            verdict = _Verdict.HELD
        elif parent is None:
            verdict = self._assign(request, step, budget)
        else:
            verdict = self._fork(request, parent, step, budget)
        if verdict is _Verdict.BLOCKED:
            return verdict
        self._queue.pop()
        if verdict is _Verdict.ADMITTED:
            self._queue.admitted()
            request.awaited = None
            if request.num_preemptions == 0:
                request.num_cached_tokens = request.num_computed
                request.queued_s = self._queue.age_s(request)
            self._running.start(request)
        elif verdict is _Verdict.PARKED:
            assert parent is not None
            parent.forks.append(request)
        return verdict

    def _assign(self, request: Request, step: Schedule, budget: int) -> _Verdict:
        spare = self._spare_pages
        room = self._kv.pool.available - spare
        if request is self._blocked and room <= self._blocked_room:
            return _Verdict.BLOCKED  # without looking up a long prompt in each step
        match = self._kv.match(request, step.step_id)
        if match.pending:
            return _Verdict.SET_ASIDE
        length = len(request.tokens)
        if not self._may_cut(step, length - len(match.pages) * self._limits.page_size, budget):
            return _Verdict.BLOCKED
        if not self._kv.fits(match.pages, length, spare):
            self._blocked, self._blocked_room = request, room
            return _Verdict.BLOCKED
        self._blocked = None
        self._kv.admit(request, match)
        if request.num_preemptions == 0:
            self.queried_tokens += length
            self.hit_tokens += request.num_computed
        return _Verdict.ADMITTED

    def _fork(self, request: Request, parent: Request, step: Schedule, budget: int) -> _Verdict:
        if not 0 <= parent.prompt_step < step.step_id:
            return _Verdict.PARKED
        length = len(request.tokens)
        if not self._may_cut(step, length - request.num_prompt + 1, budget):
            return _Verdict.BLOCKED
        if not self._kv.fits(self._kv.shared_by_fork(parent), length, self._spare_pages):
            return _Verdict.BLOCKED
        copy = self._kv.fork(request, parent)
        if copy is not None:
            step.page_copies.append(copy)
        return _Verdict.ADMITTED

    @property
    def _spare_pages(self) -> int:
        # Running requests are about to need pages: admitting into the last ones would only preempt somebody.
        return (len(self._running) + 1) // 2

    def _has_room(self, step: Schedule, num_pages: int) -> bool:
        """Whether a row that reads so many pages may join the step; the first one always may."""
        most = self._limits.max_total_pages
        if most is None or step.num_pages + num_pages <= most:
            return True
        # Decode rows take their pages first, and might leave too few for ever.
        self.needs_own_step = step.num_decode_rows > 0
        return False

    def _may_cut(self, step: Schedule, num_tokens: int, budget: int) -> bool:
        if self._limits.chunked_prefill or num_tokens <= budget:
            return True
        # Beside decode rows a long prompt might never find room.
        self.needs_own_step = step.num_decode_rows > 0
        return False

    def _add_chunk(self, request: Request, step: Schedule, budget: int, admitted: bool) -> int:
        """Adds the next chunk of `request`, cut at a page's end where it must be cut; returns its tokens."""
        assert request.slot is not None
        start = request.num_computed
        length = len(request.tokens)
        end = min(length, start + budget)
        cut = end - end % self._limits.page_size
        if start < cut and end < length:
            end = cut
        ends = end == length
        samples = ends and request.pooling is None
        new_pages = len(request.pages) if admitted else 0
        step.rows.append(ScheduledRow(request, request.slot, start, end - start, samples, 0, new_pages, admitted))
        step.num_tokens += end - start
        step.num_samples += samples
        step.num_pages += len(request.pages)  # the first chunk tells the device of all of them
        request.num_computed = end
        request.last_step = step.step_id
        if request.prompt_step < 0 and end >= request.num_prompt:
            request.prompt_step = step.step_id
        step.published += self._kv.publish(request, end, step.step_id)
        prefilling = self._running.prefilling
        if ends:
            if samples:
                request.in_flight += 1
            else:
                step.pooled.append(request)
            # A pooled request has all that it needs in flight, and gets no decode row.
            request.row_limit = request.length_limit - 1
            self._running.decoding.append(request)
            if not admitted:
                prefilling.remove(request)
        elif admitted:
            prefilling.append(request)
            prefilling.sort(key=lambda other: other.queue_key)
        return end - start
