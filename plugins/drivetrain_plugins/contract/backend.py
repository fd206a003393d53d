"""What a backend package implements: it opens a device for a rank and hands out the parts that core drives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from drivetrain_plugins.contract.attention import PagedAttention
from drivetrain_plugins.contract.capabilities import Capabilities
from drivetrain_plugins.contract.communicator import Communicator
from drivetrain_plugins.contract.executor import Executor, ExecutorLimits, Progress
from drivetrain_plugins.contract.memory import Allocator
from drivetrain_plugins.contract.model import DecoderSpec
from drivetrain_plugins.contract.ops import Ops
from drivetrain_plugins.contract.runtime import Runtime
from drivetrain_plugins.contract.shapes import ShapePolicy
from drivetrain_plugins.errors import BackendError


@dataclass(frozen=True, slots=True, kw_only=True)
class RankInfo:
    """Which part of a parallel group this process is.

    Attributes:
        local_rank: index of the device on this host.
        init_method: where the ranks meet, e.g. "tcp://127.0.0.1:29500"; unused with one rank.
        timeout_s: limit of each collective.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    init_method: str = ""
    timeout_s: float = 600.0


class Device(ABC):
    """An opened device: the parts that core drives. All of them belong to one thread.

    One that returns an `executor` needs no other part than `capabilities`.
    """

    torch_device: torch.device
    capabilities: Capabilities
    runtime: Runtime
    allocator: Allocator
    attention: PagedAttention
    ops: Ops
    communicator: Communicator

    @abstractmethod
    def shape_policy(self, limits: ExecutorLimits) -> ShapePolicy:
        """How steps under these limits should be shaped."""

    def unsupported(self, spec: DecoderSpec, limits: ExecutorLimits) -> list[str]:
        """Reasons why this model under these limits cannot be served; empty if it can. Said before work begins."""
        return capability_gaps(self.capabilities, spec, limits)

    def compile_ahead(self, spec: DecoderSpec, limits: ExecutorLimits, progress: Progress) -> Callable[[], None]:
        """Start compiling the kernels that this model needs, in threads of the backend's own, while weights load.

        Called once, before `allocator.reserve`. `progress` is called only before this returns and while the returned
        function runs, in the thread that called it.

        Args:
            spec: this rank's share of the model.

        Returns:
            What waits until the kernels are there that plain requests need, and raises what went wrong. Called once,
            before the first step.
        """
        del spec, limits, progress
        return _nothing_to_do

    def prepare_more(self) -> bool:
        """Do a little that makes later steps faster, a second of compiling at most. Called while no step is under way.

        Returns:
            Whether there is more to do.
        """
        return False

    def classify(self, error: Exception) -> BackendError | None:
        """What an exception out of an op or a runtime call means, or None if it is a bug and not the device's state.

        Out of memory becomes `OutOfMemory` (one request fails), a dead device `DeviceLost` (the worker ends).
        """
        del error
        return None

    def executor(self) -> Executor | None:
        """The device's own executor, or None to let core drive the parts above."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Free the device."""


class Backend(ABC):
    """The object that a `BackendSpec.backend` import string leads to (a class without constructor arguments)."""

    name: str

    @abstractmethod
    def open(self, rank: RankInfo, options: Mapping[str, Any]) -> Device:
        """Open the device of one rank.

        Args:
            options: the validated `[backend_options.NAME]` table.

        Raises:
            BackendError: it cannot be opened; the message says why and what to do.
        """


def _nothing_to_do() -> None:
    """Without kernels to compile there is nothing to wait for."""


def capability_gaps(capabilities: Capabilities, spec: DecoderSpec, limits: ExecutorLimits) -> list[str]:
    """What a model needs and a device's capabilities lack, as sentences."""
    gaps: list[str] = []
    if limits.dtype not in capabilities.dtypes:
        gaps.append(f"dtype {limits.dtype} is not served here; choose from {', '.join(capabilities.dtypes)}")
    if limits.kv_dtype not in capabilities.kv_dtypes:
        gaps.append(f"KV dtype {limits.kv_dtype} is not served here; choose from {', '.join(capabilities.kv_dtypes)}")
    if limits.page_size not in capabilities.page_sizes:
        sizes = ", ".join(str(size) for size in capabilities.page_sizes)
        gaps.append(f"page size {limits.page_size} is not served here; choose from {sizes}")
    mixers = [layer.mixer for layer in spec.layers]
    needs = {
        "window": any(mixer.window is not None for mixer in mixers),
        "soft_cap": any(mixer.soft_cap is not None for mixer in mixers),
        "sinks": any(mixer.sinks for mixer in mixers),
        "alibi": any(mixer.alibi_slopes for mixer in mixers),
    }
    gaps += [
        f"{spec.architecture} needs attention with {feature}, which this device has not"
        for feature, needed in needs.items()
        if needed and feature not in capabilities.attention
    ]
    largest = max((mixer.head_dim for mixer in mixers), default=0)
    if largest > capabilities.max_head_dim:
        gaps.append(f"{spec.architecture} has heads of {largest}; this device serves up to {capabilities.max_head_dim}")
    return gaps
