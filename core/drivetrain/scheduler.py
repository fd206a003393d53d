"""Decides what each step computes: decode rows first, then prefill chunks, by pages and by budget.

The scheduler runs ahead of the device: `schedule()` may be called again before the last step has landed. It counts on
steps being executed in the order in which they were scheduled; so a page may change hands between two steps that are
both in flight, and a prefix may be hit in the step after the one that computes it.
"""

from __future__ import annotations

import enum
import time
from collections import deque
from collections.abc import Callable, Sequence
from heapq import heappop, heappush

from drivetrain.errors import Draining, Overloaded, PromptTooLong, RequestError
from drivetrain.kv.request_pages import RequestPages
from drivetrain.request import MAX_PRIORITY, FinishReason, Request, Status
from drivetrain.scheduling.limits import SchedulerLimits
from drivetrain.scheduling.schedule import Landed, Schedule, ScheduledRow, SchedulerStats
from drivetrain.scheduling.waiting import WaitingQueue

__all__ = ["Landed", "Schedule", "ScheduledRow", "Scheduler", "SchedulerLimits", "SchedulerStats"]

MAX_DEFERRED = 8
"""Requests set aside in a step because it computes their prefix; more are not looked at."""


class _Verdict(enum.Enum):
    ADMITTED = enum.auto()
    SET_ASIDE = enum.auto()
    """Waits for something that comes by itself; others may pass."""
    BLOCKED = enum.auto()
    """Nobody may pass, so that a large request does not starve behind small ones."""


