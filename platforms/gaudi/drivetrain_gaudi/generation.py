"""What differs between the generations of Gaudi."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from drivetrain_plugins.errors import BackendError


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One generation.

    Attributes:
        name: as reports show it.
        device_type: member of Habana's `synDeviceType`.
        fp8_max: largest magnitude that its e4m3 units take; None without fp8. Gaudi 2 keeps the largest exponent for
            infinities, as IEEE types do, so that it ends at 240; smaller numbers have the bits of OCP's e4m3.
    """

    name: str
    device_type: str
    fp8_max: float | None


GENERATIONS = (
    Generation(name="Gaudi", device_type="synDeviceGaudi", fp8_max=None),
    Generation(name="Gaudi 2", device_type="synDeviceGaudi2", fp8_max=240.0),
    Generation(name="Gaudi 3", device_type="synDeviceGaudi3", fp8_max=448.0),
)


def generation_of(device_type: object, members: Mapping[str, object]) -> Generation:
    """The generation of what `_get_device_type()` returned.

    Args:
        members: Habana's `synDeviceType` by name; a version that is older than a generation lacks its member.

    Raises:
        BackendError: a generation that is not known here.
    """
    for generation in GENERATIONS:
        if generation.device_type in members and members[generation.device_type] == device_type:
            return generation
    known = ", ".join(generation.name for generation in GENERATIONS)
    raise BackendError(
        f"this card is of a generation that Drivetrain does not know: got device type {device_type!r}, expected one of "
        f"{known}; update Drivetrain"
    )
