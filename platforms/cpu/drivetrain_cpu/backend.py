"""The CPU backend: opens the processor as a device."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

import msgspec
import torch

from drivetrain_cpu.allocator import CpuAllocator
from drivetrain_cpu.attention import CpuAttention
from drivetrain_cpu.communicator import GlooCommunicator
from drivetrain_cpu.ops import CpuOps
from drivetrain_cpu.options import CpuOptions
from drivetrain_cpu.probe import instruction_sets, processor_name
from drivetrain_cpu.runtime import CpuRuntime
from drivetrain_cpu.threads import threads_for, warn_if_busy
from drivetrain_plugins.contract.backend import Backend, Device, RankInfo
from drivetrain_plugins.contract.capabilities import EVERY_SAMPLING_FEATURE, Capabilities, Dtype
from drivetrain_plugins.contract.communicator import Communicator, SoleRank
from drivetrain_plugins.contract.executor import ExecutorLimits
from drivetrain_plugins.contract.shapes import ShapePolicy
from drivetrain_plugins.errors import BackendError, OutOfMemory
from drivetrain_plugins.resources import total_memory_bytes, usable_cores

_NATIVE_BF16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Instruction sets that multiply bfloat16 matrices. Without one, torch converts every weight on every use."""

_OUT_OF_MEMORY = ("not enough memory", "bad_alloc", "can't allocate memory", "could not allocate")


def preferred_dtypes(sets: tuple[str, ...]) -> tuple[Dtype, ...]:
    """Both types that are served, the faster one on a processor with these instruction sets first."""
    return ("bfloat16", "float32") if _NATIVE_BF16 & set(sets) else ("float32", "bfloat16")


class CpuDevice(Device):
    """The processor, as one rank sees it."""

    def __init__(self, rank: RankInfo, options: CpuOptions, communicator: Communicator, threads: int) -> None:
        sets = instruction_sets()
        dtypes = preferred_dtypes(sets)
        self.torch_device = torch.device("cpu")
        self.capabilities = Capabilities(
            device_name=f"{processor_name()} ({threads} thread{'' if threads == 1 else 's'})",
            dtypes=dtypes,
            kv_dtypes=dtypes,
            page_sizes=(16, 32, 64, 128),
            attention=frozenset({"window", "soft_cap", "sinks", "alibi"}),
            max_head_dim=1024,
            sampling=EVERY_SAMPLING_FEATURE,
            step_tokens=1024,
            memory_bytes=total_memory_bytes(),
            max_ranks=max(2, usable_cores()),
            features=frozenset({platform.machine(), *sets}),
        )
        self.runtime = CpuRuntime()
        self.allocator = CpuAllocator(options.kv_share)
        self.attention = CpuAttention()
        self.ops = CpuOps()
        self.communicator = communicator

    def shape_policy(self, limits: ExecutorLimits) -> ShapePolicy:
        return ShapePolicy()

    def classify(self, error: Exception) -> BackendError | None:
        text = str(error).lower()
        if isinstance(error, MemoryError) or any(sign in text for sign in _OUT_OF_MEMORY):
            return OutOfMemory(f"the host ran out of memory: {error}; lower the KV memory or the step's token budget")
        return None

    def close(self) -> None:
        self.communicator.close()


class CpuBackend(Backend):
    """Serves on the processor of this machine."""

    name = "cpu"

    def open(self, rank: RankInfo, options: Mapping[str, Any]) -> CpuDevice:
        try:
            settings = msgspec.convert(dict(options), CpuOptions)
        except msgspec.ValidationError as error:
            known = ", ".join(CpuOptions.__struct_fields__)
            raise BackendError(f"backend_options.cpu: {error}; the keys are {known}") from error
        threads = threads_for(settings.threads, rank.world)
        if not settings.threads:
            warn_if_busy(threads)
        torch.set_num_threads(threads)
        communicator = SoleRank() if rank.world == 1 else GlooCommunicator(rank)
        return CpuDevice(rank, settings, communicator, threads)
