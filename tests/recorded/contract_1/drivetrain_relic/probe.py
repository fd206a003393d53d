"""Whether an Relic device is here. Runs in a child process with a time limit, so a driver may crash or hang in it."""

from __future__ import annotations

import os
import platform

from drivetrain_plugins.spec import DeviceInfo, ProbeResult


def probe() -> ProbeResult:
    """Find the devices, or say what is missing and what to do about it."""
    # Yours: import the SDK here, ask it for devices, and turn its errors into `reason` and `next_step`.
    if not hasattr(os, "sysconf"):
        return ProbeResult(
            ready=False,
            reason=f"Relic devices are not served on {platform.system()}",
            next_step="run on Linux",
        )
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    device = DeviceInfo(
        index=0,
        name="Relic One",
        architecture=platform.machine(),
        memory_bytes=page_bytes * os.sysconf("SC_PHYS_PAGES"),
        free_memory_bytes=page_bytes * os.sysconf("SC_AVPHYS_PAGES"),
    )
    return ProbeResult(ready=True, devices=(device,), details={"driver": "0.1"})
