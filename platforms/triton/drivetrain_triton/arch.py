"""What kernels must know of the part that they run on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuArch:
    """A graphics processor as kernels see it.

    Attributes:
        name: "sm_90", "gfx942" and so on, as `cross_compile` names it.
        num_processors: streaming multiprocessors or compute units.
        shared_bytes: most shared memory of one program.
        pdl: whether programmatic dependent launch is used.
        warp_size: threads that run in step.
    """

    name: str
    num_processors: int
    shared_bytes: int
    pdl: bool = False
    warp_size: int = 32
