"""Compile kernels for GPUs that are not here and read what the compiler made of them.

Triton's wheel carries its compilers and NVIDIA's disassembler. With a stand-in for the driver, a kernel's `warmup`
specialises its arguments as a launch would and compiles, for any part.
"""

# Relaxed: Triton is untyped.
# pyright: basic

from __future__ import annotations

import re
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from drivetrain_plugins.errors import Unsupported
from drivetrain_triton.launch import Variant

NVIDIA_ARCHS = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
AMD_ARCHS = ("gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1201")

SHARED_LIMITS: dict[str, int] = {
    **{"sm_80": 163 << 10, "sm_86": 99 << 10, "sm_89": 99 << 10},
    **{"sm_90": 227 << 10, "sm_100": 227 << 10, "sm_120": 99 << 10},
    **{"gfx90a": 64 << 10, "gfx942": 64 << 10, "gfx950": 160 << 10, "gfx1100": 64 << 10, "gfx1201": 64 << 10},
}
"""Bytes of shared memory that one program may have. Nothing else checks AMD's."""

_MATRIX_INSTRUCTIONS = {
    "wgmma": r"wgmma\.mma_async",
    "mma.sync": r"mma\.sync",
    "tcgen05": r"tcgen05\.mma",
    "mfma": r"\bv_mfma_",
    "wmma": r"\bv_s?wmmac?_",
}
_LOCK = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledKernel:
    """What the compiler made of a kernel.

    Attributes:
        registers: vector registers a thread.
        spills: registers that did not fit. NVIDIA: stores to and loads from local memory in the machine code.
        local_bytes: local memory (NVIDIA: local and stack) or scratch (AMD) of a thread.
        shared_bytes: shared memory of a program, dynamic and static.
        matrix_instructions: of "wgmma", "mma.sync", "tcgen05", "mfma", "wmma", those that occur.
        assembly: PTX or AMD's assembly.
        machine_code: disassembly of the final code; AMD: the assembly.
    """

    arch: str
    registers: int
    spills: int
    local_bytes: int
    shared_bytes: int
    matrix_instructions: frozenset[str]
    assembly: str = field(repr=False)
    machine_code: str = field(repr=False)

    @property
    def fits(self) -> bool:
        """Nothing spilled, and the shared memory exists on the part."""
        return self.spills == 0 and self.local_bytes == 0 and self.shared_bytes <= SHARED_LIMITS[self.arch]

    def __str__(self) -> str:
        used = f"{self.registers} registers, {self.spills} spills, {self.local_bytes} bytes local"
        return f"{self.arch}: {used}, {self.shared_bytes} bytes shared, {sorted(self.matrix_instructions)}"


class _AbsentGpu:
    """The few driver calls that specialisation and compilation make."""

    def __init__(self, target: GPUTarget) -> None:
        self._target = target

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def set_current_device(self, device: int) -> None:
        pass

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    def get_device_capability(self, device: int = 0) -> tuple[int, int]:
        return divmod(self._target.arch, 10) if isinstance(self._target.arch, int) else (0, 0)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def map_python_to_cpp_type(self, ty: Any) -> Any:
        return ty


def target_of(arch: str) -> GPUTarget:
    """Triton's name of a part.

    Raises:
        Unsupported: a part that this module does not know.
    """
    if arch in NVIDIA_ARCHS:
        return GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)
    if arch in AMD_ARCHS:
        return GPUTarget("hip", arch, 64 if arch.startswith("gfx9") else 32)
    raise Unsupported(f"no part {arch!r} to compile for; expected one of {', '.join(NVIDIA_ARCHS + AMD_ARCHS)}")


def absent_gpu(arch: str) -> Any:
    """A stand-in for Triton's driver that compiles for a part and launches nothing."""
    return _AbsentGpu(target_of(arch))


def compile_here_for(target: GPUTarget) -> None:
    """Let everything that is compiled in this process from now on be for a GPU that Triton's driver calls so."""
    absent: Any = _AbsentGpu(target)
    driver.set_active(absent)


