"""Which full blocks of tokens have their KV in which page.

A block is known by its parent block, its tokens and, at the root, the salt (tenant, adapter, media). Each block keeps
its children in a dictionary keyed by their token bytes: the hash chains through the parent, and a hit is verified,
because a dictionary compares the bytes themselves. The chains branch like a radix tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from drivetrain.kv.block_pool import BlockPool

LANDED = -1
"""The `step_id` of a block whose KV is known to be in its page already."""


class Block:
    """A published block: one page whose KV belongs to one sequence of tokens. Roots hold no page (0)."""

    __slots__ = ("alive", "children", "key", "page", "parent", "step_id")

    def __init__(self, parent: Block | None, key: bytes, page: int, step_id: int) -> None:
        self.parent = parent
        self.key = key
        self.page = page
        self.step_id = step_id
        self.children: dict[bytes, Block] = {}
        self.alive = True


@dataclass(slots=True)
class PrefixMatch:
    """The longest known prefix of a request."""

    pages: list[int]
    last: Block | None
    """The deepest block that was hit."""
    pending: bool
    """The next block is being computed in the very step that is being built: it is a hit one step later."""


NO_MATCH = PrefixMatch([], None, False)


class PrefixIndex:
    """Finds and publishes blocks over the pages of `pool`, and evicts the least recently used ones for it."""

    __slots__ = ("_blocks", "_pool", "_roots")

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._roots: dict[bytes, Block] = {}
        self._blocks: dict[int, Block] = {}
        pool.on_evict(self._evict)

    def __len__(self) -> int:
        return len(self._blocks)

    def match(self, salt: bytes, keys: Sequence[bytes], max_blocks: int, step_id: int) -> PrefixMatch:
        """Follows `keys` from the root of `salt`, at most `max_blocks` deep.

        Blocks that `step_id` itself computes do not count, since rows of one step run side by side.
        """
        block = self._roots.get(salt)
        if block is None:
            return NO_MATCH
        pages: list[int] = []
        pending = False
        for depth in range(max_blocks):
            child = block.children.get(keys[depth])
            if child is None:
                break
            if child.step_id == step_id:
                pending = True
                break
            pages.append(child.page)
            block = child
        return PrefixMatch(pages, block if pages else None, pending)

    def publish(
        self, salt: bytes, parent: Block | None, keys: Sequence[bytes], pages: Sequence[int], step_id: int
    ) -> tuple[Block, list[Block]]:
        """Publishes `pages` as the blocks `keys`, one or more, in a chain under `parent` (None: the root of `salt`).

        A block that is known already keeps the page that it has.

        Returns:
            The last block of the chain, and the blocks that are new.
        """
        if parent is None:
            parent = self._roots.get(salt)
            if parent is None:
                parent = self._roots[salt] = Block(None, salt, 0, LANDED)
        new: list[Block] = []
        for key, page in zip(keys, pages, strict=True):
            block = parent.children.get(key)
            if block is None:
                block = Block(parent, key, page, step_id)
                parent.children[key] = block
                self._blocks[page] = block
                self._pool.publish(page)
                new.append(block)
            parent = block
        return parent, new

    def remove(self, block: Block) -> None:
        """Forgets `block` and every block after it; does nothing when it was forgotten before."""
        if not block.alive:
            return
        parent = block.parent
        assert parent is not None, "a root is never removed by itself"
        del parent.children[block.key]
        if parent.parent is None and not parent.children:
            del self._roots[parent.key]
        pending = [block]
        while pending:
            gone = pending.pop()
            pending.extend(gone.children.values())
            gone.alive = False
            gone.children = {}
            del self._blocks[gone.page]
            self._pool.unpublish(gone.page)

    def clear(self) -> None:
        """Forgets every block; pages that requests hold stay with them."""
        for block in self._blocks.values():
            block.alive = False
        self._blocks.clear()
        self._roots.clear()
        self._pool.unpublish_all()

    def _evict(self, page: int) -> None:
        # Another request may hold its own copy of this prefix and have published what follows, so that this block is
        # no leaf: take a leaf below if nobody holds it, else give up what is published below.
        block = self._blocks[page]
        leaf = block
        while leaf.children:
            leaf = next(iter(leaf.children.values()))
        self.remove(leaf if self._pool.references(leaf.page) == 0 else block)
