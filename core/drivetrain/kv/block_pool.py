"""The pool of KV pages: reference counts, a lowest-id-first free list, and the pages kept for prefix hits.

A page is in exactly one of three states, and `num_free + num_cached + num_used == total` always holds:
free (nobody holds it, its content is worthless), cached (nobody holds it, but the prefix index still points at it;
least recently used first out), used (one or more requests hold it).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush

NULL_PAGE = 0
"""Padding rows read and write this page; it is never handed out."""


class BlockPool:
    """Hands out pages 1 to num_pages - 1; page 0 is the null page.

    Args:
        num_pages: pages of the KV cache, the null page included; at least 2.

    Raises:
        ValueError: there is no page to hand out.
    """

    __slots__ = ("_cached", "_evict", "_free", "_published", "_references", "num_pages")

    def __init__(self, num_pages: int) -> None:
        if num_pages < 2:
            raise ValueError(f"num_pages: expected at least 2 (one is the null page), got {num_pages}")
        self.num_pages = num_pages
        self._references = [0] * num_pages
        self._published = bytearray(num_pages)
        self._free = list(range(1, num_pages))
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._evict: Callable[[int], None] | None = None

    @property
    def total(self) -> int:
        """Pages that can be handed out: all but the null page."""
        return self.num_pages - 1

    @property
    def num_free(self) -> int:
        """Pages whose content nobody needs."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Pages that nobody holds, kept for prefix hits."""
        return len(self._cached)

    @property
    def num_used(self) -> int:
        """Pages that at least one request holds."""
        return self.num_pages - 1 - len(self._free) - len(self._cached)

    @property
    def available(self) -> int:
        """Pages that `take` can hand out now, evicting cached ones if it must."""
        return len(self._free) + len(self._cached)

    def references(self, page: int) -> int:
        """How many holders `page` has."""
        return self._references[page]

    def on_evict(self, evict: Callable[[int], None]) -> None:
        """Registers who un-publishes pages. `evict(page)` must un-publish at least one page that nobody holds."""
        self._evict = evict

    def take(self, count: int) -> list[int]:
        """Hands out `count` pages, lowest ids first, each with one reference. The caller has checked `available`."""
        free = self._free
        references = self._references
        pages: list[int] = []
        for _ in range(count):
            if not free:
                self._evict_one()
            page = heappop(free)
            references[page] = 1
            pages.append(page)
        return pages

    def take_one(self) -> int:
        """Hands out one page with one reference. The caller has checked `available`."""
        if not self._free:
            self._evict_one()
        page = heappop(self._free)
        self._references[page] = 1
        return page

    def _evict_one(self) -> None:
        assert self._cached and self._evict is not None, "take without an available page"
        self._evict(next(iter(self._cached)))

    def share(self, pages: Sequence[int]) -> None:
        """Adds a holder to pages that are used or cached."""
        references = self._references
        for page in pages:
            if references[page] == 0:
                del self._cached[page]
            references[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """Takes one holder away from each page of a request, in the request's order.

        A published page that loses its last holder is kept; the end of a prefix becomes older than its beginning, so
        that eviction goes from the leaves to the root.
        """
        references = self._references
        for page in reversed(pages):
            count = references[page] - 1
            assert count >= 0, f"page {page} was freed twice"
            references[page] = count
            if count == 0:
                if self._published[page]:
                    self._cached[page] = None
                else:
                    heappush(self._free, page)

    def publish(self, page: int) -> None:
        """Marks a used page as one that the prefix index points at."""
        assert self._references[page] > 0, f"page {page} is published without a holder"
        self._published[page] = 1

    def unpublish(self, page: int) -> None:
        """Takes the mark away; a page that nobody holds becomes free."""
        self._published[page] = 0
        if self._references[page] == 0:
            del self._cached[page]
            heappush(self._free, page)

    def unpublish_all(self) -> None:
        """Takes every mark away; every page that nobody holds becomes free."""
        self._published = bytearray(self.num_pages)
        self._free.extend(self._cached)
        heapify(self._free)
        self._cached.clear()
