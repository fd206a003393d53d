"""The block pool: states of pages, order, counts."""

from __future__ import annotations

import random

import pytest

from drivetrain.kv.block_pool import NULL_PAGE, BlockPool
from drivetrain.kv.prefix_index import PrefixIndex


def states(pool: BlockPool) -> tuple[int, int, int]:
    return pool.num_free, pool.num_cached, pool.num_used


def test_pages_are_handed_out_lowest_id_first() -> None:
    pool = BlockPool(8)
    assert pool.take(4) == [1, 2, 3, 4]
    pool.release([3])
    pool.release([1])
    assert pool.take(3) == [1, 3, 5]


def test_the_null_page_is_never_handed_out() -> None:
    pool = BlockPool(5)
    assert pool.total == 4
    assert NULL_PAGE not in pool.take(pool.available)
    assert pool.available == 0


def test_a_pool_without_a_page_to_hand_out_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected at least 2 .* got 1"):
        BlockPool(1)


def test_a_page_comes_back_with_its_last_holder() -> None:
    pool = BlockPool(4)
    pages = pool.take(2)
    pool.share(pages)
    pool.release(pages)
    assert states(pool) == (1, 0, 2)
    pool.release(pages)
    assert states(pool) == (3, 0, 0)


def test_a_double_free_is_caught() -> None:
    pool = BlockPool(4)
    pages = pool.take(1)
    pool.release(pages)
    with pytest.raises(AssertionError, match="page 1 was freed twice"):
        pool.release(pages)


def test_taking_more_than_is_available_is_caught() -> None:
    pool = BlockPool(3)
    with pytest.raises(AssertionError, match="without an available page"):
        pool.take(3)


def test_a_published_page_is_kept_until_pages_run_out() -> None:
    pool = BlockPool(4)
    index = PrefixIndex(pool)
    (page,) = pool.take(1)
    index.publish(b"", None, [b"key"], [page], 0)
    pool.release([page])
    assert states(pool) == (2, 1, 0)
    assert pool.take(2) == [2, 3]
    assert states(pool) == (0, 1, 2)
    assert pool.take_one() == page
    assert len(index) == 0


def test_sharing_a_cached_page_makes_it_used_again() -> None:
    pool = BlockPool(4)
    index = PrefixIndex(pool)
    pages = pool.take(1)
    index.publish(b"", None, [b"key"], pages, 0)
    pool.release(pages)
    pool.share(pages)
    assert states(pool) == (2, 0, 1)
    assert pool.references(pages[0]) == 1


def test_of_a_prefix_that_was_given_back_the_end_is_older_than_its_beginning() -> None:
    pool = BlockPool(5)
    evicted: list[int] = []

    def evict(page: int) -> None:
        evicted.append(page)
        pool.unpublish(page)

    pool.on_evict(evict)
    pages = pool.take(4)
    for page in pages:
        pool.publish(page)
    pool.release(pages[2:])
    pool.release(pages[:2])
    pool.take(4)
    assert evicted == [4, 3, 2, 1]


def test_the_states_always_add_up() -> None:
    rng = random.Random(3)
    pool = BlockPool(30)
    index = PrefixIndex(pool)
    held: list[list[int]] = []
    for turn in range(5000):
        if held and (rng.random() < 0.5 or pool.available < 4):
            pages = held.pop(rng.randrange(len(held)))
            pool.release(pages)
        else:
            pages = pool.take(rng.randint(1, 4))
            block = None
            for depth, page in enumerate(pages):
                if rng.random() < 0.7:
                    key = bytes([rng.randrange(4), depth])
                    block, _ = index.publish(b"", block, [key], [page], turn)
                else:
                    break
            held.append(pages)
            if rng.random() < 0.2:
                pool.share(pages)
                held.append(pages)
        assert sum(states(pool)) == pool.total
        assert pool.num_used == len({page for pages in held for page in pages})
    for pages in held:
        pool.release(pages)
    assert pool.num_used == 0
    index.clear()
    assert states(pool) == (pool.total, 0, 0)
    assert sorted(pool.take(pool.total)) == list(range(1, 30))
