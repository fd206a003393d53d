"""The entry point. Listing must stay cheap, so neither pyopencl nor torch is imported here."""

from __future__ import annotations

from drivetrain_plugins.hooks import hookimpl
from drivetrain_plugins.spec import BackendSpec


@hookimpl
def drivetrain_backends() -> list[BackendSpec]:
    """List the backend, above the processor and below the backends that are tuned to their hardware."""
    return [
        BackendSpec(
            name="opencl",
            contract=(1, 1),
            priority=20,
            probe="drivetrain_opencl.probe:probe",
            backend="drivetrain_opencl.backend:OpenclBackend",
            options="drivetrain_opencl.options:OpenclOptions",
            description="any OpenCL device, with kernels in OpenCL C",
        )
    ]
