"""The queue of requests that wait for a slot and pages."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from heapq import heapify, heappop, heappush

from drivetrain.request import Request, Status

MAX_RETRY_AFTER_S = 120.0
UNMEASURED_RETRY_AFTER_S = 5.0
"""Answered while nothing has left the queue yet."""

RATE_WINDOW = 64
COMPACT_ABOVE = 64


class WaitingQueue:
    """Requests by aged priority.

    A level of priority is worth `aging_s` seconds of waiting. Since all requests age alike, their order never changes:
    the key is arrival plus priority times `aging_s`, and one heap is enough. A request that ran before counts as one
    level higher, so that it goes first in its own.
    """

    def __init__(self, aging_s: float, clock: Callable[[], float]) -> None:
        self._aging_s = aging_s
        self._clock = clock
        self._heap: list[tuple[tuple[float, int], Request]] = []
        self._arrivals = 0
        self._ended = 0
        self._admitted_s: deque[float] = deque(maxlen=RATE_WINDOW)
        self._idle_since_s: float | None = clock()
        self._idle_s = 0.0

    def __len__(self) -> int:
        return len(self._heap)

    def enter(self, request: Request) -> None:
        """Gives a new request its place among all others, by aged priority, then in the order of these calls."""
        self._arrivals += 1
        request.queue_key = (request.arrival_s + request.priority * self._aging_s, self._arrivals)

    def push(self, request: Request) -> None:
        """Queues `request` by its key."""
        if self._idle_since_s is not None:
            self._idle_s += self._clock() - self._idle_since_s
            self._idle_since_s = None
        key = request.queue_key
        if request.status is Status.PREEMPTED:
            key = (key[0] - self._aging_s, key[1])
        heappush(self._heap, (key, request))

    def peek(self) -> Request | None:
        """The request that goes first, or None."""
        heap = self._heap
        while heap and heap[0][1].status is Status.FINISHED:
            heappop(heap)
        if not heap:
            self._rest()
            return None
        return heap[0][1]

    def pop(self) -> Request:
        """Takes out what `peek` returned."""
        return heappop(self._heap)[1]

    def admitted(self) -> None:
        """Counts a request that left the queue to run."""
        self._admitted_s.append(self._busy_s())

    def age_s(self, request: Request) -> float:
        """Seconds since it arrived."""
        return self._clock() - request.arrival_s

    def forget(self) -> None:
        """Tells that a request ended; entries of ended requests are removed when they are many."""
        self._ended += 1
        if self._ended > COMPACT_ABOVE and self._ended > len(self._heap) // 2:
            self._heap = [entry for entry in self._heap if entry[1].status is not Status.FINISHED]
            heapify(self._heap)
            self._ended = 0

    def retry_after_s(self, num_waiting: int) -> float:
        """Seconds until `num_waiting` requests have left, at the rate of late; 1 to 120."""
        times = self._admitted_s
        if not times:
            return UNMEASURED_RETRY_AFTER_S
        elapsed_s = max(self._busy_s() - times[0], 1e-3)
        return min(max(num_waiting * elapsed_s / len(times), 1.0), MAX_RETRY_AFTER_S)

    def _busy_s(self) -> float:
        # Time with an empty queue says nothing about how fast it drains.
        now = self._clock() if self._idle_since_s is None else self._idle_since_s
        return now - self._idle_s

    def _rest(self) -> None:
        if self._idle_since_s is None:
            self._idle_since_s = self._clock()
