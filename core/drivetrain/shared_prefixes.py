"""Which decode rows read the same leading pages, so that a device may read these once for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from drivetrain.request import Request
from drivetrain.scheduling.schedule import ScheduledRow
from drivetrain_plugins.contract.shapes import ShapePolicy


@dataclass(frozen=True, slots=True)
class SharedGroups:
    """Groups of rows with a common prefix.

    Attributes:
        order: every row once, those of each group together.
        groups: (first, behind the last, tokens) of each group: places in `order`, and the length of the prefix.
    """

    order: list[int]
    groups: list[tuple[int, int, int]]


class SharedPrefixes:
    """Finds groups anew only when other requests decode: pages that a request has read stay its own.

    Args:
        policy: says which groups are worth it, and how many a step has at most.
        page_size: tokens a page.
    """

    def __init__(self, policy: ShapePolicy, page_size: int) -> None:
        self._policy = policy
        self._page_size = page_size
        self._requests: list[Request] = []
        self._found: SharedGroups | None = None

    def find(self, rows: Sequence[ScheduledRow], requests: list[Request]) -> SharedGroups | None:
        """Groups among decode rows, None if none is worth it.

        Args:
            rows: decode rows.
            requests: of these rows, in order.
        """
        if requests != self._requests:
            self._requests = requests
            self._found = self._search(rows)
        return self._found

    def _search(self, rows: Sequence[ScheduledRow]) -> SharedGroups | None:
        policy, size = self._policy, self._page_size
        least = max(size, policy.min_shared_tokens)
        by_first_page: dict[int, list[int]] = {}
        for index, row in enumerate(rows):
            if row.start >= least:
                by_first_page.setdefault(row.request.pages[0], []).append(index)
        worthy: list[tuple[int, int, list[int]]] = []
        for members in by_first_page.values():
            if len(members) < policy.min_shared_rows:
                continue
            # At least the token that a row computes now is its own.
            num_pages = min(rows[index].start for index in members) // size
            tokens = size * _common_length([rows[index].request.pages for index in members], num_pages)
            if tokens >= least:
                worthy.append(((len(members) - 1) * tokens, tokens, members))
        if not worthy:
            return None
        worthy.sort(key=lambda entry: entry[0], reverse=True)
        order: list[int] = []
        groups: list[tuple[int, int, int]] = []
        for _, tokens, members in worthy[: policy.max_shared_groups]:
            groups.append((len(order), len(order) + len(members), tokens))
            order += members
        grouped = set(order)
        order += [index for index in range(len(rows)) if index not in grouped]
        return SharedGroups(order, groups)


def _common_length(lists: Sequence[list[int]], limit: int) -> int:
    """Length of the longest common beginning of all lists, up to `limit`."""
    low, high = min(lists), max(lists)  # what these two share, all that lie between them share
    for at in range(min(limit, len(low), len(high))):
        if low[at] != high[at]:
            return at
    return min(limit, len(low), len(high))
