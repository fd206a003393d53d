"""The requests under way: which completions of them have not ended, and which ran past their time limit."""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Mapping

from drivetrain.request import Request

Owner = tuple[str, int]
"""A request's id, and which completion of it."""


class LiveRequests:
    """Requests by id, and their completions that have not ended.

    Attributes:
        owners: of each such completion; `add` and `remove` keep it.
    """

    __slots__ = ("_arrivals", "_completions", "_deadlines", "owners")

    def __init__(self) -> None:
        self.owners: dict[Request, Owner] = {}
        self._completions: dict[str, dict[int, Request]] = {}
        self._deadlines: list[tuple[float, int, str, dict[int, Request]]] = []
        self._arrivals = itertools.count()

    def __len__(self) -> int:
        return len(self._completions)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._completions

    def completions(self, request_id: str) -> Mapping[int, Request]:
        """The completions of a request by index; none where it has ended."""
        return self._completions.get(request_id, {})

    def add(self, request_id: str, completions: dict[int, Request], *, deadline_s: float | None) -> None:
        """Take a request in.

        Args:
            request_id: no live request has it.
            completions: by index.
            deadline_s: seconds from now after which it is overdue; None is no limit.
        """
        live = self._completions[request_id] = dict(completions)
        for index, completion in completions.items():
            self.owners[completion] = (request_id, index)
        if deadline_s is not None:
            heapq.heappush(self._deadlines, (time.monotonic() + deadline_s, next(self._arrivals), request_id, live))

    def remove(self, completion: Request) -> None:
        """Let go of a completion that has ended; of its request, too, if it was the last."""
        request_id, index = self.owners.pop(completion)
        live = self._completions[request_id]
        del live[index]
        if not live:
            del self._completions[request_id]

    def overdue(self) -> list[str]:
        """Requests whose time limit has passed, each once."""
        if not self._deadlines:
            return []
        found: list[str] = []
        now_s = time.monotonic()
        while self._deadlines and self._deadlines[0][0] <= now_s:
            _, _, request_id, live = heapq.heappop(self._deadlines)
            if self._completions.get(request_id) is live:  # not a later request under the same id
                found.append(request_id)
        return found
