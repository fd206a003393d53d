"""Whether an OpenCL device is here. Runs in a process of its own: drivers may be slow, and some crash."""

from __future__ import annotations

from drivetrain_plugins.spec import DeviceInfo, ProbeResult

INSTALL = "install the OpenCL driver of your hardware, or PoCL: pip install pocl-binary-distribution"


def probe() -> ProbeResult:
    """The devices of every OpenCL platform."""
    try:
        import pyopencl as cl
    except ImportError as error:
        return ProbeResult(
            ready=False, reason=f"pyopencl cannot be imported: {error}", next_step="pip install pyopencl"
        )
    from drivetrain_opencl.devices import opencl_devices

    try:
        devices = opencl_devices()
    except cl.Error as error:
        return ProbeResult(ready=False, reason=f"no OpenCL platform answers: {error}", next_step=INSTALL)
    if not devices:
        return ProbeResult(ready=False, reason="the OpenCL platforms here have no device", next_step=INSTALL)
    found = tuple(
        DeviceInfo(
            index=index,
            name=device.name,
            architecture=device.version,
            memory_bytes=device.global_mem_size,
            free_memory_bytes=device.global_mem_size,  # OpenCL does not say
            details={"driver": device.driver_version, "platform": device.platform.name},
        )
        for index, device in enumerate(devices)
    )
    return ProbeResult(ready=True, devices=found, details={"pyopencl": cl.VERSION_TEXT})
