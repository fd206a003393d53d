"""The entry point. Listing backends must stay cheap, so this imports nothing of the device's SDK, nor torch."""

from __future__ import annotations

from drivetrain_plugins.hooks import hookimpl
from drivetrain_plugins.spec import BackendSpec


@hookimpl
def drivetrain_backends() -> list[BackendSpec]:
    """List the backends of this package."""
    return [
        BackendSpec(
            name="relic",
            contract=(1, 1),
            priority=50,
            probe="drivetrain_relic.probe:probe",
            backend="drivetrain_relic.backend:RelicBackend",
            options="drivetrain_relic.options:RelicOptions",
            description="Relic devices, in plain torch",
        )
    ]
