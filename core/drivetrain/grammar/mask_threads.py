"""Threads that make masks, so that no step waits long for one."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from queue import PriorityQueue

from drivetrain.grammar.matcher import GrammarMatcher

_MOST_THREADS = 4
_DELAY = 10.0
"""A mask goes behind those asked for so many times its cost later: cheap ones first, and none is passed for ever."""


class MaskThreads:
    """Brings matchers to where they were aimed. One thread calls; it alone may touch a matcher that is not `making`."""

    def __init__(self) -> None:
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
        self._num_soon = max(2, min(_MOST_THREADS, cores))
        self._soon = ThreadPoolExecutor(self._num_soon, thread_name_prefix="masks")
        self._later = ThreadPoolExecutor(max(1, min(_MOST_THREADS, cores // 4)), thread_name_prefix="costly masks")
        self._costly: PriorityQueue[tuple[float, int, GrammarMatcher]] = PriorityQueue()
        self._arrivals = count()
        self._news = threading.Event()
        self._error: BaseException | None = None

    def make(self, matchers: Collection[GrammarMatcher], patience_s: float) -> None:
        """Let all work and wait for them, but no longer than `patience_s`: those left go on by themselves."""
        todo = deque(sorted(matchers, key=lambda matcher: matcher.pace.cost_s))
        made: list[GrammarMatcher] = []
        total = len(todo)
        for _ in range(min(total, self._num_soon)):
            self._soon.submit(self._work_through, todo, made, total)
        until_s = time.monotonic() + patience_s
        while len(made) < total and (left_s := until_s - time.monotonic()) > 0:
            self.wait(left_s)
        self._raise()
        while todo:
            try:
                self.start(todo.popleft())
            except IndexError:
                break  # a thread was faster

    def start(self, matcher: GrammarMatcher) -> None:
        """Let a matcher work beside the steps."""
        self._costly.put((time.monotonic() + _DELAY * matcher.pace.cost_s, next(self._arrivals), matcher))
        self._later.submit(self._work_on_next)

    def wait(self, timeout_s: float) -> None:
        """Until something is done that was not when this was called last, or so long."""
        self._news.wait(timeout_s)
        self._news.clear()
        self._raise()

    def close(self) -> None:
        """End the threads as soon as they have done what they are at."""
        for executor in (self._soon, self._later):
            executor.shutdown(wait=False, cancel_futures=True)

    def _work_through(self, todo: deque[GrammarMatcher], made: list[GrammarMatcher], total: int) -> None:
        while todo:
            try:
                matcher = todo.popleft()
            except IndexError:
                break
            self._work(matcher)
            made.append(matcher)
            if len(made) == total:
                self._news.set()

    def _work_on_next(self) -> None:
        self._work(self._costly.get_nowait()[-1])
        self._news.set()

    def _work(self, matcher: GrammarMatcher) -> None:
        try:
            matcher.work()
        except BaseException as error:  # a bug: the engine's thread raises it
            self._error = error
            self._news.set()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error
