"""Decides what each step computes: decode rows first, then prefill chunks, by pages and by budget.

The scheduler runs ahead of the device: `schedule()` may be called again before the last step has landed. It counts on
steps being executed in the order in which they were scheduled; so a page may change hands between two steps that are
both in flight, and a prefix may be hit in the step after the one that computes it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence

from drivetrain.errors import Draining, Overloaded, RequestError
from drivetrain.kv.request_pages import RequestPages
from drivetrain.request import FinishReason, Request, Status
from drivetrain.scheduling.admission import check_fork, length_limit
from drivetrain.scheduling.limits import SchedulerLimits
from drivetrain.scheduling.prefill import PrefillPlanner
from drivetrain.scheduling.running import RunningSet
from drivetrain.scheduling.schedule import Landed, Schedule, ScheduledRow, SchedulerStats
from drivetrain.scheduling.waiting import WaitingQueue

__all__ = ["Landed", "Schedule", "ScheduledRow", "Scheduler", "SchedulerLimits", "SchedulerStats"]


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
        self._running = RunningSet(limits.max_num_rows, self._kv, self._queue)
        self._prefills = PrefillPlanner(limits, self._kv, self._queue, self._running)
        self._requests: dict[str, Request] = {}
        self._in_flight = self._running.in_flight
        self._next_step = 0
        self._prefill_turn = False
        self._draining = False
        self._num_held_for_pages = 0

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
        self._queue.enter(request)
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
        self._finish(request, reason)
        return True

    def drain(self) -> None:
        """Refuses new requests from now on; those that are here go on."""
        self._draining = True

    def clear_prefixes(self) -> None:
        """Forgets all cached prefixes. Requests that run go on with the pages that they have."""
        self._kv.clear_prefixes()

    def get(self, request_id: str) -> Request | None:
        """The live request of that id."""
        return self._requests.get(request_id)

    @property
    def held(self) -> Collection[Request]:
        """Live requests that sit the next steps out, oldest first."""
        return self._running.held

    @property
    def num_waiting(self) -> int:
        """Requests that are here and do not run."""
        return len(self._requests) - len(self._running)

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
            running=len(self._running),
            waiting=self.num_waiting,
            steps_in_flight=len(self._in_flight),
            preemptions=self._running.num_preemptions,
            held=len(self._running.held),
            awaiting_pages=self.num_waiting if self._prefills.lacks_pages else 0,
            held_for_masks=self._running.num_holds,
            held_for_pages=self._num_held_for_pages,
            pages_free=pool.num_free,
            pages_cached=pool.num_cached,
            pages_used=pool.num_used,
            pages_total=pool.total,
            prefix_queried_tokens=self._prefills.queried_tokens,
            prefix_hit_tokens=self._prefills.hit_tokens,
        )

    def _check(self, request: Request) -> None:
        if request.request_id in self._requests:
            raise RequestError(f"request_id: {request.request_id!r} is running already", param="request_id")
        request.length_limit = length_limit(request, self.limits)
        parent = request.parent
        if parent is None:
            return
        if parent.status is not Status.FINISHED and self._requests.get(parent.request_id) is not parent:
            raise RequestError(f"parent: {parent.request_id!r} was never added; add it first", param="n")
        check_fork(request, parent)

    # -- one step ------------------------------------------------------------------------------------------------

    def schedule(self) -> Schedule | None:
        """Builds the next step, or returns None: nothing can run before a step lands or a request arrives."""
        limits = self.limits
        if len(self._in_flight) > limits.overlap:
            return None
        step = Schedule(self._next_step)
        prefills = self._prefills
        alone, self._prefill_turn, prefills.needs_own_step = self._prefill_turn, False, False
        if alone:
            prefills.plan(step, limits.max_step_tokens)
        if not step.rows:
            self._schedule_decodes(step)
            if limits.mixed_steps or not step.rows:
                prefills.plan(step, limits.max_step_tokens - step.num_tokens)
                self._prefill_turn = prefills.needs_own_step
            else:
                self._prefill_turn = True
        if not step.rows:
            return None
        self._next_step += 1
        self._in_flight.append(step)
        return step

    def _schedule_decodes(self, step: Schedule) -> None:
        rows, running = step.rows, self._running
        step_id, most_pages = step.step_id, self.limits.max_total_pages
        for request in running.decoding if most_pages is None else running.take_turns(step, most_pages):
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
            if self._running.returns_pages:
                self._num_held_for_pages += 1
                return False
            victim = self._running.last()
            self._running.preempt(victim, step)
            if victim is request:
                return False
        return True

    def hold(self, request: Request) -> None:
        """Gives `request` no row until `release`; the rows that it has in flight count."""
        self._running.hold(request)

    def sit_out(self, schedule: Schedule, request: Request) -> None:
        """Voids what the newest step will sample for `request`, to be sampled again after `release`.

        Args:
            schedule: the step, with a row that samples for `request`.
        """
        assert self._in_flight[-1] is schedule, "later steps would build on what is void"
        self._running.sit_out(request, schedule)

    def release(self, request: Request) -> FinishReason | None:
        """Lets a held request go on, or ends it, now that its matcher has followed all that has landed."""
        reason = self._verdict(request)
        if reason is None:
            self._running.let_go(request)
        else:
            self._finish(request, reason)
        return reason

    # -- results -------------------------------------------------------------------------------------------------

    def land(self, schedule: Schedule, sampled: Sequence[int | Sequence[int]]) -> list[Landed]:
        """Takes the results of the oldest step in flight.

        Args:
            schedule: what `schedule()` returned.
            sampled: for each row that samples, in row order, its token; or its tokens, of which a row that verifies
                drafts has at most `num_tokens`.

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
                if result in request.eos_ids or len(tokens) >= request.event_at or request.matcher is not None:
                    reason = self._react(request, result)
            else:
                assert len(result) <= row.num_tokens, "more tokens than the row verified"
                new_ids, reason = self._accept(request, result)
            landed.append(Landed(request, [] if reason is FinishReason.ERROR else new_ids, reason))
            if reason is not None:
                self._finish(request, reason)
        for request in schedule.pooled:
            if request not in dropped:
                landed.append(Landed(request, [], FinishReason.STOP))
                self._finish(request, FinishReason.STOP)
        self._running.settle(schedule)
        return landed

    def _accept(self, request: Request, verified: Sequence[int]) -> tuple[list[int], FinishReason | None]:
        """Takes the tokens that a row of drafts verified, up to one that ends the request."""
        new_ids: list[int] = []
        reason = None
        for token in verified:
            new_ids.append(token)
            request.tokens.append(token)
            reason = self._react(request, token)
            if reason is not None:
                break
        if request.status is Status.RUNNING:  # KV of tokens that were not accepted is void
            request.num_computed = len(request.tokens) + request.in_flight - 1
        return new_ids, reason

    def _react(self, request: Request, token: int) -> FinishReason | None:
        """Publishes what the newest token completes, and tells whether it ends the request."""
        length = len(request.tokens)
        if request.status is Status.RUNNING:  # a preempted one has no pages
            self._kv.publish(request, length - 1)
        if token in request.eos_ids and length > request.stop_above:
            return FinishReason.STOP
        if request.matcher is not None and request.matcher.making:  # `release` tells what becomes of it
            self._running.hold(request)
            return None
        return self._verdict(request)

    def _verdict(self, request: Request) -> FinishReason | None:
        """How a request ends whose newest token is no end token."""
        matcher = request.matcher
        if matcher is not None and matcher.failure is not None:
            return FinishReason.ERROR
        if matcher is not None and matcher.ended:
            return FinishReason.STOP
        return FinishReason.LENGTH if len(request.tokens) >= request.length_limit else None

    def _finish(self, request: Request, reason: FinishReason) -> None:
        del self._requests[request.request_id]
        self._running.end(request, reason)

    def fail(self, schedule: Schedule, blamed: Request | None = None) -> list[Request]:
        """Gives up a step in flight that the device could not do; the engine goes on.

        What the step published is forgotten, and requests of later steps that took over its pages start again.

        Args:
            blamed: the one request that ends with ERROR, while the step's others are computed again, as after a
                preemption; None ends them all.

        Returns:
            The requests that ended.

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
        ended: list[Request] = []
        for row in schedule.rows:
            if row.request.status is Status.FINISHED:
                continue
            if blamed is None or row.request is blamed:
                self._finish(row.request, FinishReason.ERROR)
                ended.append(row.request)
            else:
                self._running.restart(row.request)
        for step in later:
            for row in step.rows:
                if row.admitted and row.start > 0 and row.request.status is not Status.FINISHED:
                    self._running.restart(row.request)
        self._running.settle(schedule)
        return ended
