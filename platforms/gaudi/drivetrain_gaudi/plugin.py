"""The entry point of the Gaudi backend. Imports nothing of the backend itself, so that listing stays cheap."""

from __future__ import annotations

from drivetrain_plugins.hooks import hookimpl
from drivetrain_plugins.spec import BackendSpec


@hookimpl
def drivetrain_backends() -> list[BackendSpec]:
    """List the Gaudi backend."""
    return [
        BackendSpec(
            name="gaudi",
            contract=(1, 1),
            priority=100,
            probe="drivetrain_gaudi.probe:probe",
            backend="drivetrain_gaudi.backend:GaudiBackend",
            options="drivetrain_gaudi.options:GaudiOptions",
            also_called=("intel", "habana", "hpu"),
            description="Intel Gaudi cards, with compiled graphs (contract-tested, never run on Gaudi)",
            # Read when Habana's libraries are loaded. 0 is eager mode with compiled graphs; lazy mode is legacy.
            environment={"PT_HPU_LAZY_MODE": "0"},
        )
    ]
