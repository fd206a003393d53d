"""One AMD GPU as a device: its capabilities and parts. Importing this imports Triton."""

# Relaxed: torch's stubs leave device properties half typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from drivetrain_plugins.contract.backend import RankInfo
from drivetrain_plugins.contract.capabilities import EVERY_SAMPLING_FEATURE, Capabilities
from drivetrain_plugins.contract.communicator import Communicator, SoleRank
from drivetrain_plugins.contract.executor import ExecutorLimits
from drivetrain_plugins.contract.model import DecoderSpec
from drivetrain_rocm.attention import RocmAttention
from drivetrain_rocm.faults import HIP_FAULTS
from drivetrain_rocm.fp8 import kv_dtypes
from drivetrain_rocm.gaps import kernel_gaps
from drivetrain_rocm.options import RocmOptions
from drivetrain_rocm.parts import Part
from drivetrain_rocm.plain_cache import PlainCache
from drivetrain_rocm.variants import kernel_variants
from drivetrain_triton.arch import GpuArch
from drivetrain_triton.device.allocator import GpuAllocator, MemorySource
from drivetrain_triton.device.cache import ArenaCache
from drivetrain_triton.device.communicator import NcclCommunicator
from drivetrain_triton.device.gpu_device import GpuDevice
from drivetrain_triton.device.memory import device_memory, tensor_at
from drivetrain_triton.device.runtime import StreamRuntime
from drivetrain_triton.device.virtual_memory import MemoryDriver
from drivetrain_triton.launch import Variant
from drivetrain_triton.ops import TritonOps

FIRST_HIP_THAT_RECORDS_WITH_RANKS = (7, 3)
"""Before ROCm 7.2.1 the watchdog that torch runs beside collectives ends a recording by asking for an event; and HIP's
own version, whose third number is a build, does not tell 7.2.1 from 7.2.0."""

LEAST_RANGE_BYTES = 4 << 30
"""Address range that pages have at least. Triton compiles kernels in another way for memory below 2 GiB, and which way
is known before there is a cache only if a cache is never below."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedGpu:
    """What the backend found out of a GPU while it opened it.

    Attributes:
        arch: as the driver spells it, without features: "gfx1101" and so on. part: whose entries it takes.
        memory: virtual memory, or None with `no_memory` saying why there is none.
        others: bytes that others used before this process did.
        hip: version of the HIP runtime, as torch spells it.
    """

    ordinal: int
    name: str
    arch: str
    part: Part
    num_processors: int
    memory_bytes: int
    memory: MemoryDriver | None
    no_memory: str
    others: int
    hip: str


class RocmDevice(GpuDevice):
    """One GPU, as one rank sees it."""

    communicator: Communicator
    signs = HIP_FAULTS

    def __init__(self, rank: RankInfo, options: RocmOptions, gpu: OpenedGpu) -> None:
        self.torch_device = device = torch.device("cuda", gpu.ordinal)
        self._options = options
        self._kv_dtypes = kv_dtypes(gpu.part)
        self.arch = arch = GpuArch(
            name=gpu.part.name,
            num_processors=gpu.num_processors,
            shared_bytes=gpu.part.lds_bytes,
            warp_size=gpu.part.wave_size,
        )
        lost = lost_graphs(gpu, rank.world) if options.graphs else []
        for reason in lost:
            _log.warning("steps are not recorded in HIP graphs, so each takes longer on the host: %s", reason)
        self.capabilities = capabilities(gpu, graphs=options.graphs and not lost)
        self.communicator = SoleRank()
        watch = None
        if rank.world > 1:
            self.communicator = watch = NcclCommunicator(rank, device)
        self.runtime = self._runtime = StreamRuntime(device, HIP_FAULTS, watch=watch)
        if gpu.memory is not None:
            make_cache = functools.partial(
                ArenaCache,
                driver=gpu.memory,
                tensor_at=functools.partial(tensor_at, device),
                dtypes=self._kv_dtypes,
                least_bytes=LEAST_RANGE_BYTES,
            )
        else:
            make_cache = functools.partial(PlainCache, device=device, dtypes=self._kv_dtypes)
        self.allocator = self._allocator = GpuAllocator(
            device,
            make_cache,
            MemorySource(
                measure=functools.partial(device_memory, device),
                synchronize=self.runtime.synchronize,
                others=gpu.others,
            ),
        )
        self.attention = RocmAttention(
            arch=arch.name, num_processors=arch.num_processors, batch_invariant=options.batch_invariant
        )
        self.ops = TritonOps(arch)

    def unsupported(self, spec: DecoderSpec, limits: ExecutorLimits) -> list[str]:
        head_dims = frozenset(layer.mixer.head_dim for layer in spec.layers)
        gaps = kernel_gaps(limits, self.arch.name, head_dims, batch_invariant=self._options.batch_invariant)
        return super().unsupported(spec, limits) + gaps

    def kernel_variants(self, spec: DecoderSpec, limits: ExecutorLimits) -> Sequence[Variant]:
        return kernel_variants(spec, limits, self.arch)


def lost_graphs(gpu: OpenedGpu, world: int) -> list[str]:
    """Why steps cannot be recorded on this system, as sentences; empty if they can."""
    reasons: list[str] = []
    if gpu.memory is None:
        reasons.append(f"pages would move when they grow, as the HIP runtime has no virtual memory ({gpu.no_memory})")
    if world > 1 and hip_version(gpu.hip) < FIRST_HIP_THAT_RECORDS_WITH_RANKS:
        needed = ".".join(map(str, FIRST_HIP_THAT_RECORDS_WITH_RANKS))
        reasons.append(f"with several ranks HIP {gpu.hip} ends recordings; {needed} or later does not")
    return reasons


def hip_version(text: str) -> tuple[int, int]:
    """Major and minor number of a version such as "7.1.25424-4179531dcd"; (0, 0) if it is none."""
    found = re.match(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def capabilities(gpu: OpenedGpu, *, graphs: bool) -> Capabilities:
    """What is served on this part."""
    features = {gpu.arch, gpu.part.matrix, f"wave{gpu.part.wave_size}"}
    return Capabilities(
        device_name=gpu.name,
        dtypes=("bfloat16", "float16", "float32"),
        kv_dtypes=("bfloat16", "float16", "float32", "fp8_e4m3", "fp8_e5m2"),
        fp8=gpu.part.fp8,
        page_sizes=(64, 16, 32, 128),
        attention=frozenset({"window", "soft_cap", "sinks", "alibi", "cascade"}),
        max_head_dim=gpu.part.max_head_dim,
        graphs=graphs,
        async_execution=True,
        sampling=EVERY_SAMPLING_FEATURE,
        memory_bytes=gpu.memory_bytes,
        max_ranks=max(1, torch.cuda.device_count()),
        features=frozenset(features | ({"virtual memory"} if gpu.memory is not None else set[str]())),
    )
