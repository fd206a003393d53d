"""The CUDA backend: opens one NVIDIA GPU for a rank."""

# Relaxed: torch's stubs leave switches and handles half typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import msgspec
import torch

from drivetrain_cuda.driver import device_uuid
from drivetrain_cuda.nvml import used_before_opening
from drivetrain_cuda.options import CudaOptions
from drivetrain_plugins.contract.backend import Backend, RankInfo
from drivetrain_plugins.errors import BackendError

if TYPE_CHECKING:
    from drivetrain_cuda.device import CudaDevice


class CudaBackend(Backend):
    """Serves on NVIDIA GPUs."""

    name = "cuda"

    def open(self, rank: RankInfo, options: Mapping[str, Any]) -> CudaDevice:
        try:
            settings = msgspec.convert(dict(options), CudaOptions)
        except msgspec.ValidationError as error:
            known = ", ".join(CudaOptions.__struct_fields__)
            raise BackendError(f"backend_options.cuda: {error}; the keys are {known}") from error
        # The driver makes a context, and a C compiler Triton's own module, without Python's lock; the kernels are
        # imported meanwhile.
        with ThreadPoolExecutor(2, "open") as pool:
            context = pool.submit(_make_context, rank.local_rank)
            # Two threads that import Triton at once make one of them fail; so it is imported here.
            from drivetrain_triton.launch import hash_compiler, load_driver

            driver = pool.submit(load_driver)
            # Not waited for: who needs it before it is done does it too.
            threading.Thread(target=hash_compiler, name="hash compiler").start()
            from drivetrain_cuda.device import CudaDevice

            try:
                others = context.result()
                driver.result()
                torch.cuda.set_device(rank.local_rank)
                set_precision()
                return CudaDevice(rank, settings, others=others)
            except (RuntimeError, AssertionError) as error:  # torch asserts where it finds no CUDA
                raise BackendError(
                    f"GPU {rank.local_rank} cannot be opened: {error}; `drivetrain backends` and `nvidia-smi` say what "
                    "stands in the way"
                ) from error


def _make_context(ordinal: int) -> int:
    """Open the GPU and cuBLAS for this process; returns the bytes that others used before."""
    others = used_before_opening(device_uuid(ordinal))
    torch.cuda.set_device(ordinal)
    torch.cuda.current_blas_handle()
    return others


def set_precision() -> None:
    """Products are as exact as their types: fp32 without TF32, and sums of 16-bit products in fp32 throughout.

    Where cuBLAS splits a product among processors it may else round the partial sums to 16 bits, and whether it splits
    depends on the number of rows: a token's logits would come out coarser in some steps than in others.
    """
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
