"""The KV arena of the CUDA backend on a driver that forgives nothing: growth, shrinkage, failures, plans and pages."""

from __future__ import annotations

import gc
import itertools
from functools import partial

import pytest
import torch

from drivetrain_plugins.contract.memory import KVLayerSpec, KVSpec, MemoryLimits
from drivetrain_plugins.errors import OutOfMemory
from drivetrain_triton.device.allocator import SAFETY_BYTES, GpuAllocator, MemorySource
from drivetrain_triton.device.cache import ArenaCache
from drivetrain_triton.device.memory import DeviceMemory
from drivetrain_triton.device.virtual_memory import CHUNK_BYTES, Arena, DriverError
from fakes.memory_driver import GRANULARITY, FakeMemoryDriver

KV = KVSpec(
    layers=(
        KVLayerSpec(num_kv_heads=2, head_dim=32),
        KVLayerSpec(num_kv_heads=1, head_dim=48),
        KVLayerSpec(num_kv_heads=2, head_dim=32),
    ),
    dtype="bfloat16",
    page_size=16,
)
LARGE, SMALL = 2 * 32 * 2 * 16, 48 * 2 * 16  # bytes of a page of keys
PAGE_BYTES = 4 * LARGE + 2 * SMALL
GIB = 1 << 30


class Machine:
    """An allocator over a fake driver, and what else uses the device."""

    def __init__(self, memory_bytes: int = GIB, others: int = 0) -> None:
        self.driver = FakeMemoryDriver(memory_bytes)
        self.others = others
        self.context = self.allocated = self.cached = 0
        self.synchronized = 0
        self.allocator = GpuAllocator(
            torch.device("cpu"),
            partial(ArenaCache, driver=self.driver, tensor_at=self.driver.tensor_at),
            MemorySource(measure=self.measure, synchronize=self.synchronize, others=others),
        )

    def measure(self) -> DeviceMemory:
        reserved = self.allocated + self.cached
        used = self.others + self.context + reserved + self.driver.used
        total = self.driver.memory_bytes
        return DeviceMemory(total=total, free=total - used, allocated=self.allocated, reserved=reserved)

    def synchronize(self) -> None:
        self.synchronized += 1

    def committed(self, num_pages: int, spec: KVSpec = KV) -> ArenaCache:
        cache = self.allocator.reserve(spec, MemoryLimits(kv_bytes=num_pages * spec.page_bytes))
        self.allocator.commit(cache, num_pages)
        return cache


def tensors(cache: ArenaCache) -> list[torch.Tensor]:
    return [*cache.k, *cache.v]


def fill(cache: ArenaCache) -> list[torch.Tensor]:
    """Random content in every committed page; returns copies of it."""
    for x in tensors(cache):
        x[: cache.num_pages].copy_(torch.randn(x[: cache.num_pages].shape))
    return [x[: cache.num_pages].clone() for x in tensors(cache)]


def test_lanes_grow_in_whole_granules_and_bounded_chunks() -> None:
    driver = FakeMemoryDriver()
    arena = Arena(driver, lanes=3, lane_bytes=3 * CHUNK_BYTES)
    arena.resize(1)
    assert (arena.lane_mapped, arena.mapped_bytes, driver.used) == (GRANULARITY, 3 * GRANULARITY, 3 * GRANULARITY)
    arena.resize(2 * CHUNK_BYTES + 5)
    assert arena.lane_mapped == 2 * CHUNK_BYTES + GRANULARITY
    assert max(driver.mapped.values()) == CHUNK_BYTES
    assert len(driver.mapped) == 3 * 3
    assert driver.usable(arena.address + arena.stride, arena.lane_mapped)
    assert not driver.usable(arena.address + arena.lane_mapped, GRANULARITY)
    arena.close()
    assert not driver.mapped
    assert not driver.reserved


