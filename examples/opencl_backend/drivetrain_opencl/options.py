"""The `[backend_options.opencl]` table."""

from __future__ import annotations

from typing import Annotated

import msgspec


class OpenclOptions(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What a user may set.

    Attributes:
        device: index of the device, as `drivetrain backends` lists them.
        kv_share: share of the device's memory for pages where the configuration sets no size.
    """

    device: Annotated[int, msgspec.Meta(ge=0)] = 0
    kv_share: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.25
