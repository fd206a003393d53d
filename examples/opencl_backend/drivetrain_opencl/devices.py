"""Which OpenCL devices there are."""

from __future__ import annotations

import pyopencl as cl


def opencl_devices() -> list[cl.Device]:
    """Devices of every platform, in the order of the platforms.

    Raises:
        cl.Error: no platform is installed, or one of them failed.
    """
    return [device for platform in cl.get_platforms() for device in platform.get_devices()]
