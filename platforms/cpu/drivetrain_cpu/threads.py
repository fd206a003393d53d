"""How many threads a step computes on."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from drivetrain_plugins.host import ROOT, text_of
from drivetrain_plugins.resources import usable_cores

_log = logging.getLogger(__name__)
_BUSY = 0.5
"""Share of the machine's cores that may be busy with other programs before a step's threads wait for each other."""


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


def warn_if_busy(threads: int, *, root: Path = ROOT, cores: int | None = None) -> None:
    """Say so where other programs will hold up a step that computes on several threads.

    Args:
        root: the folder that /proc is read under.
        cores: cores of the machine, not only those of this process; None asks.
    """
    cores = cores or os.cpu_count() or 1
    words = text_of(root / "proc/loadavg").split()
    load = float(words[0]) if words else 0.0
    if threads > 1 and load > _BUSY * cores:
        _log.warning(
            "other programs keep about %.1f of %d cores busy: each of %d threads waits for the slowest at every layer; "
            "if that lasts, set threads in [backend_options.cpu] to the cores that are free",
            *(min(load, cores), cores, threads),
        )
