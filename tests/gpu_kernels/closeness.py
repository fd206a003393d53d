"""How near to a float32 truth kernels must be, on identical inputs."""

from __future__ import annotations

import torch

GATES = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 5e-3}


def relative_l2(got: torch.Tensor, truth: torch.Tensor) -> float:
    got, truth = got.detach().double().cpu(), truth.detach().double().cpu()
    return float((got - truth).norm() / truth.norm().clamp(min=1e-30))


def assert_close(got: torch.Tensor, truth: torch.Tensor, gate: float | None = None) -> None:
    """The relative L2 distance is within the gate of `got`'s type, and every element is finite."""
    assert got.shape == truth.shape
    assert torch.isfinite(got).all()
    distance = relative_l2(got, truth)
    assert distance <= (GATES[got.dtype] if gate is None else gate), distance
