"""The entry point of the ROCm backend. Imports nothing of the backend itself, so that listing stays cheap."""

from __future__ import annotations

from drivetrain_plugins.hooks import hookimpl
from drivetrain_plugins.spec import BackendSpec


@hookimpl
def drivetrain_backends() -> list[BackendSpec]:
    """List the ROCm backend."""
    return [
        BackendSpec(
            name="rocm",
            contract=(1, 1),
            priority=100,
            probe="drivetrain_rocm.probe:probe",
            backend="drivetrain_rocm.backend:RocmBackend",
            early="drivetrain_rocm.early:begin",
            options="drivetrain_rocm.options:RocmOptions",
            also_called=("amd", "radeon", "instinct", "hip", "gpu"),
            description="AMD GPUs (Instinct from MI200, Radeon RX 7000 and 9000) with PyTorch and Triton; compiled for "
            "these parts, run in the interpreter and on an NVIDIA GPU, never run on AMD",
            # torch's watchdog of RCCL would end the process, or hand out garbage, after a limit of its own; the
            # communicator keeps the limit instead.
            environment={"TORCH_NCCL_ASYNC_ERROR_HANDLING": "0", "TORCH_NCCL_DUMP_ON_TIMEOUT": "0"},
        )
    ]
