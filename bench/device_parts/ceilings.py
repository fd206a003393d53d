"""What the device can do at most: the copy bandwidth of its memory and the rate of a large matrix product."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from device_parts.settings import Record, Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """Bytes a second, read and written both counted, and floating-point operations a second in bf16."""

    device: str
    copy_bytes_s: float
    product_flop_s: float


def run(settings: Settings, record: Record) -> None:
    """Measure the ceilings."""
    found = measure()
    print(
        f"{found.device}: copy {found.copy_bytes_s / 1e12:.3f} TB/s, product {found.product_flop_s / 1e12:.1f} TFLOP/s"
    )
    record.put(**asdict(found), torch=torch.__version__, triton=_version("triton"), python=platform.python_version())


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def measure() -> Ceilings:
    """The ceilings of the current accelerator, or of the CPU where there is none."""
    on_gpu = torch.cuda.is_available()
    device = "cuda" if on_gpu else "cpu"
    num_bytes, size = (4 << 30, 8192) if on_gpu else (128 << 20, 512)
    found = Ceilings(
        device=torch.cuda.get_device_name() if on_gpu else "CPU",
        copy_bytes_s=2 * num_bytes / _copy_s(device, num_bytes),
        product_flop_s=2 * size**3 / _product_s(device, size),
    )
    if on_gpu:
        torch.cuda.empty_cache()
    return found


def _copy_s(device: str, num_bytes: int) -> float:
    source = torch.empty(num_bytes, dtype=torch.uint8, device=device).random_(0, 255)
    target = torch.empty_like(source)
    return best_s(lambda: target.copy_(source))


def _product_s(device: str, size: int) -> float:
    # Random values: zeros draw less power, and the clock would stay higher than in use.
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    return best_s(lambda: torch.mm(a, b, out=out))


def best_s(work: Callable[[], object], *, groups: int = 5, repeats: int = 10) -> float:
    """Seconds of one call: the mean within a group of calls, the best of some groups."""
    on_gpu = torch.cuda.is_available()
    for _ in range(3):
        work()
    found: list[float] = []
    for _ in range(groups):
        if on_gpu:
            torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(repeats):
            work()
        if on_gpu:
            torch.cuda.synchronize()
        found.append((time.perf_counter() - started) / repeats)
    return min(found)
