"""The entry point."""

from __future__ import annotations

from drivetrain_plugins.hooks import hookimpl
from drivetrain_plugins.spec import BackendSpec


@hookimpl
def drivetrain_backends() -> list[BackendSpec]:
    """List the toy, below every other backend: it serves only where it is asked for."""
    return [
        BackendSpec(
            name="toy",
            contract=(1, 1),
            priority=-100,
            probe="drivetrain_toy.probe:probe",
            backend="drivetrain_toy.backend:ToyBackend",
            description="numpy, one step at a time: an executor to learn from",
        )
    ]
