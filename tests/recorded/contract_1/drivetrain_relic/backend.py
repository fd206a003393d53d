"""Opens a device and says what it can do."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import msgspec
import torch

from drivetrain_plugins.contract.backend import Backend, Device, RankInfo
from drivetrain_plugins.contract.capabilities import Capabilities
from drivetrain_plugins.contract.communicator import SoleRank
from drivetrain_plugins.contract.executor import ExecutorLimits
from drivetrain_plugins.contract.shapes import ShapePolicy
from drivetrain_plugins.errors import BackendError, OutOfMemory
from drivetrain_relic.attention import RelicAttention
from drivetrain_relic.memory import RelicAllocator
from drivetrain_relic.ops import RelicOps
from drivetrain_relic.options import RelicOptions
from drivetrain_relic.runtime import RelicRuntime


class RelicDevice(Device):
    """One opened device."""

    def __init__(self, options: RelicOptions) -> None:
        self.torch_device = torch.device("cpu")  # yours: torch.device("relic", rank.local_rank)
        self.capabilities = Capabilities(
            device_name="Relic One",
            dtypes=("float32", "bfloat16"),
            kv_dtypes=("float32", "bfloat16"),
            page_sizes=(16, 32, 64),
            attention=frozenset({"window"}),
            max_head_dim=256,
            step_tokens=1024,
            memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        )
        self.runtime = RelicRuntime(self.torch_device)
        self.allocator = RelicAllocator(self.torch_device, options.kv_bytes)
        self.attention = RelicAttention()
        self.ops = RelicOps()
        self.communicator = SoleRank()

    def shape_policy(self, limits: ExecutorLimits) -> ShapePolicy:
        """Any shape will do. Yours: buckets, if shapes must be few; captured rows, if steps are recorded."""
        return ShapePolicy()

    def classify(self, error: Exception) -> BackendError | None:
        if isinstance(error, torch.OutOfMemoryError):
            return OutOfMemory(f"the device ran out of memory: {error}")
        return None

    def close(self) -> None:
        self.runtime.close()


class RelicBackend(Backend):
    """What `BackendSpec.backend` names."""

    name = "relic"

    def open(self, rank: RankInfo, options: Mapping[str, Any]) -> RelicDevice:
        if rank.world != 1:
            raise BackendError(
                f"relic serves one rank, got {rank.world}; lower the parallelism or write a Communicator"
            )
        return RelicDevice(msgspec.convert(dict(options), RelicOptions))
