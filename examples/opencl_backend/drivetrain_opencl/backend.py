"""Opens an OpenCL device and says what it can do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import pyopencl as cl
import torch

from drivetrain_opencl.attention import OpenclAttention
from drivetrain_opencl.communicator import SocketCommunicator
from drivetrain_opencl.devices import opencl_devices
from drivetrain_opencl.memory import OpenclAllocator
from drivetrain_opencl.ops import OpenclOps
from drivetrain_opencl.options import OpenclOptions
from drivetrain_opencl.queue import MAX_HEAD_DIM, DeviceQueue
from drivetrain_opencl.runtime import OpenclRuntime
from drivetrain_plugins.contract.backend import Backend, Device, RankInfo
from drivetrain_plugins.contract.capabilities import EVERY_SAMPLING_FEATURE, Capabilities
from drivetrain_plugins.contract.communicator import Communicator, SoleRank
from drivetrain_plugins.contract.executor import ExecutorLimits
from drivetrain_plugins.contract.shapes import ShapePolicy
from drivetrain_plugins.errors import BackendError, DeviceLost, OutOfMemory

OUT_OF_MEMORY = frozenset({cl.status_code.MEM_OBJECT_ALLOCATION_FAILURE, cl.status_code.OUT_OF_HOST_MEMORY})


class OpenclDevice(Device):
    """One opened device. Torch knows no OpenCL tensors, so what core holds between the ops rests on the host."""

    def __init__(self, device: cl.Device, options: OpenclOptions, communicator: Communicator) -> None:
        queue = DeviceQueue(device)
        self._queue = queue
        self.torch_device = torch.device("cpu")
        self.capabilities = Capabilities(
            device_name=device.name,
            dtypes=("float32",),
            kv_dtypes=("float32", "float16"),
            page_sizes=(16, 32, 64, 128),
            attention=frozenset({"window", "soft_cap", "sinks", "alibi"}),
            max_head_dim=MAX_HEAD_DIM,
            sampling=EVERY_SAMPLING_FEATURE,
            step_tokens=512,
            memory_bytes=device.global_mem_size,
            max_ranks=max(2, device.max_compute_units),  # ranks may share a device
        )
        self.runtime = OpenclRuntime(queue)
        self.allocator = OpenclAllocator(queue, options.kv_share)
        self.attention = OpenclAttention(queue)
        self.ops = OpenclOps(queue)
        self.communicator = communicator

    def shape_policy(self, limits: ExecutorLimits) -> ShapePolicy:
        return ShapePolicy()

    def classify(self, error: Exception) -> BackendError | None:
        if isinstance(error, cl.MemoryError) or (isinstance(error, cl.Error) and error.code in OUT_OF_MEMORY):
            return OutOfMemory(f"the OpenCL device ran out of memory: {error}; lower the KV memory or the token budget")
        if isinstance(error, cl.RuntimeError) and error.code == cl.status_code.DEVICE_NOT_AVAILABLE:
            return DeviceLost(f"the OpenCL device is gone: {error}; look into the log of its driver")
        return None

    def close(self) -> None:
        self.communicator.close()
        self._queue.close()


class OpenclBackend(Backend):
    """What `BackendSpec.backend` names."""

    name = "opencl"

    def open(self, rank: RankInfo, options: Mapping[str, Any]) -> OpenclDevice:
        settings = msgspec.convert(dict(options), OpenclOptions)
        try:
            devices = opencl_devices()
        except cl.Error as error:
            raise BackendError(f"no OpenCL platform answers: {error}; `drivetrain backends` says what to do") from error
        if settings.device >= len(devices):
            raise BackendError(
                f"backend_options.opencl.device: got {settings.device}, expected one of the {len(devices)} devices here"
            )
        # Ranks take the devices behind the chosen one, and share them where there are fewer.
        device = devices[(settings.device + rank.local_rank) % len(devices)]
        return OpenclDevice(device, settings, SoleRank() if rank.world == 1 else SocketCommunicator(rank))
