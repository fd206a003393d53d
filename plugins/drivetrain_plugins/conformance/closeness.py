"""How near to the truth a result must be."""

from __future__ import annotations

from typing import Any, cast

import torch

from drivetrain_plugins.conformance.check import require
from drivetrain_plugins.contract.capabilities import KVDtype

GATES: dict[KVDtype, float] = {
    "float32": 1e-5,
    "float16": 1e-3,
    "bfloat16": 5e-3,
    "fp8_e4m3": 5e-3,
    "fp8_e5m2": 5e-3,
}
"""Relative L2 distance from the truth on identical inputs, by the coarsest type on the way."""


def listed(tensor: torch.Tensor) -> list[Any]:
    """Elements as Python numbers; torch leaves the type of `tolist` open."""
    return cast("list[Any]", tensor.tolist())  # pyright: ignore[reportUnknownMemberType]


def relative_l2(got: torch.Tensor, truth: torch.Tensor, least: float = 1e-30) -> float:
    """Norm of the difference over the norm of the truth, which counts as `least` at least, in float64."""
    truth64 = truth.double()
    distance, size = ((x.square().sum().sqrt()) for x in (got.double() - truth64, truth64))
    return float(distance / size.clamp(min=max(least, 1e-30)))


def require_close(
    got: torch.Tensor,
    truth: torch.Tensor,
    gate: float,
    what: str,
    *,
    plain: torch.Tensor | None = None,
    typical: float = 0.0,
) -> None:
    """Compare a result on the host with the truth.

    Args:
        gate: largest relative L2 distance.
        plain: what plain torch makes of it in the same type; twice its distance is allowed.
        typical: size of an element. A truth that came out smaller, as sums do that cancel, counts as large as this:
            what was rounded on the way was of this size.

    Raises:
        Violation: another shape, values that are not finite, or too far away.
    """
    require(got.shape == truth.shape, f"{what}: got shape {tuple(got.shape)}, expected {tuple(truth.shape)}")
    finite = torch.isfinite(got)
    if not bool(finite.all()):
        first = tuple(listed((~finite).nonzero()[0]))
        count = int((~finite).sum())
        require(False, f"{what}: {count} of {got.numel()} elements are not finite, the first at {first}")
    least = typical * truth.numel() ** 0.5
    allowed = gate if plain is None else max(gate, 2 * relative_l2(plain, truth, least))
    distance = relative_l2(got, truth, least)
    if distance > allowed:
        worst = int((got.double() - truth.double()).abs().argmax())
        place = tuple(int(index) for index in torch.unravel_index(torch.tensor(worst), got.shape))
        require(
            False,
            f"{what}: relative L2 distance from the truth is {distance:.2e}, expected at most {allowed:.1e}; worst at "
            f"{place}: got {float(got[place]):.6g}, expected {float(truth[place]):.6g}",
        )
