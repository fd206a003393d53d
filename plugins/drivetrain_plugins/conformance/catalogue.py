"""Every check there is, in the order in which a new backend best makes them pass."""

from __future__ import annotations

from collections.abc import Collection

from drivetrain_plugins.conformance import (
    attention_checks,
    capability_checks,
    communicator_checks,
    layer_checks,
    memory_checks,
    model_checks,
    op_checks,
    runtime_checks,
    sampling_checks,
    weight_checks,
)
from drivetrain_plugins.conformance.check import LEVELS, Check, Level, checks_of

_MODULES = (
    capability_checks,
    runtime_checks,
    memory_checks,
    op_checks,
    weight_checks,
    attention_checks,
    layer_checks,
    sampling_checks,
    communicator_checks,
    model_checks,
)


def checks(levels: Collection[Level] = LEVELS) -> list[Check]:
    """The checks of these levels."""
    return [found for module in _MODULES for found in checks_of(module) if found.level in levels]
