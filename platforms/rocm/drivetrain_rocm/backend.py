"""The ROCm backend: opens one AMD GPU for a rank."""

# Relaxed: torch's stubs leave switches and properties half typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec
import torch

from drivetrain_plugins.contract.backend import Backend, RankInfo
from drivetrain_plugins.errors import BackendError
from drivetrain_rocm.hip import HipMemoryDriver, loaded_library
from drivetrain_rocm.options import RocmOptions
from drivetrain_rocm.parts import Part, arch_of, part_of, served_parts
from drivetrain_rocm.topology import found_gpus
from drivetrain_rocm.visibility import Contradiction, visible_gpus
from drivetrain_triton.device.virtual_memory import DriverError, MemoryDriver

if TYPE_CHECKING:
    from drivetrain_rocm.device import RocmDevice


class RocmBackend(Backend):
    """Serves on AMD GPUs, which a ROCm build of torch calls "cuda"."""

    name = "rocm"

    def open(self, rank: RankInfo, options: Mapping[str, Any]) -> RocmDevice:
        try:
            settings = msgspec.convert(dict(options), RocmOptions)
        except msgspec.ValidationError as error:
            known = ", ".join(RocmOptions.__struct_fields__)
            raise BackendError(f"backend_options.rocm: {error}; the keys are {known}") from error
        hip = self.hip_version()
        try:
            others = self.used_by_others(rank.local_rank)
            torch.cuda.set_device(rank.local_rank)
            set_precision()
            return self._device(rank, settings, hip, others)
        except (RuntimeError, AssertionError) as error:  # torch asserts where it finds no GPU
            raise BackendError(
                f"GPU {rank.local_rank} cannot be opened: {error}; `drivetrain backends` and `rocminfo` say what "
                "stands in the way"
            ) from error

    def hip_version(self) -> str:
        """The HIP that the installed torch was built for.

        Raises:
            BackendError: it was built for something else.
        """
        if torch.version.hip is None:
            raise BackendError(
                f"the installed PyTorch {torch.__version__} is a build without ROCm; `drivetrain backends` names the "
                "command for the other one"
            )
        return torch.version.hip

    def part(self, spelled: str) -> tuple[str, Part]:
        """(architecture, the part whose entries it takes) of what the driver calls a GPU.

        Raises:
            BackendError: it is not served.
        """
        arch = arch_of(spelled)
        part = part_of(arch)
        if part is None:
            raise BackendError(f"this GPU is a {arch}; served are {served_parts()}")
        return arch, part

    def memory_driver(self, ordinal: int) -> MemoryDriver:
        """Virtual memory of a GPU whose context exists.

        Raises:
            OSError, DriverError: there is none.
        """
        return HipMemoryDriver(loaded_library(), ordinal)

    def used_by_others(self, ordinal: int) -> int:
        """Bytes in use on a GPU, by the kernel driver; to be asked before this process uses it.

        0 where the driver does not say: then others' memory is counted with this process's own, which errs on the safe
        side.

        Raises:
            BackendError: the environment names two different lists of GPUs.
        """
        gpus = found_gpus()
        try:
            chosen = visible_gpus(os.environ, [gpu.uuid for gpu in gpus])
        except Contradiction as error:
            raise BackendError(str(error)) from error
        return gpus[chosen[ordinal]].used_bytes if ordinal < len(chosen) else 0

    def _device(self, rank: RankInfo, settings: RocmOptions, hip: str, others: int) -> RocmDevice:
        from drivetrain_rocm.device import OpenedGpu, RocmDevice

        properties = torch.cuda.get_device_properties(rank.local_rank)
        arch, part = self.part(getattr(properties, "gcnArchName", properties.name))
        memory, no_memory = None, ""
        try:
            memory = self.memory_driver(rank.local_rank)
        except (OSError, DriverError) as error:
            no_memory = str(error)
        gpu = OpenedGpu(
            ordinal=rank.local_rank,
            name=properties.name,
            arch=arch,
            part=part,
            num_processors=properties.multi_processor_count,
            memory_bytes=properties.total_memory,
            memory=memory,
            no_memory=no_memory,
            others=others,
            hip=hip,
        )
        return RocmDevice(rank, settings, gpu)


def set_precision() -> None:
    """Products are as exact as their types: fp32 without TF32, and sums of 16-bit products in fp32 throughout."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
