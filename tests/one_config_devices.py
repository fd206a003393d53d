"""Backends of the tree as they would open on hardware that is not here: their own capabilities, options and policies.

Only what asks a driver is replaced. Nothing can be computed on these devices.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

import msgspec
import torch

from drivetrain_plugins.contract.backend import Backend, Device, RankInfo

if TYPE_CHECKING:
    from drivetrain_rocm.device import RocmDevice

H100 = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3",
    major=9,
    minor=0,
    multi_processor_count=132,
    shared_memory_per_block_optin=232448,
    warp_size=32,
    total_memory=80 << 30,
)


class CpuWithoutBf16(Backend):
    """A processor that has no instructions for bfloat16."""

    name = "cpu"

    def open(self, rank: RankInfo, options: Mapping[str, Any]) -> Device:
        from drivetrain_cpu.backend import CpuBackend

        with mock.patch("drivetrain_cpu.backend.instruction_sets", lambda: ("avx2",)):
            return CpuBackend().open(rank, options)


class CudaOnH100(Backend):
    """One H100."""

    name = "cuda"

    def open(self, rank: RankInfo, options: Mapping[str, Any]) -> Device:
        from drivetrain_cuda import device as cuda
        from drivetrain_cuda.options import CudaOptions

        made = object.__new__(cuda.CudaDevice)
        made._options = msgspec.convert(dict(options), CudaOptions)
        made.torch_device = torch.device("cuda", rank.local_rank)
        with (
            mock.patch("torch.cuda.get_device_properties", lambda device: H100),
            mock.patch("torch.cuda.device_count", lambda: 1),
        ):
            made.arch = cuda.gpu_arch(made.torch_device)
            made.capabilities = cuda.capabilities(made.torch_device, made.arch, made._options)
        return made


class RocmOnMi300(Backend):
    """One MI300X."""

    name = "rocm"

    def open(self, rank: RankInfo, options: Mapping[str, Any]) -> RocmDevice:
        from drivetrain_rocm import device as rocm
        from drivetrain_rocm.options import RocmOptions
        from drivetrain_rocm.parts import PARTS
        from drivetrain_triton.arch import GpuArch

        part = PARTS["gfx942"]
        made = object.__new__(rocm.RocmDevice)
        made._options = settings = msgspec.convert(dict(options), RocmOptions)
        made.arch = GpuArch(name=part.name, num_processors=304, shared_bytes=part.lds_bytes, warp_size=part.wave_size)
        gpu = rocm.OpenedGpu(
            ordinal=rank.local_rank,
            name="AMD Instinct MI300X",
            arch=part.name,
            part=part,
            num_processors=304,
            memory_bytes=192 << 30,
            memory=mock.Mock(),
            no_memory="",
            others=0,
            hip="7.3.0",
        )
        made.capabilities = rocm.capabilities(gpu, graphs=settings.graphs)
        return made


class GaudiOnStub(Backend):
    """A card as the stub of Habana's packages answers for it."""

    name = "gaudi"

    def open(self, rank: RankInfo, options: Mapping[str, Any]) -> Device:
        from gaudi_on_cpu import GaudiOnCpu

        return GaudiOnCpu().open(rank, options)
