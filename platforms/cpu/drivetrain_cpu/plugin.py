"""The entry point of the embedded CPU backend. Imports nothing of the backend itself, so that listing stays cheap."""

from __future__ import annotations

from drivetrain_plugins.hooks import hookimpl
from drivetrain_plugins.spec import BackendSpec


@hookimpl
def drivetrain_backends() -> list[BackendSpec]:
    """List the CPU backend. Its priority is the lowest there is: any accelerator that is ready goes first."""
    return [
        BackendSpec(
            name="cpu",
            contract=(1, 1),
            priority=0,
            probe="drivetrain_cpu.probe:probe",
            backend="drivetrain_cpu.backend:CpuBackend",
            options="drivetrain_cpu.options:CpuOptions",
            also_called=("processor", "host"),
            description="the processor of this machine, with PyTorch",
            # Threads meet at barriers a few hundred times a step. Spinning there for some 100 us is as fast as spinning
            # for ever (sleeping at once doubles a step), and yields the cores to others who need them.
            environment={"GOMP_SPINCOUNT": "50000"},
        )
    ]
