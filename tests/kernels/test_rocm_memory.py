"""HIP's virtual memory through ctypes on a runtime that forgives nothing, and pages without any virtual memory."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from drivetrain_plugins.contract.memory import KVLayerSpec, KVSpec, MemoryLimits
from drivetrain_plugins.errors import DeviceLost, OutOfMemory
from drivetrain_rocm.faults import HIP_FAULTS
from drivetrain_rocm.fp8 import kv_dtypes
from drivetrain_rocm.hip import AccessDescriptor, AllocationProperties, HipMemoryDriver, loaded_library
from drivetrain_rocm.parts import PARTS
from drivetrain_rocm.plain_cache import PlainCache
from drivetrain_triton.device.allocator import GpuAllocator, MemorySource
from drivetrain_triton.device.cache import ArenaCache
from drivetrain_triton.device.faults import classify
from drivetrain_triton.device.memory import DeviceMemory
from drivetrain_triton.device.virtual_memory import DriverError
from fakes.memory_driver import GRANULARITY, FakeMemoryDriver

CPU = torch.device("cpu")
ORDINAL = 3
KV = KVSpec(
    layers=(KVLayerSpec(num_kv_heads=2, head_dim=32), KVLayerSpec(num_kv_heads=1, head_dim=48)),
    dtype="bfloat16",
    page_size=16,
)
NAMES = {1: b"hipErrorInvalidValue", 2: b"hipErrorOutOfMemory", 801: b"hipErrorNotSupported"}


def target(reference: Any) -> Any:
    """What a ctypes `byref` points to."""
    return reference._obj


class FakeHip:
    """libamdhip64's virtual memory with its C signatures, over the driver that checks every call."""

    def __init__(self, memory_bytes: int = 1 << 30, answers: dict[str, int] | None = None) -> None:
        self.driver = FakeMemoryDriver(memory_bytes)
        self.answers = answers or {}
        self.handles: dict[int, int] = {}
        self.mapped: dict[int, int] = {}
        self.hipGetErrorName: Any = type(self)._name

    def __getattr__(self, name: str) -> Callable[..., int]:
        function = getattr(type(self), f"_{name}", None)
        if function is None:
            raise AttributeError(name)

        def call(*arguments: Any) -> int:
            if name in self.answers:
                return self.answers[name]
            try:
                function(self, *arguments)
            except DriverError as error:
                return 2 if "MEMORY" in error.code else 1
            return 0

        return call

    @staticmethod
    def _name(code: int) -> bytes | None:
        return NAMES.get(code)

    @staticmethod
    def _check_memory(memory: AllocationProperties) -> None:
        assert ctypes.sizeof(memory) == 32
        assert (memory.type, memory.location.type, memory.location.id) == (1, 1, ORDINAL)
        assert (memory.requestedHandleTypes, memory.win32HandleMetaData) == (0, None)

    def _hipMemGetAllocationGranularity(self, out: Any, memory: Any, option: ctypes.c_int) -> None:
        self._check_memory(target(memory))
        assert option.value == 0
        target(out).value = GRANULARITY

    def _hipMemAddressReserve(self, out: Any, size: Any, alignment: Any, address: Any, flags: Any) -> None:
        assert (alignment.value, address.value, flags.value) == (0, None, 0)
        target(out).value = self.driver.reserve(size.value)

    def _hipMemAddressFree(self, address: Any, size: Any) -> None:
        self.driver.free(address.value, size.value)

    def _hipMemCreate(self, out: Any, size: Any, memory: Any, flags: Any) -> None:
        self._check_memory(target(memory))
        assert flags.value == 0
        if self.driver.used + size.value > self.driver.memory_bytes:
            raise DriverError("hipMemCreate", "OUT_OF_MEMORY")
        target(out).value = 1000 + len(self.handles)
        self.handles[target(out).value] = size.value

    def _hipMemMap(self, address: Any, size: Any, offset: Any, handle: Any, flags: Any) -> None:
        assert (offset.value, flags.value) == (0, 0)
        assert self.handles[handle.value] == size.value
        self.driver.map(address.value, size.value)
        self.mapped[address.value] = size.value

    def _hipMemRelease(self, handle: Any) -> None:
        del self.handles[handle.value]

    def _hipMemSetAccess(self, address: Any, size: Any, access: Any, count: Any) -> None:
        access = target(access)
        assert isinstance(access, AccessDescriptor) and ctypes.sizeof(access) == 12
        assert (access.location.type, access.location.id, access.flags, count.value) == (1, ORDINAL, 3, 1)
        self.driver.allow(address.value, size.value)

    def _hipMemUnmap(self, address: Any, size: Any) -> None:
        assert self.mapped.pop(address.value) == size.value, "HIP unmaps one mapping at a time"
        self.driver.unmap(address.value, size.value)


