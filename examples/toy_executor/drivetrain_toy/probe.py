"""Whether the toy can run here: wherever numpy does."""

from __future__ import annotations

import os

from drivetrain_plugins.spec import DeviceInfo, ProbeResult


def probe() -> ProbeResult:
    """One device, with the memory of the host."""
    page, total, free = (os.sysconf(name) for name in ("SC_PAGE_SIZE", "SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
    device = DeviceInfo(
        index=0, name="numpy", architecture=os.uname().machine, memory_bytes=page * total, free_memory_bytes=page * free
    )
    return ProbeResult(ready=True, devices=(device,))
