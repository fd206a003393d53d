"""Processes compile a model's kernels without a GPU, under the keys by which launches find them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("triton", reason="needs the package triton, which has no build for this platform")

import triton
from triton.runtime import driver

import compile_kernels
from compiled import kernels
from device_parts.settings import TINY_CONFIG
from drivetrain.models.families import decoder_spec
from drivetrain_cuda.variants import kernel_variants
from drivetrain_plugins.contract.executor import ExecutorLimits
from drivetrain_plugins.contract.memory import MemoryLimits
from drivetrain_plugins.contract.model import DecoderSpec, NormSpec
from drivetrain_plugins.import_string import import_object
from drivetrain_triton.arch import GpuArch
from drivetrain_triton.cross_compile import absent_gpu
from drivetrain_triton.device import compilation, compilers
from drivetrain_triton.device.compilation import plain_variants
from drivetrain_triton.device.compilers import Compilers, begin_compilers
from drivetrain_triton.device.gpu_device import GpuDevice
from drivetrain_triton.launch import Variant, prepare_kernels
from drivetrain_triton.variants import ops_variants
from fakes.waiting import until

LLAMA = Path(__file__).parent.parent / "data" / "configs" / "Llama-3.1-8B.json"
LIMITS = ExecutorLimits(
    dtype="bfloat16",
    kv_dtype="fp8_e4m3",
    max_num_rows=512,
    max_step_tokens=8192,
    max_model_len=8192,
    page_size=64,
    memory=MemoryLimits(fraction=0.9, max_pages=65537),
)
H100 = GpuArch(name="sm_90", num_processors=132, shared_bytes=227 << 10, pdl=True)
MI300X = GpuArch(name="gfx942", num_processors=304, shared_bytes=64 << 10, warp_size=64)


def llama() -> DecoderSpec:
    return decoder_spec(json.loads(LLAMA.read_text(encoding="utf-8")))


@pytest.fixture
def compiled_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Kernels that this process compiled, because the cache on disk did not have them."""
    missed: list[str] = []

    def note(*, src: Any, cache_hit: bool, **_: object) -> None:
        if not cache_hit:
            missed.append(src.name)

    monkeypatch.setattr(triton.knobs.compilation, "listener", note)
    yield missed


def forget(monkeypatch: pytest.MonkeyPatch, variants: list[Variant]) -> None:
    """Let this process know nothing of these kernels, as if it had just begun."""
    for kernel in {id(variant.kernel): variant.kernel for variant in variants}.values():
        monkeypatch.setattr(kernel, "device_caches", type(kernel.device_caches)(kernel.create_binder))