def allocator(hip: FakeHip) -> GpuAllocator:
    make_cache = functools.partial(
        ArenaCache, driver=HipMemoryDriver(hip, ORDINAL), tensor_at=hip.driver.tensor_at, least_bytes=8 << 20
    )
    return GpuAllocator(CPU, make_cache, source(hip.driver.measure))


def source(measure: Callable[[], DeviceMemory]) -> MemorySource:
    return MemorySource(measure=measure, synchronize=lambda: None, others=0)


def test_pages_grow_shrink_and_go_back_through_hip() -> None:
    hip = FakeHip()
    made = allocator(hip)
    cache = made.reserve(KV, MemoryLimits(kv_bytes=2000 * KV.page_bytes))
    assert all(len(memory) >= 8 << 20 for memory in hip.driver.reserved.values()), "the least range is kept"
    made.commit(cache, 1500)
    cache.k[1][1499].fill_(3.0)
    cache.k[1][1].fill_(2.0)
    made.commit(cache, 2)
    assert float(cache.k[1][1].float().mean()) == 2.0
    made.commit(cache, 2000)
    made.release(cache)
    assert not hip.handles and not hip.driver.reserved and hip.driver.used == 0


def test_hip_without_memory_is_out_of_memory_and_changes_nothing() -> None:
    hip = FakeHip(memory_bytes=1 << 20)
    made = allocator(hip)
    cache = made.reserve(KV, MemoryLimits(kv_bytes=1 << 30))
    used = hip.driver.used
    with pytest.raises(OutOfMemory, match="hipMemCreate failed: hipErrorOutOfMemory"):
        made.commit(cache, cache.reserved_pages)
    assert (cache.num_pages, hip.driver.used, hip.handles) == (2, used, {})


@pytest.mark.parametrize("call", ["hipMemGetAllocationGranularity", "hipMemAddressReserve", "hipMemMap"])
def test_a_system_that_refuses_virtual_memory_is_found_out_at_once(call: str) -> None:
    hip = FakeHip(answers={call: 801})
    with pytest.raises(DriverError, match=f"{call} failed: hipErrorNotSupported"):
        HipMemoryDriver(hip, ORDINAL)
    assert not hip.handles and not hip.driver.mapped


def test_an_old_runtime_without_the_functions_is_named() -> None:
    class Old:
        def hipGetErrorName(self, code: int) -> bytes:
            return b""

    with pytest.raises(DriverError, match="hipMemGetAllocationGranularity failed: not in this HIP runtime"):
        HipMemoryDriver(Old(), ORDINAL)  # type: ignore[arg-type]


def test_an_error_without_a_name_is_told_by_its_number() -> None:
    with pytest.raises(DriverError, match="HIP error 4711"):
        HipMemoryDriver(FakeHip(answers={"hipMemSetAccess": 4711}), ORDINAL)


def test_the_runtime_is_the_one_that_the_process_has_loaded(tmp_path: Path) -> None:
    maps = tmp_path / "maps"
    maps.write_text("7f00-7f01 r-xp 00000000 08:01 12 /usr/lib/libc.so.6\n7f01-7f02 rw-p 00000000 00:00 0\n")
    with pytest.raises(OSError, match=r"libamdhip64.so is not loaded"):
        loaded_library(maps)
    maps.write_text("7f00-7f01 r-xp 00000000 08:01 12                 /no such/torch/lib/libamdhip64.so.7\n")
    with pytest.raises(OSError, match=r"/no such/torch/lib/libamdhip64.so.7"):
        loaded_library(maps)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "fp8_e4m3", "fp8_e5m2"])