def test_shrinking_frees_whole_mappings_and_keeps_what_is_needed() -> None:
    driver = FakeMemoryDriver()
    arena = Arena(driver, lanes=2, lane_bytes=4 * CHUNK_BYTES)
    arena.resize(GRANULARITY)
    arena.resize(4 * CHUNK_BYTES)
    arena.resize(2 * CHUNK_BYTES)
    assert 2 * CHUNK_BYTES <= arena.lane_mapped < 3 * CHUNK_BYTES
    assert driver.used == arena.mapped_bytes
    arena.resize(1)
    assert arena.lane_mapped == GRANULARITY
    arena.resize(4 * CHUNK_BYTES)
    assert driver.used == 2 * 4 * CHUNK_BYTES
    with pytest.raises(ValueError, match="cannot grow"):
        arena.resize(4 * CHUNK_BYTES + 1)


@pytest.mark.parametrize("call", ["cuMemMap", "cuMemSetAccess"])
@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_growth_that_fails_leaves_everything_as_it_was(call: str, after: int) -> None:
    driver = FakeMemoryDriver()
    arena = Arena(driver, lanes=4, lane_bytes=3 * CHUNK_BYTES)
    arena.resize(GRANULARITY)
    before, allowed = dict(driver.mapped), set(driver.allowed)
    driver.fail(call, after)
    with pytest.raises(DriverError, match="CUDA_ERROR_OUT_OF_MEMORY"):
        arena.resize(3 * CHUNK_BYTES)
    assert (driver.mapped, driver.allowed) == (before, allowed)
    assert arena.lane_mapped == GRANULARITY
    arena.resize(3 * CHUNK_BYTES)
    arena.close()
    assert not driver.mapped


def test_tensors_have_their_final_shape_and_address_from_the_beginning() -> None:
    machine = Machine()
    cache = machine.allocator.reserve(KV, MemoryLimits(kv_bytes=1000 * PAGE_BYTES))
    assert (cache.num_pages, cache.reserved_pages) == (2, 1000)
    assert [tuple(x.shape) for x in cache.k] == [(1000, 16, 2, 32), (1000, 16, 1, 48), (1000, 16, 2, 32)]
    assert {x.dtype for x in tensors(cache)} == {torch.bfloat16}
    assert all(x.stride(-1) == 1 for x in tensors(cache))
    assert not any(x[0].any() for x in tensors(cache)), "the null page must be finite"
    addresses = [x.data_ptr() for x in tensors(cache)]
    for num_pages in (1000, 40, 2, 1000):
        machine.allocator.commit(cache, num_pages)
        assert [x.data_ptr() for x in tensors(cache)] == addresses
        for x in tensors(cache):
            used = x[:num_pages]
            assert machine.driver.usable(used.data_ptr(), used.numel() * used.element_size())
    ends = sorted((x.data_ptr(), x.data_ptr() + x.numel() * x.element_size()) for x in tensors(cache))
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(ends)), "tensors overlap"


@pytest.mark.parametrize("dtype", ["float32", "float16", "fp8_e4m3", "fp8_e5m2"])
def test_every_storage_type_has_its_torch_type(dtype: str) -> None:
    spec = KVSpec(layers=KV.layers, dtype=dtype, page_size=16)  # type: ignore[arg-type]
    cache = Machine().committed(4, spec)
    names = {"fp8_e4m3": "float8_e4m3fn", "fp8_e5m2": "float8_e5m2"}
    assert cache.v[0].dtype == getattr(torch, names.get(dtype, dtype))
    assert cache.v[0].element_size() * cache.v[0][0].numel() * 4 + cache.v[1].element_size() * cache.v[1][
        0
    ].numel() * 2 == (spec.page_bytes)


def test_sleep_gives_the_memory_back_and_keeps_the_first_pages() -> None:
    machine = Machine()
    cache = machine.committed(1000)
    kept = fill(cache)
    awake = machine.driver.used
    machine.allocator.commit(cache, 2)
    assert machine.synchronized == 1, "pages may be in use by steps under way"
    assert machine.driver.used < awake / 10
    for x, old in zip(tensors(cache), kept, strict=True):
        assert torch.equal(x[:2], old[:2])
    machine.allocator.commit(cache, 1000)
    assert machine.driver.used == awake
    assert machine.synchronized == 1


