"""One device with its memory and its queue. Commands run in the order of the calls."""

# Relaxed: pyopencl leaves the arguments of kernels and events untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import importlib.resources
from dataclasses import dataclass
from typing import cast

import numpy as np
import pyopencl as cl
import torch
from pyopencl.tools import ImmediateAllocator, MemoryPool

LANES = 64
"""Work items of a group in kernels that share local memory."""
MAX_HEAD_DIM = 256

Scalar = int | float


@dataclass(frozen=True, slots=True)
class Matrix:
    """Float32 (rows, width) on the device, row by row."""

    data: cl.Buffer
    rows: int
    width: int


class DeviceQueue:
    """Uploads, downloads and kernels of one OpenCL device."""

    def __init__(self, device: cl.Device) -> None:
        self.device = device
        self.context = cl.Context([device])
        self.queue = cl.CommandQueue(self.context)
        self._pool = MemoryPool(ImmediateAllocator(self.queue))
        self._kernels: dict[tuple[str, str, tuple[str, ...]], cl.Kernel] = {}
        self._programs: dict[tuple[str, tuple[str, ...]], cl.Program] = {}
        self._resident: dict[int, tuple[torch.Tensor, cl.Buffer]] = {}
        self._nothing = self.empty(4)

    def empty(self, num_bytes: int) -> cl.Buffer:
        """Memory for a step's results; it goes back to the pool with its last reference."""
        # pyopencl takes its pooled buffers wherever it takes others; its stubs do not say so.
        return cast("cl.Buffer", self._pool.allocate(num_bytes))

    def matrix(self, rows: int, width: int) -> Matrix:
        """A matrix that holds anything."""
        return Matrix(self.empty(4 * rows * width), rows, width)

    def buffer(self, num_bytes: int) -> cl.Buffer:
        """Memory that is held for long: weights and pages."""
        return cl.Buffer(self.context, cl.mem_flags.READ_WRITE, num_bytes)

    def put(self, host: torch.Tensor) -> cl.Buffer:
        """A copy of a host tensor in its own type. `host` may be changed as soon as this returns."""
        array = host.contiguous().numpy()
        made = self.empty(max(array.nbytes, 4))
        if array.nbytes:
            cl.enqueue_copy(self.queue, made, array, is_blocking=True)
        return made

    def put_matrix(self, host_TD: torch.Tensor) -> Matrix:
        """A float32 tensor of two dimensions as a matrix."""
        return Matrix(self.put(host_TD), host_TD.shape[0], host_TD.shape[1])

    def keep(self, host: torch.Tensor | None) -> cl.Buffer:
        """The device's copy of a tensor that never changes, made once; something to pass if there is none."""
        if host is None:
            return self._nothing
        if id(host) not in self._resident:  # the entry keeps the tensor alive, so that its id stays its own
            self._resident[id(host)] = host, self.put(host)
        return self._resident[id(host)][1]

    def get(self, matrix: Matrix) -> torch.Tensor:
        """A matrix on the host, once it is computed."""
        host = np.empty((matrix.rows, matrix.width), np.float32)
        cl.enqueue_copy(self.queue, host, matrix.data, is_blocking=True)
        return torch.from_numpy(host)

    def run(
        self,
        kernel: cl.Kernel,
        size: tuple[int, ...],
        *arguments: cl.Buffer | Scalar,
        group: tuple[int, ...] | None = None,
    ) -> None:
        """Launch a kernel; Python numbers become int32 and float32."""
        typed = [
            np.int32(value) if isinstance(value, int) else np.float32(value) if isinstance(value, float) else value
            for value in arguments
        ]
        kernel(self.queue, size, group, *typed)

    def kernel(self, file: str, name: str, *defines: str) -> cl.Kernel:
        """A kernel of `kernels/FILE.cl`, compiled once for each set of definitions."""
        key = (file, name, defines)
        if key not in self._kernels:
            program = self._program(file, defines)
            self._kernels[key] = cl.Kernel(program, name)
        return self._kernels[key]

    def finish(self) -> None:
        """Wait for all that was launched."""
        self.queue.finish()

    def close(self) -> None:
        """Wait, then free what the pool and the weights hold."""
        self.finish()
        self._resident.clear()
        self._kernels.clear()
        self._programs.clear()
        self._pool.free_held()

    def _program(self, file: str, defines: tuple[str, ...]) -> cl.Program:
        if (file, defines) not in self._programs:
            source = importlib.resources.files("drivetrain_opencl").joinpath("kernels", f"{file}.cl").read_text("utf-8")
            options = [f"-DLANES={LANES}", f"-DMAX_HEAD_DIM={MAX_HEAD_DIM}", *(f"-D{define}" for define in defines)]
            self._programs[file, defines] = cl.Program(self.context, source).build(options)
        return self._programs[file, defines]
