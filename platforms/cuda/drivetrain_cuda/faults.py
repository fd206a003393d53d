"""How errors of CUDA and its libraries are told from others."""

from __future__ import annotations

from drivetrain_triton.device.faults import FaultSigns

CUDA_FAULTS = FaultSigns(
    of_the_device=("cuda", "cublas", "nccl", "triton error", "acceleratorerror"),
    out_of_memory=("out of memory", "cublas_status_alloc_failed", "cuda_error_out_of_memory"),
    advice="`nvidia-smi` and the kernel log (Xid) tell more",
)