@pytest.mark.parametrize(
    ("listing", "arch"),
    [
        ("compiled.listings:some_of_cuda", H100),
        ("compiled.listings:some_of_rocm", MI300X),
        pytest.param("drivetrain_cuda.variants:kernel_variants", H100, marks=pytest.mark.slow),
        pytest.param("drivetrain_rocm.variants:kernel_variants", MI300X, marks=pytest.mark.slow),
    ],
)
def test_a_device_finds_every_plain_kernel_compiled(
    listing: str,
    arch: GpuArch,
    compiled_here: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(driver, "_active", absent_gpu(arch.name))
    monkeypatch.setattr(compilers, "usable_cores", lambda: compilers.LEAST_PROCESSORS)
    monkeypatch.setattr(compilers, "available_memory_bytes", lambda: compilers.MEMORY_A_PROCESS)
    monkeypatch.setattr(compilers, "LEAST_THREADS", 0)
    monkeypatch.setattr(compilation, "usable_cores", lambda: 2)
    list_variants: Callable[..., list[Variant]] = import_object(listing)  # type: ignore[assignment]
    begin_compilers(listing)
    begun = compilers._begun.get()
    assert begun is not None
    told: list[tuple[str, float, float, str]] = []
    forget(monkeypatch, list_variants(llama(), LIMITS, arch))
    device: Any = SimpleNamespace(kernel_variants=lambda *of: list_variants(*of, arch), arch=arch)
    GpuDevice.compile_ahead(device, llama(), LIMITS, lambda *progress: told.append(progress))()

    total = len(plain_variants(list_variants(llama(), LIMITS, arch)))
    assert total > 5
    assert len(list(tmp_path.glob("*/__grp__*.json"))) == total
    assert compiled_here == []
    assert not caplog.records
    assert (told[0], told[-1]) == (
        ("compile kernels", 0, total, "kernels"),
        ("compile kernels", total, total, "kernels"),
    )
    until(lambda: not begun.alive)


def test_a_process_ends_with_the_one_that_it_works_for(tmp_path: Path) -> None:
    program = (
        "import os, signal\n"
        "from drivetrain_triton.device.compilers import Compilers\n"
        "compilers = Compilers('compiled.listings:some_of_cuda', 1)\n"
        "print(compilers._processes[0]._process.pid, flush=True)\n"
        "signal.pause()\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TRITON_CACHE_DIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert runs(pid)
        parent.send_signal(signal.SIGKILL)
    until(lambda: not runs(pid))


def test_a_process_that_cannot_begin_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compilers, "LEAST_THREADS", 0)
    begun = Compilers("compiled.listings:none_of_cuda", 1)
    begun.begin(b"{}\n", 1, threads=1)
    begun.compile(0, lambda: "compiled here")
    until(lambda: not begun.alive)
    assert "a process that compiles kernels ended with 1; this process does its share" in caplog.text
    assert "AttributeError: module 'compiled.listings' has no attribute 'none_of_cuda'" in caplog.text


@pytest.mark.slow
def test_the_measurement_compiles_everything_with_processes_and_without(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, compile_kernels.__file__, "--model", "tiny", "--processes", "0", "1", "--lanes", "1"]
    printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment).stdout
    found = re.findall(r"^(\d) processes: .*, (\d+) kernels .* s, (\d+) of them", printed, re.MULTILINE)
    alone, helped = [tuple(map(int, line)) for line in found]
    total = len(plain_variants(kernel_variants(decoder_spec(TINY_CONFIG), LIMITS, H100)))
    assert alone == (0, total, 0)
    assert helped[:2] == (1, total)
    assert not list(tmp_path.iterdir()), "each start has a cache of its own"


def runs(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rsplit(")", 1)[1].split()[0] != "Z"


def test_kernels_are_listed_in_the_order_of_the_layers() -> None:
    spec = llama()
    rms, layer = spec.layers[0].norm, NormSpec(kind="layer", eps=1e-5, bias=True)

    def kinds(*norms: NormSpec) -> list[object]:
        layers = tuple(replace(spec.layers[0], norm=norm) for norm in norms)
        variants = ops_variants(replace(spec, layers=layers, final_norm=rms), LIMITS, H100)
        return [variant.constexprs for variant in variants if variant.kernel.__name__ == "norm_kernel"]

    forth, back = kinds(rms, layer), kinds(layer, rms)
    assert forth != back, "or two processes, whose sets have another order, would number them differently"
    assert forth[:2] == back[2:]


def test_a_kernel_has_the_same_hash_whatever_was_hashed_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "_active", absent_gpu("sm_90"))
    callers = [kernels.doubled, kernels.limited]

    def hashes(*batches: list[Any]) -> list[str]:
        for function in (*callers, kernels.bounded):
            monkeypatch.setattr(function, "hash", None)
            monkeypatch.setattr(function, "used_global_vals", {})
        for batch in batches:
            prepare_kernels([Variant(kernel=kernel, args=(), constexprs={}) for kernel in batch])
        return [kernel.cache_key for kernel in callers]

    assert hashes(callers) == hashes(callers[:1], callers[1:]) == hashes(callers[1:], callers[:1])
