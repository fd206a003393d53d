"""Memory as the allocator counts it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from drivetrain_plugins.resources import available_memory_bytes, total_memory_bytes

_STATM = Path("/proc/self/statm")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostMemory:
    """Bytes: what the machine or control group has, what is free for this process, what it holds."""

    total: int
    available: int
    resident: int


def host_memory() -> HostMemory:
    """Measure now."""
    return HostMemory(total=total_memory_bytes(), available=available_memory_bytes(), resident=_resident())


def _resident() -> int:
    if _STATM.exists():
        return int(_STATM.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    import resource

    # Without /proc (macOS) only the peak is known, there in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
