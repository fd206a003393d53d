"""The entry point. Listing backends must stay cheap, so this imports nothing of the device's SDK, nor torch."""

from __future__ import annotations

from drivetrain_plugins.hooks import hookimpl
from drivetrain_plugins.spec import BackendSpec


@hookimpl
def drivetrain_backends() -> list[BackendSpec]:
    """List the backends of this package."""
    return [
        BackendSpec(
            name="acme",
            contract=(1, 1),
            priority=50,
            probe="drivetrain_acme.probe:probe",
            backend="drivetrain_acme.backend:AcmeBackend",
            options="drivetrain_acme.options:AcmeOptions",
            description="Acme devices, in plain torch",
        )
    ]
