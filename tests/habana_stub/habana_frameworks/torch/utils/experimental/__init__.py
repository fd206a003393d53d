"""`habana_frameworks.torch.utils.experimental`: which generation the card is."""

from __future__ import annotations

import enum

from habana_frameworks.torch import hpu_state


class synDeviceType(enum.Enum):
    synDeviceGaudi = 2
    synDeviceGaudi2 = 4
    synDeviceGaudi3 = 5


def _get_device_type() -> synDeviceType:
    return synDeviceType[hpu_state.device_type]
