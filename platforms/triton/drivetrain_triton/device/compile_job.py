"""What a process that compiles kernels is told of the model and of the GPU. Importing this imports Triton."""

# Relaxed: Triton is untyped.
# pyright: basic

from __future__ import annotations

from typing import Any

import msgspec
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from drivetrain_plugins.contract.executor import ExecutorLimits
from drivetrain_plugins.contract.model import DecoderSpec
from drivetrain_triton.arch import GpuArch


class CompileJob(msgspec.Struct, frozen=True, kw_only=True):
    """Everything by which another process lists the variants of this one and compiles them for its GPU.

    Attributes:
        spec: this rank's share of the model.
        target: the GPU as Triton's driver names it, which may be another name than the kernels' own.
    """

    spec: DecoderSpec
    limits: ExecutorLimits
    arch: GpuArch
    target: GPUTarget


def encode_job(spec: DecoderSpec, limits: ExecutorLimits, arch: GpuArch) -> bytes:
    """A job for the current device, as a line."""
    target: Any = driver.active.get_current_target()
    return msgspec.json.encode(CompileJob(spec=spec, limits=limits, arch=arch, target=target)) + b"\n"


def decode_job(line: bytes) -> CompileJob:
    """A job out of its line.

    Raises:
        msgspec.DecodeError: it is none.
    """
    return msgspec.json.decode(line, type=CompileJob)