class Scheduler:
    """Requests in, steps out, sampled tokens in, ended requests out. Not thread-safe.

    Args:
        limits: limits and policy.
        clock: seconds, monotonic; `Request.arrival_s` is on the same clock.
    """

    def __init__(self, limits: SchedulerLimits, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self._kv = RequestPages(limits.num_pages, limits.page_size, prefix_cache=limits.prefix_cache)
        self._queue = WaitingQueue(limits.aging_s, clock)
        self._requests: dict[str, Request] = {}
        self._decoding: list[Request] = []
        self._prefilling: list[Request] = []
        self._slots = list(range(limits.max_num_rows))
        self._in_flight: deque[Schedule] = deque()
        self._next_step = 0
        self._num_running = 0
        self._stale = False
        self._prefill_turn = False
        self._draining = False
        self._preemptions = 0
        self._queried_tokens = 0
        self._hit_tokens = 0

    # -- requests ------------------------------------------------------------------------------------------------

    def add(self, request: Request) -> None:
        """Queues a new request; a fork (with `parent`) waits until its parent's prompt is computed.

        Raises:
            Overloaded: as many requests wait as may.
            PromptTooLong: the prompt leaves no room for an answer.
            RequestError: it could never run here.
            Draining: no new work is taken.
        """
        if self._draining:
            raise Draining("the engine is shutting down and takes no new requests; send it to another replica")
        num_waiting = self.num_waiting
        if num_waiting >= self.limits.max_waiting:
            raise Overloaded(
                f"{num_waiting} requests wait already, the limit is {self.limits.max_waiting}; try again later",
                retry_after_s=self._queue.retry_after_s(num_waiting),
            )
        self._check(request)
        request.queue_key = self._queue.key(request)
        request.stop_above = request.num_prompt + request.params.min_tokens
        self._kv.prepare(request)
        self._requests[request.request_id] = request
        parent = request.awaited
        if parent is not None and parent.status is Status.FINISHED:
            request.awaited = parent = None
        if parent is not None and parent.prompt_step < 0:
            parent.forks.append(request)
        else:
            self._queue.push(request)

    def abort(self, request_id: str, reason: FinishReason = FinishReason.ABORT) -> bool:
        """Ends a request now, for a client that left or a stop string that was found; its forks go on.

        Returns:
            Whether the request was here.
        """
        request = self._requests.get(request_id)
        if request is None:
            return False
        self._end(request, reason)
        return True

    def drain(self) -> None:
        """Refuses new requests from now on; those that are here go on."""
        self._draining = True

    def clear_prefixes(self) -> None:
        """Forgets all cached prefixes, as new weights require. Only while no request runs.

        Raises:
            RuntimeError: requests are running, and would go on with KV of the old weights.
        """
        if self._num_running or self._in_flight:
            raise RuntimeError(
                f"clear_prefixes: {self._num_running} requests run and {len(self._in_flight)} steps are in flight; "
                "abort or finish them first"
            )
        self._kv.clear_prefixes()

    def get(self, request_id: str) -> Request | None:
        """The live request of that id."""
        return self._requests.get(request_id)

    @property
    def num_waiting(self) -> int:
        """Requests that are here and do not run."""
        return len(self._requests) - self._num_running

    @property
    def has_work(self) -> bool:
        """Whether a request is here or a step is in flight."""
        return bool(self._requests or self._in_flight)

    @property
    def idle(self) -> bool:
        """Whether nothing is left to do."""
        return not self.has_work

    def stats(self) -> SchedulerStats:
        """Counters as of now; cheap."""
        pool = self._kv.pool
        return SchedulerStats(
            running=self._num_running,
            waiting=self.num_waiting,
            steps_in_flight=len(self._in_flight),
            preemptions=self._preemptions,
            pages_free=pool.num_free,
            pages_cached=pool.num_cached,
            pages_used=pool.num_used,
            pages_total=pool.total,
            prefix_queried_tokens=self._queried_tokens,
            prefix_hit_tokens=self._hit_tokens,
        )

    def _check(self, request: Request) -> None:
        limits = self.limits
        if request.request_id in self._requests:
            raise RequestError(f"request_id: {request.request_id!r} is running already", param="request_id")
        if request.num_prompt == 0:
            raise RequestError("prompt: expected at least one token, got none", param="prompt")
        if not -MAX_PRIORITY <= request.priority <= MAX_PRIORITY:
            raise RequestError(
                f"priority: expected {-MAX_PRIORITY} to {MAX_PRIORITY}, got {request.priority}", param="priority"
            )
        most = min(request.max_total, limits.max_model_len)
        if request.num_prompt >= most:
            raise PromptTooLong(
                f"prompt: {request.num_prompt} tokens leave no room for an answer in a context of {most} tokens; "
                "shorten it",
                param="prompt",
            )
        max_tokens = request.params.max_tokens
        request.length_limit = most if max_tokens is None else min(most, request.num_prompt + max_tokens)
        # The KV of the very last token is never needed.
        pages = self._kv.pages_for(request.length_limit - 1)
        if pages > self._kv.pool.total:
            raise RequestError(
                f"max_tokens: {request.num_prompt} prompt tokens and up to "
                f"{request.length_limit - request.num_prompt} more need {pages} KV pages of {limits.page_size} "
                f"tokens, the cache has {self._kv.pool.total}; lower max_tokens or give the cache more memory",
                param="max_tokens",
            )
        parent = request.parent
        if parent is None:
            return
        if parent.status is not Status.FINISHED and self._requests.get(parent.request_id) is not parent:
            raise RequestError(f"parent: {parent.request_id!r} was never added; add it first", param="n")
        same = request.prompt_ids is parent.prompt_ids or request.prompt_ids == parent.prompt_ids
        if not same or request.salt != parent.salt:
            raise RequestError(f"parent: {parent.request_id!r} has another prompt or salt", param="n")

    # -- one step ------------------------------------------------------------------------------------------------

    def schedule(self) -> Schedule | None:
        """Builds the next step, or returns None: nothing can run before a step lands or a request arrives."""
        limits = self.limits
        if len(self._in_flight) > limits.overlap:
            return None
        step = Schedule(self._next_step)
        prefill_only, self._prefill_turn = self._prefill_turn, False
        if prefill_only:
            self._schedule_prefills(step, limits.max_step_tokens)
        if not step.rows:
            self._schedule_decodes(step)
            if limits.mixed_steps or not step.rows:
                self._schedule_prefills(step, limits.max_step_tokens - step.num_tokens)
            else:
                self._prefill_turn = True
        if not step.rows:
            return None
        self._next_step += 1
        self._in_flight.append(step)
        return step

    def _schedule_decodes(self, step: Schedule) -> None:
        rows = step.rows
        step_id = step.step_id
        for request in self._decoding:
            start = request.num_computed
            if start >= request.row_limit:  # all that it may still have is in flight, or it ended or was preempted
                continue
            if start < request.capacity:
                rows.append(ScheduledRow(request, request.slot, start))  # pyright: ignore[reportArgumentType]
            elif self._find_page(request, step):
                self._kv.grow(request)
                last = len(request.pages) - 1
                rows.append(ScheduledRow(request, request.slot, start, 1, True, last, 1))  # pyright: ignore[reportArgumentType]
            else:
                continue
            request.num_computed = start + 1
            request.in_flight += 1
            request.last_step = step_id
        step.num_tokens = step.num_decode_rows = step.num_samples = len(rows)

    def _find_page(self, request: Request, step: Schedule) -> bool:
        """Makes a page available for `request`, by preempting whoever comes last; False when it must wait itself."""
        while not self._kv.pool.available:
            if any(flying.ended for flying in self._in_flight):
                return False  # pages come back when that step lands
            victim = self._last_running()
            self._preempt(victim, step)
            if victim is request:
                return False
        return True

    def _last_running(self) -> Request:
        running = [request for request in self._decoding if request.row_limit]
        return max(running + self._prefilling, key=lambda request: request.queue_key)

    def _preempt(self, request: Request, step: Schedule) -> None:
        if request.last_step == step.step_id:  # it has a row in this step already
            at = next(at for at, row in enumerate(step.rows) if row.request is request)
            del step.rows[at]
            request.in_flight -= 1
            request.last_step -= 1
        request.num_preemptions += 1
        self._preemptions += 1
        step.preempted.append(request)
        self._stop_running(request)

    def _stop_running(self, request: Request) -> None:
        """Takes slot and pages from a running request, which queues again once its steps in flight have landed."""
        assert request.slot is not None
        self._leave(request)
        request.status = Status.PREEMPTED
        self._kv.release(request)  # steps run in order, so what is in flight is done with the pages before the next
        last = self._last_flying(request)
        if last is None:
            heappush(self._slots, request.slot)
            self._queue.push(request)
        else:
            last.held_slots.append(request.slot)
            last.parked.append(request)
        request.slot = None

    def _leave(self, request: Request) -> None:
        self._num_running -= 1
        if request.row_limit:
            request.row_limit = 0
            self._stale = True
        else:
            self._prefilling.remove(request)

    def _last_flying(self, request: Request) -> Schedule | None:
        """The newest step in flight that may hold a row of `request`."""
        for step in reversed(self._in_flight):
            if step.step_id <= request.last_step:
                return step
        return None

    # -- prefill -------------------------------------------------------------------------------------------------

    def _schedule_prefills(self, step: Schedule, budget: int) -> None:
        if self._stale:  # before anyone who left can come back
            self._decoding = [request for request in self._decoding if request.row_limit]
            self._stale = False
        partial = deque(self._prefilling)
        aside: list[Request] = []
        forkable: list[Request] = []
        most = self.limits.max_prefills_per_step or budget
        num_rows = 0
        open_queue = not step.preempted  # a page was short in this very step
        while budget > 0 and num_rows < most:
            head = self._queue.peek() if open_queue else None
            if partial and (head is None or partial[0].queue_key <= head.queue_key):
                request, admitted = partial.popleft(), False
                if not self.limits.chunked_prefill:
                    assert len(request.tokens) - request.num_computed <= budget, "an unchunked prefill was cut"
            elif head is not None:
                verdict = self._admit(head, step, budget)
                if verdict is _Verdict.BLOCKED:
                    open_queue = False
                    continue
                if verdict is _Verdict.SET_ASIDE:
                    if head.awaited is None:
                        aside.append(head)
                        open_queue = len(aside) < MAX_DEFERRED
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
            self._release_forks(request)

    def _admit(self, request: Request, step: Schedule, budget: int) -> _Verdict:
        if not self._slots:
            return _Verdict.BLOCKED
        kv = self._kv
        # Running requests are about to need pages: admitting into the last ones would only preempt somebody.
        spare = (self._num_running + 1) // 2
        length = len(request.tokens)
        parent = request.awaited
        if parent is not None and parent.status is Status.FINISHED:
            request.awaited = parent = None
        if parent is not None:
            if not 0 <= parent.prompt_step < step.step_id:
                parent.forks.append(self._queue.pop())
                return _Verdict.SET_ASIDE
            if not self.limits.chunked_prefill and length - request.num_prompt >= budget:
                return self._wait_for_prefill_step(step)
            if not kv.fits(kv.shared_by_fork(parent), length, spare):
                return _Verdict.BLOCKED
            copy = kv.fork(request, parent)
            if copy is not None:
                step.page_copies.append(copy)
            request.awaited = None
        else:
            match = kv.match(request, step.step_id)
            if match.pending:
                self._queue.pop()
                return _Verdict.SET_ASIDE
            if not self.limits.chunked_prefill and length - len(match.pages) * self.limits.page_size > budget:
                return self._wait_for_prefill_step(step)
            if not kv.fits(match.pages, length, spare):
                return _Verdict.BLOCKED
            kv.admit(request, match)
            if request.num_preemptions == 0:
                self._queried_tokens += length
                self._hit_tokens += request.num_computed
        self._queue.pop()
        self._queue.admitted()
        if request.num_preemptions == 0:
            request.num_cached_tokens = request.num_computed
        request.status = Status.RUNNING
        request.slot = heappop(self._slots)
        self._num_running += 1
        return _Verdict.ADMITTED

    def _wait_for_prefill_step(self, step: Schedule) -> _Verdict:
        # Beside decode rows a long prompt might never find room.
        self._prefill_turn = step.num_decode_rows > 0
        return _Verdict.BLOCKED

    def _add_chunk(self, request: Request, step: Schedule, budget: int, admitted: bool) -> int:
        assert request.slot is not None
        start = request.num_computed
        length = len(request.tokens)
        end = min(length, start + budget)
        page_size = self.limits.page_size
        if end < length and end - end % page_size > start:
            end -= end % page_size
        samples = end == length
        new_pages = len(request.pages) if admitted else 0
        step.rows.append(ScheduledRow(request, request.slot, start, end - start, samples, 0, new_pages, admitted))
        step.num_tokens += end - start
        step.num_samples += samples
        request.num_computed = end
        request.last_step = step.step_id
        if request.prompt_step < 0 and end >= request.num_prompt:
            request.prompt_step = step.step_id
        step.published += self._kv.publish(request, end, step.step_id)
        if samples:
            request.in_flight += 1
            request.row_limit = request.length_limit - 1
            self._decoding.append(request)
            if not admitted:
                self._prefilling.remove(request)
        elif admitted:
            self._prefilling.append(request)
            self._prefilling.sort(key=lambda other: other.queue_key)
        return end - start

    def _release_forks(self, parent: Request) -> None:
        for request in parent.forks:
            if request.status is not Status.FINISHED:
                self._queue.push(request)
        parent.forks.clear()

    # -- results -------------------------------------------------------------------------------------------------

    def land(self, schedule: Schedule, sampled: Sequence[int | Sequence[int]]) -> list[Landed]:
        """Takes the results of the oldest step in flight.

        Args:
            schedule: what `schedule()` returned.
            sampled: for each row that samples, in row order, its token or tokens.

        Returns:
            What is new, in row order. Rows of requests that ended meanwhile bring nothing; those of requests that were
            preempted meanwhile count, since they were computed before.

        Raises:
            ValueError: another step has to land first, or the results do not match the rows.
        """
        if not self._in_flight or self._in_flight[0] is not schedule:
            oldest = self._in_flight[0].step_id if self._in_flight else "none"
            raise ValueError(f"land: expected the oldest step in flight ({oldest}), got step {schedule.step_id}")
        if len(sampled) != schedule.num_samples:
            raise ValueError(f"land: step {schedule.step_id} samples {schedule.num_samples} rows, got {len(sampled)}")
        self._in_flight.popleft()
        landed: list[Landed] = []
        dropped = schedule.dropped
        rows = schedule.rows
        if schedule.num_samples < len(rows):
            rows = [row for row in rows if row.samples]
        for row, result in zip(rows, sampled, strict=True):
            request = row.request
            if dropped and request in dropped:
                continue
            request.in_flight -= 1
            reason = None
            if isinstance(result, int):
                new_ids = [result]
                tokens = request.tokens
                tokens.append(result)
                if result in request.eos_ids or len(tokens) >= request.event_at:
                    reason = self._react(request, result)
            else:
                new_ids: list[int] = []
                for token in result:
                    new_ids.append(token)
                    request.tokens.append(token)
                    reason = self._react(request, token)
                    if reason is not None:
                        break
            landed.append(Landed(request, new_ids, reason))
            if reason is not None:
                self._end(request, reason)
        self._settle(schedule)
        return landed

    def _react(self, request: Request, token: int) -> FinishReason | None:
        """Publishes what the newest token completes, and tells whether it ends the request."""
        length = len(request.tokens)
        if request.status is Status.RUNNING:  # a preempted one has no pages
            self._kv.publish(request, length - 1)
        if token in request.eos_ids and length > request.stop_above:
            return FinishReason.STOP
        return FinishReason.LENGTH if length >= request.length_limit else None

    def fail(self, schedule: Schedule) -> list[Landed]:
        """Gives up a step in flight that the device could not do; the engine goes on.

        Its requests end with ERROR. What it published is forgotten, and requests of later steps that took over its
        pages start again.

        Returns:
            The requests that ended, without new tokens.

        Raises:
            ValueError: the step is not in flight.
        """
        if schedule not in self._in_flight:
            raise ValueError(f"fail: step {schedule.step_id} is not in flight")
        later = [step for step in self._in_flight if step.step_id > schedule.step_id]
        self._in_flight.remove(schedule)
        for step in (schedule, *later):
            self._kv.unpublish(step.published)
            step.published = []
        landed: list[Landed] = []
        for row in schedule.rows:
            if row.request.status is not Status.FINISHED:
                self._end(row.request, FinishReason.ERROR)
                landed.append(Landed(row.request, [], FinishReason.ERROR))
        for step in later:
            for row in step.rows:
                if row.admitted and row.start > 0 and row.request.status is not Status.FINISHED:
                    self._restart(row.request)
        older = [step for step in self._in_flight if step.step_id < schedule.step_id]
        if older:  # which may hold rows of the same requests
            older[-1].ended += schedule.ended
            older[-1].parked += schedule.parked
            older[-1].held_slots += schedule.held_slots
        else:
            self._settle(schedule)
        return landed

    def _restart(self, request: Request) -> None:
        """Forgets what the steps in flight compute for a request that read pages which were never written."""
        if request.status is Status.RUNNING:
            request.num_preemptions += 1
            self._preemptions += 1
            self._stop_running(request)
        self._void_samples(request)

    def _void_samples(self, request: Request) -> None:
        for step in self._in_flight:
            if step.step_id <= request.last_step:
                step.dropped.add(request)
        request.in_flight = 0

    def _end(self, request: Request, reason: FinishReason) -> None:
        running = request.status is Status.RUNNING
        if running:
            self._leave(request)
        else:
            self._queue.forget()
        request.status = Status.FINISHED
        request.finish_reason = reason
        del self._requests[request.request_id]
        self._void_samples(request)
        if running:
            last = self._last_flying(request)
            if last is None:
                self._give_back(request)
            else:
                last.ended.append(request)
        if request.awaited is not None:
            request.awaited = None
        self._release_forks(request)

    def _give_back(self, request: Request) -> None:
        assert request.slot is not None
        heappush(self._slots, request.slot)
        request.slot = None
        self._kv.release(request)

    def _settle(self, schedule: Schedule) -> None:
        """Frees what was held for a step that is over."""
        for request in schedule.ended:
            self._give_back(request)
        for slot in schedule.held_slots:
            heappush(self._slots, slot)
        for request in schedule.parked:
            if request.status is Status.PREEMPTED:
                self._queue.push(request)
