"""The pages of requests: taking over known prefixes, growing, forking, publishing, giving back."""

from __future__ import annotations

from drivetrain.kv.block_pool import BlockPool
from drivetrain.kv.prefix_index import LANDED, NO_MATCH, Block, PrefixIndex, PrefixMatch
from drivetrain.request import Request


class RequestPages:
    """Keeps `Request.pages` and the published prefix of each request in step with pool and index.

    Args:
        num_pages: pages of the cache, the null page included.
        page_size: tokens of a page.
        prefix_cache: whether full blocks are published and found again.
    """

    __slots__ = ("_index", "_page_size", "pool")

    def __init__(self, num_pages: int, page_size: int, *, prefix_cache: bool) -> None:
        self.pool = BlockPool(num_pages)
        self._index = PrefixIndex(self.pool) if prefix_cache else None
        self._page_size = page_size

    def pages_for(self, num_tokens: int) -> int:
        """Pages that hold the KV of `num_tokens` tokens."""
        return -(-num_tokens // self._page_size)

    def prepare(self, request: Request) -> None:
        """Computes the block keys of the prompt, once, on arrival."""
        if self._index is None:
            return
        parent = request.parent
        num_blocks = request.num_prompt // self._page_size
        if parent is not None and len(parent.block_keys) >= num_blocks:
            request.block_keys = parent.block_keys[:num_blocks]
            return
        width = self._page_size * request.prompt_ids.itemsize
        content = request.prompt_ids.tobytes()
        request.block_keys = [content[at : at + width] for at in range(0, num_blocks * width, width)]

    def match(self, request: Request, step_id: int) -> PrefixMatch:
        """Finds the known prefix of `request`, short of its last token, which is always computed.

        A request that reports prompt logprobs, or pools the states of all its tokens, needs every position computed and
        finds nothing.
        """
        if self._index is None or request.params.prompt_logprobs is not None or request.pooling == "mean":
            return NO_MATCH
        max_blocks = (len(request.tokens) - 1) // self._page_size
        self._extend_keys(request, max_blocks)
        return self._index.match(request.salt, request.block_keys, max_blocks, step_id)

    def fits(self, shared: list[int], num_tokens: int, spare: int) -> bool:
        """Whether `num_tokens` tokens, of which the pages in `shared` hold the first, leave `spare` pages available."""
        references = self.pool.references
        # A cached page that is hit stops being available, just as a fresh one does.
        idle = sum(1 for page in shared if references(page) == 0)
        return self.pages_for(num_tokens) - len(shared) + idle + spare <= self.pool.available

    def admit(self, request: Request, match: PrefixMatch) -> None:
        """Gives `request` the pages of `match` and fresh ones for the rest of its tokens."""
        self._assign(request, match.pages)
        request.chain = match.last
        request.num_published = len(match.pages)
        request.num_computed = len(match.pages) * self._page_size

    def fork(self, request: Request, parent: Request) -> tuple[int, int] | None:
        """Gives `request` the prompt pages of `parent`, up to the prompt's last token, which it computes itself.

        Returns:
            (source, destination) of the page to copy before the step, when the prompt ends inside a page.
        """
        computed = request.num_prompt - 1
        full, partial = divmod(computed, self._page_size)
        self._assign(request, parent.pages[:full])
        request.num_computed = computed
        return (parent.pages[full], request.pages[full]) if partial else None

    def shared_by_fork(self, parent: Request) -> list[int]:
        """Pages that a fork of `parent` takes over by reference."""
        return parent.pages[: (parent.num_prompt - 1) // self._page_size]

    def grow(self, request: Request) -> None:
        """Adds one page. The caller has checked that one is available."""
        request.pages.append(self.pool.take_one())
        request.capacity += self._page_size

    def publish(self, request: Request, num_tokens: int, step_id: int = LANDED) -> list[Block]:
        """Publishes the full blocks among the first `num_tokens` tokens, all of them known and computed.

        Args:
            step_id: the step that computes them, or LANDED.

        Returns:
            The blocks that are new in the index.
        """
        if self._index is None:
            request.event_at = request.length_limit
            return []
        block = request.chain
        done = request.num_published
        while block is not None and not block.alive:  # evicted, or un-published by a failure
            block = block.parent
            done -= 1
        if done == 0:
            block = None
        num_blocks = num_tokens // self._page_size
        self._extend_keys(request, num_blocks)
        published: list[Block] = []
        if num_blocks > done:
            keys, pages = request.block_keys[done:num_blocks], request.pages[done:num_blocks]
            block, published = self._index.publish(request.salt, block, keys, pages, step_id)
        request.chain = block
        request.num_published = max(done, num_blocks)
        # A block is complete when the token after it is known: only then has a step that landed computed it.
        request.event_at = min((request.num_published + 1) * self._page_size + 1, request.length_limit)
        return published

    def unpublish(self, blocks: list[Block]) -> None:
        """Forgets blocks whose KV was never written, and what follows them."""
        if self._index is not None:
            for block in blocks:
                self._index.remove(block)

    def release(self, request: Request) -> None:
        """Gives every page of `request` back."""
        self.pool.release(request.pages)
        request.pages = []
        request.capacity = 0
        request.num_computed = 0
        request.chain = None
        request.num_published = 0
        request.event_at = request.length_limit
        request.prompt_step = -1

    def clear_prefixes(self) -> None:
        """Forgets every published block."""
        if self._index is not None:
            self._index.clear()

    def _assign(self, request: Request, shared: list[int]) -> None:
        pool = self.pool
        pool.share(shared)
        request.pages = [*shared, *pool.take(self.pages_for(len(request.tokens)) - len(shared))]
        request.capacity = len(request.pages) * self._page_size

    def _extend_keys(self, request: Request, num_blocks: int) -> None:
        keys = request.block_keys
        size = self._page_size
        for at in range(len(keys), num_blocks):
            keys.append(request.tokens[at * size : (at + 1) * size].tobytes())
