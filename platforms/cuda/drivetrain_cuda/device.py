"""One NVIDIA GPU as a device: its capabilities and parts. Importing this imports Triton."""

# Relaxed: torch's stubs leave device properties half typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch

from drivetrain_cuda.attention import CudaAttention
from drivetrain_cuda.driver import CudaMemoryDriver
from drivetrain_cuda.faults import CUDA_FAULTS
from drivetrain_cuda.gaps import kernel_gaps
from drivetrain_cuda.options import CudaOptions
from drivetrain_cuda.variants import kernel_variants
from drivetrain_plugins.contract.backend import RankInfo
from drivetrain_plugins.contract.capabilities import EVERY_SAMPLING_FEATURE, Capabilities
from drivetrain_plugins.contract.communicator import Communicator, SoleRank
from drivetrain_plugins.contract.executor import ExecutorLimits
from drivetrain_plugins.contract.model import DecoderSpec
from drivetrain_triton.arch import GpuArch
from drivetrain_triton.device.allocator import GpuAllocator, MemorySource
from drivetrain_triton.device.cache import ArenaCache
from drivetrain_triton.device.communicator import NcclCommunicator
from drivetrain_triton.device.gpu_device import GpuDevice
from drivetrain_triton.device.memory import device_memory, tensor_at
from drivetrain_triton.device.runtime import StreamRuntime
from drivetrain_triton.launch import Variant
from drivetrain_triton.ops import TritonOps

PDL_CAPABILITY = (9, 0)
FP8_CAPABILITY = (8, 9)


class CudaDevice(GpuDevice):
    """One GPU, as one rank sees it.

    Args:
        others: bytes that others used on the GPU before this process did.
    """

    communicator: Communicator
    signs = CUDA_FAULTS

    def __init__(self, rank: RankInfo, options: CudaOptions, *, others: int) -> None:
        self.torch_device = device = torch.device("cuda", rank.local_rank)
        self.arch = arch = gpu_arch(device)
        self._options = options
        self.capabilities = capabilities(device, arch, options)
        self.communicator = SoleRank()
        watch = None
        if rank.world > 1:
            self.communicator = watch = NcclCommunicator(rank, device)
        self.runtime = self._runtime = StreamRuntime(device, CUDA_FAULTS, watch=watch)
        make_cache = functools.partial(
            ArenaCache, driver=CudaMemoryDriver(rank.local_rank), tensor_at=functools.partial(tensor_at, device)
        )
        self.allocator = self._allocator = GpuAllocator(
            device,
            make_cache,
            MemorySource(
                measure=functools.partial(device_memory, device),
                synchronize=self.runtime.synchronize,
                others=others,
            ),
        )
        self.attention = CudaAttention(
            arch=arch.name,
            num_processors=arch.num_processors,
            pdl=arch.pdl,
            batch_invariant=options.batch_invariant,
        )
        self.ops = TritonOps(arch)

    def unsupported(self, spec: DecoderSpec, limits: ExecutorLimits) -> list[str]:
        gaps = kernel_gaps(limits, self.arch.name, batch_invariant=self._options.batch_invariant)
        return super().unsupported(spec, limits) + gaps

    def kernel_variants(self, spec: DecoderSpec, limits: ExecutorLimits) -> Sequence[Variant]:
        return kernel_variants(spec, limits, self.arch)


def gpu_arch(device: torch.device) -> GpuArch:
    """The part, as kernels see it."""
    properties = torch.cuda.get_device_properties(device)
    return GpuArch(
        name=f"sm_{properties.major}{properties.minor}",
        num_processors=properties.multi_processor_count,
        shared_bytes=properties.shared_memory_per_block_optin,
        pdl=(properties.major, properties.minor) >= PDL_CAPABILITY,
        warp_size=properties.warp_size,
    )


def capabilities(device: torch.device, arch: GpuArch, options: CudaOptions) -> Capabilities:
    """What is served on this part."""
    properties = torch.cuda.get_device_properties(device)
    capability = (properties.major, properties.minor)
    features = {arch.name, "virtual memory"} | ({"programmatic dependent launch"} if arch.pdl else set[str]())
    return Capabilities(
        device_name=properties.name,
        dtypes=("bfloat16", "float16", "float32"),
        kv_dtypes=("bfloat16", "float16", "float32", "fp8_e4m3", "fp8_e5m2"),
        fp8="ocp" if capability >= FP8_CAPABILITY else "none",
        page_sizes=(64, 16, 32, 128),
        attention=frozenset({"window", "soft_cap", "sinks", "alibi", "cascade"}),
        max_head_dim=256,
        sampling=EVERY_SAMPLING_FEATURE,
        graphs=options.graphs,
        async_execution=True,
        memory_bytes=properties.total_memory,
        max_ranks=torch.cuda.device_count(),
        features=frozenset(features),
    )
