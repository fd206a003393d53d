"""Opens a device and says what it can do."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import msgspec
import torch

from drivetrain_acme.attention import AcmeAttention
from drivetrain_acme.memory import AcmeAllocator
from drivetrain_acme.ops import AcmeOps
from drivetrain_acme.options import AcmeOptions
from drivetrain_acme.runtime import AcmeRuntime
from drivetrain_plugins.contract.backend import Backend, Device, RankInfo
from drivetrain_plugins.contract.capabilities import EVERY_SAMPLING_FEATURE, Capabilities
from drivetrain_plugins.contract.communicator import SoleRank
from drivetrain_plugins.contract.executor import ExecutorLimits
from drivetrain_plugins.contract.shapes import ShapePolicy
from drivetrain_plugins.errors import BackendError, OutOfMemory


class AcmeDevice(Device):
    """One opened device."""

    def __init__(self, options: AcmeOptions) -> None:
        self.torch_device = torch.device("cpu")  # yours: torch.device("acme", rank.local_rank)
        self.capabilities = Capabilities(
            device_name="Acme One",
            dtypes=("float32", "bfloat16"),
            kv_dtypes=("float32", "bfloat16"),
            page_sizes=(16, 32, 64),
            attention=frozenset({"window"}),
            max_head_dim=256,
            sampling=EVERY_SAMPLING_FEATURE,
            step_tokens=1024,
            memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        )
        self.runtime = AcmeRuntime(self.torch_device)
        self.allocator = AcmeAllocator(self.torch_device, options.kv_bytes)
        self.attention = AcmeAttention()
        self.ops = AcmeOps()
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


class AcmeBackend(Backend):
    """What `BackendSpec.backend` names."""

    name = "acme"

    def open(self, rank: RankInfo, options: Mapping[str, Any]) -> AcmeDevice:
        if rank.world != 1:
            raise BackendError(f"acme serves one rank, got {rank.world}; lower the parallelism or write a Communicator")
        return AcmeDevice(msgspec.convert(dict(options), AcmeOptions))
