"""How errors of HIP and its libraries are told from others."""

from __future__ import annotations

from drivetrain_triton.device.faults import FaultSigns

HIP_FAULTS = FaultSigns(
    # ROCm builds of torch keep CUDA's names in many messages.
    of_the_device=("hip", "cuda", "rocblas", "cublas", "nccl", "triton error", "acceleratorerror"),
    out_of_memory=(
        "out of memory",
        "hiperroroutofmemory",
        "hiperrormemoryallocation",
        "hipblas_status_alloc_failed",
        "cublas_status_alloc_failed",
        "rocblas_status_memory_error",
    ),
    advice="`rocm-smi` or `amd-smi` and the kernel log (amdgpu) tell more",
)