def test_plain_pages_keep_their_content_while_they_move(dtype: str) -> None:
    spec = KVSpec(layers=KV.layers, dtype=dtype, page_size=16)  # type: ignore[arg-type]
    make_cache = functools.partial(PlainCache, device=CPU, dtypes=kv_dtypes(PARTS["gfx942"]))
    memory = DeviceMemory(total=1 << 30, free=1 << 29, allocated=0, reserved=0)
    made = GpuAllocator(CPU, make_cache, source(lambda: memory))
    cache = made.reserve(spec, MemoryLimits(kv_bytes=64 * spec.page_bytes))
    assert (cache.num_pages, cache.reserved_pages, cache.mapped_bytes) == (2, 64, 2 * spec.page_bytes)
    assert cache.k[0].shape == (2, 16, 2, 32)
    assert all(not lane[0].view(torch.uint8).any() for lane in (*cache.k, *cache.v)), "the null page holds no NaN"
    made.commit(cache, 40)
    for lane in (*cache.k, *cache.v):
        lane.copy_(torch.randn(lane.shape))
    before = [lane.view(torch.uint8).clone() for lane in (*cache.k, *cache.v)]
    made.copy_pages(cache, [5, 6], [6, 7])
    exported = made.export_pages(cache, [5, 9])
    made.import_pages(cache, [20, 21], exported)
    made.commit(cache, 64)
    made.commit(cache, 30)
    for lane, old in zip((*cache.k, *cache.v), before, strict=True):
        bits = lane.view(torch.uint8)
        assert torch.equal(bits[:6], old[:6])
        assert torch.equal(bits[6], old[5]) and torch.equal(bits[7], old[6])
        assert torch.equal(bits[20], old[5]) and torch.equal(bits[21], old[9])
    with pytest.raises(OutOfMemory, match="cannot commit 65 pages"):
        made.commit(cache, 65)
    made.release(cache)
    assert not cache.k and cache.num_pages == 0


def test_plain_pages_that_find_no_memory_are_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = PlainCache(KV, 64, device=CPU)
    cache.k[0][1].fill_(7.0)
    real, calls = torch.empty, []

    def empty(*arguments: Any, **options: Any) -> torch.Tensor:
        calls.append(arguments)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("HIP out of memory. Tried to allocate 2 GiB")
        return real(*arguments, **options)

    monkeypatch.setattr(torch, "empty", empty)
    with pytest.raises(DriverError) as caught:
        cache.resize(50)
    assert caught.value.out_of_memory
    assert cache.num_pages == 2 and all(lane.shape[0] == 2 for lane in (*cache.k, *cache.v))
    assert float(cache.k[0][1].float().mean()) == 7.0


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (torch.OutOfMemoryError("HIP out of memory. Tried to allocate 2 GiB"), OutOfMemory),
        (DriverError("hipMemCreate", "hipErrorOutOfMemory"), OutOfMemory),
        (RuntimeError("HIP error: out of memory"), OutOfMemory),
        (RuntimeError("HIP error: invalid argument"), None),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
    ],
    ids=str,
)
def test_errors_of_hip_are_told_apart(error: Exception, meaning: type[Exception] | None) -> None:
    found = classify(error, CPU, HIP_FAULTS)
    assert type(found) is (type(None) if meaning is None else meaning)


def test_a_gpu_after_which_nothing_works_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(device: torch.device) -> None:
        raise RuntimeError("HIP error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", fails)
    found = classify(RuntimeError("HIP error: unspecified launch failure"), torch.device("cuda", 0), HIP_FAULTS)
    assert isinstance(found, DeviceLost)
    assert "amd-smi" in str(found)
