"""What the parts of the CUDA backend cost on a GPU: `python bench/cuda_device.py`, half a minute.

Prints one JSON object a line: opening, the KV arena's sleep and wake, uploads, waiting, staging, recording, replaying.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from drivetrain_cuda.backend import CudaBackend
from drivetrain_cuda.device import CudaDevice
from drivetrain_plugins.contract.backend import RankInfo
from drivetrain_plugins.contract.memory import KVLayerSpec, KVSpec, MemoryLimits
from drivetrain_triton.device.runtime import StreamRuntime

LLAMA_8B = KVSpec(layers=(KVLayerSpec(num_kv_heads=8, head_dim=128),) * 32, dtype="bfloat16", page_size=64)


def show(what: str, **figures: object) -> None:
    print(json.dumps({"what": what, **figures}), flush=True)


def seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def pages(device: CudaDevice) -> None:
    """The arena of an 8B model in all of the memory that is left."""
    limits = MemoryLimits(fraction=0.9)
    begin = time.perf_counter()
    cache = device.allocator.reserve(LLAMA_8B, limits)
    reserve_s = time.perf_counter() - begin
    plan = device.allocator.plan(cache, limits)
    show("plan", pages=plan.num_pages, lines=dict(plan.lines))
    grow_s = seconds(lambda: device.allocator.commit(cache, plan.num_pages))
    sleep_s = seconds(lambda: device.allocator.commit(cache, 2))
    wake_s = seconds(lambda: device.allocator.commit(cache, plan.num_pages))
    copies = list(range(2, 34)), list(range(34, 66))
    device.allocator.copy_pages(cache, *copies)
    device.runtime.synchronize()

    def copy() -> None:
        device.allocator.copy_pages(cache, *copies)
        device.runtime.synchronize()

    copied = 2 * 32 * LLAMA_8B.page_bytes
    show(
        "pages",
        gib=plan.kv_bytes / 2**30,
        reserve_s=reserve_s,
        grow_s=grow_s,
        sleep_s=sleep_s,
        wake_s=wake_s,
        copy_gb_s=copied / statistics.median(seconds(copy) for _ in range(5)) / 1e9,
    )
    device.allocator.release(cache)


def uploads(device: CudaDevice) -> None:
    """A gigabyte of weights, from memory that is not pinned."""
    for kind, dtype in (("bfloat16", torch.bfloat16), ("float32 to bfloat16", torch.float32)):
        host = torch.randn(1 << 29, dtype=torch.float32).to(dtype)
        destination = torch.empty(1 << 29, dtype=torch.bfloat16, device=device.torch_device)

        def upload(host: torch.Tensor = host, destination: torch.Tensor = destination) -> None:
            device.runtime.upload(host, destination)
            device.runtime.synchronize()

        first_s, again_s = seconds(upload), statistics.median(seconds(upload) for _ in range(3))
        plain_s = seconds(lambda host=host, destination=destination: destination.copy_(host))
        show(
            "upload",
            kind=kind,
            first_gb_s=2**30 / first_s / 1e9,
            gb_s=2**30 / again_s / 1e9,
            plain_gb_s=2**30 / plain_s / 1e9,
        )


def waits(device: CudaDevice) -> None:
    """From the end of the device's work to the host's return, and what a processor did meanwhile."""
    x = torch.zeros(512, dtype=torch.int32, device=device.torch_device)
    for spin_s in (0.0, 20e-6, 1.0):
        runtime = StreamRuntime(device.torch_device, device.signs, spin_s=spin_s)
        lags: list[float] = []
        busy = 0.0
        for _ in range(100):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            device.runtime.synchronize()
            started, used = time.perf_counter(), time.thread_time()
            begin.record()
            torch.cuda._sleep(2_000_000)
            fetch = runtime.fetch({"x": x})
            end.record()
            fetch.wait()
            returned = time.perf_counter()
            busy += time.thread_time() - used
            end.synchronize()
            lags.append(returned - started - begin.elapsed_time(end) / 1e3)
        show("wait", spin_us=spin_s * 1e6, beyond_device_us=statistics.median(lags) * 1e6, host_busy_us=busy * 1e4)
        runtime.close()


def steps(device: CudaDevice) -> None:
    """What staging, fetching, recording and replaying cost the host."""
    runtime = device.runtime
    buffer = torch.zeros(1 << 14, dtype=torch.int32, device=device.torch_device)
    host = np.zeros(4000, np.int32)
    stage_s = seconds(lambda: [runtime.stage(host, buffer) for _ in range(1000)]) / 1000
    runtime.synchronize()
    fetch_s = seconds(lambda: [runtime.fetch({"x": buffer[:512]}) for _ in range(1000)]) / 1000
    runtime.synchronize()
    x = torch.zeros(1024, device=device.torch_device)

    def step() -> None:
        for _ in range(200):
            x.add_(1)

    step()
    recorded: list[Callable[[], None]] = []
    capture_s = seconds(lambda: recorded.append(runtime.capture(step)))
    replay = recorded[0]
    replay()
    runtime.synchronize()
    replay_s = seconds(lambda: [replay() for _ in range(20)]) / 20
    runtime.synchronize()
    show(
        "steps",
        stage_us=stage_s * 1e6,
        fetch_us=fetch_s * 1e6,
        capture_200_kernels_ms=capture_s * 1e3,
        replay_200_kernels_us=replay_s * 1e6,
    )


def main() -> None:
    begin = time.perf_counter()
    device = CudaBackend().open(RankInfo(), {})
    device.runtime.synchronize()
    show("open", s=time.perf_counter() - begin, device=device.capabilities.device_name)
    for part in (pages, uploads, waits, steps):
        part(device)
    device.close()


if __name__ == "__main__":
    main()
