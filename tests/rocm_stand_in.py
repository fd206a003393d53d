"""ROCm's platform code where there is no AMD GPU: on the processor in Triton's interpreter, and on an NVIDIA GPU.

Both stand for one part. They replace what only AMD's libraries can answer, and nothing of attention, tables, ops,
memory or graphs. Tests import them; no user can choose them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch

from drivetrain_cpu.runtime import CpuRuntime
from drivetrain_plugins.contract.backend import Backend, Device, RankInfo
from drivetrain_plugins.contract.communicator import SoleRank
from drivetrain_plugins.contract.executor import ExecutorLimits
from drivetrain_plugins.contract.shapes import ShapePolicy
from drivetrain_rocm.attention import RocmAttention
from drivetrain_rocm.backend import RocmBackend
from drivetrain_rocm.device import OpenedGpu, capabilities
from drivetrain_rocm.fp8 import kv_dtypes
from drivetrain_rocm.parts import PARTS, Part
from drivetrain_rocm.plain_cache import PlainCache
from drivetrain_triton.arch import GpuArch
from drivetrain_triton.device.allocator import GpuAllocator, MemorySource
from drivetrain_triton.device.memory import DeviceMemory
from drivetrain_triton.device.shapes import shape_policy
from drivetrain_triton.device.virtual_memory import MemoryDriver
from drivetrain_triton.ops import TritonOps

STAND_IN = "gfx950"
"""The part whose 8-bit types NVIDIA's GPUs convert too."""
NEW_HIP = "7.3.0"


class RocmOnCuda(RocmBackend):
    """The ROCm backend on an NVIDIA GPU, with CUDA's driver for its virtual memory."""

    def hip_version(self) -> str:
        return NEW_HIP

    def part(self, spelled: str) -> tuple[str, Part]:
        return STAND_IN, PARTS[STAND_IN]

    def memory_driver(self, ordinal: int) -> MemoryDriver:
        from drivetrain_cuda.driver import CudaMemoryDriver

        return CudaMemoryDriver(ordinal)


class RocmOnCudaWithoutVirtualMemory(RocmOnCuda):
    """The same where the HIP runtime offers none."""

    def memory_driver(self, ordinal: int) -> MemoryDriver:
        raise OSError("this system has none")


class RocmInterpreted(Backend):
    """ROCm's attention, ops and plain pages on the processor; TRITON_INTERPRET=1 must be set."""

    name = "rocm"
    part = STAND_IN

    def open(self, rank: RankInfo, options: Mapping[str, Any]) -> Device:
        from drivetrain_triton.interpreter import repair

        repair()
        return _InterpretedDevice(PARTS[self.part])


class RocmInterpretedFnuz(RocmInterpreted):
    """A part with encodings of its own."""

    part = "gfx942"


class _InterpretedDevice(Device):
    def __init__(self, part: Part) -> None:
        self.torch_device = device = torch.device("cpu")
        gpu = OpenedGpu(
            ordinal=0,
            name=f"{part.name} in the interpreter",
            arch=part.name,
            part=part,
            num_processors=4,
            memory_bytes=1 << 30,
            memory=None,
            no_memory="interpreted",
            others=0,
            hip=NEW_HIP,
        )
        self.arch = GpuArch(name=part.name, num_processors=4, shared_bytes=part.lds_bytes, warp_size=part.wave_size)
        self.capabilities = capabilities(gpu, graphs=False)
        self.communicator = SoleRank()
        self.runtime = CpuRuntime()
        memory = DeviceMemory(total=4 << 30, free=4 << 30, allocated=0, reserved=0)
        self.allocator = GpuAllocator(
            device,
            functools.partial(PlainCache, device=device, dtypes=kv_dtypes(part)),
            MemorySource(measure=lambda: memory, synchronize=lambda: None, others=0),
        )
        self.attention = RocmAttention(arch=part.name, num_processors=4)
        self.ops = TritonOps(self.arch)

    def shape_policy(self, limits: ExecutorLimits) -> ShapePolicy:
        return shape_policy(limits, graphs=False)

    def close(self) -> None:
        self.allocator.close()
