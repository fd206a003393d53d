"""The CUDA device on a GPU: graphs over growing and shrinking pages, staging, uploads, results, failed recordings."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from drivetrain_plugins.contract.memory import KVLayerSpec, KVSpec, MemoryLimits
from drivetrain_plugins.errors import OutOfMemory
from fakes.tiny_model import write_tiny_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

LAYERS = 8
KV = KVSpec(layers=(KVLayerSpec(num_kv_heads=8, head_dim=128),) * LAYERS, dtype="bfloat16", page_size=64)


@pytest.fixture(scope="module")
def device() -> Iterator[object]:
    from drivetrain_cuda.backend import CudaBackend
    from drivetrain_plugins.contract.backend import RankInfo

    opened = CudaBackend().open(RankInfo(), {})
    yield opened
    opened.close()


def test_a_graph_stays_valid_while_pages_grow_sleep_and_wake(device) -> None:
    allocator, runtime = device.allocator, device.runtime
    limits = MemoryLimits(kv_bytes=1000 * KV.page_bytes)
    cache = allocator.reserve(KV, limits)
    page = torch.ones((), dtype=torch.int64, device="cuda")
    value = torch.ones((), device="cuda")
    seen = torch.zeros(LAYERS, 2, device="cuda")

    def step() -> None:
        for layer in range(LAYERS):
            for column, x in enumerate((cache.k[layer], cache.v[layer])):
                x.index_fill_(0, page, 0.0)
                x.index_add_(0, page.view(1), (value + layer).to(x.dtype).expand(1, *x.shape[1:]))
                seen[layer, column] = x.index_select(0, page.view(1)).float().mean()

    step()
    replay = runtime.capture(step)
    expected = torch.arange(LAYERS, dtype=torch.float32)[:, None].expand(-1, 2)
    for turn, num_pages in enumerate((1000, 2, 500, 1000)):
        free = torch.cuda.mem_get_info()[0]
        allocator.commit(cache, num_pages)
        page.fill_(num_pages - 1)
        value.fill_(float(turn))
        replay()
        assert torch.equal(seen.cpu(), expected + turn)
        if num_pages == 2:
            assert torch.cuda.mem_get_info()[0] - free > 900 * KV.page_bytes, "sleep gave no memory back"
    allocator.release(cache)


def test_released_pages_leave_no_memory_behind(device) -> None:
    device.runtime.synchronize()
    before = torch.cuda.mem_get_info()[0]
    for _ in range(3):
        cache = device.allocator.reserve(KV, MemoryLimits(kv_bytes=500 * KV.page_bytes))
        device.allocator.commit(cache, 500)
        device.allocator.release(cache)
    assert torch.cuda.mem_get_info()[0] >= before - (4 << 20)


def test_a_plan_by_measuring_fits_and_more_does_not(device) -> None:
    limits = MemoryLimits(fraction=0.9)
    cache = device.allocator.reserve(KV, limits)
    plan = device.allocator.plan(cache, limits)
    lines = dict(plan.lines)
    assert lines["memory of the device"] == torch.cuda.mem_get_info()[1]
    device.allocator.commit(cache, plan.num_pages)
    for x in (*cache.k, *cache.v):
        x[plan.num_pages - 1].fill_(1.0)
    assert float(cache.v[-1][plan.num_pages - 1].float().mean()) == 1.0
    device.allocator.release(cache)
    huge = MemoryLimits(kv_bytes=2 * lines["memory of the device"])
    cache = device.allocator.reserve(KV, huge)
    with pytest.raises(OutOfMemory, match="free for them"):
        device.allocator.plan(cache, huge)
    with pytest.raises(OutOfMemory, match="CUDA_ERROR_OUT_OF_MEMORY"):
        device.allocator.commit(cache, cache.reserved_pages)
    assert cache.num_pages == 2
    device.allocator.release(cache)
    device.runtime.synchronize()


@pytest.mark.parametrize("shape", [(5,), (3, 7), (30_000_001,), (5000, 4097), ()])
@pytest.mark.parametrize("types", [(torch.bfloat16, torch.bfloat16), (torch.float32, torch.bfloat16)], ids=str)
def test_uploads_arrive_as_they_are(device, shape: tuple[int, ...], types: tuple[torch.dtype, torch.dtype]) -> None:
    host = torch.randn(shape).to(types[0])
    expected = host.to(types[1], copy=True)
    destination = torch.full(shape, float("nan"), dtype=types[1], device="cuda")
    device.runtime.upload(host, destination)
    host.fill_(7.0)
    assert torch.equal(destination.cpu(), expected)


def test_uploads_of_parts_arrive_as_they_are(device) -> None:
    host = torch.randn(4096, 6000)
    destination = torch.zeros(8192, 1000, device="cuda")
    device.runtime.upload(host[:, 5:1005], destination[4096:])
    assert torch.equal(destination[4096:].cpu(), host[:, 5:1005])
    assert not destination[:4096].any()


def test_uploads_keep_the_link_busy(device) -> None:
    host = torch.randn(1 << 28).bfloat16()
    destination = torch.empty(1 << 28, dtype=torch.bfloat16, device="cuda")
    rates = {}
    for name, copy in (("upload", device.runtime.upload), ("plain", lambda a, b: b.copy_(a))):
        copy(host, destination)
        device.runtime.synchronize()
        begin = time.perf_counter()
        copy(host, destination)
        device.runtime.synchronize()
        rates[name] = host.numel() * 2 / (time.perf_counter() - begin) / 1e9
    assert rates["upload"] > rates["plain"]


def test_many_stagings_and_fetches_under_way_keep_their_values(device) -> None:
    runtime = device.runtime
    buffer = torch.zeros(1 << 16, dtype=torch.int32, device="cuda")
    fetches = []
    for turn in range(200):
        host = np.full(1 + (turn * 977) % (1 << 16), turn, np.int32)
        runtime.stage(host, buffer)
        host[:] = -1
        fetches.append(runtime.fetch({"x": buffer[: host.size], "sum": buffer[: host.size].sum(dtype=torch.int32)}))
    for turn, fetch in enumerate(fetches):
        got = fetch.wait()
        assert (got["x"] == turn).all()
        assert int(got["sum"]) == turn * got["x"].size
        assert fetch.ready()


def test_a_recording_that_fails_leaves_the_device_usable(device) -> None:
    x = torch.ones(4, device="cuda")

    def breaks() -> None:
        x.add_(1)
        raise ValueError("in the middle")

    with pytest.raises(ValueError, match="in the middle"):
        device.runtime.capture(breaks)
    with pytest.raises(RuntimeError):
        device.runtime.capture(x.cpu)
    replay = device.runtime.capture(lambda: x.mul_(3))
    replay()
    replay()
    assert x.tolist() == [9.0] * 4


def test_running_out_of_memory_fails_a_call_and_nothing_else(device) -> None:
    with pytest.raises(torch.OutOfMemoryError) as caught:
        torch.empty(1 << 46, dtype=torch.uint8, device="cuda")
    assert isinstance(device.classify(caught.value), OutOfMemory)
    assert torch.ones(3, device="cuda").sum().item() == 3


PROMPTS = [[5, 9, 13, 200, 31], list(range(40, 75)), [7] * 130, [11, 12], list(range(20, 240)), [3, 250, 17]]


def answers(folder: Path, backend: str, **settings: object) -> list[list[int]]:
    """Greedy answers of a served model, all prompts at once."""
    from drivetrain import LLM, SamplingParams

    with LLM(str(folder), backend=backend, dtype="float32", kv_memory=1 << 28, **settings) as llm:
        outputs = llm.generate(PROMPTS, SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True))
    return [output.completions[0].token_ids for output in outputs]


@pytest.mark.parametrize("graphs", [True, False])
def test_a_model_answers_as_on_the_processor_and_every_kernel_was_compiled_ahead(tmp_path: Path, graphs: bool) -> None:
    from triton import knobs

    from drivetrain_triton.device.compilation import SPECIAL_KERNELS

    folder = write_tiny_model(tmp_path / "tiny")
    late: list[str] = []

    def note(*, repr: str, is_manual_warmup: bool, **told: object) -> None:
        if not is_manual_warmup:
            late.append(repr)

    expected = answers(folder, "cpu")
    knobs.runtime.jit_post_compile_hook = note
    try:
        got = answers(folder, "cuda", backend_options={"cuda": {"graphs": graphs}})
    finally:
        knobs.runtime.jit_post_compile_hook = None
    assert got == expected
    # The others go on compiling while the first requests are served, which may need them earlier.
    unlisted = [name for name in late if not name.startswith(tuple(SPECIAL_KERNELS)) and "draw_kernel" not in name]
    assert unlisted == [], "kernels that `compile_ahead` did not list"
