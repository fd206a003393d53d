"""The entry point of the CUDA backend. Imports nothing of the backend itself, so that listing stays cheap."""

from __future__ import annotations

from drivetrain_plugins.hooks import hookimpl
from drivetrain_plugins.spec import BackendSpec


@hookimpl
def drivetrain_backends() -> list[BackendSpec]:
    """List the CUDA backend."""
    return [
        BackendSpec(
            name="cuda",
            contract=(1, 1),
            priority=100,
            probe="drivetrain_cuda.probe:probe",
            backend="drivetrain_cuda.backend:CudaBackend",
            early="drivetrain_cuda.early:begin",
            options="drivetrain_cuda.options:CudaOptions",
            also_called=("nvidia", "gpu"),
            description="NVIDIA GPUs from compute capability 8.0 (A100, RTX 30) on, with PyTorch and Triton",
            # torch's watchdog of NCCL would end the process, or hand out garbage, after a limit of its own; the
            # communicator keeps the limit instead.
            environment={"TORCH_NCCL_ASYNC_ERROR_HANDLING": "0", "TORCH_NCCL_DUMP_ON_TIMEOUT": "0"},
        )
    ]
