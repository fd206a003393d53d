"""What the devices of all backends with Triton do alike."""

# Relaxed: torch's stubs leave these functions half typed.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch

from drivetrain_plugins.contract.backend import Device
from drivetrain_plugins.contract.executor import ExecutorLimits, Progress
from drivetrain_plugins.contract.model import DecoderSpec
from drivetrain_plugins.contract.shapes import ShapePolicy
from drivetrain_plugins.errors import BackendError
from drivetrain_triton.arch import GpuArch
from drivetrain_triton.device.allocator import GpuAllocator
from drivetrain_triton.device.compilation import Compiling
from drivetrain_triton.device.compile_job import encode_job
from drivetrain_triton.device.compilers import taken_compilers
from drivetrain_triton.device.faults import FaultSigns, classify
from drivetrain_triton.device.runtime import StreamRuntime
from drivetrain_triton.device.shapes import shape_policy
from drivetrain_triton.launch import Variant


class GpuDevice(Device):
    """A GPU that torch calls "cuda".

    A subclass sets the parts; `_runtime` and `_allocator` are the contract's, with their own types.

    Attributes:
        arch: the part, as kernels see it. signs: of the vendor's errors.
    """

    arch: GpuArch
    signs: FaultSigns
    _runtime: StreamRuntime
    _allocator: GpuAllocator
    _compiling: Compiling | None = None

    @abstractmethod
    def kernel_variants(self, spec: DecoderSpec, limits: ExecutorLimits) -> Sequence[Variant]:
        """Every kernel that this rank's share of a model launches, in an order that is always the same."""

    def shape_policy(self, limits: ExecutorLimits) -> ShapePolicy:
        return shape_policy(limits, graphs=self.capabilities.graphs)

    def compile_ahead(self, spec: DecoderSpec, limits: ExecutorLimits, progress: Progress) -> Callable[[], None]:
        variants = self.kernel_variants(spec, limits)
        compilers = taken_compilers()
        job = b"" if compilers is None else encode_job(spec, limits, self.arch)
        self._compiling = Compiling(variants, progress, compilers, job)
        return self._compiling.wait

    def prepare_more(self) -> bool:
        return self._compiling is not None and self._compiling.one_more()

    def classify(self, error: Exception) -> BackendError | None:
        return classify(error, self.torch_device, self.signs)

    def close(self) -> None:
        self._allocator.close()
        self._runtime.close()
        self.communicator.close()
        torch.cuda.empty_cache()
