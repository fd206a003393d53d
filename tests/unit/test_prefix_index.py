"""The prefix index: what is a hit, what is not, and what goes first."""

from __future__ import annotations

from drivetrain.kv.block_pool import BlockPool
from drivetrain.kv.prefix_index import LANDED, Block, PrefixIndex

LATER = 99


def published(index: PrefixIndex, pool: BlockPool, keys: list[bytes], salt: bytes = b"") -> tuple[list[int], Block]:
    pages = pool.take(len(keys))
    block, new = index.publish(salt, None, keys, pages, LANDED)
    assert [fresh.page for fresh in new] == pages
    return pages, block


def test_the_longest_known_prefix_is_found() -> None:
    pool = BlockPool(10)
    index = PrefixIndex(pool)
    pages, block = published(index, pool, [b"a", b"b", b"c"])
    match = index.match(b"", [b"a", b"b", b"x"], 3, LATER)
    assert match.pages == pages[:2]
    assert match.last is block.parent


def test_a_match_goes_no_deeper_than_allowed() -> None:
    pool = BlockPool(10)
    index = PrefixIndex(pool)
    pages, _ = published(index, pool, [b"a", b"b", b"c"])
    assert index.match(b"", [b"a", b"b", b"c"], 2, LATER).pages == pages[:2]


def test_the_same_tokens_after_another_prefix_are_no_hit() -> None:
    pool = BlockPool(10)
    index = PrefixIndex(pool)
    published(index, pool, [b"a", b"b"])
    assert index.match(b"", [b"b"], 1, LATER).pages == []
    assert index.match(b"", [b"x", b"b"], 2, LATER).pages == []


def test_another_salt_is_no_hit() -> None:
    pool = BlockPool(10)
    index = PrefixIndex(pool)
    published(index, pool, [b"a"], salt=b"tenant 1")
    assert index.match(b"tenant 2", [b"a"], 1, LATER).pages == []
    assert index.match(b"", [b"a"], 1, LATER).pages == []
    assert index.match(b"tenant 1", [b"a"], 1, LATER).pages == [1]


def test_chains_branch() -> None:
    pool = BlockPool(10)
    index = PrefixIndex(pool)
    (first, second), block = published(index, pool, [b"a", b"b"])
    branch = pool.take_one()
    index.publish(b"", block.parent, [b"c"], [branch], LANDED)
    assert index.match(b"", [b"a", b"b"], 2, LATER).pages == [first, second]
    assert index.match(b"", [b"a", b"c"], 2, LATER).pages == [first, branch]


def test_a_known_block_keeps_its_first_page() -> None:
    pool = BlockPool(10)
    index = PrefixIndex(pool)
    (page,), block = published(index, pool, [b"a"])
    again = pool.take_one()
    assert index.publish(b"", None, [b"a"], [again], LANDED) == (block, [])
    assert index.match(b"", [b"a"], 1, LATER).pages == [page]
    pool.release([again])
    assert (pool.num_free, pool.num_cached) == (8, 0)


def test_a_block_of_the_step_being_built_is_pending_and_a_hit_one_step_later() -> None:
    pool = BlockPool(10)
    index = PrefixIndex(pool)
    (page,) = pool.take(1)
    index.publish(b"", None, [b"a"], [page], 7)
    now = index.match(b"", [b"a"], 1, 7)
    assert (now.pages, now.last, now.pending) == ([], None, True)
    later = index.match(b"", [b"a"], 1, 8)
    assert (later.pages, later.pending) == ([page], False)


def test_the_least_recently_used_prefix_goes_first_from_its_leaf_on() -> None:
    pool = BlockPool(7)
    index = PrefixIndex(pool)
    old, _ = published(index, pool, [b"a", b"b", b"c"])
    new, _ = published(index, pool, [b"x", b"y", b"z"])
    pool.release(old)
    pool.release(new)
    pool.share(old)  # a hit makes it the most recent
    pool.release(old)
    assert pool.take(1) == [new[2]]
    assert pool.take(2) == [new[1], new[0]]
    assert pool.take(1) == [old[2]]
    assert index.match(b"", [b"a", b"b", b"c"], 3, LATER).pages == old[:2]


def test_a_leaf_goes_before_an_older_block_above_it() -> None:
    pool = BlockPool(4)
    index = PrefixIndex(pool)
    (root,), block = published(index, pool, [b"a"])
    own, leaf = pool.take(2)  # a second request holds its own copy of the prefix
    index.publish(b"", block, [b"b"], [leaf], LANDED)
    pool.release([root])
    pool.release([own, leaf])
    assert pool.take(1) == [own]
    assert pool.take(1) == [leaf]
    assert index.match(b"", [b"a"], 1, LATER).pages == [root]


def test_a_block_whose_leaf_is_held_can_still_be_evicted() -> None:
    pool = BlockPool(4)
    index = PrefixIndex(pool)
    (root,), block = published(index, pool, [b"a"])
    own, leaf = pool.take(2)
    below, _ = index.publish(b"", block, [b"b"], [leaf], LANDED)
    pool.release([root])
    assert pool.take(1) == [root]
    assert not block.alive
    assert not below.alive
    assert len(index) == 0
    pool.release([own, leaf])
    assert (pool.num_free, pool.num_cached, pool.num_used) == (2, 0, 1)


def test_removing_a_block_forgets_all_that_follows_it() -> None:
    pool = BlockPool(10)
    index = PrefixIndex(pool)
    pages, block = published(index, pool, [b"a", b"b", b"c"])
    pool.release(pages)
    assert block.parent is not None
    index.remove(block.parent)
    index.remove(block)
    assert index.match(b"", [b"a", b"b", b"c"], 3, LATER).pages == pages[:1]
    assert (pool.num_free, pool.num_cached) == (8, 1)


def test_salts_leave_nothing_behind() -> None:
    pool = BlockPool(4)
    index = PrefixIndex(pool)
    for at in range(50):
        pages, _ = published(index, pool, [b"a", b"b"], salt=str(at).encode())
        pool.release(pages)
    assert len(index) <= 3
    assert len(index._roots) <= 3  # pyright: ignore[reportPrivateUsage]