@contextmanager
def _compiling_for(arch: str, kernel: JITFunction) -> Iterator[None]:
    """Compile for `arch` inside; the driver and what the kernel had compiled come back afterwards."""
    previous, known = driver._active, dict(kernel.device_caches)
    driver.set_active(absent_gpu(arch))
    kernel.device_caches.clear()
    try:
        yield
    finally:
        driver._active = previous
        kernel.device_caches.clear()
        kernel.device_caches.update(known)


def compile_for(
    arch: str,
    kernel: Any,
    args: Sequence[Any],
    constexprs: Mapping[str, Any],
    *,
    num_warps: int = 4,
    num_stages: int | None = None,
    **options: Any,
) -> CompiledKernel:
    """Compile one specialisation of a kernel.

    Args:
        arch: of `NVIDIA_ARCHS` or `AMD_ARCHS`.
        args: runtime arguments in order: tensors, torch dtypes (an aligned pointer to such elements), numbers, None.
        constexprs: by name.
        num_stages: Triton's default for the part if None.
        options: further launch options, such as `launch_pdl` or `waves_per_eu`.

    Raises:
        Unsupported: an unknown part, or the interpreter is on.
        triton.CompilationError: the kernel does not compile.
    """
    target = target_of(arch)
    if not isinstance(kernel, JITFunction):
        raise Unsupported(
            f"cannot compile {getattr(kernel, '__name__', kernel)!r}, a {type(kernel).__name__}: expected a jitted "
            "kernel; run without TRITON_INTERPRET"
        )
    options.setdefault("enable_fp_fusion", True)
    if num_stages is not None:
        options["num_stages"] = num_stages
    with _LOCK, _compiling_for(arch, kernel):
        made = kernel.warmup(*args, grid=(1,), num_warps=num_warps, **constexprs, **options)
    return _read_amd(arch, made) if target.backend == "hip" else _read_nvidia(arch, made)


def compile_variant(arch: str, variant: Variant) -> CompiledKernel:
    """Compile what `launch` would launch.

    Raises:
        As `compile_for`.
    """
    options = variant.launch_options
    return compile_for(arch, variant.kernel, variant.args, {}, **options)


def _matrix_instructions(assembly: str) -> frozenset[str]:
    return frozenset(name for name, pattern in _MATRIX_INSTRUCTIONS.items() if re.search(pattern, assembly))


def _read_amd(arch: str, made: Any) -> CompiledKernel:
    assembly = made.asm["amdgcn"]

    def number(field: str) -> int:
        return sum(int(found) for found in re.findall(rf"\.{field}:\s*(\d+)", assembly))

    return CompiledKernel(
        arch=arch,
        registers=number("vgpr_count"),
        spills=number("vgpr_spill_count") + number("sgpr_spill_count"),
        local_bytes=number("private_segment_fixed_size"),
        shared_bytes=made.metadata.shared,
        matrix_instructions=_matrix_instructions(assembly),
        assembly=assembly,
        machine_code=assembly,
    )


def _read_nvidia(arch: str, made: Any) -> CompiledKernel:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(made.asm["cubin"])
        cubin.flush()
        usage = _cuobjdump("--dump-resource-usage", cubin.name)
        machine_code = _cuobjdump("--dump-sass", cubin.name)

    def number(field: str) -> int:
        found = re.search(rf"\b{field}:(\d+)", usage)
        return int(found[1]) if found else 0

    # The dynamic shared memory is in the metadata only; the static one is what the machine code declares.
    return CompiledKernel(
        arch=arch,
        registers=number("REG"),
        spills=len(re.findall(r"\b(?:STL|LDL)\b", machine_code)),
        local_bytes=number("LOCAL") + number("STACK"),
        shared_bytes=made.metadata.shared,
        matrix_instructions=_matrix_instructions(made.asm["ptx"]),
        assembly=made.asm["ptx"],
        machine_code=machine_code,
    )


def _cuobjdump(flag: str, path: str) -> str:
    """Run the disassembler of Triton's wheel.

    Raises:
        RuntimeError: it refused the file.
    """
    folder = Path(triton.__file__).parent / "backends/nvidia/bin"
    command = [str(folder / "cuobjdump"), flag, path]
    environment = {"PATH": f"{folder}:/usr/bin:/bin"}  # it starts nvdisasm, which lies beside it
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"cuobjdump {flag} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout
