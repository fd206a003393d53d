"""Who holds slots and pages, and when these come back: at once, or when the steps in flight have landed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from heapq import heappop, heappush

from drivetrain.kv.request_pages import RequestPages
from drivetrain.request import FinishReason, Request, Status
from drivetrain.scheduling.schedule import Schedule
from drivetrain.scheduling.waiting import WaitingQueue


class RunningSet:
    """The requests that run, the steps in flight, and the ways in and out.

    Args:
        max_num_rows: slots.
        kv: pages of requests.
        queue: where those wait who stopped running.
    """

    def __init__(self, max_num_rows: int, kv: RequestPages, queue: WaitingQueue) -> None:
        self._kv = kv
        self._queue = queue
        self._slots = list(range(max_num_rows))
        self._stale = False
        self.decoding: list[Request] = []
        """May hold requests that stopped running (row_limit 0) until `compact`."""
        self.prefilling: list[Request] = []
        """Requests with some prompt left, in the order of their keys."""
        self.in_flight: deque[Schedule] = deque()
        self.held: dict[Request, None] = {}
        """Get no row, and are not admitted, until they are let go; in the order in which they were held."""
        self.num_preemptions = 0
        """Times that a request gave way to another."""
        self.num_holds = 0
        """Times that a request came to be held."""
        self._num_running = 0

    def __len__(self) -> int:
        return self._num_running

    @property
    def has_slot(self) -> bool:
        """Whether one more request may run."""
        return bool(self._slots)

    @property
    def returns_pages(self) -> bool:
        """Whether pages come back when a step in flight lands."""
        return any(step.ended for step in self.in_flight)

    def start(self, request: Request) -> int:
        """Gives `request`, whose pages are assigned, the lowest free slot."""
        request.status = Status.RUNNING
        request.slot = slot = heappop(self._slots)
        self._num_running += 1
        return slot

    def compact(self) -> None:
        """Drops those who left from `decoding`; needed before any of them may come back."""
        if self._stale:
            self.decoding = [request for request in self.decoding if request.row_limit]
            self._stale = False

    def hold(self, request: Request) -> None:
        """Lets `request` sit out the steps to come; what it has in flight counts."""
        self.num_holds += request not in self.held
        self.held[request] = None
        if request.row_limit:
            request.row_limit = request.num_computed

    def let_go(self, request: Request) -> None:
        """Lets a held request have rows again."""
        del self.held[request]
        if request.row_limit:
            request.row_limit = request.length_limit - 1

    def take_turns(self, step: Schedule, most_pages: int) -> Iterator[Request]:
        """Those of `decoding` who fit into `step` as it grows, by the pages that its rows read together.

        Those who do not fit go first the next time.
        """
        fitting: list[Request] = []
        others: list[Request] = []
        for request in self.decoding:
            pages = self._kv.pages_for(request.num_computed + 1)
            if request.num_computed < request.row_limit and step.num_pages + pages > most_pages:
                others.append(request)
                continue
            fitting.append(request)
            yield request
            if request.last_step == step.step_id:
                step.num_pages += pages
        if others:
            self.decoding = others + fitting

    def last(self) -> Request:
        """The request that makes room for others: lowest priority, then latest arrival, aged."""
        running = [request for request in self.decoding if request.row_limit]
        return max(running + self.prefilling, key=lambda request: request.queue_key)

    def preempt(self, request: Request, step: Schedule) -> None:
        """Takes slot and pages from `request` while `step` is built; what is in flight still counts."""
        if request.last_step == step.step_id:  # it has a row in this step already
            at = next(at for at, row in enumerate(step.rows) if row.request is request)
            step.num_pages -= self._kv.pages_for(step.rows[at].start + 1)
            del step.rows[at]
            request.in_flight -= 1
            request.last_step -= 1
        step.preempted.append(request)
        self.num_preemptions += 1
        self._stop(request)

    def sit_out(self, request: Request, step: Schedule) -> None:
        """Voids what the newest step samples for `request`, and holds it; its older steps count."""
        step.dropped.add(request)
        request.in_flight -= 1
        if request.params.penalized:  # the device counts the void token; admitted anew, it counts from the start
            self._stop(request)
        else:
            request.num_computed -= 1
            self.hold(request)

    def restart(self, request: Request) -> None:
        """Forgets what the steps in flight compute for a request that read pages which were never written."""
        if request.status is Status.RUNNING:
            self._stop(request)
        self._void_samples(request)

    def end(self, request: Request, reason: FinishReason) -> None:
        """Ends `request`, running or not; its forks go on alone."""
        running = request.status is Status.RUNNING
        request.status = Status.FINISHED
        request.finish_reason = reason
        request.awaited = None
        self.held.pop(request, None)
        self._void_samples(request)
        if running:
            self._leave(request)
            last = self._last_in_flight(request)
            if last is None:
                self._give_back(request)
            else:
                last.ended.append(request)
        else:
            self._queue.forget()
        self.release_forks(request)

    def release_forks(self, parent: Request) -> None:
        """Queues the forks of a request whose prompt is in a step, or that ended."""
        for request in parent.forks:
            if request.status is not Status.FINISHED:
                self._queue.push(request)
        parent.forks.clear()

    def settle(self, step: Schedule) -> None:
        """Frees what was held for a step that is over and no more in flight."""
        older = [flying for flying in self.in_flight if flying.step_id < step.step_id]
        if older:  # a step failed before an older one has landed, which may hold rows of the same requests
            older[-1].ended += step.ended
            older[-1].parked += step.parked
            older[-1].held_slots += step.held_slots
            return
        for request in step.ended:
            self._give_back(request)
        for slot in step.held_slots:
            heappush(self._slots, slot)
        for request in step.parked:
            if request.status is Status.PREEMPTED:
                self._queue.push(request)

    def _stop(self, request: Request) -> None:
        assert request.slot is not None
        self._leave(request)
        request.status = Status.PREEMPTED
        request.num_preemptions += 1
        self._kv.release(request)  # steps run in order: what is in flight is done with the pages before the next begins
        last = self._last_in_flight(request)
        if last is None:
            heappush(self._slots, request.slot)
            self._queue.push(request)
        else:
            last.held_slots.append(request.slot)
            last.parked.append(request)
        request.slot = None
        if request.matcher is not None:  # admitted only once its mask is made, a prefill never sits out
            self.hold(request)

    def _leave(self, request: Request) -> None:
        self._num_running -= 1
        if request.row_limit:
            request.row_limit = 0
            self._stale = True
        else:
            self.prefilling.remove(request)

    def _last_in_flight(self, request: Request) -> Schedule | None:
        """The newest step in flight that may hold a row of `request`."""
        for step in reversed(self.in_flight):
            if step.step_id <= request.last_step:
                return step
        return None

    def _void_samples(self, request: Request) -> None:
        for step in self.in_flight:
            if step.step_id <= request.last_step:
                step.dropped.add(request)
        request.in_flight = 0

    def _give_back(self, request: Request) -> None:
        assert request.slot is not None
        heappush(self._slots, request.slot)
        request.slot = None
        self._kv.release(request)
