"""How many threads a step computes on."""

from __future__ import annotations

from drivetrain_cpu.probe import usable_cores


def threads_for(requested: int, local_world: int, cores: int | None = None) -> int:
    """Threads of one rank.

    Args:
        requested: the user's number, or 0 for an equal share of the cores.
        local_world: ranks on this host.
        cores: cores that this process may use; measured if None.
    """
    if requested > 0:
        return requested
    return max(1, (usable_cores() if cores is None else cores) // local_world)
