"""The CUDA backend keeps the contract, with graphs and without."""

from __future__ import annotations

import pytest
import torch

from drivetrain_plugins.conformance.suite import BackendConformance

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


@needs_gpu
class TestCuda(BackendConformance):
    backend = "drivetrain_cuda.backend:CudaBackend"


@needs_gpu
class TestCudaWithoutGraphs(BackendConformance):
    backend = "drivetrain_cuda.backend:CudaBackend"
    options = {"graphs": False, "batch_invariant": True}
