"""What the conformance suite does not ask of the OpenCL backend: what its probe says, its options, and equal sums."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pyopencl as cl
import pytest
import torch

from drivetrain_opencl import probe as probing
from drivetrain_opencl.backend import OpenclBackend, OpenclDevice
from drivetrain_plugins.contract.backend import RankInfo
from drivetrain_plugins.contract.memory import KVLayerSpec, KVSpec, MemoryLimits
from drivetrain_plugins.contract.ops import LinearWeight
from drivetrain_plugins.errors import BackendError, OutOfMemory

SPEC = KVSpec(layers=(KVLayerSpec(num_kv_heads=2, head_dim=8),) * 2, dtype="float16", page_size=16)


@pytest.fixture(scope="module", autouse=True)
def needs_a_platform() -> None:
    result = probing.probe()
    if not result.ready:
        pytest.skip(f"needs an OpenCL device: {result.reason}")


@pytest.fixture(scope="module")
def device() -> Iterator[OpenclDevice]:
    opened = OpenclBackend().open(RankInfo(), {})
    yield opened
    opened.close()


def test_probe_names_every_device_with_its_driver() -> None:
    result = probing.probe()
    assert result.ready
    assert result.devices[0].memory_bytes > 1 << 28
    assert set(result.devices[0].details) == {"driver", "platform"}


def test_probe_without_a_platform_says_what_to_install() -> None:
    program = (
        f"import sys; sys.path[:] = {sys.path!r}\n"
        "from drivetrain_opencl.probe import probe\n"
        "result = probe()\nprint(result.ready, result.reason, result.next_step, sep='|')"
    )
    hidden = os.environ | {"OCL_ICD_VENDORS": "/nowhere"}
    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=hidden
    ).stdout.strip()
    assert said == (
        "False|no OpenCL platform answers: clGetPlatformIDs failed: PLATFORM_NOT_FOUND_KHR|"
        "install the OpenCL driver of your hardware, or PoCL: pip install pocl-binary-distribution"
    )


def test_a_device_that_is_not_there_is_refused_by_its_option() -> None:
    with pytest.raises(BackendError, match=r"backend_options\.opencl\.device: got 99, expected one of the \d+ devices"):
        OpenclBackend().open(RankInfo(), {"device": 99})


@pytest.mark.parametrize("outputs", [1, 16, 45])
def test_a_token_s_product_is_the_same_in_any_company(device: OpenclDevice, outputs: int) -> None:
    generator = torch.Generator().manual_seed(3)
    x_TD = torch.randn(21, 50, generator=generator)
    weight = torch.randn(outputs, 50, generator=generator)
    bias = torch.randn(outputs, generator=generator)
    handle = device.ops.prepare_linear(LinearWeight(weight=weight, bias=bias))
    together = device.ops.linear(x_TD, handle)
    torch.testing.assert_close(together, x_TD @ weight.T + bias, atol=1e-4, rtol=1e-5)
    for count in (1, 3, 8, 9):
        assert torch.equal(device.ops.linear(x_TD[:count], handle), together[:count])


def test_pages_keep_their_content_while_the_cache_grows_and_shrinks(device: OpenclDevice) -> None:
    limits = MemoryLimits(kv_bytes=9 * SPEC.page_bytes, max_pages=9)
    cache = device.allocator.reserve(SPEC, limits)
    device.allocator.commit(cache, 3)
    content = device.allocator.export_pages(cache, [2])
    for index, part in enumerate(content):
        part[:] = index + 1
    device.allocator.import_pages(cache, [2], content)
    for num_pages in (9, 4):
        device.allocator.commit(cache, num_pages)
        for mine, stored in zip(device.allocator.export_pages(cache, [2]), content, strict=True):
            assert (mine == stored).all()
    device.allocator.release(cache)


def test_more_than_the_device_allocates_at_once_is_never_planned(
    device: OpenclDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = SPEC.page_bytes // 4  # two layers, keys and values
    small = SimpleNamespace(global_mem_size=1 << 40, max_mem_alloc_size=5 * page + 1)
    monkeypatch.setattr(device.allocator._queue, "device", small)
    cache = device.allocator.reserve(SPEC, MemoryLimits())
    assert device.allocator.plan(cache, MemoryLimits()).num_pages == 5
    device.allocator.release(cache)


@pytest.mark.parametrize(("code", "kind"), [("MEM_OBJECT_ALLOCATION_FAILURE", OutOfMemory), ("INVALID_VALUE", None)])
def test_errors_of_the_driver_are_told_apart(device: OpenclDevice, code: str, kind: type | None) -> None:
    class Failed(cl.Error):
        code = cl.status_code.MEM_OBJECT_ALLOCATION_FAILURE

    Failed.code = getattr(cl.status_code, code)
    found = device.classify(Failed("clEnqueueNDRangeKernel failed"))
    assert (found is None) if kind is None else isinstance(found, kind)