def test_pages_grow_again_after_a_failure_in_the_middle() -> None:
    machine = Machine()
    cache = machine.allocator.reserve(KV, MemoryLimits(kv_bytes=1000 * PAGE_BYTES))
    before = machine.driver.used
    machine.driver.fail("cuMemMap", 5)
    with pytest.raises(OutOfMemory, match=r"no memory for 1000 KV pages: cuMemMap failed: CUDA_ERROR_OUT_OF_MEMORY; "):
        machine.allocator.commit(cache, 1000)
    assert (cache.num_pages, machine.driver.used) == (2, before)
    machine.allocator.commit(cache, 1000)
    assert cache.num_pages == 1000


def test_a_failure_that_is_not_about_memory_is_no_out_of_memory() -> None:
    machine = Machine()
    cache = machine.allocator.reserve(KV, MemoryLimits(kv_bytes=1000 * PAGE_BYTES))
    machine.driver.fail("cuMemMap", 0, "CUDA_ERROR_ILLEGAL_ADDRESS")
    with pytest.raises(DriverError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
        machine.allocator.commit(cache, 1000)


def test_reserving_that_fails_leaves_nothing_behind() -> None:
    machine = Machine()
    machine.driver.fail("cuMemMap", 4)
    with pytest.raises(OutOfMemory, match="the first KV pages"):
        machine.allocator.reserve(KV, MemoryLimits(kv_bytes=1000 * PAGE_BYTES))
    gc.collect()
    assert not machine.driver.mapped
    assert not machine.driver.reserved
    assert machine.allocator.use().kv == 0


@pytest.mark.parametrize("num_pages", [1, 0, 1001, 1 << 40])
def test_page_numbers_outside_of_the_range_are_refused(num_pages: int) -> None:
    machine = Machine()
    cache = machine.committed(1000)
    with pytest.raises(OutOfMemory, match=f"cannot commit {num_pages} pages: expected 2 to 1000"):
        machine.allocator.commit(cache, num_pages)
    assert cache.num_pages == 1000


def test_release_gives_everything_back() -> None:
    machine = Machine()
    cache = machine.committed(100)
    assert machine.allocator.use().kv == 100 * PAGE_BYTES
    machine.allocator.release(cache)
    assert machine.allocator.use().kv == 0
    assert not machine.driver.mapped
    assert not machine.driver.reserved
    assert machine.synchronized == 1


def test_closing_releases_what_is_left() -> None:
    machine = Machine()
    machine.committed(10)
    machine.committed(20)
    machine.allocator.close()
    assert not machine.driver.reserved
    assert machine.allocator.use().kv == 0


def test_copied_pages_are_equal_in_every_layer_and_others_untouched() -> None:
    machine = Machine()
    cache = machine.committed(8)
    before = fill(cache)
    machine.allocator.copy_pages(cache, [1, 5, 2], [5, 6, 7])
    for x, old in zip(tensors(cache), before, strict=True):
        assert torch.equal(x[[5, 6, 7]], old[[1, 5, 2]]), "a page that is source and destination is read first"
        assert torch.equal(x[:5], old[:5])
    machine.allocator.copy_pages(cache, [], [])


def test_exported_pages_come_back_into_other_pages() -> None:
    machine = Machine()
    cache = machine.committed(8)
    before = fill(cache)
    content = machine.allocator.export_pages(cache, [3, 7])
    for x in tensors(cache):
        x[:8].zero_()
    machine.allocator.import_pages(cache, [2, 4], content)
    for x, old in zip(tensors(cache), before, strict=True):
        assert torch.equal(x[[2, 4]], old[[3, 7]])
        assert not x[[0, 1, 3, 5, 6, 7]].any()


def plan_of(machine: Machine, limits: MemoryLimits) -> tuple[ArenaCache, dict[str, int], int]:
    """Reserve, then use memory as weights and recorded steps do, then plan."""
    cache = machine.allocator.reserve(KV, limits)
    machine.context, machine.allocated, machine.cached = 300 << 20, 2 * GIB, 100 << 20
    plan = machine.allocator.plan(cache, limits)
    return cache, dict(plan.lines), plan.num_pages


def test_a_plan_explains_every_byte() -> None:
    machine = Machine(16 * GIB, others=GIB)
    cache, lines, num_pages = plan_of(machine, MemoryLimits(fraction=0.8))
    taken = ("used by others", "context, libraries and recorded steps", "weights and buffers", "workspaces of steps")
    assert [lines[name] for name in taken] == [GIB, 300 << 20, 2 * GIB, 100 << 20]
    room = int(16 * GIB * 0.8) - (300 << 20) - 2 * GIB - (100 << 20) - SAFETY_BYTES
    assert lines["room for pages"] == room
    left = (*taken, "safety", "not to be used, by the limit", "room for pages")
    assert sum(lines[name] for name in left) == lines["memory of the device"] == 16 * GIB
    parts = ("pages", "rounding of pages to the driver's granularity", "room that needs no more pages")
    assert sum(lines[name] for name in parts) == room
    assert lines["pages"] == num_pages * PAGE_BYTES
    assert cache.mapped_for(num_pages) <= room < cache.mapped_for(num_pages + 1)


def test_a_plan_never_takes_what_others_have() -> None:
    machine = Machine(16 * GIB, others=9 * GIB)
    _, lines, num_pages = plan_of(machine, MemoryLimits(fraction=0.9))
    room = 16 * GIB - 9 * GIB - (300 << 20) - 2 * GIB - (100 << 20) - SAFETY_BYTES
    assert lines["room for pages"] == room
    assert lines["not to be used, by the limit"] == 0
    assert num_pages * PAGE_BYTES <= room


def test_the_memory_of_a_plan_is_really_there() -> None:
    machine = Machine(4 * GIB, others=GIB)
    cache, _, num_pages = plan_of(machine, MemoryLimits(fraction=1.0))
    machine.allocator.commit(cache, num_pages)
    free = machine.measure().free
    assert SAFETY_BYTES <= free < SAFETY_BYTES + 6 * GRANULARITY * 2


def test_a_plan_may_be_made_again_with_pages_committed() -> None:
    machine = Machine(4 * GIB)
    limits = MemoryLimits(fraction=1.0)
    cache, _, num_pages = plan_of(machine, limits)
    machine.allocator.commit(cache, num_pages)
    assert machine.allocator.plan(cache, limits).num_pages == num_pages


def test_a_number_of_bytes_is_kept_exactly() -> None:
    machine = Machine()
    limits = MemoryLimits(kv_bytes=10 * PAGE_BYTES + 7)
    cache = machine.allocator.reserve(KV, limits)
    plan = machine.allocator.plan(cache, limits)
    assert (plan.num_pages, plan.kv_bytes) == (10, 10 * PAGE_BYTES)
    few = MemoryLimits(kv_bytes=100 * PAGE_BYTES, max_pages=6)
    assert machine.allocator.plan(machine.allocator.reserve(KV, few), few).num_pages == 6


def test_bytes_that_were_asked_for_and_are_not_there_are_refused_with_the_numbers() -> None:
    machine = Machine(4 * GIB, others=GIB)
    with pytest.raises(OutOfMemory, match=r"others use 1,073,741,824, this process 2,566,914,048 \(2,147,483,648 in w"):
        plan_of(machine, MemoryLimits(kv_bytes=3 * GIB))


def test_no_room_for_two_pages_is_refused_with_the_numbers() -> None:
    machine = Machine(3 * GIB)
    with pytest.raises(OutOfMemory, match=r"2 KV pages need [\d,]+ bytes and 0 are free for them: of 3,221,225,472"):
        plan_of(machine, MemoryLimits(fraction=0.9))
    with pytest.raises(OutOfMemory, match=rf"a page takes {PAGE_BYTES:,} bytes and {PAGE_BYTES + 1:,} are allowed"):
        machine.allocator.reserve(KV, MemoryLimits(kv_bytes=PAGE_BYTES + 1))


def test_a_cache_of_another_backend_is_refused_by_name() -> None:
    from drivetrain_plugins.contract.memory import KVCache

    class Foreign(KVCache):
        pass

    with pytest.raises(TypeError, match="this cache is a Foreign"):
        Machine().allocator.release(Foreign())
