"""Pages: reserving, sizing, committing, moving, and running out of them."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from drivetrain_plugins.conformance.check import check, require
from drivetrain_plugins.conformance.paged_rows import Kind, PagedRows, reserve_pages
from drivetrain_plugins.conformance.subject import Subject
from drivetrain_plugins.contract.memory import KVLayerSpec, KVSpec, MemoryLimits
from drivetrain_plugins.contract.model import AttentionSpec
from drivetrain_plugins.errors import OutOfMemory

_SPEC = AttentionSpec(num_heads=4, num_kv_heads=2, head_dim=32, scale=32**-0.5)


def _kv_spec(subject: Subject) -> KVSpec:
    found = subject.parts.capabilities
    layer = KVLayerSpec(num_kv_heads=2, head_dim=32)
    return KVSpec(layers=(layer, layer), dtype=found.kv_dtypes[0], page_size=found.page_sizes[0])


@contextmanager
def _rows(subject: Subject) -> Generator[PagedRows]:
    found = subject.parts.capabilities
    dtype = found.dtypes[0]
    kv_dtype = dtype if dtype in found.kv_dtypes else found.kv_dtypes[0]
    kind = Kind(spec=_SPEC, dtype=dtype, kv_dtype=kv_dtype, page_size=min(found.page_sizes))
    rows = PagedRows(subject, kind, num_slots=4, num_pages=20)
    yield rows
    rows.close()


@check()
def plans_keep_the_limits(subject: Subject) -> None:
    """As many pages as the bytes allow and are useful, and numbers that add up."""
    allocator, spec = subject.parts.allocator, _kv_spec(subject)
    for kv_bytes, max_pages, expected in ((10 * spec.page_bytes + 7, 100, 10), (100 * spec.page_bytes, 6, 6)):
        limits = MemoryLimits(kv_bytes=kv_bytes, max_pages=max_pages)
        cache = allocator.reserve(spec, limits)
        require(cache.spec == spec, f"allocator.reserve: the cache says {cache.spec}, expected {spec}")
        plan = allocator.plan(cache, limits)
        require(plan.num_pages == expected, f"allocator.plan: got {plan.num_pages} pages, expected {expected}")
        require(
            expected * spec.page_bytes <= plan.kv_bytes,
            f"allocator.plan: {plan.num_pages} pages cannot be {plan.kv_bytes} bytes",
        )
        allocator.commit(cache, plan.num_pages)
        require(cache.num_pages == expected, f"cache.num_pages: {cache.num_pages} after commit, expected {expected}")
        allocator.release(cache)


@check()
def use_counts_pages(subject: Subject) -> None:
    """`use` grows by the committed pages and shrinks when they are released."""
    allocator, spec = subject.parts.allocator, _kv_spec(subject)
    before = allocator.use()
    cache = reserve_pages(subject, spec, 16)
    during = allocator.use()
    allocator.release(cache)
    after = allocator.use()
    require(
        during.kv - before.kv >= 16 * spec.page_bytes,
        f"allocator.use: kv grew from {before.kv} to {during.kv} by 16 pages of {spec.page_bytes} bytes",
    )
    require(after.kv == before.kv, f"allocator.use: kv is {after.kv} after release, expected {before.kv} as before")
    require(0 <= during.used <= during.total, f"allocator.use: {during.used} of {during.total} bytes")


@check()
def too_little_memory_is_out_of_memory(subject: Subject) -> None:
    """No room for two pages raises OutOfMemory with a reason, and the allocator goes on."""
    allocator, spec = subject.parts.allocator, _kv_spec(subject)
    limits = MemoryLimits(kv_bytes=spec.page_bytes + 1, max_pages=100)
    cache = None
    try:
        cache = allocator.reserve(spec, limits)
        plan = allocator.plan(cache, limits)
    except OutOfMemory as error:
        require(bool(str(error).strip()), "allocator: OutOfMemory has no message")
    else:
        require(False, f"allocator: expected OutOfMemory in {limits.kv_bytes} bytes, got {plan.num_pages} pages")
    if cache is not None:
        allocator.release(cache)
    allocator.release(reserve_pages(subject, spec, 4))


@check()
def more_pages_than_were_reserved_are_out_of_memory(subject: Subject) -> None:
    """`commit` beyond the reserved range raises OutOfMemory and leaves the pages as they were."""
    allocator, spec = subject.parts.allocator, _kv_spec(subject)
    cache = reserve_pages(subject, spec, 4)
    try:
        allocator.commit(cache, 1 << 40)
    except OutOfMemory:
        require(cache.num_pages == 4, f"cache.num_pages: {cache.num_pages} after a commit that failed, expected 4")
    else:
        require(False, "allocator.commit: expected OutOfMemory for 2**40 pages")
    allocator.release(cache)


@check()
def the_null_page_is_usable_before_commit(subject: Subject) -> None:
    """The null page is usable between `reserve` and `plan`, and the same cache grows in place."""
    found = subject.parts.capabilities
    allocator, spec = subject.device.allocator, _kv_spec(subject)
    limits = MemoryLimits(kv_bytes=8 * spec.page_bytes, max_pages=8)
    cache = allocator.reserve(spec, limits)
    require(cache.num_pages >= 1, f"cache.num_pages: {cache.num_pages} after reserve, expected at least 1")
    allocator.copy_pages(cache, [0], [0])
    allocator.commit(cache, allocator.plan(cache, limits).num_pages)
    require(cache.num_pages == 8, f"cache.num_pages: got {cache.num_pages}, expected 8 on {found.device_name}")
    allocator.release(cache)


@check()
def pages_go_and_come_again(subject: Subject) -> None:
    """A cache that was committed shrinks to two pages and grows again, and works as before."""
    with _rows(subject) as rows:
        page, cache = rows.page_size, rows.cache
        num_pages = cache.num_pages
        rows.step([(0, 2 * page + 1), (1, 3)])
        rows.device.runtime.synchronize()
        for count in (2, num_pages):
            rows.device.allocator.commit(cache, count)
            require(cache.num_pages == count, f"cache.num_pages: {cache.num_pages} after a commit of {count}")
        for slot in (0, 1):
            rows.drop(slot)
        rows.step([(1, page + 2), (0, 3)])
        rows.step([(0, 1), (1, 1)])


@check()
def copied_pages_hold_the_same_tokens(subject: Subject) -> None:
    """A sequence goes on from copies of its pages, in order with the steps that overwrite the originals."""
    with _rows(subject) as rows:
        page = rows.page_size
        rows.step([(0, 2 * page + 3), (1, 5)])
        moved = rows.move(0)
        rows.device.allocator.copy_pages(rows.cache, *moved)
        rows.drop(1)
        rows.step([(1, 3 * page)])
        rows.step([(0, 2), (1, 1)])
        rows.device.allocator.copy_pages(rows.cache, [], [])
        rows.step([(0, 1), (1, 1)])


@check()
def exported_pages_come_back(subject: Subject) -> None:
    """Pages leave to the host, are overwritten, and return into other pages with the same tokens in every layer."""
    with _rows(subject) as rows:
        page = rows.page_size
        rows.step([(0, 2 * page + 1), (1, page)])
        source, destination = rows.move(0)
        content = rows.device.allocator.export_pages(rows.cache, source)
        rows.step([(2, 3 * page), (1, 1)])
        rows.device.allocator.import_pages(rows.cache, destination, content)
        rows.step([(0, 1), (1, 1), (2, 1)])
