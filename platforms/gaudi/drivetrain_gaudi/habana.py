"""Everything that is used of Habana's packages, in one place and under its types.

Nothing else imports them. What is verified against their published source, and what is only seen in use, is a table in
docs/backends/gaudi.md.
"""

# Relaxed: Habana's packages have no stubs and are not installed where types are checked.
# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false

from __future__ import annotations

import importlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch

from drivetrain_gaudi.generation import Generation, generation_of
from drivetrain_plugins.errors import BackendError


class Event(Protocol):
    """What is used of `torch.hpu.Event`."""

    def record(self) -> None: ...
    def query(self) -> bool: ...
    def synchronize(self) -> None: ...


class Stream(Protocol):
    """What is used of `torch.hpu.Stream`."""

    def wait_stream(self, stream: Any) -> None: ...


class Hpu(Protocol):
    """What is used of `torch.hpu`."""

    def synchronize(self) -> None: ...
    def mem_get_info(self) -> tuple[int, int]: ...
    def get_device_name(self) -> str: ...
    def device_count(self) -> int: ...
    def current_stream(self) -> Stream: ...
    def stream(self, stream: Stream) -> AbstractContextManager[Any]: ...
    def Event(self) -> Event: ...
    def Stream(self) -> Stream: ...


class Applied(Protocol):
    """An autograd function of Habana's, of which only `apply` is used, by position as autograd functions are called."""

    def apply(self, *arguments: Any) -> Any: ...


@dataclass(frozen=True, slots=True)
class Compilation:
    """Arguments of `torch.compile`: static shapes alone, so that a recipe is never made for a symbolic one."""

    backend: str = "hpu_backend"
    options: Mapping[str, bool] = field(default_factory=lambda: {"force_static_compile": True})


@dataclass(frozen=True, slots=True, kw_only=True)
class Habana:
    """Habana's software, loaded.

    Attributes:
        device: of every tensor.
        fused_sdpa: `FusedSDPA`, or None where this version has none.
        fused_rms_norm: `FusedRMSNorm`, likewise.
        collectives: torch's name of the backend for collectives.
    """

    device: torch.device
    hpu: Hpu
    generation: Generation
    fused_sdpa: Applied | None
    fused_rms_norm: Applied | None
    compilation: Compilation = Compilation()
    collectives: str = "hccl"


def load_habana(device: str = "hpu") -> Habana:
    """Import Habana's packages and ask for the card's generation. HLS_MODULE_ID must be set before.

    Args:
        device: what tensors are put on.

    Raises:
        BackendError: something is missing, or there is no card; the message says what and what to do.
    """
    try:
        importlib.import_module("habana_frameworks.torch.core")
        hpu: Any = importlib.import_module("habana_frameworks.torch.hpu")
        experimental: Any = importlib.import_module("habana_frameworks.torch.utils.experimental")
    except ImportError as error:
        raise BackendError(
            f"Habana's PyTorch bridge cannot be imported: {error}; `drivetrain backends` says what is missing"
        ) from error
    if not hpu.is_available():
        raise BackendError(
            "torch.hpu finds no card that this process may use; see `hl-smi`, and whether another process holds it"
        )
    kinds = experimental.synDeviceType
    members = {name: getattr(kinds, name) for name in dir(kinds) if name.startswith("synDevice")}
    return Habana(
        device=torch.device(device),
        hpu=cast("Hpu", hpu),
        generation=generation_of(experimental._get_device_type(), members),
        fused_sdpa=_optional("habana_frameworks.torch.hpex.kernels", "FusedSDPA"),
        fused_rms_norm=_optional("habana_frameworks.torch.hpex.normalization", "FusedRMSNorm"),
    )


def load_collectives() -> None:
    """Register HCCL with torch.distributed."""
    importlib.import_module("habana_frameworks.torch.distributed.hccl")


def _optional(module: str, name: str) -> Applied | None:
    try:
        return cast("Applied | None", getattr(importlib.import_module(module), name, None))
    except ImportError:
        return None


def to_fp8(x: torch.Tensor, largest: float) -> torch.Tensor:
    """e4m3, rounded to nearest; what is beyond `largest` saturates, since Gaudi 2 would make infinities of it."""
    clipped = x.clamp(-largest, largest)
    return torch.ops.hpu.cast_to_fp8_v2(clipped, None, False, False, torch.float8_e4m3fn)[0]


def from_fp8(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The numbers that e4m3 holds, in `dtype`."""
    return torch.ops.hpu.cast_from_fp8(x, None, dtype)
